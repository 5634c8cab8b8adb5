"""Text to token ids, many documents at a time and ahead of the model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Generic, TypeVar

from .documents import Document
from .encode import Encoder
from .pack import TokenDocument
from .reading import Reading

T = TypeVar("T")

_BATCH_DOCUMENTS = 512
_BATCH_CHARS = 1 << 20


def tokenise(documents: Iterable[Document], encoder: Encoder, reading: Reading) -> Iterator[TokenDocument]:
    """The tokens of each document, excluding special tokens that packing adds.

    The tokenizer works on many documents at once, on all cores. A long text is tokenised in windows, and comes in
    pieces (:mod:`.windows`).

    Raises:
        UsageError: a prompt's target is not one of its tokens.
        BadRowError: a document has no valid tokens, and the reading does not skip such rows.
    """
    index = -1
    for batch in _batches(documents):
        for document in reading.each(encoder.encode(batch, reading), lambda found: found):
            index += not document.start
            yield replace(document, index=index)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    held: list[Document] = []
    chars = 0
    for document in documents:
        held.append(document)
        chars += len(document.text)
        if len(held) >= _BATCH_DOCUMENTS or chars >= _BATCH_CHARS:
            yield held
            held, chars = [], 0
    if held:
        yield held


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
