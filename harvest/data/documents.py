"""A document, and the columns of a table that it is read from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...shared.cache.documents import Label
from ...shared.config.registry import did_you_mean
from ...shared.errors import UsageError
from .reading import BadRowError

_TARGET, _TARGET_CHAR, _LABELS = "target", "target_char", "labels"


@dataclass(frozen=True)
class Document:
    """One text of a dataset.

    Attributes:
        source: where it came from (a file and line, a help topic, a row of a hub dataset).
        domain: a coarse label of its kind, empty where the dataset has none.
        labels: name → value.
        target: index of a prompt's target token, excluding special tokens; negative counts from the end.
        target_char: a character of the text instead: the target is the token that holds it.
        parts: of a text too long to hold: starts a reading of its consecutive parts; then ``text`` is empty.
    """

    text: str
    source: str
    domain: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)
    target: int | None = None
    target_char: int | None = None
    parts: Callable[[], Iterator[str]] | None = None


@dataclass(frozen=True)
class Columns:
    """The columns (or JSON keys) that documents are read from.

    Attributes:
        text, domain, labels: names of required columns.
        prompts: also read ``target``, ``target_char`` and a mapping ``labels`` from rows that have them.
    """

    text: str
    domain: str | None = None
    labels: tuple[str, ...] = ()
    prompts: bool = False

    def required(self) -> list[str]:
        """Names of the columns that every row needs."""
        return [self.text, *([self.domain] if self.domain else []), *self.labels]

    def select(self, present: Sequence[str], where: object) -> list[str]:
        """The present columns to read. Raises UsageError with the setting if a required one was not found."""
        for setting, name in self._named():
            if name not in present:
                raise UsageError(
                    f"harvest.{setting}: {where} has no column {name!r}{did_you_mean(name, present)}",
                    hint=f"its columns: {', '.join(present)}",
                )
        optional = (_TARGET, _TARGET_CHAR, _LABELS) if self.prompts else ()
        return list(dict.fromkeys([*self.required(), *(name for name in optional if name in present)]))

    def document(self, row: Mapping[str, Any], where: str) -> Document:
        """The document of one row. Raises BadRowError if a column is missing or a value has the wrong type."""
        for setting, name in self._named():
            if name not in row:
                raise BadRowError(
                    where,
                    f"no column {name!r}",
                    f" has no column {name!r}{did_you_mean(name, list(row))}; its columns: {', '.join(row)}",
                    setting=f"harvest.{setting}",
                    cure=f"--set harvest.{setting}=COLUMN",
                )
        text = row[self.text]
        if not isinstance(text, str):
            raise BadRowError(
                where,
                f"{self.text!r} is {_kind(text)}",
                f": column {self.text!r} is {_kind(text)}, expected text",
                setting="harvest.text_column",
            )
        refuse_surrogates(text, f"column {self.text!r}", where)
        domain = row[self.domain] if self.domain else None
        if isinstance(domain, str):
            refuse_surrogates(domain, f"column {self.domain!r}", where)
        labels = {name: _label(name, row[name], where) for name in self.labels}
        document = Document(text, where, "" if domain is None else str(domain), labels)
        return self._prompt(document, row) if self.prompts else document

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
        return Document(text, where, document.domain, labels, target, target_char)


def _kind(value: object) -> str:
    """The type of a value in the words of JSON."""
    return "null" if value is None else type(value).__name__


def refuse_surrogates(text: str, what: str, where: str) -> None:
    """Raises BadRowError for half of a surrogate pair: it is no character, and UTF-8 cannot spell it."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise BadRowError(
            where, "lone surrogate", f": {what} holds a lone surrogate, which is no character: {half}"
        ) from None


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
