"""A document, and the columns of a table that it is read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...shared.cache.documents import Label
from ...shared.config.registry import did_you_mean
from ...shared.errors import UsageError
from ..config import Format
from .chat import messages_of
from .reading import BadRowError, refuse_surrogates

_TARGET, _TARGET_CHAR, _LABELS = "target", "target_char", "labels"
_MASK = "attention_mask"
_FORMATS = {"messages": "chat", "conversations": "chat", "conversation": "chat", "input_ids": "tokens"}


@dataclass(frozen=True)
class Document:
    """One text of a dataset.

    Attributes:
        source: where it came from (a file and line, a help topic, a row of a hub dataset).
        domain: a coarse label of its kind, empty where the dataset has none.
        labels: name → value.
        target: index of a prompt's target token, excluding special tokens; negative counts from the end.
        target_char: a character of the text instead: the target is the token that holds it.
        messages: of a chat, with `role` and `content` each; then ``text`` is empty.
        ids: of a text that is tokenised already; then ``text`` is empty.
        parts: of a text too long to hold: starts a reading of its consecutive parts; then ``text`` is empty.
    """

    text: str
    source: str
    domain: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)
    target: int | None = None
    target_char: int | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    ids: NDArray[np.int64] | None = None
    parts: Callable[[], Iterator[str]] | None = None


@dataclass(frozen=True)
class Columns:
    """The columns (or JSON keys) that documents are read from.

    Attributes:
        text, domain, labels: names of required columns.
        prompts: also read ``target``, ``target_char`` and a mapping ``labels`` from rows that have them.
        format: what the first column holds.
    """

    text: str
    domain: str | None = None
    labels: tuple[str, ...] = ()
    prompts: bool = False
    format: Format = "text"

    def required(self) -> list[str]:
        """Names of the columns that every row needs."""
        return [self.text, *([self.domain] if self.domain else []), *self.labels]

    def select(self, present: Sequence[str], where: object) -> list[str]:
        """The present columns to read. Raises UsageError with the setting if a required one was not found."""
        for setting, name in self._named():
            if name not in present:
                raise UsageError(
                    f"harvest.{setting}: {where} has no column {name!r}{did_you_mean(name, present)}",
                    hint=f"its columns: {', '.join(present)}{self._other_format(name, present)}",
                )
        optional = (*((_TARGET, _TARGET_CHAR, _LABELS) if self.prompts else ()), _MASK)
        optional = optional if self.format == "tokens" else optional[:-1]
        return list(dict.fromkeys([*self.required(), *(name for name in optional if name in present)]))

    def _other_format(self, name: str, present: Sequence[str]) -> str:
        """The command for a dataset of another format, if its columns look like one."""
        if name != self.text or self.format != "text":
            return ""
        found = next((column for column in present if column in _FORMATS), None)
        if found is None:
            return ""
        column = "" if found in ("messages", "input_ids") else f" --set harvest.text_column={found}"
        return f"; for {found}: --set harvest.format={_FORMATS[found]}{column}"

    def document(self, row: Mapping[str, Any], where: str) -> Document:
        """The document of one row. Raises BadRowError if a column is missing or a value has the wrong type."""
        for setting, name in self._named():
            if name not in row:
                raise BadRowError(
                    where,
                    f"no column {name!r}",
                    f" has no column {name!r}{did_you_mean(name, list(row))}; its columns: {', '.join(row)}",
                    setting=f"harvest.{setting}",
                    cure=f"--set harvest.{setting}=COLUMN{self._other_format(name, list(row))}",
                )
        domain = row[self.domain] if self.domain else None
        if isinstance(domain, str):
            refuse_surrogates(domain, f"column {self.domain!r}", where)
        labels = {name: _label(name, row[name], where) for name in self.labels}
        document = self._content(row, Document("", where, "" if domain is None else str(domain), labels))
        return self._prompt(document, row) if self.prompts else document

    def _content(self, row: Mapping[str, Any], document: Document) -> Document:
        """The document with its text, messages or ids."""
        where, value = document.source, row[self.text]
        if self.format == "chat":
            return replace(document, messages=messages_of(value, self.text, where))
        if self.format == "tokens":
            return replace(document, ids=_ids(value, self.text, row.get(_MASK), where))
        if not isinstance(value, str):
            raise BadRowError(
                where,
                f"{self.text!r} is {_kind(value)}",
                f": column {self.text!r} is {_kind(value)}, expected text",
                setting="harvest.text_column",
            )
        refuse_surrogates(value, f"column {self.text!r}", where)
        return replace(document, text=value)

    def _named(self) -> Iterator[tuple[str, str]]:
        """Setting and name of each required column."""
        yield "text_column", self.text
        if self.domain is not None:
            yield "domain_column", self.domain
        for name in self.labels:
            yield "label_columns", name

    def _prompt(self, document: Document, row: Mapping[str, Any]) -> Document:
        """The document with its target and its own labels."""
        where, text = document.source, document.text
        own = row.get(_LABELS) or {}
        if not isinstance(own, Mapping):
            raise BadRowError(where, "bad labels", f": 'labels' is {_kind(own)}, expected name → value")
        labels = {**document.labels, **{str(name): _label(str(name), value, where) for name, value in own.items()}}
        target, target_char = _index(row, _TARGET, where), _index(row, _TARGET_CHAR, where)
        if target is not None and target_char is not None:
            raise BadRowError(where, "two targets", " has both 'target' and 'target_char'; expected at most one")
        if target_char is not None and not 0 <= target_char < len(text):
            raise BadRowError(
                where,
                "target outside the text",
                f": target_char {target_char}, but the text has {len(text)} characters",
            )
        return replace(document, labels=labels, target=target, target_char=target_char)


def _ids(value: object, column: str, mask: object, where: str) -> NDArray[np.int64]:
    """Token ids of a row, those with a 0 in its attention mask excluded: they are padding."""
    given = isinstance(value, (list, tuple, np.ndarray))
    try:
        found = np.asarray(value)
    except ValueError:  # lists of several lengths
        found = np.empty((0, 0))
    if not given or found.ndim != 1 or (found.dtype.kind not in "iu" and found.size):
        kind = f"a list of {found.dtype if found.ndim == 1 else 'lists'}" if given else _kind(value)
        raise BadRowError(
            where,
            f"{column!r} is no list of token ids",
            f": column {column!r} is {kind}, expected a list of token ids",
            setting="harvest.text_column",
        )
    ids: NDArray[np.int64] = found.astype(np.int64)
    if mask is None:
        return ids
    seen = np.asarray(mask)
    if seen.shape != ids.shape:
        raise BadRowError(where, "a mask of another length", f": {_MASK} has {seen.size} numbers for {ids.size} tokens")
    kept: NDArray[np.int64] = ids[seen != 0]
    return kept


def _kind(value: object) -> str:
    """The type of a value in the words of JSON."""
    return "null" if value is None else type(value).__name__


def _label(name: str, value: object, where: str) -> Label:
    if isinstance(value, str):
        refuse_surrogates(value, f"label {name!r}", where)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise BadRowError(
        where,
        f"label {name!r} is {_kind(value)}",
        f": label {name!r} is {_kind(value)}, expected text, number, boolean or null",
    )


def _index(row: Mapping[str, Any], name: str, where: str) -> int | None:
    value = row.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise BadRowError(where, f"{name!r} is {_kind(value)}", f": {name!r} is {_kind(value)}, expected a whole number")
