"""Masked language modelling over packed rows: the model's loss, and the batches it takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerBase
from transformers.modeling_outputs import MaskedLMOutput

from simcse_hf.attention import enable_packing
from simcse_hf.embedding import encode_rows
from simcse_hf.masking import IGNORED, choose_tokens, mask_tokens
from simcse_hf.packing import RowLayout, packed_rows
from simcse_hf.passes import row_passes, rows_per_pass
from simcse_hf.sentence_store import SentenceStore


class Masking(nn.Module):
    """Fresh masks for packed rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, rate: float, starts_word: Sequence[bool] | None = None):
        """Choose how to mask.

        Args:
            tokenizer: Its special tokens, [UNK] excepted, are neither masked nor put in the place of others.
            rate: Share of tokens to guess.
            starts_word: For each id whether it begins a word, to mask whole words; None for single tokens.
        """
        super().__init__()
        self.rate = rate
        self.mask_token_id = tokenizer.mask_token_id
        special = torch.zeros(len(tokenizer), dtype=torch.bool)
        special[[token for token in tokenizer.all_special_ids if token != tokenizer.unk_token_id]] = True
        self.register_buffer("is_special", special, persistent=False)
        self.register_buffer("replacements", (~special).nonzero().squeeze(1), persistent=False)
        begins = None if starts_word is None else torch.tensor(starts_word)
        self.register_buffer("starts_word", begins, persistent=False)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Ids with masks, and labels, of ids (R, L)."""
        begins = None if self.starts_word is None else self.starts_word[input_ids]
        chosen = choose_tokens(self.is_special[input_ids], self.rate, begins)
        return mask_tokens(input_ids, chosen, mask_token_id=self.mask_token_id, replacements=self.replacements)


class PackedMaskedLM(BertForMaskedLM):
    """BERT with its masked-LM head, the head computed for the chosen tokens only.

    Masks are drawn here and not while batches are put together: a loader is a batch ahead, so that a run that goes on
    from a checkpoint would draw others.
    """

    accepts_loss_kwargs = False  # the loss is a mean over the batch

    def __init__(self, config: BertConfig, masking: Masking | None = None):
        super().__init__(config)
        self.masking = masking
        enable_packing(self.bert)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        sentence_starts: Tensor,
        sentence_lengths: Tensor,
        labels: Tensor | None = None,
    ) -> MaskedLMOutput:
        """Mean cross-entropy over the chosen tokens of packed rows (R, L); see `packing.packed_rows`.

        With `labels` the rows are masked already, without they are masked here.
        """
        if labels is None:
            input_ids, labels = self.masking(input_ids)
        order = sentence_starts.argsort()
        rows = {"input_ids": input_ids, "position_ids": position_ids}
        per_pass = rows_per_pass(input_ids, None)
        passes = row_passes(rows, sentence_starts[order], sentence_lengths[order], per_pass)
        chosen, guessed = [], []
        # Behind the last sentence nothing is computed and nothing is to be guessed.
        for pass_labels, (inputs, starts, lengths) in zip(labels.split(per_pass), passes, strict=True):
            (vectors,) = encode_rows(self.bert, inputs, starts, lengths)  # (P, D)
            where = (pass_labels.flatten() != IGNORED).nonzero().squeeze(1)
            guessed.append(vectors[where])
            chosen.append(pass_labels.flatten()[where])
        logits = self.cls(torch.cat(guessed))  # (M, vocabulary)
        return MaskedLMOutput(loss=F.cross_entropy(logits.float(), torch.cat(chosen)))


class RowsCollator:
    """Lays sentences end to end in rows."""

    def __init__(self, pad_token_id: int, layout: RowLayout):
        self.pad_token_id = pad_token_id
        self.layout = layout

    def __call__(self, items: Sequence[dict]) -> dict[str, Tensor]:
        """Items of `Sentences` -> `input_ids`, `position_ids` (R, L), `sentence_starts`, `sentence_lengths` (N,)."""
        return packed_rows([item["input_ids"] for item in items], self.layout, self.pad_token_id)


class Sentences(Dataset):
    """Token ids of sentences as items of a dataset."""

    def __init__(self, store: SentenceStore):
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self.store[index]}
