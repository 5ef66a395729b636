"""`SentenceEncoder`: sentences in, vectors out, by the rule the model was trained with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from .backbones import load_config
from .collators import pad
from .configuration_simcse import SimCSEConfig
from .errors import ModelError
from .modeling_simcse import SimCSEModel
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
        batch_size: int = 64,
        normalize: bool | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Sentence vectors, in the order of `sentences`.

        Equal sentences are computed once, and batches are formed by length.

        Args:
            sentences: N sentences, or one. Text is normalised as in training.
            batch_size: Sentences in one pass.
            normalize: Scale to unit length; default: as the model folder says.
            show_progress: Draw a progress bar.

        Returns:
            (N, D) float32, or (D,) for one sentence given as a string.

        Raises:
            ValueError: `batch_size` below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        if isinstance(sentences, str):
            return self.encode([sentences], batch_size=batch_size, normalize=normalize)[0]
        distinct, rows = index_rows([[normalize_text(sentence)] for sentence in sentences])
        config = self.model.config
        store = SentenceStore.build(distinct, self.tokenizer, max_length=config.max_seq_length, prompt=config.prompt)
        vectors = np.empty((len(store), config.text_config.hidden_size), dtype=np.float32)
        order = np.argsort(-store.lengths, kind="stable")  # longest first: memory trouble shows at once
        with tqdm(total=len(order), desc="Encoding", unit="sentences", disable=not show_progress) as progress:
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                input_ids, mask = pad([store[index] for index in chosen], self.tokenizer.pad_token_id)
                embedded, _ = self.model.embed(input_ids.to(self.model.device), mask.to(self.model.device))
                vectors[chosen] = embedded.float().cpu().numpy()
                progress.update(len(chosen))
        if self.normalize if normalize is None else normalize:
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-12)
        return vectors[rows.reshape(-1)]

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
