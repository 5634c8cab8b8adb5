"""Packing, against a re-implementation that walks token by token."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from harvest.data.pack import Block, TokenDocument, pack
from shared.cache import Flag

BOS, EOS, PAD = 2, 1, 0


def oracle(documents: list[TokenDocument], ctx: int, close: bool) -> list[list[tuple[int, int, int, int]]]:
    """Every sequence as (token, document, position, flags), built one token at a time."""
    stream = []
    for document in documents:
        tokens = [int(token) for token in document.tokens]
        if not tokens:
            continue
        if close:
            tokens.append(EOS)
        for position, token in enumerate(tokens):
            flags = 0
            if token == BOS:
                flags |= Flag.BOS
            if token == EOS:
                flags |= Flag.EOS
            if position == 0:
                flags |= Flag.DOC_START
            stream.append((token, document.index, min(position, 65535), int(flags)))
    sequences = []
    while stream:
        body, stream = stream[: ctx - 1], stream[ctx - 1 :]
        body += [(PAD, 0, 0, int(Flag.PADDING))] * (ctx - 1 - len(body))
        sequences.append([(BOS, body[0][1], body[0][2], int(Flag.BOS)), *body])
    return sequences


def joined(blocks: list[Block]) -> list[list[tuple[int, int, int, int]]]:
    return [
        [
            tuple(int(array[s, p]) for array in (b.tokens, b.doc_id, b.pos_in_doc, b.flags))
            for p in range(b.tokens.shape[1])
        ]
        for b in blocks
        for s in range(len(b))
    ]


def made_up(seed: int, n: int, longest: int) -> list[TokenDocument]:
    rng = np.random.default_rng(seed)
    return [TokenDocument(i, rng.integers(0, 9, rng.integers(0, longest + 1)).astype(np.int32)) for i in range(n)]


@pytest.mark.parametrize(("ctx", "block", "close"), list(itertools.product([2, 5, 16], [1, 3, 8], [True, False])))
def test_equals_the_walk_token_by_token(ctx: int, block: int, close: bool) -> None:
    for seed, (n, longest) in enumerate([(0, 5), (1, 0), (1, 1), (7, 4), (40, 30), (3, 400)]):
        documents = made_up(seed, n, longest)
        blocks = list(pack(documents, ctx, block, BOS, EOS, PAD, close))
        assert all(len(b) == block for b in blocks[:-1])
        assert joined(blocks) == oracle(documents, ctx, close)


def test_dtypes_and_padding_flag() -> None:
    (block,) = pack([TokenDocument(5, np.array([7, 8, 9], np.int32))], 8, 4, BOS, EOS, PAD, close=True)
    assert (block.tokens.dtype, block.doc_id.dtype, block.pos_in_doc.dtype, block.flags.dtype) == (
        np.dtype(np.int32),
        np.dtype(np.uint32),
        np.dtype(np.uint16),
        np.dtype(np.uint8),
    )
    assert block.tokens.tolist() == [[BOS, 7, 8, 9, EOS, PAD, PAD, PAD]]
    assert block.doc_id.tolist() == [[5, 5, 5, 5, 5, 0, 0, 0]]
    assert block.pos_in_doc.tolist() == [[0, 0, 1, 2, 3, 0, 0, 0]]
    assert block.flags.tolist() == [[Flag.BOS, Flag.DOC_START, 0, 0, Flag.EOS, 4, 4, 4]]
    assert block.has_padding
    assert not block[:0].has_padding


def test_positions_of_a_long_document_saturate() -> None:
    long = TokenDocument(0, np.full(70_000, 5, np.int32))
    blocks = list(pack([long], 128, 64, BOS, EOS, PAD, close=False))
    positions = np.concatenate([b.pos_in_doc[:, 1:].reshape(-1) for b in blocks])[:70_000]
    np.testing.assert_array_equal(positions, np.minimum(np.arange(70_000), 65535))


def test_one_token_for_bos_and_eos() -> None:
    """GPT-2's tokenizer has one token for both: the closing one is an EOS, the leading one a BOS."""
    (block,) = pack([TokenDocument(0, np.array([7, 8], np.int32))], 4, 1, 3, 3, 3, close=True)
    assert block.tokens.tolist() == [[3, 7, 8, 3]]
    assert block.flags.tolist() == [[Flag.BOS, Flag.DOC_START, 0, Flag.EOS]]


def test_a_block_does_not_depend_on_who_reads_it() -> None:
    documents = made_up(3, 50, 20)
    whole = joined(list(pack(documents, 8, 4, BOS, EOS, PAD, True)))
    first_two = joined(list(itertools.islice(pack(documents, 8, 4, BOS, EOS, PAD, True), 2)))
    assert first_two == whole[:8]
