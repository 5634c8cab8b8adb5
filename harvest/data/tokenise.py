"""Text to token ids, many documents at a time and ahead of the model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from harvest.data.documents import Document
from harvest.data.pack import TokenDocument

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_BATCH_DOCUMENTS = 512
_BATCH_CHARS = 1 << 20


def tokenise(documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenDocument]:
    """The tokens of each document, without special tokens; one written out in a text ("<eos>") is plain text."""
    index = 0
    texts: list[str] = []
    chars = 0
    for document in documents:
        texts.append(document.text)
        chars += len(document.text)
        if len(texts) >= _BATCH_DOCUMENTS or chars >= _BATCH_CHARS:
            yield from _encode(texts, index, tokenizer)
            index += len(texts)
            texts, chars = [], 0
    if texts:
        yield from _encode(texts, index, tokenizer)


def _encode(texts: list[str], first: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[TokenDocument]:
    encoded = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, split_special_tokens=True, verbose=False
    )["input_ids"]
    for offset, ids in enumerate(encoded):
        yield TokenDocument(first + offset, np.asarray(ids, dtype=np.int32))


class Ahead(Generic[T]):
    """Iterates in a thread of its own, at most ``depth`` items ahead of whoever reads; close it, or use ``with``.

    An error of the iteration is raised where the item would have come.
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
        self._thread.join(timeout=5)  # it may be waiting for a network; as a daemon it does not keep the process
