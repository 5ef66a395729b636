"""The errors a user can cause, and therefore can cure.

Every message says what was found, where, and what to do. The command line prints it as one
line and exits with code 2; anything that is not a `SimCSEError` is a defect of ours.
"""

from __future__ import annotations


def shortened(value: object, longest: int = 200) -> str:
    """Text for a message, its middle left out where it is long: what a file holds may be of any length.

    >>> shortened("가" * 9, 7)
    '가가 … 가가'
    """
    text = str(value)
    half = max(1, (longest - 3) // 2)
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"


class SimCSEError(ValueError):
    """Base of all errors with a remedy in their message.

    Attributes:
        exit_code: Of the command that ends with this error.
    """

    exit_code = 2


class ConfigError(SimCSEError):
    """A configuration file, key, value or command-line flag cannot be used."""


class DataError(SimCSEError):
    """A data file, column or row cannot be used."""


class ModelError(SimCSEError):
    """A model folder, tokenizer or checkpoint cannot be used."""


class ForeignModulesError(ModelError):
    """A sentence-transformers model whose modules `SimCSEModel` cannot express."""


class TrainingError(SimCSEError):
    """Training cannot start, or cannot go on."""


class TrainingInterrupted(TrainingError):
    """Training was asked to stop, saved a checkpoint, and did."""

    def __init__(self, message: str, *, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code
