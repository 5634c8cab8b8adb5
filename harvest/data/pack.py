"""Packing documents into sequences of ctx tokens, each beginning with BOS.

Documents are joined in their order; one that does not fit continues in the next sequence. What a block holds depends on
the documents and the settings alone, never on which blocks were wanted: a resumed harvest meets the same sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.cache import Flag

_LAST_POSITION = int(np.iinfo(np.uint16).max)  # pos_in_doc saturates here; a document may be longer


@dataclass(frozen=True)
class TokenDocument:
    """The tokens of one document, without special tokens, and its index in the dataset."""

    index: int
    tokens: NDArray[np.int32]


@dataclass(frozen=True)
class Block:
    """Consecutive sequences, [n, ctx] each.

    ``doc_id`` is the index of the document in the dataset, ``pos_in_doc`` the position in it, counted from 0 and at
    most 65535. A sequence's BOS has both from the token after it. ``flags`` are :class:`shared.cache.Flag` bits.
    """

    tokens: NDArray[np.int32]
    doc_id: NDArray[np.uint32]
    pos_in_doc: NDArray[np.uint16]
    flags: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, cut: slice) -> Block:
        return Block(self.tokens[cut], self.doc_id[cut], self.pos_in_doc[cut], self.flags[cut])

    @property
    def has_padding(self) -> bool:
        return bool((self.flags & int(Flag.PADDING)).any())


def pack(
    documents: Iterable[TokenDocument], ctx: int, block: int, bos: int, eos: int | None, pad: int, close: bool
) -> Iterator[Block]:
    """Yields blocks of ``block`` sequences; the last one may hold fewer, and its last sequence ends in padding.

    Args:
        ctx: tokens in a sequence, BOS included.
        bos, eos, pad: token ids; every BOS and EOS is flagged, whether it was put there or came from the text.
        close: put ``eos`` after every document, as its last token.
    """
    body = ctx - 1
    held: list[NDArray[np.int64]] = []  # [n, 4] per document: token, document, position, flags
    n_held = 0
    for document in documents:
        if not len(document.tokens):
            continue
        held.append(_columns(document, bos, eos, close))
        n_held += len(held[-1])
        if n_held >= block * body:
            joined = np.concatenate(held)
            whole = n_held // (block * body) * block * body
            for start in range(0, whole, block * body):
                yield _block(joined[start : start + block * body].reshape(block, body, 4), bos)
            held, n_held = [joined[whole:]], n_held - whole
    if n_held:
        joined = np.concatenate(held)
        filler = np.zeros((-n_held % body, 4), np.int64)
        filler[:, 0], filler[:, 3] = pad, int(Flag.PADDING)
        yield _block(np.concatenate([joined, filler]).reshape(-1, body, 4), bos)


def _columns(document: TokenDocument, bos: int, eos: int | None, close: bool) -> NDArray[np.int64]:
    tokens = document.tokens.astype(np.int64)
    if close and eos is not None:
        tokens = np.append(tokens, eos)
    flags = np.where(tokens == bos, int(Flag.BOS), 0)
    if eos is not None and eos != bos:
        flags |= np.where(tokens == eos, int(Flag.EOS), 0)
    elif close:
        flags[-1] = int(Flag.EOS)
    flags[0] |= int(Flag.DOC_START)
    positions = np.minimum(np.arange(len(tokens)), _LAST_POSITION)
    return np.stack([tokens, np.full(len(tokens), document.index), positions, flags], axis=1)


def _block(body: NDArray[np.int64], bos: int) -> Block:
    """[n, ctx − 1, 4] columns → a block, with BOS put before each sequence."""
    first = body[:, :1].copy()
    first[:, 0, 0], first[:, 0, 3] = bos, int(Flag.BOS)
    whole = np.concatenate([first, body], axis=1)
    return Block(
        tokens=whole[:, :, 0].astype(np.int32),
        doc_id=whole[:, :, 1].astype(np.uint32),
        pos_in_doc=whole[:, :, 2].astype(np.uint16),
        flags=whole[:, :, 3].astype(np.uint8),
    )
