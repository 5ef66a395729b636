"""The model: every backbone with every pooler, one path for training and inference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import oracles
import pytest
import torch
from conftest import BACKBONES, POOLERS, SENTENCES
from transformers import AutoConfig, AutoModel

from simcse_hf import SimCSEConfig, SimCSEModel
from simcse_hf.cpu_kernels import cpu_kernels
from simcse_hf.errors import ModelError
from simcse_hf.pooling import pool


def views(batch: dict[str, torch.Tensor], count: int = 3) -> dict[str, torch.Tensor]:
    """(6, count, T): the batch beside rolled copies of itself."""
    return {name: torch.stack([tensor.roll(k, 0) for k in range(count)], dim=1) for name, tensor in batch.items()}


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("pooler_type", POOLERS)
def test_every_backbone_trains_with_every_pooler_and_reloads_exactly(kind, pooler_type, text_config, batch, tmp_path):
    model = SimCSEModel(SimCSEConfig(text_config=text_config(kind), pooler_type=pooler_type))
    output = model(**views(batch))
    output.loss.backward()
    without_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without_gradient, "parameters without gradient make DDP fail"
    assert output.loss.isfinite() and output.embeddings.shape == (6, 3, 32) and output.logits.shape == (6, 12)

    model.eval()
    model.save_pretrained(tmp_path)
    reloaded = AutoModel.from_pretrained(tmp_path)
    assert type(reloaded) is SimCSEModel and not reloaded.training
    with torch.no_grad():
        assert torch.equal(reloaded(**batch).pooler_output, model(**batch).pooler_output)


@pytest.mark.parametrize("kind", BACKBONES)
@pytest.mark.parametrize("pooler_type", POOLERS)
def test_the_vector_is_the_pooled_backbone_and_the_head(kind, pooler_type, text_config, batch):
    """Independent of SimCSEModel.embed: transformers' own outputs, pooled here."""
    model = SimCSEModel(SimCSEConfig(text_config=text_config(kind), pooler_type=pooler_type)).eval()
    with torch.no_grad():
        plain = model.backbone(**batch, output_hidden_states=True)
        expected = pool(pooler_type, (*plain.hidden_states[:-1], plain.last_hidden_state), batch["attention_mask"])
        if pooler_type == "cls":
            expected = torch.tanh(expected @ model.head.dense.weight.T + model.head.dense.bias)
        torch.testing.assert_close(model(**batch).pooler_output, expected)


@pytest.mark.parametrize("kind", BACKBONES)
def test_cutting_a_batch_by_length_changes_no_vector_and_no_gradient(kind, text_config, batch, monkeypatch):
    """Sub-batches of 4 rows, each padded to its own longest, against one flat padded pass."""
    model = SimCSEModel(
        SimCSEConfig(text_config=text_config(kind, **NO_DROPOUT.get(kind, _BERT_NAMES)), pooler_type="avg")
    ).double()
    inputs = views(batch)
    gradients = []
    for rows in (4, 10**6):
        monkeypatch.setattr("simcse_hf.passes._CPU_BUCKET_SENTENCES", rows)
        model.zero_grad()
        output = model(**inputs)
        output.loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        gradients[-1]["embeddings"] = output.embeddings.detach()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-9, rtol=1e-7, msg=name)


_BERT_NAMES = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NO_DROPOUT = {
    "distilbert": {"dropout": 0.0, "attention_dropout": 0.0},
    "modernbert": {"mlp_dropout": 0.0},
}


def test_the_loss_of_the_model_is_the_papers_sum(text_config, batch):
    config = SimCSEConfig(text_config=text_config(), pooler_type="cls", temperature=0.2, hard_negative_weight=0.7)
    model = SimCSEModel(config).double()
    ids = torch.tensor([[0, 1, 2], [3, 1, 4], [5, 6, 0], [7, 8, 9], [7, 10, 11], [12, 13, 14]])
    output = model(**views(batch), sentence_ids=ids)
    anchors, positives, negatives = output.embeddings.unbind(dim=1)
    slow = oracles.simcse_loss(
        anchors.tolist(),
        positives.tolist(),
        negatives.unsqueeze(1).tolist(),
        temperature=0.2,
        hard_negative_weight=0.7,
        ids=ids.tolist(),
    )
    assert output.loss.item() == pytest.approx(slow, rel=1e-9)
    config.mask_duplicates = False
    assert model(**views(batch), sentence_ids=ids).logits.isfinite().all()


def test_the_head_acts_as_the_config_says(text_config, batch):
    """SimCSE-KO compared a module with strings and so never applied its head."""
    kept = SimCSEModel(SimCSEConfig(text_config=text_config(), pooler_type="cls"))
    dropped = SimCSEModel(SimCSEConfig(text_config=text_config(), pooler_type="cls", mlp_only_train=True))
    dropped.load_state_dict(kept.state_dict())
    with torch.no_grad():
        bare = kept.eval().backbone(**batch).last_hidden_state[:, 0]
        torch.testing.assert_close(dropped.eval()(**batch).pooler_output, bare)
        torch.testing.assert_close(kept(**batch).pooler_output, kept.head(bare))
        for model in (kept, dropped):
            model.train()
            torch.manual_seed(0)
            trained = model(**batch).pooler_output
            torch.manual_seed(0)
            with cpu_kernels(model.device):
                bare = model.backbone(**batch).last_hidden_state[:, 0]
            torch.testing.assert_close(trained, model.head(bare))
    assert SimCSEModel(SimCSEConfig(text_config=text_config(), pooler_type="avg")).head is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", 0.5), ("hard_negative_weight", 2.0), ("pooler_type", "max"), ("first_hidden_state", 0)],
)
def test_every_setting_of_the_config_is_kept_and_changes_the_output(field, value, text_config, batch, tmp_path):
    base = {"pooler_type": "avg_first_last"}
    one, other = (
        SimCSEModel(SimCSEConfig(text_config=text_config(), **settings)) for settings in (base, base | {field: value})
    )
    other.load_state_dict(one.state_dict())
    losses = [model.eval()(**views(batch)).loss.item() for model in (one, other)]
    assert abs(losses[0] - losses[1]) > 1e-4
    other.save_pretrained(tmp_path)
    assert getattr(AutoConfig.from_pretrained(tmp_path), field) == value


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"max_seq_length": 2}, "max_seq_length is 2"),
        ({"pooler_type": "avg", "mlp_only_train": True}, "mlp_only_train has no meaning with pooler_type 'avg'"),
        ({"pooler_type": "mean"}, "pooler_type"),
        ({"temperature": "0.05"}, "temperature"),
    ],
)
def test_impossible_settings_are_refused(settings, message, text_config):
    with pytest.raises(Exception, match=message):
        SimCSEConfig(text_config=text_config(), **settings)


def test_a_batch_of_one_and_a_single_view_are_refused(text_config, batch):
    model = SimCSEModel(SimCSEConfig(text_config=text_config()))
    one = {name: tensor[:1] for name, tensor in views(batch).items()}
    with pytest.raises(ValueError, match="a batch of one item has no negatives"):
        model(**one)
    with pytest.raises(ValueError, match="at least 2 views"):
        model(**views(batch, 1))
    with pytest.raises(ValueError, match=r"the shape \(240,\)"):
        model(batch["input_ids"].flatten())


def test_dropout_makes_two_views_differ_in_training_and_not_in_evaluation(text_config, batch):
    model = SimCSEModel(SimCSEConfig(text_config=text_config()))
    twice = {name: torch.stack([tensor, tensor], dim=1) for name, tensor in batch.items()}
    first, second = model.train()(**twice).embeddings.unbind(dim=1)
    assert (first - second).abs().amax(dim=1).min() > 1e-3
    first, second = model.eval()(**twice).embeddings.unbind(dim=1)
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("kind", BACKBONES)
def test_from_backbone_takes_the_pretrained_weights_and_the_dropouts(kind, backbone_dir, batch):
    folder = backbone_dir(kind)
    model = SimCSEModel.from_backbone(
        str(folder), pooler_type="cls_before_pooler", hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.2
    )
    plain = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = plain(**batch).last_hidden_state[:, 0]
        torch.testing.assert_close(model.eval()(**batch).pooler_output, expected)
    probabilities = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert 0.3 in probabilities and 0.1 not in probabilities
    assert not any(module.training for module in SimCSEModel.from_backbone(str(folder), pooler_type="avg").modules())
    assert model.dtype == torch.float32


def test_the_head_can_start_from_the_backbones_own_pooler(backbone_dir):
    folder = backbone_dir("bert")
    pooler = AutoModel.from_pretrained(folder).pooler.dense
    model = SimCSEModel.from_backbone(str(folder), pooler_type="cls", head_init="backbone")
    assert torch.equal(model.head.dense.weight, pooler.weight) and model.backbone.pooler is None
    fresh = SimCSEModel.from_backbone(str(folder), pooler_type="cls")
    assert not torch.equal(fresh.head.dense.weight, pooler.weight)
    with pytest.raises(ModelError, match="no pretrained pooler to start the head from"):
        SimCSEModel.from_backbone(str(backbone_dir("electra")), pooler_type="cls", head_init="backbone")
    with pytest.raises(ModelError, match="head_init is 'warm'"):
        SimCSEModel.from_backbone(str(folder), head_init="warm")


def test_a_plain_encoder_that_does_not_say_how_to_pool_is_refused(backbone_dir):
    with pytest.raises(ModelError, match="does not say how to pool its tokens"):
        SimCSEModel.from_pretrained(str(backbone_dir("bert")))


def test_a_checkpoint_loads_with_its_own_code_where_this_package_is_not_installed(text_config, batch, tmp_path):
    model = SimCSEModel(SimCSEConfig(text_config=text_config(), pooler_type="cls")).eval()
    model.save_pretrained(tmp_path / "checkpoint")
    torch.save(batch, tmp_path / "batch.pt")
    program = f"""
import sys
sys.modules["simcse_hf"] = None  # importing it raises ImportError
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained({str(tmp_path / "checkpoint")!r}, trust_remote_code=True).eval()
assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
with torch.no_grad():
    torch.save(model(**torch.load({str(tmp_path / "batch.pt")!r})).pooler_output, {str(tmp_path / "out.pt")!r})
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, cwd=tmp_path, capture_output=True)
    with torch.no_grad():  # the other process may sum in another order: it has more threads
        torch.testing.assert_close(torch.load(tmp_path / "out.pt"), model(**batch).pooler_output, atol=1e-6, rtol=0)


def test_the_config_on_disk_names_its_own_code(text_config, tmp_path):
    SimCSEModel(SimCSEConfig(text_config=text_config())).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert saved["model_type"] == "simcse"
    assert saved["auto_map"] == {
        "AutoConfig": "configuration_simcse.SimCSEConfig",
        "AutoModel": "modeling_simcse.SimCSEModel",
    }
    assert all(not (tmp_path / name).suffix == ".bin" for name in Path(tmp_path).iterdir())


def test_bf16_autocast_keeps_the_similarity_in_float32(text_config, batch):
    model = SimCSEModel(SimCSEConfig(text_config=text_config()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**views(batch))
    assert output.embeddings.dtype == torch.bfloat16 and output.logits.dtype == torch.float32
    assert len(SENTENCES) == len(output.logits)
