"""Build the tiny encoder of `src/simcse_hf/sample/encoder` from the sample text alone.

The tokenizer is a Unigram model with byte fallback, so no text is unknown to it. The weights are
random: nothing is pretrained here.

    python scripts/build_sample_encoder.py
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, set_seed

from simcse_hf.sample import SAMPLES

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=SAMPLES["encoder"])
    parser.add_argument("--vocab_size", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=42)
    arguments = parser.parse_args()
    tokenizer = train_tokenizer(sample_text(), arguments.vocab_size)
    set_seed(arguments.seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        # BERT's 0.02 is meant for large hidden sizes and long training; at 128 it drowns in LayerNorm noise.
        initializer_range=0.05,
    )
    model = BertModel(config, add_pooling_layer=False).to(torch.float16)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {len(tokenizer):,} tokens")


def sample_text() -> list[str]:
    """Sentences and triplets; the scored pairs are the evaluation set and stay out."""
    sentences = SAMPLES["sentences"].read_text(encoding="utf-8").splitlines()
    with SAMPLES["triplets"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    return sentences + [sentence for row in rows for sentence in row]


def train_tokenizer(sentences: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    trained = Tokenizer(models.Unigram())
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=vocab_size - len(BYTES), special_tokens=SPECIAL, unk_token="[UNK]")
    trained.train_from_iterator(sentences, trainer)

    pieces = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]]
    lowest = min(score for _, score in pieces)
    pieces += [(byte, lowest - 10) for byte in BYTES]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("[UNK]"), byte_fallback=True))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", SPECIAL.index("[CLS]")), ("[SEP]", SPECIAL.index("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=128,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


if __name__ == "__main__":
    main()
