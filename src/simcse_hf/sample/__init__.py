"""Sample data and the tiny encoder that ship with the package; see README.md in this folder.

A path `sample:NAME` names one of them wherever a data file or a model may be named.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError

_FOLDER = Path(__file__).parent
SAMPLES = {
    "sentences": _FOLDER / "sentences.txt",
    "triplets": _FOLDER / "triplets.tsv",
    "sts": _FOLDER / "sts.tsv",
    "encoder": _FOLDER / "encoder",
}


def resolve_sample(path: str) -> str:
    """Turn `sample:triplets` into a real path; any other path comes back as it is.

    Raises:
        ConfigError: `sample:` with an unknown name.
    """
    if not path.startswith("sample:"):
        return path
    name = path.removeprefix("sample:")
    if name not in SAMPLES:
        raise ConfigError(f"there is no sample '{name}'; there are {', '.join(SAMPLES)}.")
    return str(SAMPLES[name])
