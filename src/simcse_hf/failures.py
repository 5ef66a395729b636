"""Failures of the machine: a full disk or memory, a place that cannot be written, another process that is gone."""

from __future__ import annotations

import errno

# safetensors and torch.save raise errors without an errno.
_WORDS_OF_A_FULL_DISK = (
    "No space left on device",
    "Disk quota exceeded",
    "enforce fail at inline_container",
    "iostream error",
)
# Of torch, for the memory of GPUs and of the machine.
_WORDS_OF_A_FULL_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
# What the processes that are left say of one that is not: gloo, NCCL, and torch's own key-value store.
_WORDS_OF_A_LOST_PROCESS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL communicator was aborted",
    "ncclRemoteError",
    "Failed to recv, got 0 bytes",
)
# What they say of one that does not answer, or never came: that it is gone they cannot know.
_WORDS_OF_A_SILENT_PROCESS = (
    "Timed out waiting",
    "wait timeout after",
    "Application timeout caused pair closure",
    "Socket Timeout",
    "Watchdog caught collective operation timeout",
    "timed out in monitoredBarrier",
)
# And of one that never came: `Timed out after 601 seconds waiting for clients. 1/2 clients joined.`
_WORDS_OF_A_MISSING_PROCESS = ("waiting for clients", "client socket has timed out")


def explain_failure(error: Exception) -> str | None:
    """What the machine refused, in words; None where it is a defect of ours and deserves its traceback."""
    number = error.errno if isinstance(error, OSError) else None
    path = number and (error.filename2 or error.filename)  # of a rename, the name the user gave
    place = f" ({path})" if path else ""
    if number in (errno.ENOSPC, errno.EDQUOT) or _says(error, _WORDS_OF_A_FULL_DISK):
        return (
            f"the disk is full{place}. Nothing half-written was left. Free space and run the command again; a training goes on "
            "with --resume_from_checkpoint auto."
        )
    if number == errno.EFBIG or "File too large" in str(error):
        return f"a file became larger than this file system or account may write{place}. Choose another place."
    if _is_of_memory(error):
        return (
            "out of memory. What is already written is whole. Training: choose a smaller per_device_train_batch_size, or keep the "
            "batch with gradient_cache_tokens, and go on with --resume_from_checkpoint auto. Encode and the other commands: "
            "choose a smaller --batch_tokens, and run the same command again."
        )
    if isinstance(error, RuntimeError):
        return _of_another_process(error)
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"no permission{place}. Choose another place."
    return f"{error.strerror}{place}." if number else None


def _is_of_memory(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_so_by_type = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch's
    return is_so_by_type or (isinstance(error, RuntimeError) and _says(error, _WORDS_OF_A_FULL_MEMORY))


def _of_another_process(error: RuntimeError) -> str | None:
    go_on = "Checkpoints already written are whole; go on with --resume_from_checkpoint auto."
    if _says(error, _WORDS_OF_A_MISSING_PROCESS):
        return (
            "not all processes of this job came in time. See in their own output why one did not start, and whether all were "
            "told the same number of processes, address and port; then start the job again."
        )
    if _says(error, _WORDS_OF_A_LOST_PROCESS):
        return f"another process of this job is gone; what it died of is in its own output. {go_on}"
    if _says(error, _WORDS_OF_A_SILENT_PROCESS):
        return (
            "another process of this job does not answer: it is gone, or slower than ddp_timeout. See its own output, or raise "
            f"ddp_timeout. {go_on}"
        )
    return None


def _says(error: Exception, words: tuple[str, ...]) -> bool:
    return any(part in str(error) for part in words)
