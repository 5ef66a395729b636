"""JSON of which nothing is lost silently: no field that stands twice, no character that cannot be written again."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

from .errors import shortened

_HALF_A_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


class UnusableJSONError(Exception):
    """JSON that is well formed and yet cannot be used."""


def parse_json(text: str):
    """Content of a JSON text.

    Raises:
        json.JSONDecodeError: Not JSON.
        UnusableJSONError: A field twice, half a character, or brackets or digits beyond what can be read.
    """
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise UnusableJSONError("brackets are nested too deeply") from None
    except ValueError:
        raise UnusableJSONError("a number has more digits than can be read") from None
    # Emoji of another writer are escaped as two halves and come out whole; half of one cannot be written anywhere.
    if _HALF_A_CHARACTER.search(text):
        try:
            json.dumps(content, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise UnusableJSONError(
                f"half a character (\\u{ord(error.object[error.start]):04x}), which no text can hold"
            ) from None
    return content


def _once(pairs: list[tuple[str, object]]) -> dict:
    """An object, whose repeated field json would silently read as the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = first_repeated([key for key, _ in pairs])
        raise UnusableJSONError(f"the field {shortened(repr(repeated))} occurs twice in an object")
    return content


def first_repeated(names: Sequence[str]) -> str | None:
    """The first name that occurs more than once.

    >>> first_repeated(["a", "b", "c", "b"])
    'b'
    """
    return next((name for name, count in Counter(names).items() if count > 1), None)


def flat_fields(record: dict) -> dict:
    """Fields of an object, those of objects inside of it under a name with dots.

    Raises:
        UnusableJSONError: Two come to the same name.

    >>> flat_fields({"text": "가", "labels": {"label": 3.5, "source": {"id": 1}}})
    {'text': '가', 'labels.label': 3.5, 'labels.source.id': 1}
    """
    flat: dict = {}
    open_levels = [("", iter(record.items()))]  # no recursion: the levels may be as many as brackets can be nested
    while open_levels:
        prefix, items = open_levels[-1]
        for key, value in items:
            if isinstance(value, dict):
                open_levels.append((f"{prefix}{key}.", iter(value.items())))
                break
            if prefix + key in flat:
                raise UnusableJSONError(f"two fields are called {shortened(repr(prefix + key))}")
            flat[prefix + key] = value
        else:
            open_levels.pop()
    return flat
