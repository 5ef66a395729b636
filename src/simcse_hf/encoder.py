"""`SentenceEncoder`: sentences in, vectors out, by the rule the model was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .backbones import load_config
from .collators import pad
from .configuration_simcse import SimCSEConfig
from .distributed import rank, sum_over_processes, world_size
from .errors import DataError, ModelError
from .modeling_simcse import SimCSEModel
from .packing import packed_rows
from .sentence_store import SentenceStore, index_rows
from .sentence_transformers_layout import read_layout
from .similarity import cosine_matrix
from .text import normalize_text
from .tokenization import check_tokenizer, load_tokenizer


class SentenceEncoder:
    """A model in evaluation mode with its tokenizer.

    Attributes:
        model: In evaluation mode.
        tokenizer: Of the same folder.
        normalize: Whether `encode` scales vectors to unit length unless told otherwise.
    """

    def __init__(
        self,
        model: SimCSEModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        normalize: bool = False,
        device: str | torch.device | None = None,
    ):
        config = model.config
        check_tokenizer(tokenizer, config.text_config, config.max_seq_length, reads_cls=config.reads_cls)
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.to(device).eval()
        self.tokenizer = tokenizer
        self.normalize = normalize

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        pooler_type: str | None = None,
        prompt: str | None = None,
        max_seq_length: int | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        trust_remote_code: bool = False,
        **hub_kwargs,
    ) -> SentenceEncoder:
        """Load our checkpoint, our release, a sentence-transformers folder, or a plain encoder.

        Args:
            name_or_path: Local folder or Hub id.
            pooler_type: How to pool a plain encoder. A folder that says how it pools is
                believed, whatever is given here.
            prompt: Overrides the model's own.
            max_seq_length: In tokens; overrides the model's own.
            device: Default: a GPU if there is one.
            dtype: Of weights and arithmetic.
            trust_remote_code: Run code from the model repository.
            hub_kwargs: `revision`, `cache_dir`, `token`.

        Raises:
            ModelError: Not a model, or a plain encoder without `pooler_type`.
        """
        name, normalize = str(name_or_path), False
        found = load_config(name, trust_remote_code=trust_remote_code, **hub_kwargs)
        if found.model_type == SimCSEConfig.model_type:
            model = SimCSEModel.from_pretrained(name, dtype=dtype, **hub_kwargs)
        elif layout := read_layout(name, **hub_kwargs):
            model = SimCSEModel.from_layout(
                name, layout, dtype=dtype, trust_remote_code=trust_remote_code, hub_kwargs=hub_kwargs
            )
            normalize = layout.normalize
        elif pooler_type is None:
            raise ModelError(
                f"{name} is a plain '{found.model_type}' encoder and does not say how to pool its tokens. "
                "Give a pooler_type: cls_before_pooler, avg, avg_top2, avg_first_last or max."
            )
        elif pooler_type == "cls":
            raise ModelError(
                f"pooler_type cls passes [CLS] through SimCSE's trained head, and the plain encoder {name} has none. "
                "Use cls_before_pooler for the bare [CLS] vector."
            )
        else:
            model = SimCSEModel.from_backbone(
                name, pooler_type=pooler_type, trust_remote_code=trust_remote_code, hub_kwargs=hub_kwargs
            ).to(dtype)
        if prompt is not None:
            model.config.prompt = prompt
        if max_seq_length is not None:
            model.config.max_seq_length = max_seq_length
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code, **hub_kwargs)
        return cls(model, tokenizer, normalize=normalize, device=device)

    @torch.inference_mode()
    def encode(
        self,
        sentences: str | Sequence[str],
        *,
        batch_tokens: int = 16_384,
        normalize: bool | None = None,
        show_progress: bool = False,
        across_processes: bool = False,
    ) -> np.ndarray:
        """Sentence vectors, in the order of `sentences`.

        Equal sentences are computed once, and batches are formed by length: packed where the encoder can be, else
        with little padding.

        Args:
            sentences: N sentences, or one. Text is normalised as in training.
            batch_tokens: Tokens in one batch, padding included.
            normalize: Scale to unit length; default: as the model folder says.
            show_progress: Draw a progress bar.
            across_processes: Under `accelerate launch` or torchrun, every process computes its share and gets all
                vectors. All processes must call this with the same sentences.

        Returns:
            (N, D) float32, or (D,) for one sentence given as a string.

        Raises:
            DataError: A sentence without tokens, where the tokenizer adds none of its own.
            ValueError: `batch_tokens` below 1.
        """
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1.")
        if isinstance(sentences, str):
            options = {"batch_tokens": batch_tokens, "normalize": normalize, "across_processes": across_processes}
            return self.encode([sentences], **options)[0]
        distinct, rows = index_rows([[normalize_text(sentence)] for sentence in sentences])
        config = self.model.config
        store = SentenceStore.build(distinct, self.tokenizer, max_length=config.max_seq_length, prompt=config.prompt)
        if not store.lengths.all():
            raise DataError(
                f"the sentence {distinct[int(store.lengths.argmin())]!r} has no tokens, and this tokenizer adds none, so there is "
                "nothing to make a vector of. Leave it out."
            )
        order = np.argsort(-store.lengths, kind="stable")  # longest first: memory trouble shows at once
        if across_processes:
            order = order[rank() :: world_size()]
        vectors = np.zeros((len(store), config.text_config.hidden_size), dtype=np.float32)
        with tqdm(total=len(order), desc="Encoding", unit="sentences", disable=not show_progress) as progress:
            for chosen in _batches(order, store.lengths[order], batch_tokens):
                vectors[chosen] = self._embed([store[index] for index in chosen]).float().cpu().numpy()
                progress.update(len(chosen))
        if across_processes:
            # Every sentence was computed by one process, and is zero on the others.
            vectors = sum_over_processes(torch.from_numpy(vectors).to(self.model.device)).cpu().numpy()
        if self.normalize if normalize is None else normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
        return vectors[rows.reshape(-1)]

    def _embed(self, sentences: Sequence[np.ndarray]) -> Tensor:
        """(N, D) of N sentences, longest first."""
        model, layout = self.model, self.model.row_layout()
        if layout is not None:
            batch = packed_rows(sentences, layout, self.tokenizer.pad_token_id)
            return model.embed_rows(**{name: tensor.to(model.device) for name, tensor in batch.items()})
        input_ids, mask = pad(sentences, self.tokenizer.pad_token_id)
        return model.embed(input_ids.to(model.device), mask.to(model.device))[0]

    def similarity(self, left: str | Sequence[str], right: str | Sequence[str]) -> np.ndarray:
        """Cosine of every sentence of `left` with every sentence of `right`.

        Returns:
            (L, R) float32; a single string counts as one sentence.
        """
        sides = [[side] if isinstance(side, str) else side for side in (left, right)]
        left_vectors, right_vectors = (torch.from_numpy(self.encode(side)) for side in sides)
        return cosine_matrix(left_vectors, right_vectors).numpy()

    def describe(self) -> dict:
        """What belongs next to every score of this encoder."""
        config = self.model.config
        return {
            "backbone": config.text_config.model_type,
            "pooler_type": config.pooler_type,
            "head_at_inference": config.head_at_inference,
            "prompt": config.prompt,
            "max_seq_length": config.max_seq_length,
            "normalize": self.normalize,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "hidden_size": config.text_config.hidden_size,
        }


def _batches(order: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Cut sentences, longest first, so that a batch padded to its longest has at most so many tokens, or one sentence."""
    start = 0
    while start < len(order):
        end = start + max(1, batch_tokens // int(lengths[start]))
        yield order[start:end]
        start = end
