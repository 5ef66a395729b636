"""A masked language model with the vocabulary of an encoder that has lost its own: a generator for DiffCSE.

    SIMCSE_DATA_DIR=../shared/data python scripts/pretraining/generator.py ../shared/models/ko-e5-mini --output runs/generator

It starts from the encoder's weights and tied word embeddings, and learns on everyday Korean text for some minutes. The
folder then holds the model, its tokenizer, and `training.json` (loss curve, accuracy on sentences kept apart, hardware).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from corpus import collect, everyday_sources
from masked_lm import Masking, PackedMaskedLM, RowsCollator, Sentences
from pretrain import Clock, training_record, write_encoder
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, Trainer, TrainingArguments, set_seed

from simcse_hf.files import write_json
from simcse_hf.masking import IGNORED
from simcse_hf.passes import row_layout
from simcse_hf.sentence_store import SentenceStore

MASK_RATE = 0.3
MAX_LENGTH = 64
KEPT_APART = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", help="a BERT encoder and its tokenizer")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch_sentences", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()

    args = TrainingArguments(
        output_dir=str(options.output / "run"),
        max_steps=options.steps,
        learning_rate=options.learning_rate,
        warmup_steps=0.05,
        per_device_train_batch_size=options.batch_sentences,
        dataloader_drop_last=True,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        seed=options.seed,
        use_cpu=not torch.cuda.is_available(),
    )
    set_seed(options.seed)
    corpus = collect(Path(os.environ.get("SIMCSE_DATA_DIR", "../shared/data")), everyday_sources())
    tokenizer = AutoTokenizer.from_pretrained(options.encoder)
    order = torch.randperm(len(corpus.sentences), generator=torch.Generator().manual_seed(options.seed)).tolist()
    apart, learnt = order[:KEPT_APART], order[KEPT_APART:]
    stores = [
        SentenceStore.build([corpus.sentences[index] for index in part], tokenizer, max_length=MAX_LENGTH)
        for part in (learnt, apart)
    ]
    config = BertConfig.from_pretrained(options.encoder)
    model = PackedMaskedLM(config, Masking(tokenizer, rate=MASK_RATE))
    started = BertForMaskedLM.from_pretrained(options.encoder, dtype=torch.float32)
    model.load_state_dict(started.state_dict(), strict=False)  # the masking has no weights
    model.tie_weights()
    collator = RowsCollator(tokenizer.pad_token_id, row_layout(args.device, compiled=False))
    trainer = Trainer(
        model=model, args=args, train_dataset=Sentences(stores[0]), data_collator=collator, callbacks=[Clock()]
    )
    trainer.train()
    trained = BertForMaskedLM(config)
    trained.load_state_dict(model.state_dict())
    record = {
        "text": corpus.sources,
        "batch_sentences": options.batch_sentences,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "mask_rate": MASK_RATE,
        "kept_apart": {"sentences": KEPT_APART, "accuracy": accuracy(trained.eval(), model.masking, stores[1], args)},
        **training_record(trainer),
    }
    write_encoder(trained, tokenizer, options.output)
    write_json(options.output / "training.json", record)
    print(f"accuracy {record['kept_apart']['accuracy']:.3f}, {record['seconds'] / 60:.0f} minutes: {options.output}")


@torch.no_grad()
def accuracy(model: BertForMaskedLM, masking: Masking, store: SentenceStore, args: TrainingArguments) -> float:
    """Share of the masked tokens that the model guesses, one sentence at a time."""
    torch.manual_seed(args.seed)
    right = guessed = 0
    for index in range(len(store)):
        ids = torch.from_numpy(store[index].astype("int64")).unsqueeze(0)
        masked, labels = masking(ids)
        where = labels != IGNORED
        right += int((model(input_ids=masked).logits.argmax(-1)[where] == labels[where]).sum())
        guessed += int(where.sum())
    return right / guessed


if __name__ == "__main__":
    main()
