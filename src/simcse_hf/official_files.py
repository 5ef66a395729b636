"""Published Korean files, recognised by content.

Row counts are asserted for every file recognised, so a reader that loses rows to quoting (the
usual CSV readers lose 29 of KorSTS-dev's 1,500) cannot go unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class OfficialFile:
    """A file as its authors published it."""

    name: str
    filename: str
    rows: int
    licence: str


_KORNLU = "CC BY-SA 4.0"

OFFICIAL_FILES: dict[str, OfficialFile] = {
    "b5aaa7f957d6ff46f4b6834a8b0f024a9234a6eefe9289aed66746b4533da3b8": OfficialFile(
        name="KorSTS train", filename="sts-train.tsv", rows=5749, licence=_KORNLU
    ),
    "d835b65b424401fbcce6be28a78159df8d61f5b19977ea7a0b83b8cb6105f393": OfficialFile(
        name="KorSTS dev", filename="sts-dev.tsv", rows=1500, licence=_KORNLU
    ),
    "13f83a3440d9db52d134eb40303ce021b03264aa338fbf2871c8786ce04d2105": OfficialFile(
        name="KorSTS test", filename="sts-test.tsv", rows=1379, licence=_KORNLU
    ),
    "821fb1c1c2e538ac2724a6132da36ffa379eb9a542ceb89243b3cf711377382c": OfficialFile(
        name="KorNLI XNLI dev", filename="xnli.dev.ko.tsv", rows=2490, licence=_KORNLU
    ),
    "0db53cf8e182283a0d0404ec3fe1b15d1e29236d23d22082dc20d43067254b3e": OfficialFile(
        name="KorNLI XNLI test", filename="xnli.test.ko.tsv", rows=5010, licence=_KORNLU
    ),
    "aaf12d8955fcda2b14319e5cabb9b31824c6f504aede460c975b518911f484c0": OfficialFile(
        name="KorNLI SNLI train", filename="snli_1.0_train.ko.tsv", rows=550_152, licence=_KORNLU
    ),
    "b6a0ae0c370e21687f7eef0fdea872a328bb2ecbdb020c546cb870d28606bf80": OfficialFile(
        name="KLUE-STS dev", filename="klue-sts-v1.1_dev.json", rows=519, licence=_KORNLU
    ),
    "0699db82be17766b26e199864e6260443e17ec6e91d1870e876419e388f245b1": OfficialFile(
        name="KLUE-NLI dev", filename="klue-nli-v1.1_dev.json", rows=3000, licence=_KORNLU
    ),
}

_FILENAMES = {official.filename for official in OFFICIAL_FILES.values()}


def bears_an_official_name(path: Path) -> bool:
    """Whether a file is called like a published one, whatever it holds."""
    return path.name in _FILENAMES
