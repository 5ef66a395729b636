"""A model whose float32 weights FSDP2 or DeepSpeed has spread over processes, put together again."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .distributed import is_in_parts, whole_tensor
from .modeling_simcse import SimCSEModel


def shard_layer_by_layer(model: SimCSEModel) -> None:
    """Name the modules that accelerate shards one by one: the encoder's layers, whatever their class is called.

    transformers names none for some encoders. For others it also names the module around the lookup of tokens, which
    accelerate shards by itself, and FSDP2 fails where it meets the lookup a second time.
    """
    layers = [
        module
        for module in model.backbone.modules()
        if isinstance(module, nn.ModuleList) and len(module) == model.config.text_config.num_hidden_layers
    ]
    model._no_split_modules = sorted({type(layer).__name__ for each in layers for layer in each})


def is_sharded(model: SimCSEModel) -> bool:
    """Whether processes hold parts of the weights, or of what they were rounded from."""
    return any(is_in_parts(parameter) for parameter in model.parameters())


def whole_model(model: SimCSEModel) -> SimCSEModel:
    """The model if it is whole, else an encoder with its weights, for evaluation and release.

    All processes must call this together, and each gets all weights, in float32, on its own device. What only training
    needs (auxiliary objectives, a classifier) is not in the copy, which is in evaluation mode.

    Args:
        model: Whole, or sharded by FSDP2, or in the low precision of DeepSpeed.
    """
    if not is_sharded(model):
        return model
    config = copy.deepcopy(model.config)
    config.text_config._attn_implementation = model.backbone.config._attn_implementation
    with torch.random.fork_rng(devices=[]):  # or dropout would depend on how often a set was scored
        whole = SimCSEModel(config).to(model.device, torch.float32)
    wanted = whole.state_dict()
    tensors = model.state_dict() | dict(model.named_parameters())
    whole.load_state_dict({name: whole_tensor(tensors[name]).detach() for name in wanted})
    return whole.eval()


def keep_own_name(model: SimCSEModel) -> None:
    """Let a sharded model be saved as what it is: FSDP2 makes a class of its own of it, whose code would be stored."""
    if is_sharded(model):
        own, sharded = SimCSEModel, type(model)
        sharded.__name__, sharded.__module__ = own.__name__, own.__module__
