"""What a machine says of itself, in words with a cure."""

from __future__ import annotations

import errno

import pytest
import torch
from conftest import says

from simcse_hf.failures import explain_failure


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory."),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_full_memory_names_the_cure_of_training_and_of_encode(error: Exception) -> None:
    says(
        explain_failure(error),
        "out of memory",
        "per_device_train_batch_size",
        "gradient_cache_tokens",
        "--batch_tokens",
    )


def test_a_real_allocation_beyond_all_memory_is_one() -> None:
    with pytest.raises(RuntimeError) as failure:
        torch.empty(1 << 58)
    says(explain_failure(failure.value), "out of memory")


@pytest.mark.parametrize(
    "words",
    [
        "[gloo/transport/tcp/pair.cc:446] Read error: Connection reset by peer",
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?",
    ],
)
def test_a_process_whose_connection_broke_is_gone(words: str) -> None:
    says(explain_failure(RuntimeError(words)), "another process of this job is gone", "--resume_from_checkpoint auto")


@pytest.mark.parametrize(
    "words",
    [
        "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete",
        "wait timeout after 300000ms, keys: /default_pg/0//store_based_barrier_key:1",
        "[gloo/transport/tcp/pair.cc:547] Application timeout caused pair closure",
        "Socket Timeout",
    ],
)
def test_of_a_process_that_is_silent_nobody_knows_that_it_is_gone(words: str) -> None:
    says(explain_failure(torch.distributed.DistBackendError(words)), "it is gone, or slower than ddp_timeout")


def test_a_process_that_never_came_is_no_lost_one() -> None:
    error = torch.distributed.DistStoreError("Timed out after 601 seconds waiting for clients. 1/2 clients joined.")
    says(explain_failure(error), "not all processes of this job came in time", "start the job again")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("shapes do not match"), ValueError("out of memory"), RuntimeError("expected scalar type Float")],
)
def test_a_defect_is_not_blamed_on_the_machine(error: Exception) -> None:
    assert explain_failure(error) is None
