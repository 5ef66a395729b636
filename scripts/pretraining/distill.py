"""The second stage: the pretrained encoder is taught by a large sentence encoder.

    SIMCSE_DATA_DIR=../shared/data SIMCSE_MODELS_DIR=../shared/models \
        python scripts/pretraining/distill.py --student runs/pretraining/encoder --output runs/distillation

The student's mean-pooled vector is to point where the teacher's does, after the teacher's vectors are centred and turned
onto as many axes as the student has (PCA); so the student needs no layer of its own for it. As in Reimers and Gurevych
2020 (arXiv:2004.09813), with a cosine in place of the squared distance. No labels, and no sentence of an evaluation set.

The teacher's vectors are kept in `--output`; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from corpus import collect, everyday_sources
from pretrain import Clock, training_record, write_encoder
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from simcse_hf.collators import ViewsCollator
from simcse_hf.encoder import SentenceEncoder
from simcse_hf.errors import ConfigError
from simcse_hf.files import replacing, write_json
from simcse_hf.modeling_simcse import SimCSEModel, SimCSEOutput
from simcse_hf.sentence_store import SentenceStore
from simcse_hf.tokenization import load_tokenizer


class Student(SimCSEModel):
    """Learns directions: the loss is one minus the cosine between its vectors and the targets."""

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        sentence_starts: Tensor,
        sentence_lengths: Tensor,
        targets: Tensor,
        sentence_ids: Tensor | None = None,
    ) -> SimCSEOutput:
        """Packed rows (R, L) of B sentences and their targets (B, D)."""
        vectors = self.embed_rows(input_ids, position_ids, sentence_starts, sentence_lengths)[:, 0]  # (B, D)
        return SimCSEOutput(loss=1 - F.cosine_similarity(vectors, targets).mean(), embeddings=vectors)


class Lessons(Dataset):
    """Sentences with the vectors that their teacher gives them."""

    def __init__(self, store: SentenceStore, targets: np.ndarray):
        self.store = store
        self.targets = targets

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict:
        return {
            "views": [self.store[index]],
            "sentence_ids": np.array([index]),
            "target": self.targets[index],
        }


class LessonsCollator(ViewsCollator):
    """Packed sentences with their targets."""

    def __call__(self, items: Sequence[dict]) -> dict[str, Tensor]:
        """As `ViewsCollator`, and `targets` (B, D) float32."""
        targets = np.stack([item["target"] for item in items]).astype(np.float32)
        return super().__call__(items) | {"targets": torch.from_numpy(targets)}


def principal_axes(vectors: np.ndarray, dimensions: int) -> np.ndarray:
    """Unit vectors (N, E) centred and seen along their `dimensions` directions of most variance: (N, D), float32."""
    centred = vectors.astype(np.float32) - vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    covariance = centred.T.astype(np.float64) @ centred.astype(np.float64) / len(centred)
    _, axes = np.linalg.eigh(covariance)  # ascending
    return centred @ axes[:, ::-1][:, :dimensions].astype(np.float32)


def teacher_vectors(teacher: Path, sentences: list[str], path: Path, *, prompt: str) -> np.ndarray:
    """(N, E) unit vectors, float16; from `path` if they are there.

    Raises:
        ConfigError: `path` holds those of other sentences.
    """
    if not path.exists():
        encoder = SentenceEncoder.from_pretrained(str(teacher), pooler_type="avg", prompt=prompt, max_seq_length=128)
        vectors = encoder.encode(sentences, normalize=True, show_progress=True)
        with replacing(path) as file:
            np.save(file, vectors.astype(np.float16))
    vectors = np.load(path)
    if len(vectors) != len(sentences):
        raise ConfigError(
            f"{path} holds {len(vectors):,} vectors, but there are {len(sentences):,} sentences. Name another --output."
        )
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", type=Path, required=True, help="folder `encoder` of pretrain.py")
    parser.add_argument("--output", type=Path, required=True, help="folder for everything; goes on with what is there")
    parser.add_argument("--teacher", default="ko-e5-small", help="folder below SIMCSE_MODELS_DIR")
    parser.add_argument("--prompt", default="query: ", help="of the teacher")
    parser.add_argument("--sentences", type=int, default=200_000, help="evenly from the everyday text of the corpus")
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--batch_sentences", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=42)
    distill(**vars(parser.parse_args()))


def distill(
    *,
    student: Path,
    output: Path,
    teacher: str,
    prompt: str,
    sentences: int,
    epochs: float,
    batch_sentences: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Make `output/encoder`; the parameters are the options of the command line."""
    settings = {name: value for name, value in locals().items() if name not in ("student", "output")}
    output.mkdir(parents=True, exist_ok=True)
    texts = collect(Path(os.environ.get("SIMCSE_DATA_DIR", "../shared/data")), everyday_sources()).sentences
    texts = [texts[position] for position in np.linspace(0, len(texts) - 1, min(sentences, len(texts))).astype(int)]
    teacher_folder = Path(os.environ.get("SIMCSE_MODELS_DIR", "../shared/models")) / teacher
    vectors = teacher_vectors(teacher_folder, texts, output / "teacher.npy", prompt=prompt)

    set_seed(seed)
    tokenizer = load_tokenizer(str(student))
    model = Student.from_backbone(
        str(student), pooler_type="avg", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_sentences,
            learning_rate=learning_rate,
            warmup_steps=0.05,
            lr_scheduler_type="cosine",
            weight_decay=0.01,
            logging_steps=50,
            save_steps=500,
            save_total_limit=2,
            report_to="none",
            remove_unused_columns=False,
            restore_callback_states_from_checkpoint=True,
            seed=seed,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Lessons(
            SentenceStore.build(texts, tokenizer, max_length=tokenizer.model_max_length, show_progress=True),
            principal_axes(vectors, model.config.text_config.hidden_size),
        ),
        data_collator=LessonsCollator(tokenizer.pad_token_id, model.row_layout()),
        callbacks=[Clock()],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)))
    write_encoder(model.backbone, tokenizer, output / "encoder")
    record = {
        "settings": settings,
        "parameters": model.backbone.num_parameters(),
        "sentences": len(texts),
        **training_record(trainer),
    }
    write_json(output / "distillation.json", record)
    print(f"{output / 'encoder'} after {record['seconds'] / 60:.0f} minutes")


if __name__ == "__main__":
    main()
