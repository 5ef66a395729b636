"""The masked language model that guesses what DiffCSE masks.    Axes: R rows of L tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModelForMaskedLM, PreTrainedTokenizerBase
from transformers.modeling_utils import PreTrainedModel

from .attention import enable_packing, packs
from .backbones import load_config, load_whole, position_limit
from .errors import ModelError
from .prediction_head import PredictionHead
from .token_passes import TokenBatch, encode_tokens, token_passes
from .tokenization import load_tokenizer

logger = logging.getLogger(__name__)


class Generator:
    """A masked language model that is never trained.

    No `nn.Module`, so that the model that holds it neither trains nor stores it, and has no say in its mode; `apply`
    lets it follow that model to another device or dtype.

    Attributes:
        packs: Whether it takes packed rows.
    """

    def __init__(self, model: PreTrainedModel, *, tokens: int, pad_token_id: int, dropout: bool = False):
        """Freeze a model.

        Args:
            model: Of a class of `AutoModelForMaskedLM`.
            tokens: Of the vocabulary; ids from here on belong to no token and are never guessed.
            pad_token_id: Never guessed either: RoBERTa counts positions by what is not padding.
            dropout: Guess with dropout.
        """
        self._backbone = getattr(model, model.base_model_prefix, None)  # before its head is taken from it
        self._head = PredictionHead(model)
        for part in (self._backbone, self._head):
            part.requires_grad_(False).train(dropout)
        enable_packing(self._backbone)
        self._tokens, self._pad_token_id = tokens, pad_token_id
        self.packs = packs(self._backbone.config)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_seq_length: int,
        dropout: bool = False,
        trust_remote_code: bool = False,
        **hub_kwargs,
    ) -> Generator:
        """Load a generator that shares the encoder's vocabulary.

        Args:
            name: Folder or Hub id of any masked language model.
            tokenizer: Of the encoder.
            max_seq_length: The longest sentence in tokens.
            dropout: Guess with dropout.
            trust_remote_code: Run code from the model repository.
            hub_kwargs: `revision`, `cache_dir`, `token`.

        Raises:
            ModelError: No masked language model, another vocabulary, too few positions, or weights that are missing.
        """
        config = load_config(name, trust_remote_code=trust_remote_code, **hub_kwargs)
        is_known = type(config) in MODEL_FOR_MASKED_LM_MAPPING or trust_remote_code
        if not is_known or getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"the generator '{name}' is a '{config.model_type}' model, of which transformers has no masked language model. "
                "Use a small BERT, RoBERTa or ELECTRA generator with the encoder's vocabulary."
            )
        _check_vocabulary(name, tokenizer, config.vocab_size, trust_remote_code=trust_remote_code, **hub_kwargs)
        limit = position_limit(config)
        if limit is not None and max_seq_length > limit:
            raise ModelError(
                f"max_seq_length is {max_seq_length}, but the generator '{name}' has positions for {limit} tokens. Use {limit} "
                "or less, or another generator."
            )
        model, _ = load_whole(
            AutoModelForMaskedLM.from_pretrained,
            name,
            config=config,
            dtype=torch.float32,
            trust_remote_code=trust_remote_code,
            **hub_kwargs,
        )
        return cls(model, tokens=len(tokenizer), pad_token_id=tokenizer.pad_token_id, dropout=dropout)

    @torch.no_grad()
    def guess(self, batch: TokenBatch, masked: Tensor, where: Tensor, *, cache_tokens: int | None = None) -> Tensor:
        """The most likely token in each place; never padding.

        Args:
            batch: The original.
            masked: (R, L) ids that the generator sees.
            where: (R, L) bool, the places.
            cache_tokens: With gradient caching, the tokens of a pass.

        Returns:
            (R, L): the guesses, and the original ids in all other places.
        """
        # The two architectures may differ in what else they take.
        known = {name: tensor for name, tensor in batch.inputs.items() if name != "token_type_ids"}
        positions = torch.arange(masked.numel(), device=masked.device).view_as(masked)
        guessed = batch.input_ids.flatten().clone()
        for piece in token_passes(
            replace(batch, input_ids=masked, inputs=known),
            {"where": where, "positions": positions},
            cache_tokens=cache_tokens,
        ):
            vectors, tokens = encode_tokens(self._backbone, piece)
            logits = self._head(vectors[tokens["where"]], self._backbone)[:, : self._tokens]
            logits[:, self._pad_token_id] = float("-inf")
            guessed[tokens["positions"][tokens["where"]]] = logits.argmax(dim=-1)
        return guessed.view_as(masked)

    def apply(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change every tensor, as `nn.Module.to` does."""
        for part in (self._backbone, self._head):
            part._apply(change)


def _check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, embedded: int, **options) -> None:
    """Refuse a generator whose ids mean other tokens than the encoder's.

    Raises:
        ModelError: Names the first difference.
    """
    cure = "A generator must share the encoder's vocabulary, as klue/roberta-small does with klue/roberta-base."
    if len(tokenizer) > embedded:
        raise ModelError(
            f"the encoder's tokenizer knows {len(tokenizer):,} tokens but the generator '{name}' embeds {embedded:,}. {cure}"
        )
    try:
        theirs = {index: token for token, index in load_tokenizer(name, **options).get_vocab().items()}
    except ModelError:
        logger.warning("the generator '%s' has no tokenizer, so only the number of its tokens was compared.", name)
        return
    ours = {index: token for token, index in tokenizer.get_vocab().items()}
    for index in sorted(ours.keys() | theirs.keys()):
        if ours.get(index) != theirs.get(index):
            raise ModelError(
                f"the generator '{name}' has another vocabulary than the encoder: token {index} is {theirs.get(index)!r} there "
                f"and {ours.get(index)!r} here. {cure}"
            )
