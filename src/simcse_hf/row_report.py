"""What became of every row: nothing is dropped silently."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from .errors import DataError


@dataclass
class RowReport:
    """Counts of rows read, kept, and dropped for each reason.

    Attributes:
        on_bad_row: `error` stops at the first malformed row; `skip` drops and counts it.
        every_row_counts: An evaluation set or a corpus to be numbered by line: no row may be skipped.
        unit: What `kept` counts; NLI rows become triplets.
    """

    on_bad_row: Literal["error", "skip"] = "error"
    every_row_counts: bool = False
    read: int = 0
    kept: int = 0
    unit: str = "rows"
    dropped: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def drop(self, reason: str, where: str) -> None:
        """Count a row that is left out by rule; the first place of each reason is remembered."""
        self.dropped[reason] += 1
        self.examples.setdefault(reason, where)

    def bad_row(self, reason: str, where: str, message: str) -> None:
        """A row that cannot be understood.

        Raises:
            DataError: Unless `on_bad_row` is `skip`.
        """
        if self.on_bad_row == "error":
            cure = (
                "Mend the row." if self.every_row_counts else "Mend the row, or set on_bad_row to skip to leave it out."
            )
            raise DataError(f"{where}: {message} {cure}")
        self.drop(reason, where)

    def as_dict(self) -> dict:
        """JSON-ready, for the record of a run."""
        return {"read": self.read, "kept": self.kept, "unit": self.unit, "dropped": dict(self.dropped)}

    def remembered(self) -> dict:
        """JSON-ready, for `recall`: everything that was found out."""
        return {**self.as_dict(), "examples": self.examples}

    def recall(self, remembered: dict) -> None:
        """Take over the counts of an earlier reading of the same data."""
        self.read, self.kept, self.unit = remembered["read"], remembered["kept"], remembered["unit"]
        self.dropped = Counter(remembered["dropped"])
        self.examples = dict(remembered["examples"])

    def __str__(self) -> str:
        lines = [f"{self.read:,} rows read, {self.kept:,} {self.unit} kept"]
        lines += [
            f"  {count:,} dropped: {reason.replace('_', ' ')} (first: {self.examples[reason]})"
            for reason, count in self.dropped.most_common()
        ]
        return "\n".join(lines)
