"""A masked language model beside the contrastive loss, so that training does not forget words.

Gao et al. 2021, SimCSE, arXiv:2104.08821, section 3.1 and appendix (its `do_mlm`); Devlin et al. 2019, BERT,
arXiv:1810.04805, section 3.1.    Axes: B items, V views, R rows of L tokens, K tokens to guess, D hidden size.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModelForMaskedLM, PreTrainedTokenizerBase
from transformers.modeling_utils import PreTrainedModel

from .auxiliary import Auxiliary
from .backbones import load_whole
from .embedding import EmbedsSentences
from .errors import ModelError
from .masking import IGNORED, choose_tokens, mask_tokens
from .prediction_head import PredictionHead
from .running_means import RunningMeans
from .similarity import at_least_float32
from .token_passes import TokenBatch, TokenPass, encode_tokens, mean_over_processes, sum_over_passes, token_passes

logger = logging.getLogger(__name__)


class MaskableVocabulary(nn.Module):
    """Which tokens may be masked, and what stands in their place: of a tokenizer, on the device of the model.

    Attributes:
        mask_token_id: Of [MASK].
        is_special: (vocabulary size of the model,) bool: special tokens, and ids that no token has.
        replacements: All other ids.
    """

    is_special: Tensor
    replacements: Tensor

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocabulary: int):
        """Read a tokenizer.

        Args:
            tokenizer: With a [MASK].
            vocabulary: How many ids the model knows.

        Raises:
            ModelError: There is no [MASK], or nothing but special tokens.
        """
        super().__init__()
        if tokenizer.mask_token_id is None:
            raise ModelError(
                "this tokenizer has no mask token, and tokens are to be masked. Use an encoder that was pretrained as a masked "
                "language model, with its tokenizer."
            )
        self.mask_token_id = tokenizer.mask_token_id
        special = set(tokenizer.all_special_ids)
        ordinary = sorted(index for index in tokenizer.get_vocab().values() if index not in special)
        if not ordinary:
            raise ModelError(
                "every token of this tokenizer is a special one. Use the tokenizer saved beside the model."
            )
        if ordinary[-1] >= vocabulary:
            raise ModelError(
                f"the tokenizer has a token {ordinary[-1]:,} but the model embeds {vocabulary:,}: they do not belong together. "
                "Use the tokenizer saved beside the model."
            )
        is_special = torch.ones(vocabulary, dtype=torch.bool)
        is_special[ordinary] = False
        self.register_buffer("is_special", is_special, persistent=False)
        self.register_buffer("replacements", torch.tensor(ordinary), persistent=False)

    def maskable(self, batch: TokenBatch) -> Tensor:
        """(R, L) bool: the real tokens that are not special."""
        return batch.real & ~self.is_special[batch.input_ids]


class MaskedLanguageModel(Auxiliary):
    """Guess masked tokens of the sentences in a second pass through the encoder.

    All views of all items are masked anew at every step. The loss is the mean cross-entropy over the chosen tokens of all
    processes.
    """

    def __init__(
        self,
        head: PredictionHead,
        tokenizer: PreTrainedTokenizerBase,
        vocabulary: int,
        *,
        weight: float,
        probability: float,
    ):
        """Connect the parts; see `from_pretrained`.

        Args:
            head: For vectors of the encoder.
            tokenizer: Of the encoder.
            vocabulary: How many tokens the encoder embeds.
            weight: Of the loss.
            probability: Of a token to be guessed.

        Raises:
            ModelError: A tokenizer without [MASK].
        """
        super().__init__(weight)
        self.head = head
        self.vocabulary = MaskableVocabulary(tokenizer, vocabulary)
        self.probability = probability

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        encoder: EmbedsSentences,
        tokenizer: PreTrainedTokenizerBase,
        *,
        weight: float = 0.1,
        probability: float = 0.15,
        trust_remote_code: bool = False,
        **hub_kwargs,
    ) -> MaskedLanguageModel:
        """With the head that was pretrained with the encoder, where the checkpoint still has it.

        Args:
            name: Folder or Hub id of the checkpoint the encoder came from.
            encoder: The model to train.
            tokenizer: Its tokenizer.
            weight: Of the loss.
            probability: Of a token to be guessed.
            trust_remote_code: Run code from the model repository.
            hub_kwargs: `revision`, `cache_dir`, `token`.

        Raises:
            ModelError: An encoder that is no masked language model, or weights that do not fit it.
        """
        model = load_masked_lm(name, encoder.backbone, trust_remote_code=trust_remote_code, **hub_kwargs)
        vocabulary = encoder.backbone.config.vocab_size
        return cls(PredictionHead(model), tokenizer, vocabulary, weight=weight, probability=probability)

    def forward(
        self, encoder: EmbedsSentences, inputs: Mapping[str, Tensor], embeddings: Tensor, means: RunningMeans
    ) -> Tensor:
        """The mean cross-entropy over the masked tokens; 0 where none was chosen.    See `Auxiliary`."""
        batch = TokenBatch.of(inputs)
        chosen = choose_tokens(~self.vocabulary.maskable(batch), self.probability)
        masked, labels = mask_tokens(
            batch.input_ids,
            chosen,
            mask_token_id=self.vocabulary.mask_token_id,
            replacements=self.vocabulary.replacements,
        )
        passes = token_passes(
            batch.with_ids(masked),
            {"labels": labels},
            cache_tokens=encoder.gradient_cache_tokens if encoder.caches_gradients else None,
            embeddings=encoder.backbone.get_input_embeddings(),
        )
        total, correct, count = sum_over_passes(
            lambda piece: self._sums(encoder, piece), ((piece,) for piece in passes), encoder
        )
        means.add("mlm_loss", total, count)
        means.add("mlm_accuracy", correct, count)
        return mean_over_processes(total, count)

    def _sums(self, encoder: EmbedsSentences, piece: TokenPass) -> Tensor:
        """(3,): cross-entropy, right guesses, guesses."""
        vectors, tokens = encode_tokens(encoder.backbone, piece, compiled=encoder.compiled)
        chosen = tokens["labels"] != IGNORED
        labels = tokens["labels"][chosen]  # (K,)
        logits = at_least_float32(self.head(vectors[chosen], encoder.backbone))  # the vocabulary for chosen tokens only
        correct = (logits.argmax(dim=-1) == labels).sum()
        total = F.cross_entropy(logits, labels, reduction="sum")
        return torch.stack([total, correct.to(total.dtype), chosen.sum().to(total.dtype)])


def load_masked_lm(
    name: str, backbone: PreTrainedModel, *, trust_remote_code: bool = False, **hub_kwargs
) -> PreTrainedModel:
    """The masked language model of an encoder's architecture, with the pretrained head or a fresh one.

    Args:
        name: Folder or Hub id of the checkpoint the encoder came from.
        backbone: The encoder.
        trust_remote_code: Run code from the model repository.
        hub_kwargs: `revision`, `cache_dir`, `token`.

    Raises:
        ModelError: The architecture has no masked-LM class, or weights that do not fit.
    """
    config = copy.deepcopy(backbone.config)
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"transformers has no masked language model for a '{config.model_type}' encoder. Train without the masked-LM loss, or "
            "use BERT, RoBERTa, XLM-R, ELECTRA, DistilBERT, DeBERTa or ModernBERT."
        )
    model, report = load_whole(
        AutoModelForMaskedLM.from_pretrained,
        name,
        may_lack="",  # what is missing is judged below; the encoder is not used
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",
        trust_remote_code=trust_remote_code,
        **hub_kwargs,
    )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(f"{model.base_model_prefix}."))
    if missing:
        logger.warning(
            "%s has no pretrained masked-LM head (%s is not there); it starts from random numbers.", name, missing[0]
        )
    return model
