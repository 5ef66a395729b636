"""The part of a masked language model that turns a token's vector into a guess.    Axes: K tokens, D hidden size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel

from .cpu_kernels import cpu_kernels
from .errors import ModelError


class PredictionHead(nn.Module):
    """The head of any masked-LM class of transformers, over vectors of an encoder that lives elsewhere.

    The class's own forward is called, with a stand-in for its encoder that hands on the vectors it is given. Weights that
    the class ties are no parameters here: they are looked up in the encoder at every call. So they can come apart by
    nothing, and are stored once, which safetensors insists on.
    """

    def __init__(self, model: PreTrainedModel):
        """Take the head of a masked language model, which is then of no other use.

        Args:
            model: Of a class of `AutoModelForMaskedLM`.

        Raises:
            ModelError: Its encoder is not where its class says.
        """
        super().__init__()
        self._prefix = model.base_model_prefix
        if not isinstance(getattr(model, self._prefix, None), nn.Module):
            raise ModelError(
                f"a {type(model).__name__} has no '{self._prefix}', so its head cannot be told from its encoder; use another."
            )
        backbone = getattr(model, self._prefix)
        self._tied = dict(model.get_expanded_tied_weights_keys(all_submodels=False))
        for name in self._tied:
            module, _, parameter = name.rpartition(".")
            setattr(model.get_submodule(module), parameter, None)
        # Else transformers would look for the ties in the model that holds this one.
        model._tied_weights_keys, model.all_tied_weights_keys = {}, {}
        setattr(model, self._prefix, _HandsOn())
        self.model = model
        self._freeze_unused(backbone)

    def forward(self, vectors: Tensor, backbone: PreTrainedModel) -> Tensor:
        """Logits of every token of the vocabulary.

        Args:
            vectors: (K, D) of the encoder's last layer; K may be 0.
            backbone: The encoder, for the weights they share.

        Returns:
            (K, vocabulary size)
        """
        getattr(self.model, self._prefix).show_parts_of(backbone)
        shared = {name: self._source(source, backbone) for name, source in self._tied.items()}
        with cpu_kernels(vectors.device):
            return functional_call(self.model, shared, kwargs={"inputs_embeds": vectors.unsqueeze(0)}).logits[0]

    def _source(self, name: str, backbone: PreTrainedModel) -> Tensor:
        prefix, _, rest = name.partition(".")
        return backbone.get_parameter(rest) if prefix == self._prefix else self.model.get_parameter(name)

    def _freeze_unused(self, backbone: PreTrainedModel) -> None:
        """No gradient for what the forward pass does not read, such as BERT's second bias where nothing is tied.

        DDP would wait for it.
        """
        parameters = list(self.parameters())
        with torch.enable_grad():
            logits = self(parameters[0].new_zeros(1, backbone.config.hidden_size), backbone)
            found = torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.requires_grad_(gradient is not None)


class _HandsOn(nn.Module):
    """In the place of an encoder: its output is its input."""

    def show_parts_of(self, backbone: PreTrainedModel) -> None:
        """Let the head find the encoder's modules here, as some look up the embeddings; they do not become its own."""
        self.__dict__.update(backbone.named_children())

    def forward(self, *unused, inputs_embeds: Tensor, **options) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=inputs_embeds)
