"""Korean sentence embeddings with SimCSE on Hugging Face Trainer."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel

from .configuration_simcse import SimCSEConfig
from .modeling_simcse import SimCSEModel

__version__ = "0.1.0"

AutoConfig.register(SimCSEConfig.model_type, SimCSEConfig)
AutoModel.register(SimCSEConfig, SimCSEModel)
SimCSEConfig.register_for_auto_class()
SimCSEModel.register_for_auto_class("AutoModel")
