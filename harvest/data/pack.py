"""Packing documents into sequences of ctx tokens, each beginning with BOS.

Three policies. Joined (:func:`pack`): documents follow one another, and one that does not fit continues in the next
sequence. Joined apart (:func:`pack_apart`, ``alone=False``): the same, but every document begins with a BOS of its own,
for a model that is kept from looking at the documents before. Alone (``alone=True``): every document has sequences of
its own, filled up with padding. What a block holds depends on the documents and the settings alone, never on which
blocks were wanted: a resumed harvest meets the same sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...shared.cache import Flag
from ...shared.cache.documents import DocumentRecord, Label, document_positions
from ...shared.errors import UsageError

_LAST_POSITION = int(np.iinfo(np.uint16).max)  # pos_in_doc saturates here; a document may be longer

Columns = NDArray[np.int64]  # [n, 4]: token, document, position, flags


@dataclass(frozen=True)
class TokenDocument:
    """The tokens of one document, without special tokens, and its index in the dataset.

    ``target`` is the index of the token that a prompt is about.
    """

    index: int
    tokens: NDArray[np.int32]
    source: str = ""
    domain: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)
    target: int | None = None

    def record(self, target_row: int | None = None) -> DocumentRecord:
        return DocumentRecord(self.index, self.source, self.domain, self.labels, target_row)


@dataclass(frozen=True)
class Block:
    """Consecutive sequences, [n, ctx] each.

    ``doc_id`` is the index of the document in the dataset, ``pos_in_doc`` the position in it, counted from 0 and at
    most 65535. A BOS that was put there has both from the token after it. ``flags`` are :class:`shared.cache.Flag`
    bits. ``documents`` are those that begin in the block; a slice of a block has none.
    """

    tokens: NDArray[np.int32]
    doc_id: NDArray[np.uint32]
    pos_in_doc: NDArray[np.uint16]
    flags: NDArray[np.uint8]
    documents: tuple[DocumentRecord, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, cut: slice) -> Block:
        return Block(self.tokens[cut], self.doc_id[cut], self.pos_in_doc[cut], self.flags[cut])

    def first(self, n: int) -> Block:
        """The first n sequences, with the documents that have a row in them."""
        if n >= len(self):
            return self
        block = self[:n]
        present = set(np.unique(block.doc_id[~block.padding]).tolist())
        return replace(block, documents=tuple(one for one in self.documents if one.doc_id in present))

    @property
    def padding(self) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (self.flags & int(Flag.PADDING)) != 0
        return found

    @property
    def has_padding(self) -> bool:
        return bool(self.padding.any())

    def positions(self) -> NDArray[np.int64]:
        """Positions that begin anew with every document of a sequence, and with its padding; [n, ctx]."""
        return document_positions(self.doc_id, self.padding)


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
    held: list[Columns] = []
    n_held = 0
    begun: list[DocumentRecord] = []
    for document in documents:
        if not len(document.tokens):
            continue
        held.append(_columns(document, bos, eos, close))
        begun.append(document.record())
        n_held += len(held[-1])
        if n_held >= block * body:
            joined = np.concatenate(held)
            whole = n_held // (block * body) * block * body
            for start in range(0, whole, block * body):
                yield _with_documents(
                    _after_bos(joined[start : start + block * body].reshape(block, body, 4), bos), begun
                )
            held, n_held = [joined[whole:]], n_held - whole
    if n_held:
        joined = np.concatenate(held)
        joined = np.concatenate([joined, _padding(-n_held % body, pad)])
        yield _with_documents(_after_bos(joined.reshape(-1, body, 4), bos), begun)


def pack_apart(
    documents: Iterable[TokenDocument],
    ctx: int,
    block: int,
    bos: int,
    eos: int | None,
    pad: int,
    close: bool,
    alone: bool,
    one_sequence: bool = False,
) -> Iterator[Block]:
    """Yields blocks as :func:`pack` does, of sequences in which every document, or its next part, follows a BOS.

    A single place that is left at the end of a sequence becomes padding, since a BOS needs a token after it.

    Args:
        alone: a document begins a new sequence, and the rest of its last one is padding.
        one_sequence: a document must fit into one sequence (prompts).

    Raises:
        UsageError: a document does not fit into one sequence, and must.
    """
    held: list[Columns] = []  # [ctx, 4] each
    parts: list[Columns] = []
    room = ctx
    begun: list[DocumentRecord] = []
    n_sequences = 0

    def end_sequence() -> None:
        nonlocal parts, room, n_sequences
        held.append(np.concatenate([*parts, _padding(room, pad)]))
        parts, room = [], ctx
        n_sequences += 1

    for document in documents:
        if not len(document.tokens):
            continue
        columns = _columns(document, bos, eos, close)
        if one_sequence and len(columns) >= ctx:
            raise UsageError(
                f"harvest.ctx: {document.source} has {len(document.tokens)} tokens, and a prompt must fit into one "
                f"sequence of {ctx} with its BOS{' and EOS' if close else ''}",
                hint=f"--set harvest.ctx={len(columns) + 1} or more",
            )
        target_row = None if document.target is None else n_sequences * ctx + 1 + document.target
        begun.append(document.record(target_row))
        done = 0
        while done < len(columns):
            part = columns[done : done + room - 1]
            parts += [_bos_before(part, bos), part]
            room -= 1 + len(part)
            done += len(part)
            if room < 2 or alone:
                end_sequence()
                if len(held) == block:
                    yield _with_documents(_block(np.stack(held)), begun)
                    held.clear()
    if parts:
        end_sequence()
    if held:
        yield _with_documents(_block(np.stack(held)), begun)


def _columns(document: TokenDocument, bos: int, eos: int | None, close: bool) -> Columns:
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


def _padding(n: int, pad: int) -> Columns:
    filler = np.zeros((n, 4), np.int64)
    filler[:, 0], filler[:, 3] = pad, int(Flag.PADDING)
    return filler


def _bos_before(columns: Columns, bos: int) -> Columns:
    """[…, n, 4] → […, 1, 4]: a BOS of the first column's document and position."""
    first = columns[..., :1, :].copy()
    first[..., 0], first[..., 3] = bos, int(Flag.BOS)
    return first


def _after_bos(body: Columns, bos: int) -> Block:
    """[n, ctx − 1, 4] columns → a block, with BOS put before each sequence."""
    return _block(np.concatenate([_bos_before(body, bos), body], axis=1))


def _block(whole: Columns) -> Block:
    return Block(
        tokens=whole[:, :, 0].astype(np.int32),
        doc_id=whole[:, :, 1].astype(np.uint32),
        pos_in_doc=whole[:, :, 2].astype(np.uint16),
        flags=whole[:, :, 3].astype(np.uint8),
    )


def _with_documents(block: Block, begun: list[DocumentRecord]) -> Block:
    """Moves those that have a row in the block from ``begun`` to it; they begin in the order of their ids."""
    last = int(block.doc_id[~block.padding].max())
    there = tuple(record for record in begun if record.doc_id <= last)
    del begun[: len(there)]
    return replace(block, documents=there)
