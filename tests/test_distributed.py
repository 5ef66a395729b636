"""Two and three processes compute what one does: the loss, every gradient, and the weights after ten steps."""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from conftest import BACKBONES
from packed_batches import LONGEST, tiny
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig

import simcse_hf.batch_losses as batch_losses
from simcse_hf import SimCSEConfig, SimCSEModel
from simcse_hf.collators import ViewsCollator
from simcse_hf.distributed import close_at_exit, gather_integers, gather_values, gather_with_gradient, rank, world_size
from simcse_hf.errors import TrainingError
from simcse_hf.packing import RowLayout
from simcse_hf.process_guards import check_equal_batches
from simcse_hf.sharded_weights import is_sharded, whole_model
from simcse_hf.similarity import cosine_matrix
from simcse_hf.training_guards import check_weights

ROWS, VIEWS, TOKENS = 6, 3, 7
STEPS = 10
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-5}


# --- one batch, for the tests of other modules too ------------------------------------------------------------------


def build_model() -> SimCSEModel:
    torch.manual_seed(0)
    text_config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config = SimCSEConfig(text_config=text_config, temperature=0.1, hard_negative_weight=0.5)
    return SimCSEModel(config).double().train()


def build_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(1, 50, (ROWS, VIEWS, TOKENS), generator=generator)
    sentence_ids = torch.arange(ROWS * VIEWS).view(ROWS, VIEWS)
    # The same sentence as positives of rows 0 and 4, and row 5's negative is row 0's anchor:
    # the two lie on different processes.
    input_ids[4, 1], sentence_ids[4, 1] = input_ids[0, 1], sentence_ids[0, 1]
    input_ids[5, 2], sentence_ids[5, 2] = input_ids[0, 0], sentence_ids[0, 0]
    return {"input_ids": input_ids, "sentence_ids": sentence_ids}


def spawn(function: Callable, processes: int, *arguments) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(function, args=(processes, port, *arguments), nprocs=processes)


def test_no_process_ends_with_its_group_open(tmp_path, monkeypatch) -> None:
    """gloo's threads would abort it now and then."""
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    close_at_exit()
    assert at_exit == [], "alone"
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    monkeypatch.setattr("simcse_hf.distributed.world_size", lambda: 2)
    close_at_exit()
    (close,) = at_exit
    close()
    assert not dist.is_initialized()
    close()


# --- ten steps ------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What is trained: once with the whole batch, once with a share of it on each process."""

    shape: str
    dtype: torch.dtype
    cached: bool = False
    autocast: bool = False
    remote_gradients: bool = True

    def title(self) -> str:
        kind = "bfloat16" if self.autocast else str(self.dtype).removeprefix("torch.")
        return f"{self.shape}-{kind}-{'cached' if self.cached else 'plain'}"


# Views of a row, whether rows are packed, and fields of the config.
SHAPES = {
    "two views": (2, True, {"pooler_type": "cls"}),
    "triplets": (3, True, {"hard_negative_weight": 0.5}),
    "triplets, padded": (3, False, {"pooler_type": "avg_first_last"}),
    "triplets, batch norm, symmetric": (
        3,
        True,
        {"pooler_type": "cls", "mlp_only_train": True, "head_type": "batchnorm", "symmetric": True},
    ),
}
CASES = [Case(*each) for each in product(SHAPES, TOLERANCE, (False, True))]
BF16 = [Case("triplets", torch.float32, cached, autocast=True) for cached in (False, True)]
PRINCETON = [Case("triplets", *how, remote_gradients=False) for how in zip(TOLERANCE, (False, True), strict=True)]
# Three processes cost more, and are asked for less.
OF = {2: [*CASES, *BF16, *PRINCETON], 3: [*(case for case in CASES if case.cached), *BF16, *PRINCETON]}


def model_of(case: Case) -> SimCSEModel:
    options = dict(SHAPES[case.shape][2])
    pooler_type = options.pop("pooler_type", "avg")
    model = tiny(
        lambda kind, **settings: BertConfig(**BACKBONES[kind][1], pad_token_id=0, **settings), "bert", pooler_type
    )
    config = SimCSEConfig(text_config=model.config.text_config, pooler_type=pooler_type, temperature=0.1, **options)
    torch.manual_seed(0)
    model = SimCSEModel(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=parameter.detach().mean().item(), std=0.1)
    model.gradient_cache_tokens = LONGEST if case.cached else None
    return model.to(case.dtype).train()


def batch_of(case: Case, step: int, rows: slice) -> dict[str, Tensor]:
    """Some rows of a step's batch, short ones first: processes have unequal numbers of tokens, and so of passes."""
    views, packed, _ = SHAPES[case.shape]
    generator = np.random.default_rng(step)
    lengths = np.sort(generator.integers(1, LONGEST, size=ROWS * views))
    found = [generator.integers(5, 60, size=length) for length in lengths]
    items = [
        {"views": found[start : start + views], "sentence_ids": np.arange(start, start + views)}
        for start in range(0, len(found), views)
    ]
    # Equal sentences on the first process and on the last: a positive of both, and an anchor that is a candidate there.
    for (row, view), (other, sentence) in {(4, 1): (0, 1), (5, views - 1): (0, 0)}.items():
        for part in ("views", "sentence_ids"):
            items[row][part][view] = items[other][part][sentence]
    return ViewsCollator(0, RowLayout(LONGEST) if packed else None)(items[rows])


def train(case: Case, rows: slice, wrap: Callable[[SimCSEModel], nn.Module] = lambda model: model) -> dict:
    """Losses, the first gradients and the last weights of ten steps of AdamW, and how often the encoder ran in each."""
    model = model_of(case)
    passes = []
    model.backbone.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    wrapped = wrap(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)
    losses, ran = [], []
    for step in range(STEPS):
        passes.clear()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
            output = wrapped(**batch_of(case, step, rows))
        ran.append(len(passes))
        output.loss.backward()
        if step == 0:
            first = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
            logits, embeddings = output.logits.detach(), output.embeddings.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.detach())
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    found = {"losses": torch.stack(losses), "gradients": first, "weights": weights, "passes": ran}
    return found | {"logits": logits, "embeddings": embeddings}


def train_a_share(case: Case, index: int, processes: int) -> dict:
    """Ten steps of one process, and what DDP sent in each.

    In a function, so that DDP is gone before the process group: PyTorch can deadlock when DDP frees it.
    """
    sent = []

    def count(_, bucket):  # DDP reads annotations, and knows no strings
        sent.append((bucket.index(), bucket.buffer().numel()))
        handle = dist.all_reduce(bucket.buffer().div_(processes), async_op=True)
        return handle.get_future().then(lambda future: future.value()[0])

    def wrap(model: SimCSEModel) -> DistributedDataParallel:
        wrapped = DistributedDataParallel(model, bucket_cap_mb=0.05)
        wrapped.register_comm_hook(None, count)
        return wrapped

    share = ROWS // processes
    own = batch_losses.gather_with_gradient
    if not case.remote_gradients:
        batch_losses.gather_with_gradient = as_princeton_gathers
    try:
        found = train(case, slice(index * share, (index + 1) * share), wrap)
    finally:
        batch_losses.gather_with_gradient = own
    dist.all_reduce(found["losses"])
    found["losses"] /= processes
    return found | {"sent": sent, "passes": gather_integers(found["passes"], torch.device("cpu"))}


def as_princeton_gathers(rows: Tensor) -> Tensor:
    """Only the local rows keep their gradient (Princeton SimCSE, and DiffCSE after it)."""
    gathered = list(gather_values(rows.detach()).chunk(world_size()))
    gathered[rank()] = rows
    return torch.cat(gathered)


def worker(index: int, processes: int, port: int, folder: str, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=index, world_size=processes)
    try:
        (Path(folder) / f"refusals_{index}.txt").write_text("\n".join(refusals(index)), encoding="utf-8")
        found = [train_a_share(case, index, processes) for case in cases]
        shard = step_on_shards(index, processes)
        if index == 0:
            torch.save(found, Path(folder) / "found.pt")
        torch.save(shard, Path(folder) / f"shard_{index}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """What so many processes leave; they are started once."""
    made: dict[int, Path] = {}

    def run(processes: int) -> Path:
        if processes not in made:
            folder = tmp_path_factory.mktemp(f"processes{processes}")
            spawn(worker, processes, str(folder), OF[processes])
            made[processes] = folder
        return made[processes]

    return run


@pytest.fixture(scope="module")
def together(folders: Callable[[int], Path]) -> Callable[[int], dict[Case, dict]]:
    """What so many processes find, for all cases."""
    found: dict[int, dict[Case, dict]] = {}

    def read(processes: int) -> dict[Case, dict]:
        if processes not in found:
            found[processes] = dict(zip(OF[processes], torch.load(folders(processes) / "found.pt"), strict=True))
        return found[processes]

    return read


@pytest.fixture(scope="module")
def alone() -> Callable[[Case], dict]:
    """What one process finds with the whole batch, without caching."""
    made: dict[Case, dict] = {}

    def find(case: Case) -> dict:
        case = case._replace(cached=False, remote_gradients=True)
        if case not in made:
            made[case] = train(case, slice(0, ROWS))
        return made[case]

    return find


def cases_in(cases: Sequence[Case]) -> pytest.MarkDecorator:
    asked = [(processes, case) for processes, all_cases in OF.items() for case in all_cases if case in cases]
    names = [f"{processes} processes-{case.title()}" for processes, case in asked]
    return pytest.mark.parametrize(("processes", "case"), asked, ids=names)


def differences(found: dict, expected: dict, weights: Sequence[str] | None = None) -> dict[str, float]:
    """The largest of the losses, of the first step's gradients, and of the last weights, or some of these."""
    assert found["weights"].keys() == found["gradients"].keys() == expected["weights"].keys()
    return {
        "losses": (found["losses"] - expected["losses"]).abs().max().item(),
        "gradients": largest(found["gradients"], expected["gradients"], expected["gradients"]),
        "weights": largest(found["weights"], expected["weights"], weights or expected["weights"]),
    }


def largest(found: dict[str, Tensor], expected: dict[str, Tensor], names: Iterable[str]) -> float:
    return max((found[name] - expected[name]).abs().max().item() for name in names)


def trained_weights(case: Case, alone: Callable[[Case], dict]) -> list[str]:
    """The parameters that a loss depends on; of others Adam makes steps of their gradients' rounding errors.

    A bias of keys adds the same to all scores of a query, and softmax does not see it. Nor does batch norm see what is
    added to all its inputs.
    """
    exact = alone(case._replace(dtype=torch.float64))["gradients"]
    without_effect = {name for name, gradient in exact.items() if gradient.abs().max() < 1e-12}
    expected = {f"backbone.encoder.layer.{layer}.attention.self.key.bias" for layer in range(3)}
    if "batch norm" in case.shape:
        expected.add("backbone.encoder.layer.2.output.LayerNorm.bias")
    assert without_effect == expected
    return [name for name in exact if name not in without_effect]


@cases_in(CASES)
def test_processes_find_the_losses_the_gradients_and_the_weights_of_one(processes, case, together, alone):
    """Duplicates lie on different processes, so masking must see across them."""
    found, expected = together(processes)[case], alone(case)
    assert expected["logits"].isinf().any(), "no duplicates: the test would be vacuous"
    assert max(gradient.abs().max() for gradient in expected["gradients"].values()) > 1e-2
    start = dict(model_of(case).named_parameters())
    assert largest(expected["weights"], start, start) > 2e-3, "nothing was trained"
    names = trained_weights(case, alone) if case.dtype == torch.float32 else None
    difference = differences(found, expected, names)
    print(case.title(), difference)
    assert max(difference.values()) < TOLERANCE[case.dtype]
    ranks = found["passes"]
    if case.cached:
        assert any(len(set(step)) > 1 for step in zip(*ranks, strict=True)), "every process has as many passes"


@cases_in(PRINCETON)
def test_a_gather_that_keeps_only_local_gradients_fails_that_test(processes, case, together, alone):
    difference = differences(together(processes)[case], alone(case), trained_weights(case, alone))
    print("Princeton", case.title(), difference)
    assert difference["losses"] > 100 * TOLERANCE[case.dtype]
    assert difference["gradients"] > 1000 * TOLERANCE[case.dtype]
    assert difference["weights"] > 100 * TOLERANCE[case.dtype]


@cases_in([case for case in CASES if case.cached])
def test_gradients_are_sent_once_a_step_however_many_passes_there_are(processes, case, together):
    found = together(processes)[case]
    assert max(max(ran) for ran in found["passes"]) > 2
    parameters = sum(parameter.numel() for parameter in model_of(case).parameters())
    assert sum(size for _, size in found["sent"]) == STEPS * parameters
    # The first step sends in buckets of its own; DDP arranges them anew after it.
    buckets = max(index for index, _ in found["sent"][-3:]) + 1
    assert buckets > 1
    assert [index for index, _ in found["sent"]][-buckets:] == list(range(buckets))


# --- bfloat16 -------------------------------------------------------------------------------------------------------

_BF16 = 2**-8  # the relative error of one rounding


@pytest.mark.parametrize("processes", OF)
def test_under_bf16_processes_and_caching_change_no_more_than_rounding(processes, together, alone):
    plain, cached = (together(processes)[case] for case in BF16)
    expected, exact = alone(BF16[0]), alone(Case("triplets", torch.float32))
    for found in (plain, cached):
        torch.testing.assert_close(found["losses"], expected["losses"], rtol=4 * _BF16, atol=0)
        for name, gradient in expected["gradients"].items():
            own = (gradient - exact["gradients"][name]).norm()  # what bfloat16 itself costs
            assert (found["gradients"][name] - gradient).norm() <= 2 * own + 1e-6, name
    assert (expected["losses"] - exact["losses"]).abs().max() > 1e-4, "not in bfloat16: the test would be vacuous"


@pytest.mark.parametrize("processes", OF)
def test_under_bf16_similarities_are_computed_in_float32(processes, together, alone):
    for found in (*(together(processes)[case] for case in BF16), alone(BF16[0])):
        assert found["logits"].dtype == torch.float32 and found["losses"].dtype == torch.float32
    found = alone(BF16[0])
    embeddings = found["embeddings"].double()
    expected = cosine_matrix(embeddings[:, 0], embeddings[:, 1]) / 0.1
    seen = found["logits"][:, :ROWS]
    kept = seen.isfinite()
    torch.testing.assert_close(seen[kept].double(), expected[kept], atol=1e-5, rtol=0)


# --- unequal batches ------------------------------------------------------------------------------------------------


def refusals(index: int) -> list[str]:
    """What is said of batches that differ between processes."""
    pair = torch.zeros(4, 2, dtype=torch.int64)
    batches = (
        {"sentence_ids": pair[: 4 - min(index, 1)]},
        {"sentence_ids": torch.zeros(4, 2 + min(index, 1), dtype=torch.int64)},
        {"sentence_ids": pair, **({"scores": torch.zeros(4)} if index else {})},
    )
    check_equal_batches({"sentence_ids": pair})
    messages = []
    for batch in batches:
        with pytest.raises(TrainingError) as error:
            check_equal_batches(batch)
        messages.append(str(error.value))
    return messages


@pytest.mark.parametrize("processes", OF)
def test_unequal_batches_are_refused_on_every_process(processes: int, folders) -> None:
    said = [path.read_text(encoding="utf-8") for path in folders(processes).glob("refusals_*.txt")]
    assert len(said) == processes and len(set(said)) == 1
    rows, views, kind = said[0].splitlines()
    assert "unequal batches (4 x 2 views on rank 0, 3 x 2 views on rank 1" in rows
    assert "(4 x 2 views on rank 0, 4 x 3 views on rank 1" in views
    assert "(4 x 2 views on rank 0, 4 x 2 scored on rank 1" in kind


# --- FSDP2 ----------------------------------------------------------------------------------------------------------

SHARDED = Case("triplets", torch.float32)


def one_pass_of(rows: slice) -> dict[str, Tensor]:
    """Sharded layers are gathered for each pass, so every process needs as many: one."""
    views = {name: tensor[rows] for name, tensor in build_batch().items()}
    return views | {"attention_mask": torch.ones_like(views["input_ids"])}


def step_on_shards(index: int, processes: int) -> dict:
    """Loss, gradients and vectors of one process that holds a part of the weights."""
    model = model_of(SHARDED)
    for layer in model.backbone.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    local = sum(parameter.to_local().numel() for parameter in model.parameters())
    share = ROWS // processes
    loss = model(**one_pass_of(slice(index * share, (index + 1) * share))).loss
    loss.backward()
    dist.all_reduce(mean := loss.detach().clone())
    before = torch.get_rng_state()
    whole = whole_model(model)
    found = {
        "sharded": is_sharded(model),
        "local": local,
        "loss": mean / processes,
        "gradients": {name: parameter.grad.full_tensor() for name, parameter in model.named_parameters()},
        "class": type(whole),
        "training": whole.training,
        "weights": whole.state_dict(),
        "random numbers drawn": not torch.equal(before, torch.get_rng_state()),
    }
    check_weights(model, 1, 1e-4)
    with torch.no_grad():
        last = list(model.parameters())[-1].to_local()
        if index == 0 and last.numel():  # one process holds the NaN, and all must stop
            last.view(-1)[0] = float("nan")
    with pytest.raises(TrainingError, match="the weights are not finite"):
        check_weights(model, 1, 1e-4)
    return found


@pytest.mark.parametrize("processes", OF)
def test_sharded_by_fsdp2_the_loss_the_gradients_and_the_gathered_model_are_those_of_one(processes, folders) -> None:
    model = model_of(SHARDED)
    loss = model(**one_pass_of(slice(0, ROWS))).loss
    loss.backward()
    shards = [torch.load(path, weights_only=False) for path in sorted(folders(processes).glob("shard_*.pt"))]
    parameters = dict(model.named_parameters())
    total = sum(parameter.numel() for parameter in parameters.values())
    assert sum(shard["local"] for shard in shards) == total and max(shard["local"] for shard in shards) < 0.7 * total
    for shard in shards:
        assert shard["sharded"] and shard["class"] is SimCSEModel and not shard["training"]
        assert not shard["random numbers drawn"], "dropout would depend on how often a set was scored"
        assert abs(shard["loss"] - loss) < 1e-6
        assert largest(shard["gradients"], {name: each.grad for name, each in parameters.items()}, parameters) < 1e-5
        assert all(torch.equal(shard["weights"][name], tensor) for name, tensor in model.state_dict().items())


def test_on_one_process_everything_is_the_identity() -> None:
    rows = torch.randn(3, 2)
    assert (world_size(), rank()) == (1, 0)
    assert gather_with_gradient(rows) is rows and gather_values(rows) is rows
    assert gather_integers([3, 4], rows.device) == [[3, 4]]
    check_equal_batches({"sentence_ids": torch.zeros(4, 2)})
