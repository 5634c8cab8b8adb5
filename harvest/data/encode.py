"""Documents to token ids, whatever they are: text, chats, or ids already."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...models.text import encode
from ...shared.cache import Flag
from ...shared.errors import UsageError
from .chat import Span, render
from .decode import PART
from .documents import Document
from .pack import TokenDocument
from .reading import BadRowError, Reading
from .windows import WINDOW, pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Flags = NDArray[np.uint8]

WHOLE = 1 << 20
"""Longest text, in characters, that is tokenised as a whole."""

TEMPLATE_ROLE = "template"
"""Name among `train_roles` of the template's own tokens."""


@dataclass(frozen=True)
class Encoder:
    """How documents become ids.

    Attributes:
        tokenizer: of the model.
        special: read special tokens that a text spells out as plain text, or as the tokens.
        train_roles: roles whose rows are trained on; None: all rows.
        targets: the documents are prompts; find the target token of each.
        bos, eos: ids that packing adds: one at the beginning or the end of a document is left to it.
        vocab: number of ids that the model embeds.
        window: characters of a long text that are tokenised at a time.
    """

    tokenizer: PreTrainedTokenizerBase
    special: Literal["text", "parse"] = "text"
    train_roles: tuple[str, ...] | None = None
    targets: bool = False
    bos: int | None = None
    eos: int | None = None
    vocab: int | None = None
    window: int = WINDOW

    def encode(self, documents: Sequence[Document], reading: Reading) -> Iterator[TokenDocument | BadRowError]:
        """The tokens of each document, of a long text in pieces, or why it has none. ``index`` is left to the caller.

        Raises:
            UsageError: a prompt's target is not one of its tokens.
        """
        if self.targets:  # prompts are short, or refused
            documents = [replace(one, text=_whole_text(one), parts=None) for one in documents]
        long = [self._is_long(one) for one in documents]
        texts = [i for i, one in enumerate(documents) if one.ids is None and one.messages is None and not long[i]]
        encoded = self._plain([documents[i].text for i in texts], reading) if texts else {}
        place = {i: k for k, i in enumerate(texts)}
        for i, document in enumerate(documents):
            try:
                if document.ids is not None:
                    yield self._of_ids(document)
                elif document.messages is not None:
                    yield self._of_chat(document, reading)
                elif long[i]:
                    yield from self._of_long(document, reading)
                else:
                    yield self._of_text(document, encoded, place[i])
            except BadRowError as bad:
                yield bad

    # --- text --------------------------------------------------------------------------------------------------------

    def _plain(self, texts: list[str], reading: Reading) -> Any:
        if self.special == "text" and self._spelled is not None:
            for text in texts:
                reading.spelled.update(self._spelled.findall(text))
        return encode(self.tokenizer, texts, offsets=self.targets, parse=self.special == "parse")

    def _of_text(self, document: Document, encoded: Any, at: int) -> TokenDocument:
        ids = np.asarray(encoded["input_ids"][at], dtype=np.int32)
        target = target_of(document, len(ids), encoded["offset_mapping"][at]) if self.targets else None
        if self.special == "text":
            return self._document(document, ids, target=target)
        return self._trimmed(document, ids, np.where(self._is_special(ids), int(Flag.TEMPLATE), 0), target)

    def _is_long(self, document: Document) -> bool:
        return not self.targets and (document.parts is not None or len(document.text) > WHOLE)

    def _of_long(self, document: Document, reading: Reading) -> Iterator[TokenDocument]:
        """The pieces of a long text."""
        parts = document.parts() if document.parts is not None else _cut(document.text)
        parse, start = self.special == "parse", 0
        held: TokenDocument | None = None  # the last piece that has tokens says that the text ends
        for piece in pieces(parts, lambda text: self._whole(text, parse), self.window):
            reading.unsure += not piece.exact
            if not parse and self._spelled is not None:
                reading.spelled.update(self._spelled.findall(piece.text))
            found = self._document(document, piece.ids)
            if parse:
                template = np.where(self._is_special(piece.ids), int(Flag.TEMPLATE), 0)
                found = self._trimmed(document, piece.ids, template, None, leading=not start)
            if not len(found.tokens):
                continue
            if held is not None:
                yield replace(held, more=True)
            held = replace(found, start=start)
            start += len(found.tokens)
        yield held or self._document(document, np.zeros(0, np.int32))

    # --- ids ---------------------------------------------------------------------------------------------------------

    def _of_ids(self, document: Document) -> TokenDocument:
        ids = np.asarray(document.ids, np.int64)
        wrong = ids[(ids < 0) | (ids >= self.vocab)] if self.vocab is not None else ids[:0]
        if len(wrong):
            raise BadRowError(
                document.source,
                "a token outside the vocabulary",
                f": token {wrong[0]} is outside the model's vocabulary of {self.vocab:,}",
                cure="tokenise the dataset with this model's tokenizer",
            )
        tokens = ids.astype(np.int32)
        target = target_of(document, len(ids), None) if self.targets else None
        return self._trimmed(document, tokens, np.where(self._is_special(tokens), int(Flag.TEMPLATE), 0), target)

    # --- chats -------------------------------------------------------------------------------------------------------

    def _of_chat(self, document: Document, reading: Reading) -> TokenDocument:
        assert document.messages is not None
        spans = render(document.messages, self.tokenizer, document.source)
        spelled = [
            token
            for span in spans
            if span.role is not None and self._spelled
            for token in self._spelled.findall(span.text)
        ]
        if spelled and self.special == "text":
            reading.spelled.update(spelled)
            ids, offsets = self._stretches(spans)
        else:
            ids, offsets = self._whole("".join(span.text for span in spans))
        return self._trimmed(document, ids, self._chat_flags(spans, ids, offsets), None)

    def _whole(self, text: str, parse: bool = True) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Ids and [n, 2] offsets of a text."""
        encoded = encode(self.tokenizer, [text], offsets=True, parse=parse)
        return (
            np.asarray(encoded["input_ids"][0], dtype=np.int32),
            np.asarray(encoded["offset_mapping"][0], dtype=np.int64).reshape(-1, 2),
        )

    def _stretches(self, spans: Sequence[Span]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """As :meth:`_whole`; the template's special tokens are tokens, the same words in a message are text."""
        assert self._spelled is not None
        stretches: list[tuple[bool, str]] = []
        for span in spans:
            cut = [span.text] if span.role is not None else re.split(f"({self._spelled.pattern})", span.text)
            for number, text in enumerate(cut):
                special = number % 2 == 1
                if stretches and not special and not stretches[-1][0]:
                    stretches[-1] = (False, stretches[-1][1] + text)
                else:
                    stretches.append((special, text))
        ids, offsets, start = [], [], 0
        for special, text in stretches:
            if text:
                found, where = self._whole(text, parse=special)
                ids.append(found)
                offsets.append(where + start)
            start += len(text)
        return np.concatenate(ids), np.concatenate(offsets)

    def _chat_flags(self, spans: Sequence[Span], ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> Flags:
        """Flags of each token: of the template, and not to be trained on. A token that overlaps a message is its."""
        ends = np.cumsum([len(span.text) for span in spans])
        first = np.searchsorted(ends, offsets[:, 0], side="right").clip(max=len(spans) - 1)
        last = np.searchsorted(ends, np.maximum(offsets[:, 1] - 1, offsets[:, 0]), side="right").clip(
            max=len(spans) - 1
        )
        of_template = np.array([span.role is None for span in spans])
        span_of = np.where(of_template[first], last, first)
        template = of_template[span_of]
        trained = np.array([self._trains(span.role) for span in spans])[span_of]
        flags = np.where(template, int(Flag.TEMPLATE), 0) | np.where(trained, 0, int(Flag.UNTRAINED))
        return flags.astype(np.uint8)

    def _trains(self, role: str | None) -> bool:
        return self.train_roles is None or (TEMPLATE_ROLE if role is None else role) in self.train_roles

    # --- both --------------------------------------------------------------------------------------------------------

    def _trimmed(
        self,
        document: Document,
        ids: NDArray[np.int32],
        flags: NDArray[np.integer],
        target: int | None,
        leading: bool = True,
    ) -> TokenDocument:
        """Without a BOS at the beginning, which packing adds; and not closed again if an EOS ends it.

        Args:
            leading: the document begins here.
        """
        leads = int(leading and len(ids) > 0 and ids[0] == self.bos)
        ends = bool(len(ids) > leads and ids[-1] == self.eos)
        target = None if target is None else max(target - leads, 0)
        return self._document(document, ids[leads:], flags[leads:].astype(np.uint8), not ends, target)

    def _document(
        self,
        document: Document,
        ids: NDArray[np.int32],
        flags: Flags | None = None,
        close: bool = True,
        target: int | None = None,
    ) -> TokenDocument:
        return TokenDocument(
            0, ids, document.source, document.domain, document.labels, target, flags=flags, close=close
        )

    def _is_special(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Special tokens, BOS and EOS excluded: those have flags of their own."""
        return np.isin(ids, [one for one in self._special_ids if one not in (self.bos, self.eos)])

    @cached_property
    def _special_ids(self) -> list[int]:
        return [token for token, entry in self.tokenizer.added_tokens_decoder.items() if entry.special]

    @cached_property
    def _spelled(self) -> re.Pattern[str] | None:
        """Matches the special tokens as they are spelt; None if the tokenizer has none."""
        words = [str(entry) for entry in self.tokenizer.added_tokens_decoder.values() if entry.special]
        return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True)))) if words else None


def _whole_text(document: Document) -> str:
    return document.text if document.parts is None else "".join(document.parts())


def _cut(text: str) -> Iterator[str]:
    for start in range(0, len(text), PART):
        yield text[start : start + PART]


def target_of(document: Document, n: int, offsets: Sequence[tuple[int, int]] | None) -> int:
    """Index of a prompt's target: the given token, the one that holds the given character, or else the last.

    Raises:
        UsageError: the prompt has no token there.
    """
    if not n:
        raise UsageError(f"harvest.dataset: {document.source}: expected at least one token in a prompt, found none")
    if document.target_char is not None and offsets is not None:
        holders = [i for i, (start, stop) in enumerate(offsets) if start <= document.target_char < stop]
        if not holders:
            raise UsageError(f"harvest.dataset: {document.source}: no token holds character {document.target_char}")
        return holders[-1]
    target = -1 if document.target is None else document.target
    if not -n <= target < n:
        raise UsageError(f"harvest.dataset: {document.source}: target {target}, but the text has {n} tokens")
    return target % n
