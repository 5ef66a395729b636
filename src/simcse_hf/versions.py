"""What a result was made with."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "scipy", "numpy")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    from . import __version__  # what pip says of an editable installation is as old as that

    versions = {"python": platform.python_version(), "simcse-hf": __version__}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git_revision() -> str | None:
    """Commit of the source tree this package runs from, `+changes` where it differs; None outside git."""
    folder = Path(__file__).parent
    try:
        # The first fails where the package merely lies in somebody else's repository, as in a .venv there.
        _, revision, changes = (
            subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True
            ).stdout
            for arguments in (
                ["ls-files", "--error-unmatch", Path(__file__).name],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision.strip() + ("+changes" if changes.strip() else "")
