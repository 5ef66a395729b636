"""JSON of which nothing is lost silently: what cannot be used is marked, and matters only to who reads that field."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class UnusableJSONError(Exception):
    """JSON that is well formed and yet cannot be read."""


@dataclass(frozen=True, slots=True)
class UnusableValue:
    """In the place of a value that cannot be used.

    Attributes:
        problem: What a message says of the field, behind its name.
    """

    problem: str


# Of a field that a row lacks.
MISSING = UnusableValue("is missing")


class RepeatingObject:
    """An object of which a field stands twice, where `json` would silently take the last."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[str, object]]):
        self.pairs = pairs


OBJECTS = (dict, RepeatingObject)
_OBJECTS = frozenset(OBJECTS)


def parse_json(text: str):
    """Content of a JSON text; objects are `OBJECTS`, and a number of too many digits is an `UnusableValue`.

    Raises:
        json.JSONDecodeError: Not JSON.
        UnusableJSONError: Brackets beyond what can be read.
    """
    try:
        try:
            return _DECODER.decode(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # of int(), which reads 4,300 digits
            return _DECODER_OF_LONG_NUMBERS.decode(text)
    except RecursionError:
        raise UnusableJSONError("brackets are nested too deeply") from None


def parse_json_line(text: str):
    """`parse_json`, faster where the text is one plain object."""
    try:
        content = _PLAIN_DECODER.decode(text)
    except (ValueError, RecursionError):
        return parse_json(text)
    return content if type(content) is dict and _has_no_more_fields(text, content) else parse_json(text)


def _has_no_more_fields(text: str, record: dict) -> bool:
    """Whether none stands twice, because the text has no more colons behind names than the object has fields.

    False may also mean that this cannot be told so easily.
    """
    fields = len(record)
    if dict in map(type, record.values()):
        fields += sum(len(value) for value in record.values() if type(value) is dict)
    if text.count(":") == fields:
        return True
    # Some are within a text. Those behind a name follow its quotation mark, or the white space behind that.
    return text.count('":') == fields and not any(space in text for space in (" :", "\t:", "\r:", "\n:"))


def _object(pairs: list[tuple[str, object]]) -> dict | RepeatingObject:
    content = dict(pairs)
    return content if len(content) == len(pairs) else RepeatingObject(pairs)


def _integer(digits: str) -> int | UnusableValue:
    try:
        return int(digits)
    except ValueError:
        return UnusableValue("holds a number of more digits than can be read")


# Made once: json.loads makes one for every call that has a hook.
_PLAIN_DECODER = json.JSONDecoder()
_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_DECODER_OF_LONG_NUMBERS = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


def first_repeated(names: Sequence[str]) -> str | None:
    """The first name that occurs more than once.

    >>> first_repeated(["a", "b", "c", "b"])
    'b'
    """
    return next((name for name, count in Counter(names).items() if count > 1), None)


def items_of(record: dict | RepeatingObject) -> Iterable[tuple[str, object]]:
    """Names and values of an object, repeated ones included."""
    return record.items() if isinstance(record, dict) else record.pairs


def flat_fields(record: dict | RepeatingObject) -> dict:
    """Fields of an object, those of objects inside of it under a name with dots.

    >>> flat_fields({"text": "가", "labels": {"label": 3.5, "source": {"id": 1}}})
    {'text': '가', 'labels.label': 3.5, 'labels.source.id': 1}
    >>> flat_fields(parse_json('{"text": "가", "id": 1, "id": 2}'))
    {'text': '가', 'id': UnusableValue(problem='stands twice in the row')}
    """
    if isinstance(record, dict) and _OBJECTS.isdisjoint(map(type, record.values())):
        return record
    flat: dict = {}
    open_levels = [("", iter(items_of(record)))]  # no recursion: the levels may be as many as brackets can be nested
    while open_levels:
        prefix, items = open_levels[-1]
        for key, value in items:
            if isinstance(value, OBJECTS):
                open_levels.append((f"{prefix}{key}.", iter(items_of(value))))
                break
            name = prefix + key
            flat[name] = UnusableValue("stands twice in the row") if name in flat else value
        else:
            open_levels.pop()
    return flat


def half_a_character(text: str) -> str | None:
    r"""The first half of a character (an emoji that was cut in two, say), escaped; None in text that can be written.

    >>> half_a_character("\ud83d"), half_a_character("👍")
    ('\\ud83d', None)
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None
