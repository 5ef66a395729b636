"""Single files of a model folder or Hub repository."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from transformers.utils import cached_file

from .errors import ModelError, shortened

logger = logging.getLogger(__name__)


def find_file(name_or_path: str, filename: str, **hub_kwargs) -> str | None:
    """Path of a file, downloaded where it has to be; None where there is no such file.

    Args:
        name_or_path: Local folder or Hub id.
        filename: Within it.
        hub_kwargs: `revision`, `cache_dir`, `token`, `local_files_only`.
    """
    try:
        return cached_file(
            name_or_path,
            filename,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            **hub_kwargs,
        )
    except OSError as error:
        logger.warning(
            "could not ask whether %s has a %s; going on as if it had none (%s)", name_or_path, filename, error
        )
        return None


def read_json(name_or_path: str, filename: str, **hub_kwargs):
    """Content of a JSON file, None where there is no such file.

    Raises:
        ModelError: It is not JSON.
    """
    path = find_file(name_or_path, filename, **hub_kwargs)
    if path is None:
        return None
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a thousand brackets
        raise ModelError(f"{filename} in {name_or_path} is not JSON ({shortened(error)}). It is damaged.") from None


def read_mapping(name_or_path: str, filename: str, **hub_kwargs) -> dict:
    """`read_json` of a file that holds a mapping; empty where there is no such file.

    Raises:
        ModelError: It holds something else.
    """
    content = read_json(name_or_path, filename, **hub_kwargs)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ModelError(
            f"{filename} in {name_or_path} holds no mapping but a {type(content).__name__}. It is damaged."
        )
    return content
