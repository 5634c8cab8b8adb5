"""A long text tokenised in windows, in bounded memory, to the ids that the whole text would have.

A tokenizer looks at its text as a whole, but what it does at one place depends on the text nearby. Where the tokens of
the whole text have a boundary, both BPE (no merge crosses it, so the merges of the two sides do not see each other)
and Unigram (the best path through it is the best path of either side) give the two sides the same ids alone. So a
window ends at such a boundary, some way before its right end, and the next one begins there.

Whether a boundary may be cut is tried, not assumed: the text from it on is tokenised again as the next window would
begin, and has to give the tokens that this window gives there. A window may begin at the boundary itself; a little
before it, for a tokenizer that treats the beginning of a text differently (a prefix space); or behind a newline that is
not in the text. Where none of these gives the same tokens at any of a few boundaries, the text is cut all the same, and
the cut is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW = 1 << 18
"""Characters tokenised at a time."""

MARGIN = 1 << 11
"""Characters at the right end of a window whose tokens may still change with the text behind it."""

Ids = NDArray[np.int32]
Encode = Callable[[str], tuple[Ids, NDArray[np.int64]]]
"""Text → ids [n] and the characters of each, [n, 2]."""


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of a text.

    Attributes:
        ids: may be none.
        text: the characters that they are made of.
        last: the text ends here.
        exact: it begins where a cut changes no token, as far as could be tried.
    """

    ids: Ids
    text: str
    last: bool
    exact: bool = True


@dataclass(frozen=True)
class _Begin:
    """How a window begins: with this text that is not in the document, and this many characters of what lies before."""

    prefix: str = ""
    back: int = 0


@dataclass(frozen=True)
class _Cut:
    """The end of a window: its place in the window's text, how the next one begins, the tokens that are expected there,
    and whether the cut was found to change no token."""

    place: int
    begin: _Begin
    expected: Ids
    exact: bool


def pieces(parts: Iterable[str], encode: Encode, window: int = WINDOW, margin: int = MARGIN) -> Iterator[Piece]:
    """The tokens of a text, piece by piece.

    Args:
        parts: the text, cut anywhere.
        encode: tokenises a text without special tokens around it.
        window: characters tokenised at a time.
        margin: characters at the end of a window that belong to the next one.
    """
    source = iter(parts)
    text, at, cut, ended = "", 0, _Cut(0, _Begin(), np.zeros(0, np.int32), True), False  # text[:at] is done
    while True:
        back = cut.begin.back
        text, at = text[at - back :], back
        while not ended and len(text) - at <= window:
            part = next(source, None)
            ended = part is None
            text += part or ""
        last = ended and len(text) - at <= window
        whole = text if last else text[: at + window]
        ids, spans, _ = _from(whole, at, cut.begin, encode)
        exact = cut.exact and np.array_equal(ids[: len(cut.expected)], cut.expected)
        if last:
            yield Piece(ids, whole[at:], True, exact)
            return
        cut = _cut(whole, at, spans, ids, encode, margin)
        yield Piece(ids[: int(np.searchsorted(spans[:, 0], cut.place))], whole[at : cut.place], False, exact)
        at = cut.place


def _from(text: str, at: int, begin: _Begin, encode: Encode) -> tuple[Ids, NDArray[np.int64], bool]:
    """Tokens of text[at:], their characters, counted in `text`, and whether none crosses `at`.

    What `begin` adds before it is dropped again.
    """
    added = len(begin.prefix) + begin.back
    ids, spans = encode(begin.prefix + text[at - begin.back :])
    spans = spans + (at - added)
    first = int(np.searchsorted(spans[:, 0], at)) if added else 0
    clean = not first or int(spans[:first, 1].max()) <= at
    return ids[first:], spans[first:], clean


def _cut(text: str, at: int, spans: NDArray[np.int64], ids: Ids, encode: Encode, margin: int) -> _Cut:
    """Where a window ends and how the next one begins."""
    places = _boundaries(spans, at)
    usable = places[places <= len(text) - margin]
    end, until = len(text) - margin, len(text) - margin // 2
    gap = [end] if not len(spans) or spans[-1, 1] <= end else []  # space that is no token: cut anywhere
    for place in [*gap, *_candidates(text, usable, margin)]:
        begins = [_Begin(), *(_Begin(back=place - one) for one in _before(usable, place, margin)), _Begin("\n")]
        mine = slice(int(np.searchsorted(spans[:, 0], place)), int(np.searchsorted(spans[:, 1], until, side="right")))
        n = mine.stop - mine.start
        for begin in begins if n > 0 or gap else []:
            again, where, clean = _from(text, place, begin, encode)
            if clean and np.array_equal(again[:n], ids[mine]) and np.array_equal(where[:n], spans[mine]):
                return _Cut(place, begin, ids[mine], True)
    place = int(usable[-1]) if len(usable) else len(text) - margin
    return _Cut(place, _Begin(), np.zeros(0, np.int32), False)


def _boundaries(spans: NDArray[np.int64], at: int) -> NDArray[np.int64]:
    """Ends of tokens, in order, behind which the next token begins: not those within a character of several tokens."""
    ends, starts = spans[:-1, 1], spans[1:, 0]
    clean = (ends <= starts) & (np.maximum.accumulate(ends) == ends) & (ends > at)
    return np.unique(ends[clean])


def _candidates(text: str, places: NDArray[np.int64], margin: int) -> list[int]:
    """A few boundaries to try: behind the last newline, before the last spaces, then some of any kind."""
    near = places[-margin:].tolist()
    newline = [place for place in near if text[place - 1] == "\n"][-1:]
    space = [place for place in near if text[place].isspace()][-2:]
    others = near[-1:] + near[-2:-1] + near[-16:-15] + near[-64:-63]
    return list(dict.fromkeys([*newline, *reversed(space), *others]))


def _before(places: NDArray[np.int64], place: int, margin: int) -> Iterator[int]:
    """Boundaries a little before a place: about a sixteenth and half of the margin."""
    for distance in (max(1, margin // 16), max(1, margin // 2)):
        earlier = places[places <= place - distance]
        if len(earlier):
            yield int(earlier[-1])
