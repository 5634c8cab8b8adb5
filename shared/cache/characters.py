"""Tokens of a window as the characters that a reader sees: emoji, CJK and marks that several tokens spell."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Sequence

_JOINER = "\u200d"
_SELECTORS = range(0xFE00, 0xFE10)
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_REGIONAL = range(0x1F1E6, 0x1F200)  # two of them are a flag
_TAGS = range(0xE0020, 0xE0080)  # of flags such as Scotland's


def joined(data: Sequence[bytes | None], pieces: Sequence[str]) -> list[str]:
    """The text of each token of a window, decoded together: the concatenation is the text of the window.

    Characters that several tokens spell stand at the first of these tokens, and the others are empty. The same holds
    for what a reader sees as one character: marks with their letter, the parts of an emoji, the two halves of a flag.

    Args:
        data: UTF-8 bytes of each token, which may be parts of a character; None: a token that spells no text (BOS).
        pieces: the text of each token alone, for the tokens without bytes.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    out = [""] * len(data)
    unit: int | None = None  # the token at which the character being read stands
    before: int | None = None  # that of the character before it; None after a token without bytes
    for place, own in enumerate(data):
        if unit is None or not decoder.getstate()[0]:
            unit, before = place, unit
        if own is None:
            out[place] = pieces[place]
            unit = before = None
            continue
        text = decoder.decode(own)
        if before is not None and not out[unit] and _continues(out[before], text):
            unit, before = before, None
        out[unit] += text
        following = data[place + 1] if place + 1 < len(data) else None
        if following is None and decoder.getstate()[0]:  # the character is cut here
            out[unit] += decoder.decode(b"", final=True)
            decoder.reset()
    return out


def _continues(before: str, after: str) -> bool:
    """Whether what a reader sees as one character goes on from one text to the next."""
    if not before or not after or after.isascii():
        return False
    code = ord(after[0])
    if before.endswith(_JOINER) or after[0] == _JOINER or unicodedata.category(after[0]) in ("Mn", "Me", "Mc"):
        return True
    if code in _SELECTORS or code in _SKIN_TONES or code in _TAGS:
        return True
    if code not in _REGIONAL:
        return False
    halves = len(before) - len(before.rstrip("".join(map(chr, _REGIONAL))))
    return halves % 2 == 1
