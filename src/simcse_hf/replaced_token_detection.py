"""DiffCSE (Chuang et al. 2022, arXiv:2204.10298, section 3): which tokens of a sentence were replaced, told from its vector.

Axes: B items, V views, N = B*V sentences, R rows of L tokens, P tokens of a pass, D hidden size.

A generator guesses masked tokens; a discriminator, given the sentence embedding of the original in the place of [CLS], says
which guesses were wrong. To help it, the embedding must hold what distinguishes the sentence from an edited one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_utils import PreTrainedModel

from .attention import packs
from .auxiliary import Auxiliary
from .corruption import (
    LEGACY_DIFFCSE,
    LEGACY_KODIFFCSE,
    OURS,
    DiffCSESettings,
    finish_corruption,
    mask_for_generator,
)
from .embedding import EmbedsSentences
from .errors import ModelError
from .generator import Generator
from .masked_lm import MaskableVocabulary
from .replaced_tokens import (
    KEPT,
    REPLACED,
    replaced_labels,
    replaced_token_counts,
    replaced_token_loss,
)
from .running_means import RunningMeans
from .token_passes import TokenBatch, TokenPass, encode_tokens, mean_over_processes, sum_over_passes, token_passes

# By the name that arguments use.
VARIANTS = {"ours": OURS, "legacy_diffcse": LEGACY_DIFFCSE, "legacy_kodiffcse": LEGACY_KODIFFCSE}


class ReplacedTokenDetection(Auxiliary):
    """DiffCSE's second loss: cross-entropy over all real tokens, of all views and processes.

    Its gradient flows through the sentence embeddings into the encoder. The discriminator is a trained copy of the
    encoder; the generator is frozen and belongs to no checkpoint.
    """

    def __init__(
        self,
        generator: Generator,
        encoder: EmbedsSentences,
        tokenizer: PreTrainedTokenizerBase,
        *,
        weight: float,
        masking_ratio: float,
        settings: DiffCSESettings = OURS,
        max_seq_length: int,
    ):
        """Copy the encoder; see `from_pretrained`.

        Args:
            generator: With the encoder's vocabulary.
            encoder: The model to train, as pretrained.
            tokenizer: Of the encoder.
            weight: Lambda.
            masking_ratio: Share of tokens that the generator guesses.
            settings: Ours, or what published code did.
            max_seq_length: The longest sentence in tokens.

        Raises:
            ModelError: A tokenizer without [MASK], or an encoder whose first embedding cannot be replaced by its
                sentence embedding.
        """
        super().__init__(weight)
        backbone = encoder.backbone
        hidden_size = backbone.config.hidden_size
        size = encoder.config.head_size or hidden_size
        if size != hidden_size:
            raise ModelError(
                f"head_size is {size}, but DiffCSE puts sentence embeddings in the place of token embeddings of {hidden_size} "
                "components. Leave head_size out."
            )
        self.discriminator = copy.deepcopy(backbone).requires_grad_(True)
        if getattr(self.discriminator, "pooler", None) is not None:
            self.discriminator.pooler = None
        _check_embedding_layer(self.discriminator, tokenizer)
        self.head = nn.Linear(hidden_size, 2).to(backbone.device)
        self.vocabulary = MaskableVocabulary(tokenizer, backbone.config.vocab_size)
        self.settings = settings
        self.masking_ratio = masking_ratio
        self.max_seq_length = max_seq_length
        self.pad_token_id = tokenizer.pad_token_id
        self.separator_id = tokenizer.sep_token_id
        if settings.separator_as_mask and self.separator_id is None:
            raise ModelError("this tokenizer has no [SEP] to mask with. Use another diffcse_variant.")
        self.generator = generator
        self.packs = generator.packs and packs(backbone.config) and not settings.needs_padding

    @classmethod
    def from_pretrained(
        cls,
        generator_name: str,
        encoder: EmbedsSentences,
        tokenizer: PreTrainedTokenizerBase,
        *,
        weight: float = 0.005,
        masking_ratio: float = 0.30,
        settings: DiffCSESettings = OURS,
        max_seq_length: int,
        trust_remote_code: bool = False,
        **hub_kwargs,
    ) -> ReplacedTokenDetection:
        """With a pretrained generator.

        Args:
            generator_name: Folder or Hub id of a masked language model with the encoder's vocabulary.
            encoder: The model to train, as pretrained.
            tokenizer: Of the encoder.
            weight: Lambda.
            masking_ratio: Share of tokens that the generator guesses.
            settings: Ours, or what published code did.
            max_seq_length: The longest sentence in tokens.
            trust_remote_code: Run code from the model repository.
            hub_kwargs: `revision`, `cache_dir`, `token`.

        Raises:
            ModelError: A generator that cannot be used, see `Generator.from_pretrained`, or an encoder, see above.
        """
        generator = Generator.from_pretrained(
            generator_name,
            tokenizer,
            max_seq_length=max_seq_length,
            dropout=settings.generator_dropout,
            trust_remote_code=trust_remote_code,
            **hub_kwargs,
        )
        return cls(
            generator,
            encoder,
            tokenizer,
            weight=weight,
            masking_ratio=masking_ratio,
            settings=settings,
            max_seq_length=max_seq_length,
        )

    def forward(
        self, encoder: EmbedsSentences, inputs: Mapping[str, Tensor], embeddings: Tensor, means: RunningMeans
    ) -> Tensor:
        """The mean cross-entropy over real tokens.    See `Auxiliary`.

        Raises:
            ValueError: Packed rows where `packs` is false.
        """
        batch = TokenBatch.of(self._padded(inputs) if self.settings.pad_to_max_length else inputs)
        if batch.packed and not self.packs:
            raise ValueError("this generator, encoder or DiffCSE variant does not take packed rows. Pad the batch.")
        cache_tokens = encoder.gradient_cache_tokens if encoder.caches_gradients else None
        corrupted = self.corrupt(batch, inputs.get("sentence_ids"), cache_tokens=cache_tokens)
        real = batch.real
        counted = torch.ones_like(real) if self.settings.count_padding else real
        passes = token_passes(
            batch.with_ids(corrupted),
            {"labels": replaced_labels(batch.input_ids, corrupted, real), "counted": counted, "view": batch.view_of},
            cache_tokens=cache_tokens,
            embeddings=self.discriminator.get_input_embeddings(),
            whole_rows=self.settings.count_padding,
        )
        vectors = embeddings.flatten(0, 1)  # (N, D)
        sums = sum_over_passes(
            lambda piece, own: self._sums(piece, own, batch.views),
            ((piece, vectors[piece.sentences]) for piece in passes),
            encoder,
        )
        totals, numbers, counts = sums.split([batch.views, batch.views, 4])
        _log(means, totals.sum(), numbers.sum(), counts.detach().view(2, 2))
        if self.settings.sum_of_views:
            return mean_over_processes(totals, numbers).sum()
        return mean_over_processes(totals.sum(), numbers.sum())

    def corrupt(
        self, batch: TokenBatch, sentence_ids: Tensor | None = None, *, cache_tokens: int | None = None
    ) -> Tensor:
        """The sentences with the generator's guesses in the place of some of their tokens, (R, L).

        Args:
            batch: The original.
            sentence_ids: (B, V), for static masks.
            cache_tokens: With gradient caching, the tokens of a pass.
        """
        masked, where = mask_for_generator(
            batch,
            self.vocabulary.maskable(batch),
            sentence_ids,
            ratio=self.masking_ratio,
            settings=self.settings,
            mask_token_id=self.vocabulary.mask_token_id,
            separator_id=self.separator_id,
            replacements=self.vocabulary.replacements,
        )
        guessed = self.generator.guess(batch, masked, where, cache_tokens=cache_tokens)
        model_type = self.discriminator.config.model_type
        return finish_corruption(guessed, batch, settings=self.settings, model_type=model_type)

    def _sums(self, piece: TokenPass, vectors: Tensor, views: int) -> Tensor:
        """(2V + 4,) of a pass and its sentences' vectors (n, D).

        For each view the loss and its tokens, then the counts of `replaced_token_counts`.
        """
        with first_embeddings(self.discriminator, piece.starts, vectors):
            hidden, tokens = encode_tokens(self.discriminator, piece)
        logits, labels, counted = self.head(hidden), tokens["labels"], tokens["counted"]
        of_view = [replaced_token_loss(logits, labels, counted & (tokens["view"] == view)) for view in range(views)]
        totals = torch.stack([total for total, _ in of_view])
        numbers = torch.stack([number for _, number in of_view])
        counts = replaced_token_counts(logits, labels, counted).flatten()
        return torch.cat([totals, numbers.to(totals.dtype), counts.to(totals.dtype)])

    def _padded(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        input_ids = inputs["input_ids"]
        more = (0, max(0, self.max_seq_length - input_ids.shape[-1]))
        mask = inputs.get("attention_mask")
        rows = {"attention_mask": torch.ones_like(input_ids) if mask is None else mask}
        if inputs.get("token_type_ids") is not None:
            rows["token_type_ids"] = inputs["token_type_ids"]
        padded = {name: F.pad(tensor, more) for name, tensor in rows.items()}
        return {"input_ids": F.pad(input_ids, more, value=self.pad_token_id), **padded}

    def _apply(self, fn, recurse=True):
        self.generator.apply(fn)
        return super()._apply(fn, recurse)


@contextmanager
def first_embeddings(backbone: PreTrainedModel, starts: Tensor, vectors: Tensor) -> Iterator[None]:
    """Within, each sentence's first token is embedded as the vector it is given.

    What is replaced is the output of the embedding layer, norm and dropout included.

    Args:
        backbone: See `embedding_layer`.
        starts: (n,) positions of the sentences in the flattened rows.
        vectors: (n, D)
    """

    def replaced(module: nn.Module, arguments: tuple, output: Tensor) -> Tensor:
        return output.flatten(0, 1).index_copy(0, starts, vectors.to(output.dtype)).view_as(output)

    handle = embedding_layer(backbone).register_forward_hook(replaced)
    try:
        yield
    finally:
        handle.remove()


def embedding_layer(backbone: PreTrainedModel) -> nn.Module | None:
    """The module whose output is the first layer's input; ELECTRA widens its embeddings behind them."""
    layer = getattr(backbone, "embeddings_project", None) or getattr(backbone, "embeddings", None)
    return layer if isinstance(layer, nn.Module) else None


@torch.no_grad()
def _check_embedding_layer(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse an encoder whose embedding layer is not found, or is of another size than its vectors.

    Raises:
        ModelError: Names the architecture.
    """
    layer, found = embedding_layer(backbone), []
    if layer is not None:
        handle = layer.register_forward_hook(lambda module, arguments, output: found.append(output))
        try:
            ids = torch.tensor([tokenizer("가")["input_ids"]], device=backbone.device)
            backbone(input_ids=ids, attention_mask=torch.ones_like(ids))
        finally:
            handle.remove()
    size = backbone.config.hidden_size
    if not (found and isinstance(found[0], Tensor) and found[0].dim() == 3 and found[0].shape[-1] == size):
        raise ModelError(
            f"DiffCSE conditions the discriminator through its embedding layer, and a '{backbone.config.model_type}' encoder has "
            f"none of {size} components that it finds. Use BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT, DeBERTa or ModernBERT."
        )


def _log(means: RunningMeans, total: Tensor, number: Tensor, counts: Tensor) -> None:
    """Counts (2, 2) of `replaced_token_counts`."""
    correct, of_class = counts[:, 0], counts[:, 1]
    means.add("rtd_loss", total, number)
    means.add("rtd_accuracy", correct.sum(), of_class.sum())
    means.add("rtd_accuracy_replaced", correct[REPLACED], of_class[REPLACED])
    means.add("rtd_accuracy_kept", correct[KEPT], of_class[KEPT])
    means.add("replaced_share", of_class[REPLACED], of_class.sum())
