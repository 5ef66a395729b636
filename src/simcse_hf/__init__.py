"""Korean sentence embeddings with SimCSE on Hugging Face Trainer."""

from __future__ import annotations

from transformers import AutoConfig as _AutoConfig
from transformers import AutoModel as _AutoModel

from .arguments import DataArguments, ModelArguments, SimCSETrainingArguments
from .configuration_simcse import SimCSEConfig
from .corpora import ScoredPairs
from .encoder import SentenceEncoder
from .errors import SimCSEError
from .evaluation import STSResult, evaluate_sts
from .losses import contrastive_logits, duplicate_mask, simcse_loss
from .metrics import sts_correlations
from .modeling_simcse import SimCSEModel
from .sentence_store import ViewsDataset
from .sts_metric import STSCorrelations
from .sts_tasks import load_sts
from .train import train as train_simcse
from .trainer import SimCSETrainer

__version__ = "0.5.0"

__all__ = [
    "DataArguments",
    "ModelArguments",
    "STSCorrelations",
    "STSResult",
    "ScoredPairs",
    "SentenceEncoder",
    "SimCSEConfig",
    "SimCSEError",
    "SimCSEModel",
    "SimCSETrainer",
    "SimCSETrainingArguments",
    "ViewsDataset",
    "contrastive_logits",
    "duplicate_mask",
    "evaluate_sts",
    "load_sts",
    "simcse_loss",
    "sts_correlations",
    "train_simcse",
]

_AutoConfig.register(SimCSEConfig.model_type, SimCSEConfig)
_AutoModel.register(SimCSEConfig, SimCSEModel)
SimCSEConfig.register_for_auto_class()
SimCSEModel.register_for_auto_class("AutoModel")
