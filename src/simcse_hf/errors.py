"""The errors a user can cause, and therefore can cure.

Every message says what was found, where, and what to do. The command line prints it as one
line and exits with code 2; anything that is not a `SimCSEError` is a defect of ours.
"""

from __future__ import annotations


class SimCSEError(ValueError):
    """Base of all errors with a remedy in their message."""


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
