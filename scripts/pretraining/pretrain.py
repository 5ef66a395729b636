"""Pretrain a small Korean encoder from text alone: corpus, tokenizer, masked language model.

    SIMCSE_DATA_DIR=../shared/data python scripts/pretraining/pretrain.py --output runs/pretraining

One process with a thread for each core, or, faster on a CPU, one process for each core:

    OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc_per_node 2 \
        scripts/pretraining/pretrain.py --output runs/pretraining

Interrupted, the same command goes on from the last checkpoint. The settings are those of `recipe.json`; any of them
can be given on the command line (`--layers 4`). The folder then holds `tokenizer/`, `corpus.json` (what was read, and
what was left out), `checkpoint-*/`, and at the end `encoder/` and `training.json` (recipe, loss curve, hardware).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from corpus import Corpus, collect
from masked_lm import Masking, PackedMaskedLM, RowsCollator, Sentences
from tokenizer import fertility, starts_word, train_tokenizer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import get_last_checkpoint

from simcse_hf.errors import ConfigError
from simcse_hf.files import staged_folder, write_json
from simcse_hf.passes import row_layout
from simcse_hf.sentence_store import SentenceStore
from simcse_hf.versions import package_versions

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, but for the arithmetic of the machine.

    Attributes:
        tokenizer: One of `tokenizer.KINDS`.
        vocab_size: Tokens, special ones and bytes included.
        layers: Of the encoder.
        hidden_size: Of token vectors.
        heads: Of attention.
        feed_forward: Inner size of the feed-forward layers.
        max_length: Positions of the encoder; longer sentences are cut.
        mask_rate: Share of tokens to guess.
        whole_words: Whether the pieces of a word are masked together.
        dropout: While pretraining. The encoder that comes out has BERT's 0.1, which SimCSE needs.
        reviews: How many of the 659 thousand film reviews to read; None for all.
        batch_sentences: Of all processes together.
        steps: Of the optimiser.
        learning_rate: The highest.
        warmup: Share of steps in which the learning rate rises; it then falls to 0.
        schedule: `linear` or `cosine`.
        weight_decay: AdamW's.
        seed: Of weights, masks and order.
    """

    tokenizer: str
    vocab_size: int
    layers: int
    hidden_size: int
    heads: int
    feed_forward: int
    max_length: int
    mask_rate: float
    whole_words: bool
    dropout: float
    reviews: int | None
    batch_sentences: int
    steps: int
    learning_rate: float
    warmup: float
    schedule: str
    weight_decay: float
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for everything; goes on with what is there")
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe.json")
    parser.add_argument("--save_steps", type=int, default=500, help="steps that an interruption may cost")
    for field in fields(Recipe):
        parser.add_argument(f"--{field.name}", type=json.loads if field.name != "tokenizer" else str)
    arguments = vars(parser.parse_args())
    settings = json.loads(arguments["recipe"].read_text(encoding="utf-8"))
    settings |= {field.name: arguments[field.name] for field in fields(Recipe) if arguments[field.name] is not None}
    pretrain(Recipe(**settings), arguments["output"], save_steps=arguments["save_steps"])


def pretrain(recipe: Recipe, output: Path, *, save_steps: int) -> None:
    """Make `output/encoder`, going on from what an earlier run left in `output`."""
    data_dir = Path(os.environ.get("SIMCSE_DATA_DIR", "../shared/data"))
    args = TrainingArguments(
        output_dir=str(output),
        max_steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup,
        lr_scheduler_type=recipe.schedule,
        weight_decay=recipe.weight_decay,
        adam_beta2=0.98,
        dataloader_drop_last=True,
        logging_steps=100,
        save_steps=save_steps,
        save_total_limit=2,
        restore_callback_states_from_checkpoint=True,
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        seed=recipe.seed,
        use_cpu=not torch.cuda.is_available(),
    )
    args.per_device_train_batch_size, rest = divmod(recipe.batch_sentences, args.world_size)
    if rest:
        raise ConfigError(f"batch_sentences {recipe.batch_sentences} cannot be shared by {args.world_size} processes.")
    with args.main_process_first(desc="corpus and tokenizer"):
        _start(recipe, output)
        corpus = collect(data_dir, reviews=recipe.reviews)
        tokenizer = _tokenizer(recipe, corpus, output)
    store = SentenceStore.build(
        corpus.sentences, tokenizer, max_length=recipe.max_length, show_progress=args.process_index == 0
    )
    set_seed(recipe.seed)
    masking = Masking(
        tokenizer, rate=recipe.mask_rate, starts_word=starts_word(tokenizer) if recipe.whole_words else None
    )
    model = PackedMaskedLM(encoder_config(recipe, tokenizer), masking)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=Sentences(store),
        data_collator=RowsCollator(tokenizer.pad_token_id, row_layout(args.device, compiled=False)),
        callbacks=[Clock()],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)))
    if not trainer.is_world_process_zero():
        return
    trained = BertForMaskedLM(model.config)
    trained.load_state_dict(model.state_dict())
    write_encoder(trained, tokenizer, output / "encoder")
    record = {
        "recipe": asdict(recipe),
        "parameters": model.num_parameters(),
        "tokens_per_epoch": len(store.tokens),
        **training_record(trainer),
    }
    write_json(output / "training.json", record)
    print(f"{record['parameters']:,} parameters, {record['seconds'] / 60:.0f} minutes: {output / 'encoder'}")


def training_record(trainer: Trainer) -> dict:
    """How a training went, and on what: steps, epochs, loss curve, seconds, processes, threads, hardware, versions."""
    (clock,) = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Clock)]
    device = trainer.args.device
    return {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch, 3),
        "loss_curve": [
            {"step": entry["step"], "loss": float(entry["loss"])}
            for entry in trainer.state.log_history
            if "loss" in entry
        ],
        "seconds": round(clock.seconds),
        "processes": trainer.args.world_size,
        "threads": torch.get_num_threads(),
        "hardware": f"CPU ({platform.machine()})" if device.type == "cpu" else torch.cuda.get_device_name(device),
        "versions": package_versions(),
    }


def encoder_config(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> BertConfig:
    """Of the encoder while it is pretrained."""
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=recipe.feed_forward,
        max_position_embeddings=recipe.max_length,
        hidden_dropout_prob=recipe.dropout,
        attention_probs_dropout_prob=recipe.dropout,
        pad_token_id=tokenizer.pad_token_id,
    )


def write_encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """In half precision and with BERT's dropout, as transformers loads it; whole or not at all."""
    model = model.half()
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = BertConfig().hidden_dropout_prob
    with staged_folder(folder) as stage:
        model.save_pretrained(stage)
        tokenizer.save_pretrained(stage)


def _start(recipe: Recipe, output: Path) -> None:
    """Claim the folder for a recipe.

    Raises:
        ConfigError: It holds a run of another.
    """
    path = output / "recipe.json"
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name, value in asdict(recipe).items() if stored.get(name) != value]
        if differing:
            raise ConfigError(
                f"{output} holds a run with other settings ({', '.join(differing)}). Name another --output."
            )
    else:
        output.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(recipe))


def _tokenizer(recipe: Recipe, corpus: Corpus, output: Path) -> PreTrainedTokenizerBase:
    folder = output / "tokenizer"
    if not folder.exists():
        tokenizer = train_tokenizer(corpus.sentences, recipe.tokenizer, recipe.vocab_size, max_length=recipe.max_length)
        with staged_folder(folder) as stage:
            tokenizer.save_pretrained(stage)
        description = {"sources": corpus.sources, "kept_out": corpus.kept_out, "sentences": len(corpus.sentences)}
        write_json(output / "corpus.json", description | fertility(tokenizer, corpus.sentences))
    return AutoTokenizer.from_pretrained(folder)


class Clock(TrainerCallback, ExportableState):
    """Seconds of training, those before an interruption included."""

    def __init__(self):
        self.seconds = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self._began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds += time.perf_counter() - self._began

    def state(self) -> dict:
        return {"args": {}, "attributes": {"seconds": self.seconds}}


if __name__ == "__main__":
    main()
