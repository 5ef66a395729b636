"""What counts as the same sentence.

Two sentences are the same when they are equal after `normalize_text`; everything that
compares sentences (de-duplication, duplicate masking) uses this one definition.
"""

from __future__ import annotations

import re
import unicodedata

# Zero-width characters and the byte-order mark are invisible to a reader and differ between
# copies of one text. ZWNJ and ZWJ (U+200C, U+200D) are left out: they carry meaning elsewhere.
_INVISIBLE = re.compile("[\u200b\u2060\ufeff\u00ad]")


def normalize_text(text: str) -> str:
    """Invisible characters removed, Unicode NFC, every run of white space folded to one space.

    Korean typed on some systems arrives decomposed (NFD): each syllable as two or three jamo.
    A tokenizer sees other characters then, so composing is not optional for Korean.

    >>> normalize_text("  \u1112\u1161\u11ab\u1100\u1173\u11af\\u00a0 문장\\n")
    '한글 문장'
    """
    # Removing comes first: a zero-width space between two jamo keeps them from composing.
    return " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub("", text)).split())
