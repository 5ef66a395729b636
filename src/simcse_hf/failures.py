"""Failures of the machine: a full disk, a place that cannot be written, another process that is gone."""

from __future__ import annotations

import errno

# safetensors and torch.save raise errors without an errno.
_WORDS_OF_A_FULL_DISK = (
    "No space left on device",
    "Disk quota exceeded",
    "enforce fail at inline_container",
    "iostream error",
)
# What the processes that are left say of one that is not: gloo, NCCL, and torch's own key-value store.
_WORDS_OF_A_LOST_PROCESS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "NCCL communicator was aborted",
    "ncclRemoteError",
    "Socket Timeout",
)


def explain_failure(error: Exception) -> str | None:
    """What the machine refused, in words; None where it is a defect of ours and deserves its traceback."""
    number = error.errno if isinstance(error, OSError) else None
    path = number and (error.filename2 or error.filename)  # of a rename, the name the user gave
    place = f" ({path})" if path else ""
    if number in (errno.ENOSPC, errno.EDQUOT) or any(words in str(error) for words in _WORDS_OF_A_FULL_DISK):
        return (
            f"the disk is full{place}. Nothing half-written was left. Free space and run the command again; a training goes on "
            "with --resume_from_checkpoint auto."
        )
    if number == errno.EFBIG or "File too large" in str(error):
        return f"a file became larger than this file system or account may write{place}. Choose another place."
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS_OF_A_LOST_PROCESS):
        return (
            "another process of this job is gone; what it died of is in its own output. Checkpoints already written are whole; go "
            "on with --resume_from_checkpoint auto."
        )
    if number in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"no permission{place}. Choose another place."
    return f"{error.strerror}{place}." if number else None
