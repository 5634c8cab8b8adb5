"""Packing, against a re-implementation that walks token by token."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sparse_pipeline.harvest.data.pack import Block, PackSpec, TokenDocument, pack, pack_apart
from sparse_pipeline.shared.cache import Flag
from sparse_pipeline.shared.errors import UsageError

BOS, EOS, PAD = 2, 1, 0


def spec(
    ctx: int, block: int, close: bool = True, bos: int | None = BOS, eos: int | None = EOS, pad: int = PAD
) -> PackSpec:
    return PackSpec(ctx=ctx, block=block, bos=bos, eos=eos, pad=pad, close=close)


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
        blocks = list(pack(documents, spec(ctx, block, close)))
        assert all(len(b) == block for b in blocks[:-1])
        assert joined(blocks) == oracle(documents, ctx, close)


def test_dtypes_and_padding_flag() -> None:
    (block,) = pack([TokenDocument(5, np.array([7, 8, 9], np.int32))], spec(8, 4))
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
    blocks = list(pack([long], spec(128, 64, close=False)))
    positions = np.concatenate([b.pos_in_doc[:, 1:].reshape(-1) for b in blocks])[:70_000]
    np.testing.assert_array_equal(positions, np.minimum(np.arange(70_000), 65535))


def test_one_token_for_bos_and_eos() -> None:
    """GPT-2's tokenizer has one token for both: the closing one is an EOS, the leading one a BOS."""
    (block,) = pack([TokenDocument(0, np.array([7, 8], np.int32))], spec(4, 1, bos=3, eos=3, pad=3))
    assert block.tokens.tolist() == [[3, 7, 8, 3]]
    assert block.flags.tolist() == [[Flag.BOS, Flag.DOC_START, 0, Flag.EOS]]


def test_a_block_does_not_depend_on_who_reads_it() -> None:
    documents = made_up(3, 50, 20)
    whole = joined(list(pack(documents, spec(8, 4))))
    first_two = joined(list(itertools.islice(pack(documents, spec(8, 4)), 2)))
    assert first_two == whole[:8]


def oracle_apart(documents: list[TokenDocument], ctx: int, alone: bool) -> list[list[tuple[int, int, int, int]]]:
    """One token at a time: BOS before every document and after every break; EOS after every document."""
    sequences: list[list[tuple[int, int, int, int]]] = []
    current: list[tuple[int, int, int, int]] = []

    def end() -> None:
        sequences.append(current + [(PAD, 0, 0, int(Flag.PADDING))] * (ctx - len(current)))
        current.clear()

    for document in documents:
        tokens = [int(token) for token in document.tokens]
        if not tokens:
            continue
        fresh = True
        for position, token in enumerate([*tokens, EOS]):
            if fresh:
                current.append((BOS, document.index, position, int(Flag.BOS)))
                fresh = False
            flags = (Flag.BOS if token == BOS else 0) | (Flag.EOS if token == EOS else 0)
            flags |= Flag.DOC_START if position == 0 else 0
            current.append((token, document.index, position, int(flags)))
            if len(current) >= ctx:
                end()
                fresh = True
        if current and (alone or len(current) == ctx - 1):
            end()
    if current:
        end()
    return sequences


@pytest.mark.parametrize(("ctx", "block", "alone"), list(itertools.product([2, 3, 5, 16], [1, 3, 8], [True, False])))
def test_apart_equals_the_walk_token_by_token(ctx: int, block: int, alone: bool) -> None:
    for seed, (n, longest) in enumerate([(0, 5), (1, 0), (1, 1), (7, 4), (40, 30), (3, 400)]):
        documents = made_up(seed, n, longest)
        blocks = list(pack_apart(documents, spec(ctx, block), alone=alone))
        assert all(len(b) == block for b in blocks[:-1])
        assert joined(blocks) == oracle_apart(documents, ctx, alone)
        for b in blocks:
            for s in range(len(b)):
                shared = set(b.doc_id[s][~b.padding[s]].tolist())
                assert not alone or len(shared) == 1


@pytest.mark.parametrize("apart", [None, True, False])
def test_blocks_name_the_documents_that_begin_in_them(apart: bool | None) -> None:
    documents = made_up(5, 60, 20)

    def blocks() -> list[Block]:
        if apart is None:
            return list(pack(documents, spec(8, 4)))
        return list(pack_apart(documents, spec(8, 4), alone=apart))

    seen: list[int] = []
    for block in blocks():
        starts = block.doc_id[(block.flags & int(Flag.DOC_START)) != 0]
        assert [record.doc_id for record in block.documents] == starts.tolist()
        seen += starts.tolist()
        part = block.first(2)
        inside = set(part.doc_id[~part.padding].tolist())
        assert [r.doc_id for r in part.documents] == [doc for doc in starts.tolist() if doc in inside]
    assert seen == [document.index for document in documents if len(document.tokens)]


def test_positions_begin_anew_with_every_document_and_with_padding() -> None:
    documents = [TokenDocument(i, np.full(n, 7, np.int32)) for i, n in enumerate((3, 1, 9))]
    (block,) = pack_apart(documents, spec(12, 2), alone=False)
    assert block.doc_id.tolist() == [[0] * 5 + [1] * 3 + [2] * 4, [2] * 8 + [0] * 4]
    assert block.positions().tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 2, 3], [*range(8), 0, 1, 2, 3]]


def test_targets_of_prompts_are_rows_of_the_cache() -> None:
    documents = [TokenDocument(i, np.full(4, 10 + i, np.int32), target=i) for i in range(3)]
    documents[1] = TokenDocument(1, np.array([20, 21, 22], np.int32), "p", "d", {"l": 1}, 2)
    (block,) = pack_apart(documents, spec(6, 8, close=False, eos=None), alone=True, one_sequence=True)
    assert [record.target_row for record in block.documents] == [1, 6 + 1 + 2, 12 + 1 + 2]
    assert block.tokens.reshape(-1)[9] == 22
    assert (block.documents[1].source, block.documents[1].domain, block.documents[1].labels) == ("p", "d", {"l": 1})
    with pytest.raises(UsageError, match="has 4 tokens, and a prompt must fit into one sequence of 4") as caught:
        list(pack_apart(documents, spec(4, 8, close=False, eos=None), alone=True, one_sequence=True))
    assert caught.value.hint == "--set harvest.ctx=5 or more"


@pytest.mark.parametrize("block", [1, 3])
def test_without_bos_sequences_are_the_text_itself(block: int) -> None:
    documents = made_up(4, 40, 30)
    stream = [row for document in documents for row in oracle([document], 10_000, close=True)[0][1:] if row[3] != 4]
    stream = [(t, d, p, f & ~Flag.BOS) for t, d, p, f in stream]  # no token is special as a BOS
    found = joined(list(pack(documents, spec(8, block, bos=None))))
    padded = stream + [(PAD, 0, 0, 4)] * (-len(stream) % 8)
    assert [row for sequence in found for row in sequence] == padded


@pytest.mark.parametrize("alone", [False, True])
def test_without_bos_a_document_kept_apart_begins_where_attention_does(alone: bool) -> None:
    documents = [TokenDocument(i, np.full(n, 5, np.int32), target=n - 1) for i, n in enumerate((3, 6, 1))]
    (block,) = pack_apart(documents, spec(8, 4, close=False, bos=None), alone=alone)
    first, start = int(Flag.DOC_START), int(Flag.DOC_START | Flag.BOS)
    if alone:
        assert block.flags.tolist() == [
            [first, 0, 0, 4, 4, 4, 4, 4],
            [first, 0, 0, 0, 0, 0, 4, 4],
            [first, 4, 4, 4, 4, 4, 4, 4],
        ]
        assert [one.target_row for one in block.documents] == [2, 13, 16]
    else:  # the second document goes on in the next sequence, whose first place is position 0 as it is
        assert block.flags.tolist() == [[first, 0, 0, start, 0, 0, 0, 0], [0, start, 4, 4, 4, 4, 4, 4]]
        assert block.doc_id.tolist()[0] == [0, 0, 0, 1, 1, 1, 1, 1]


def test_without_bos_a_prompt_may_fill_the_whole_sequence() -> None:
    how = spec(4, 1, close=False, bos=None)
    (block,) = pack_apart(
        [TokenDocument(0, np.arange(4, 8, dtype=np.int32), target=3)], how, alone=True, one_sequence=True
    )
    assert block.tokens.tolist() == [[4, 5, 6, 7]]
    with pytest.raises(UsageError, match="one sequence of 4 with what is added to it .nothing.") as caught:
        list(pack_apart([TokenDocument(0, np.arange(5, dtype=np.int32))], how, alone=True, one_sequence=True))
    assert caught.value.hint == "--set harvest.ctx=5 or more"
