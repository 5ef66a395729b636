"""The STS sets this package scores on, and where to find them."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from .corpora import ScoredPairs, scored_pairs
from .errors import DataError
from .row_report import RowReport
from .sample import resolve_sample
from .tables import expand_paths, read_hub_table, read_table

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class STSTask:
    """A published evaluation set.

    Attributes:
        filename: As its authors call it.
        folders: Places below the data folder where it is usually kept.
        rows: Of the published file; another count is another benchmark.
        hub: A Hub copy, as `tables.read_hub_table` names it, used only when asked for.
        hub_rows: Of that copy, which need not be the published file.
    """

    filename: str
    folders: tuple[str, ...]
    rows: int
    hub: str
    hub_rows: int


_KORSTS = ("KorNLUDatasets/KorSTS", "KorSTS", "")
_KORSTS_HUB = "mteb/KorSTS:{split}"

STS_TASKS: dict[str, STSTask] = {
    "korsts-dev": STSTask(
        filename="sts-dev.tsv", folders=_KORSTS, rows=1500, hub=_KORSTS_HUB.format(split="valid"), hub_rows=1465
    ),
    "korsts-test": STSTask(
        filename="sts-test.tsv", folders=_KORSTS, rows=1379, hub=_KORSTS_HUB.format(split="test"), hub_rows=1376
    ),
    "klue-sts-dev": STSTask(
        filename="klue-sts-v1.1_dev.json",
        folders=("klue", "KLUE/klue_benchmark/klue-sts-v1.1", "klue-sts-v1.1", ""),
        rows=519,
        hub="klue/klue:sts:validation@349481ec73fff722f88e0453ca05c77a447d967c",
        hub_rows=519,
    ),
}


def load_sts(task: str, *, data_dir: str | None = None, from_hub: bool = False, text_mode: str = "nfc") -> ScoredPairs:
    """Scored pairs of a named task or of any file.

    Args:
        task: `korsts-dev`, `korsts-test`, `klue-sts-dev`, `sample:sts`, a path, or `hub:ID[:config][:split]`.
        data_dir: Folder with the published files; default: environment variable SIMCSE_DATA_DIR.
        from_hub: Take a named task from its Hub copy. Copies of KorSTS hold fewer rows than the
            published files; the row count is in every result.
        text_mode: See `corpora.scored_pairs`.

    Raises:
        DataError: Unknown or missing, with the places that were searched.
    """
    report = RowReport(every_row_counts=True)
    if task in STS_TASKS:
        if from_hub:
            pairs = scored_pairs(read_hub_table(STS_TASKS[task].hub, report), task, text_mode=text_mode)
            if len(pairs) != STS_TASKS[task].hub_rows:
                logger.warning(
                    "the Hub copy of %s now holds %d pairs, not %d.", task, len(pairs), STS_TASKS[task].hub_rows
                )
            return pairs
        path, published = find_sts_file(task, data_dir), STS_TASKS[task].rows
        pairs = scored_pairs(read_table(path, report), task, text_mode=text_mode)
        if len(pairs) != published:
            logger.warning(
                "%s holds %d pairs, the published %s %d: this is another benchmark.", path, len(pairs), task, published
            )
        return pairs
    if task.startswith("hub:"):
        return scored_pairs(read_hub_table(task.removeprefix("hub:"), report), task, text_mode=text_mode)
    path = resolve_sample(task)
    if path == task and not Path(os.path.expanduser(task)).exists():
        raise DataError(
            f"'{task}' is neither an STS task ({', '.join(STS_TASKS)}, sample:sts) nor a file. "
            f"Relative paths start at {Path.cwd()}."
        )
    name = task.replace(":", "-") if path != task else Path(task).name
    return scored_pairs(read_table(expand_paths(path)[0], report), name, text_mode=text_mode)


def find_sts_file(task: str, data_dir: str | None = None) -> Path:
    """The local file of a named task.

    Raises:
        DataError: It is in none of the usual places.
    """
    data_dir = data_dir or os.environ.get("SIMCSE_DATA_DIR")
    if data_dir is None:
        raise DataError(
            f"'{task}' needs the file {STS_TASKS[task].filename}. Say where the data is with data_dir or the "
            f"environment variable SIMCSE_DATA_DIR, or ask for a copy from the Hub: hub:{STS_TASKS[task].hub}."
        )
    candidates = [
        Path(os.path.expanduser(data_dir)) / folder / STS_TASKS[task].filename for folder in STS_TASKS[task].folders
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(f"'{task}' was not found; looked for {', '.join(map(str, candidates))}.")
