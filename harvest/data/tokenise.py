"""Text to token ids, many documents at a time and ahead of the model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from ...models.text import encode
from ...shared.errors import UsageError
from .documents import Document
from .pack import TokenDocument

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_BATCH_DOCUMENTS = 512
_BATCH_CHARS = 1 << 20


def tokenise(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, targets: bool = False
) -> Iterator[TokenDocument]:
    """The tokens of each document, excluding special tokens; a text that contains "<eos>" is plain text.

    The tokenizer works on many documents at once, on all cores.

    Args:
        targets: the documents are prompts; find the target token of each.

    Raises:
        UsageError: a prompt's target is not one of its tokens.
    """
    index = 0
    held: list[Document] = []
    chars = 0
    for document in documents:
        held.append(document)
        chars += len(document.text)
        if len(held) >= _BATCH_DOCUMENTS or chars >= _BATCH_CHARS:
            yield from _encode(held, index, tokenizer, targets)
            index += len(held)
            held, chars = [], 0
    if held:
        yield from _encode(held, index, tokenizer, targets)


def _encode(
    documents: list[Document], first: int, tokenizer: PreTrainedTokenizerBase, targets: bool
) -> Iterator[TokenDocument]:
    encoded = encode(tokenizer, [document.text for document in documents], offsets=targets)
    for offset, (document, ids) in enumerate(zip(documents, encoded["input_ids"], strict=True)):
        target = _target(document, len(ids), encoded["offset_mapping"][offset]) if targets else None
        yield TokenDocument(
            first + offset,
            np.asarray(ids, dtype=np.int32),
            document.source,
            document.domain,
            document.labels,
            target,
        )


def _target(document: Document, n: int, offsets: Sequence[tuple[int, int]]) -> int:
    """Index of a prompt's target: the given token, the one that holds the given character, or else the last."""
    if not n:
        raise UsageError(f"harvest.dataset: {document.source}: expected at least one token in a prompt, found none")
    if document.target_char is not None:
        holders = [i for i, (start, stop) in enumerate(offsets) if start <= document.target_char < stop]
        if not holders:
            raise UsageError(f"harvest.dataset: {document.source}: no token holds character {document.target_char}")
        return holders[-1]
    target = -1 if document.target is None else document.target
    if not -n <= target < n:
        raise UsageError(f"harvest.dataset: {document.source}: target {target}, but the text has {n} tokens")
    return target % n


class Ahead(Generic[T]):
    """Iterates in its own thread, at most ``depth`` items ahead of the reader. Use it with ``with``.

    An error of the iteration is raised in place of the item.
    """

    def __init__(self, items: Iterable[T], depth: int) -> None:
        self._queue: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(items,), name="tokenise", daemon=True)
        self._thread.start()

    def _run(self, items: Iterable[T]) -> None:
        try:
            for item in items:
                if not self._put((item, None)):
                    return
            self._put((None, None))
        except BaseException as error:
            self._put((None, error))

    def _put(self, entry: tuple[T | None, BaseException | None]) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def __iter__(self) -> Iterator[T]:
        while True:
            item, error = self._queue.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)  # it may wait for the network; a daemon does not keep the process alive
