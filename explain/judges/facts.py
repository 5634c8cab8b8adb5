"""Facts about a token and the tokens ahead of it, of which rules are made."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...shared.cache.vocabulary import visible
from .base import Window

NEAR = 8
"""Tokens ahead of a token in which a word is soon before it."""

SUPPORT = 3
"""Fewest windows in which a fact holds on a marked token for it to be considered."""

CLASSES: dict[str, Callable[[str], bool]] = {
    "digits": lambda bare: bare.isdigit(),
    "marks": lambda bare: bool(bare) and all(unicodedata.category(c)[0] in "PS" for c in bare),
    "capitalised words": lambda bare: bare[:1].isupper() and bare[1:].islower(),
    "capitals": lambda bare: len(bare) > 1 and bare.isupper(),
    "lower-case words": lambda bare: bare.isalpha() and bare.islower(),
    "names with an underscore": lambda bare: "_" in bare and bare.strip("_") != "",
    "characters beyond ASCII": lambda bare: not bare.isascii(),
}
"""Class of a token without the spaces around it → whether it is of that class."""

Kind = Literal["token", "word", "begins", "ends", "class", "space", "inside"]
Place = Literal["own", "ahead", "near"]


@dataclass(frozen=True)
class Fact:
    """Something that holds of a token or not.

    Attributes:
        place: of the token itself, of the token ahead of it, or of any of the NEAR tokens ahead.
        kind: what is compared: the token, the word in it whatever its case and spaces, how that begins or ends, its
            class, that it is white space, or that it continues a word.
        value: with what.
    """

    place: Place
    kind: Kind
    value: str = ""

    def __str__(self) -> str:
        named = {
            "token": f"`{visible(self.value)}`",
            "word": f"the word `{self.value}`" if self.value.isalpha() else f"`{self.value}`",
            "begins": f"words that begin with `{self.value}`",
            "ends": f"words that end in `{self.value}`",
            "class": self.value,
            "space": "white space" if not self.value else f"`{visible(self.value)}`",
            "inside": "the rest of a word",
        }[self.kind]
        return {"own": named, "ahead": f"after {named}", "near": f"soon after {named}"}[self.place]

    def holds(self, tokens: Sequence[str]) -> NDArray[np.bool_]:
        """Of which tokens of a window it holds [T]."""
        own = np.fromiter((_is(self.kind, self.value, token) for token in tokens), np.bool_, len(tokens))
        if self.place == "own":
            return own
        out = np.zeros(len(tokens), np.bool_)
        for back in range(1, 2 if self.place == "ahead" else NEAR + 1):
            out[back:] |= own[:-back]
        return out


def _is(kind: Kind, value: str, token: str) -> bool:
    if kind == "token":
        return token == value
    bare = token.strip()
    if kind == "space":
        return token != "" and not bare
    if kind == "inside":
        return bare[:1].isalpha() and token[:1] == bare[:1]
    if kind == "class":
        return CLASSES[value](bare)
    word = bare.lower()
    return word == value if kind == "word" else (word.startswith if kind == "begins" else word.endswith)(value)


def _said_of(token: str) -> Iterable[tuple[Kind, str]]:
    """What may be said of a token."""
    bare = token.strip()
    yield "token", token
    if not bare:
        yield "space", ""
        return
    word = bare.lower()
    yield "word", word
    if bare.isalpha():
        for length in (2, 3, 4):
            if len(word) > length:
                yield "begins", word[:length]
                yield "ends", word[-length:]
        if token[:1] == bare[:1]:
            yield "inside", ""
    for name, belongs in CLASSES.items():
        if belongs(bare):
            yield "class", name


def candidates(windows: Sequence[Window], most: int = 400) -> list[Fact]:
    """Facts that hold on marked tokens of at least SUPPORT windows, the most frequent first."""
    seen: Counter[Fact] = Counter()
    for window in windows:
        found: set[Fact] = set()
        for i in np.flatnonzero(window.marks).tolist():
            found.update(Fact("own", *said) for said in _said_of(window.tokens[i]))
            if i:
                found.update(Fact("ahead", *said) for said in _said_of(window.tokens[i - 1]) if said[0] != "inside")
            near = window.tokens[max(0, i - NEAR) : i]
            found.update(Fact("near", "word", token.strip().lower()) for token in near if token.strip())
        seen.update(found)
    ranked = sorted(seen.items(), key=lambda item: (-item[1], str(item[0]), item[0].kind))
    return [fact for fact, n in ranked if n >= SUPPORT][:most]
