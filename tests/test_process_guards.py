"""Processes that would not train what one trains are refused; what real ones say is in test_launch and test_distributed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from conftest import BACKBONES, SENTENCES

from simcse_hf import SimCSEConfig, SimCSEModel, SimCSETrainer, SimCSETrainingArguments, ViewsDataset
from simcse_hf.collators import ViewsCollator
from simcse_hf.distributed import whole_tensor
from simcse_hf.errors import TrainingError
from simcse_hf.process_guards import check_launch, check_sharding
from simcse_hf.sharded_weights import is_sharded, keep_own_name, shard_layer_by_layer, whole_model

LAUNCH_VARIABLES = (
    "WORLD_SIZE",
    "RANK",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "ACCELERATE_MIXED_PRECISION",
    "ACCELERATE_USE_FSDP",
)


WITHOUT_EVALUATION = {"eval_strategy": "no", "load_best_model_at_end": False}


@pytest.fixture
def arguments(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., SimCSETrainingArguments]:
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return lambda **given: SimCSETrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, None),
        ({"ACCELERATE_MIXED_PRECISION": "no"}, None),  # accelerate launch, one process
        ({"MASTER_ADDR": "127.0.0.1"}, None),  # nothing to do with accelerate
        ({"WORLD_SIZE": "1", "LOCAL_RANK": "0"}, None),
        ({"WORLD_SIZE": "2"}, "2 processes were started, and each would train alone"),
        (
            {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"},
            "asked for several processes and started one",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "0"}, None),
    ],
)
def test_processes_that_do_not_know_of_each_other_are_refused(arguments, monkeypatch, environment, message):
    args = arguments()
    args.distributed_state  # noqa: B018  made before the variables are set: it would wait for the other process
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if message is None:
        check_launch(args)
        return
    with pytest.raises(TrainingError, match=message):
        check_launch(args)


def plugin(**changes) -> SimpleNamespace:
    right = {"fsdp_version": 2, "state_dict_type": "StateDictType.FULL_STATE_DICT", "cpu_ram_efficient_loading": False}
    return SimpleNamespace(**{**right, **changes})


@pytest.mark.parametrize(
    ("changes", "training", "message"),
    [
        ({}, {}, None),
        ({"fsdp_version": 1}, {}, "fsdp_version must be 2"),
        ({"state_dict_type": "StateDictType.SHARDED_STATE_DICT"}, {}, "fsdp_state_dict_type must be FULL_STATE_DICT"),
        ({"cpu_ram_efficient_loading": True}, {}, "fsdp_cpu_ram_efficient_loading must be false"),
        ({}, {"gradient_cache_tokens": 512}, "processes would wait for each other forever"),
    ],
)
def test_only_what_was_tried_of_fsdp_is_let_through(arguments, monkeypatch, changes, training, message):
    args = arguments(**training)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.FSDP, state=SimpleNamespace(fsdp_plugin=plugin(**changes))
    )
    if message is None:
        check_sharding(args, accelerator)
        return
    with pytest.raises(TrainingError, match=message):
        check_sharding(args, accelerator)


def test_fsdp_that_accelerate_ignores_is_refused(arguments, monkeypatch):
    args = arguments()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    accelerator = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU, state=SimpleNamespace())
    with pytest.raises(TrainingError, match="FSDP was asked for, and accelerate does not shard on this machine's cpu"):
        check_sharding(args, accelerator)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_stage_3_is_refused(arguments, stage):
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, state=state)
    if stage < 3:
        check_sharding(arguments(), accelerator)
        return
    with pytest.raises(TrainingError, match="ZeRO stage 3 shards the weights"):
        check_sharding(arguments(), accelerator)


@pytest.mark.parametrize("kind", BACKBONES)
def test_every_parameter_has_a_gradient_so_ddp_need_not_look_for_others(kind, text_config, tokenizer):
    """With every pooler; the first hidden state and the head are the ones a pooler may leave out."""
    rows = [[first, second] for first in SENTENCES[:3] for second in SENTENCES[3:5]]
    dataset = ViewsDataset.build(rows, tokenizer, max_length=16)
    for pooler_type in ("cls", "avg", "avg_first_last"):
        model = SimCSEModel(SimCSEConfig(text_config=text_config(kind), pooler_type=pooler_type)).train()
        items = [dataset[index] for index in range(len(dataset))]
        model(**ViewsCollator(tokenizer.pad_token_id, model.row_layout())(items)).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("given", "used"), [(None, False), (True, True), (False, False)])
def test_ddp_looks_for_unused_parameters_only_where_it_is_told_to(arguments, text_config, tokenizer, given, used):
    model = SimCSEModel(SimCSEConfig(text_config=text_config()))
    dataset = ViewsDataset.build([SENTENCES[:2], SENTENCES[2:4]], tokenizer, max_length=16)
    args = arguments(per_device_train_batch_size=2, ddp_find_unused_parameters=given, **WITHOUT_EVALUATION)
    trainer = SimCSETrainer(model, args, train_dataset=dataset, processing_class=tokenizer)
    assert trainer.accelerator.ddp_handler.find_unused_parameters is used


def test_every_batch_is_compared_with_those_of_the_other_processes(arguments, text_config, tokenizer, monkeypatch):
    """What the comparison says is in test_distributed."""
    model = SimCSEModel(SimCSEConfig(text_config=text_config()))
    dataset = ViewsDataset.build([SENTENCES[:2], SENTENCES[2:4]], tokenizer, max_length=16)
    args = arguments(per_device_train_batch_size=2, **WITHOUT_EVALUATION)
    trainer = SimCSETrainer(model, args, train_dataset=dataset, processing_class=tokenizer)
    seen = []
    monkeypatch.setattr("simcse_hf.trainer.check_equal_batches", seen.append)
    batch = trainer.data_collator([dataset[0], dataset[1]])
    trainer.compute_loss(model, batch)
    assert len(seen) == 1 and seen[0] is batch


# --- sharded weights; real ones are in test_launch -------------------------------------------------------------------


@pytest.mark.parametrize("kind", BACKBONES)
def test_fsdp_shards_the_layers_of_every_encoder_and_not_what_lies_around_the_lookup(kind, text_config):
    """Else accelerate would shard BertEmbeddings, and the lookup in it once more, and PyTorch would fail."""
    model = SimCSEModel(SimCSEConfig(text_config=text_config(kind)))
    shard_layer_by_layer(model)
    lookup = model.get_input_embeddings()
    chosen = [module for module in model.modules() if type(module).__name__ in model._no_split_modules]
    assert len(chosen) == model.config.text_config.num_hidden_layers
    assert not any(lookup in module.modules() for module in chosen)


def test_a_whole_model_is_itself(text_config):
    model = SimCSEModel(SimCSEConfig(text_config=text_config()))
    keep_own_name(model)
    weight = model.backbone.get_input_embeddings().weight
    assert not is_sharded(model) and whole_model(model) is model and whole_tensor(weight) is weight
    assert type(model) is SimCSEModel and torch.is_grad_enabled()
