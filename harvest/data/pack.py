"""Packing documents into sequences of ctx tokens, each beginning with BOS (unless `harvest.bos` is none).

Three policies:

- joined (:func:`pack`): documents follow one another, and one that does not fit continues in the next sequence.
- joined apart (:func:`pack_apart`, ``alone=False``): the same, but every document begins with a BOS of its own, for a
  model whose attention stays within a document.
- alone (:func:`pack_apart`, ``alone=True``): every document has sequences of its own, filled up with padding.

Without BOS a document that attends to nothing before it, inside a sequence, has the flag BOS on its first token: the
flag marks the rows where attention begins (docs/cache-format.md).

The sequences depend on the documents and the settings alone, never on the blocks that were requested before, so a
resumed harvest gets the same sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from ...shared.cache import Flag
from ...shared.cache.documents import DocumentRecord, Label, document_positions
from ...shared.errors import UsageError

_LAST_POSITION = int(np.iinfo(np.uint16).max)  # pos_in_doc stops here; a document may be longer

TokenRows = NDArray[np.int64]  # [n, 4]: token, document, position, flags


@dataclass(frozen=True, kw_only=True)
class PackSpec:
    """How documents are packed.

    Attributes:
        ctx: tokens in a sequence, BOS included.
        block: sequences in a block.
        bos, eos, pad: token ids; every BOS and EOS is flagged, whether packing added it or it was in the text.
            ``bos`` None: no BOS is added.
        close: add ``eos`` after every document, as its last token.
    """

    ctx: int
    block: int
    bos: int | None
    eos: int | None
    pad: int
    close: bool

    @property
    def leading(self) -> int:
        """Rows before the text of a sequence: 1 with BOS, else 0."""
        return 0 if self.bos is None else 1


@dataclass(frozen=True)
class TokenDocument:
    """The tokens of one document, without special tokens, and its index in the dataset.

    ``target`` is the index of a prompt's target token, ``flags`` further flags of the tokens (of chat templates and
    roles); without ``close`` packing adds no EOS, since the text ended with one. A long document comes in pieces, one
    after the other: ``start`` tokens of it came before, and there is ``more``. No piece but an only one is empty.
    """

    index: int
    tokens: NDArray[np.int32]
    source: str = ""
    domain: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)
    target: int | None = None
    flags: NDArray[np.uint8] | None = None
    close: bool = True
    start: int = 0
    more: bool = False

    def record(self, target_row: int | None = None) -> DocumentRecord:
        """The document's line in documents.jsonl; ``target_row`` is the row of a prompt's target in the cache."""
        return DocumentRecord(self.index, self.source, self.domain, self.labels, target_row)


@dataclass(frozen=True)
class Block:
    """Consecutive sequences, [n, ctx] each.

    ``doc_id`` is the index of the document in the dataset, ``pos_in_doc`` the position in it, counted from 0 and at
    most 65535. A BOS that packing added has both from the token after it. ``flags`` are :class:`shared.cache.Flag`
    bits. ``documents`` are the ones that begin in the block; a slice of a block has none.
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
        """The first n sequences, and the documents with a row in them."""
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
        """[n, ctx] positions that start again from 0 with every document of a sequence, and with its padding."""
        return document_positions(self.doc_id, self.padding)


def pack(documents: Iterable[TokenDocument], spec: PackSpec) -> Iterator[Block]:
    """Yields blocks of ``spec.block`` sequences; the last one may hold fewer, and its last sequence ends in padding."""
    body = spec.ctx - spec.leading
    size = spec.block * body  # rows of a block besides its BOS
    # Rows that fill no block yet. After each document they are fewer than `size`, and they always continue right after
    # the last row that was yielded, so blocks are consecutive cuts of one stream of rows.
    held: list[TokenRows] = []
    n_held = 0
    begun: list[DocumentRecord] = []
    for document in documents:
        if not len(document.tokens):
            continue
        held.append(_rows(document, spec))
        if not document.start:
            begun.append(document.record())
        n_held += len(held[-1])
        if n_held >= size:
            joined = np.concatenate(held)
            whole = n_held // size * size
            for start in range(0, whole, size):
                block = _after_bos(joined[start : start + size].reshape(spec.block, body, 4), spec.bos)
                yield _with_documents(block, begun)
            held, n_held = [joined[whole:]], n_held - whole
    if n_held:
        joined = np.concatenate([*held, _padding(-n_held % body, spec.pad)])
        yield _with_documents(_after_bos(joined.reshape(-1, body, 4), spec.bos), begun)


def pack_apart(
    documents: Iterable[TokenDocument], spec: PackSpec, *, alone: bool, one_sequence: bool = False
) -> Iterator[Block]:
    """Yields blocks as :func:`pack` does, of sequences in which every document, or its next part, follows a BOS.

    A single place left at the end of a sequence becomes padding, since a BOS needs a token after it. Without BOS the
    document, or its next part, stands there as it is.

    Args:
        alone: a document begins a new sequence, and the rest of its last one is padding.
        one_sequence: a document must fit into one sequence (prompts).

    Raises:
        UsageError: a document does not fit into one sequence, and must.
    """
    open_sequence = _OpenSequence(spec)
    held: list[TokenRows] = []  # finished sequences of the next block, [ctx, 4] each; fewer than spec.block
    begun: list[DocumentRecord] = []
    n_sequences = 0
    for document in documents:
        if not len(document.tokens):
            continue
        rest = _rows(document, spec)
        if one_sequence and len(rest) > spec.ctx - spec.leading:
            raise _too_long(document, len(rest), spec)
        # A prompt is alone, so its first token is row 1 of a new sequence: row 0 is the BOS, if there is one.
        target_row = None if document.target is None else n_sequences * spec.ctx + spec.leading + document.target
        if not document.start:
            begun.append(document.record(target_row))
        while len(rest):
            rest = open_sequence.add(rest, continues=document.start > 0)
            ends = len(rest) > 0 or not document.more  # otherwise the next piece continues in this sequence
            if not open_sequence.room or (ends and (open_sequence.room <= spec.leading or alone)):
                held.append(open_sequence.close())
                n_sequences += 1
            if len(held) == spec.block:
                yield _with_documents(_block(np.stack(held)), begun)
                held.clear()
    if open_sequence.parts:
        held.append(open_sequence.close())
    if held:
        yield _with_documents(_block(np.stack(held)), begun)


class _OpenSequence:
    """The sequence that :func:`pack_apart` fills: its parts, and the rows that are still free."""

    def __init__(self, spec: PackSpec) -> None:
        self.parts: list[TokenRows] = []
        self.room = spec.ctx
        self._spec = spec

    def add(self, rows: TokenRows, continues: bool = False) -> TokenRows:
        """Adds a BOS and as many rows as fit behind it, and returns the rest. Needs room for a BOS and a row.

        Args:
            continues: the rows are of the document that was added last; in its sequence they need no BOS.
        """
        if continues and self.parts:
            part, rest = rows[: self.room], rows[self.room :]
            self.parts.append(part)
            self.room -= len(part)
            return rest
        fit = self.room - self._spec.leading
        part, rest = rows[:fit], rows[fit:]
        if self._spec.bos is not None:
            self.parts.append(_bos_before(part, self._spec.bos))
        elif self.parts:
            part = part.copy()
            part[0, 3] |= int(Flag.BOS)
        self.parts.append(part)
        self.room -= self._spec.leading + len(part)
        return rest

    def close(self) -> TokenRows:
        """The whole sequence, [ctx, 4], padded at the end; a new one begins."""
        whole = np.concatenate([*self.parts, _padding(self.room, self._spec.pad)])
        self.parts, self.room = [], self._spec.ctx
        return whole


def _too_long(document: TokenDocument, n_rows: int, spec: PackSpec) -> UsageError:
    added = [*(["BOS"] if spec.leading else []), *(["EOS"] if spec.close else [])]
    return UsageError(
        f"harvest.ctx: {document.source} has {len(document.tokens)} tokens, and a prompt must fit into one "
        f"sequence of {spec.ctx} with what is added to it ({', '.join(added) or 'nothing'})",
        hint=f"--set harvest.ctx={n_rows + spec.leading} or more",
    )


def _rows(document: TokenDocument, spec: PackSpec) -> TokenRows:
    tokens = document.tokens.astype(np.int64)
    ends = not document.more
    closes = spec.close and document.close and ends and spec.eos is not None
    if spec.eos is not None and closes:
        tokens = np.append(tokens, spec.eos)
    flags = np.where(tokens == spec.bos, int(Flag.BOS), 0) if spec.bos is not None else np.zeros_like(tokens)
    if spec.eos is not None and spec.eos != spec.bos:
        flags |= np.where(tokens == spec.eos, int(Flag.EOS), 0)
    elif closes or (
        tokens[-1] == spec.eos and ends and not document.close
    ):  # one token is BOS and EOS (GPT-2): only the one at the end closes the document
        flags[-1] = int(Flag.EOS)
    if not document.start:
        flags[0] |= int(Flag.DOC_START)
    if document.flags is not None:  # an EOS that is added is like the token before it
        flags |= np.append(document.flags, document.flags[-1:] if closes else document.flags[:0])
    positions = np.minimum(document.start + np.arange(len(tokens)), _LAST_POSITION)
    return np.stack([tokens, np.full(len(tokens), document.index), positions, flags], axis=1)


def _padding(n: int, pad: int) -> TokenRows:
    filler = np.zeros((n, 4), np.int64)
    filler[:, 0], filler[:, 3] = pad, int(Flag.PADDING)
    return filler


def _bos_before(rows: TokenRows, bos: int) -> TokenRows:
    """[…, n, 4] → […, 1, 4]: a BOS with the document and position of the first row."""
    first = rows[..., :1, :].copy()
    first[..., 0], first[..., 3] = bos, int(Flag.BOS)
    return first


def _after_bos(body: TokenRows, bos: int | None) -> Block:
    """[n, ctx − 1, 4] rows → a block, with a BOS before each sequence; without BOS they are [n, ctx, 4]."""
    return _block(body if bos is None else np.concatenate([_bos_before(body, bos), body], axis=1))


def _block(whole: TokenRows) -> Block:
    return Block(
        tokens=whole[:, :, 0].astype(np.int32),
        doc_id=whole[:, :, 1].astype(np.uint32),
        pos_in_doc=whole[:, :, 2].astype(np.uint16),
        flags=whole[:, :, 3].astype(np.uint8),
    )


def _with_documents(block: Block, begun: list[DocumentRecord]) -> Block:
    """Moves the records of the documents that begin in the block from ``begun`` to it.

    Documents begin in the order of their ids, so these are the first ones, up to the last id in the block.
    """
    last = int(block.doc_id[~block.padding].max())
    there = tuple(record for record in begun if record.doc_id <= last)
    del begun[: len(there)]
    return replace(block, documents=there)
