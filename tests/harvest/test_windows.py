"""Long texts in windows: the ids of the whole text, for every kind of tokenizer, in bounded memory."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sparse_pipeline.harvest.data.choose import limited
from sparse_pipeline.harvest.data.documents import Document
from sparse_pipeline.harvest.data.encode import Encoder
from sparse_pipeline.harvest.data.pack import Block, PackSpec, TokenDocument, pack, pack_apart
from sparse_pipeline.harvest.data.reading import Reading
from sparse_pipeline.harvest.data.tokenise import tokenise
from sparse_pipeline.harvest.data.windows import pieces
from sparse_pipeline.models.folder import DEMO_MODEL

RNG = random.Random(7)
WORDS = ["the", "quick", "returns", "3141592653", "naïve", "東京", "🙂🙂", "don't", "x_y", "…", "abab" * 9]
SENTENCES = [" ".join(RNG.choices(WORDS, k=12)) + RNG.choice([". ", ".\n", "!  ", "\t"]) for _ in range(400)]

TEXTS = {
    "prose": "".join(SENTENCES[:150]),
    "no spaces": "".join(RNG.choices(["quick", "the", "abab", "x", "return"], k=2000)),
    "one letter": "a" * 9000,
    "two letters": "ab" * 4000,
    "CJK": "".join(RNG.choices("東京都庁は新宿にある。", k=6000)),
    "emoji": "🙂🙃👩‍🚀" * 1200,
    "digits": "".join(RNG.choices("0123456789", k=8000)),
    "spaces": "word" + " " * 7000 + "word",
    "lines": "\n\n\r\n".join(SENTENCES[:100]),
}


def _trained(kind: str) -> Tokenizer:
    corpus = [*SENTENCES, "a" * 64, "ab" * 40, "東京都庁は新宿にある。" * 4, "0123456789" * 3, " " * 20]
    if kind == "bytes":  # GPT-2, Llama 3, Qwen
        found = Tokenizer(models.BPE())
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    elif kind == "prefix":  # Llama 2: no words, and a space before the text
        found = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        found.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>"], show_progress=False)
    elif kind == "metaspace":
        found = Tokenizer(models.BPE(unk_token="<unk>"))
        found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>"], show_progress=False)
    elif kind == "unigram":  # T5
        found = Tokenizer(models.Unigram())
        found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        trainer = trainers.UnigramTrainer(
            vocab_size=500, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
    else:  # BERT
        found = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100))
        found.normalizer, found.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=["[UNK]"], show_progress=False)
    found.train_from_iterator(corpus, trainer)
    if kind == "unigram":
        # Training adds floats in an order of its own, another one each time, and the last digit of a score decides
        # between equally good cuts of a long run of one letter: the tokenizer would be another one in each process.
        vocabulary = json.loads(found.to_str())["model"]["vocab"]
        scores = sorted((token, round(score, 8)) for token, score in vocabulary if token != "<unk>")
        found.model = models.Unigram([("<unk>", 0.0), *scores], unk_id=0, byte_fallback=False)
    found.decoder = decoders.ByteLevel() if kind == "bytes" else None
    return found


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    kinds = ("bytes", "prefix", "metaspace", "unigram", "words")
    gemma = AutoTokenizer.from_pretrained(DEMO_MODEL).backend_tokenizer
    return {**{kind: _trained(kind) for kind in kinds}, "demo": gemma}


@pytest.mark.parametrize("kind", ["bytes", "prefix", "metaspace", "unigram", "words", "demo"])
@pytest.mark.parametrize("name", list(TEXTS))
def test_ids_are_those_of_the_whole_text(tokenizers: dict[str, Tokenizer], kind: str, name: str) -> None:
    """Two exceptions. A WordPiece tokenizer reads a word of more than 100 characters as unknown: no window knows.
    A Unigram tokenizer has many best ways to cut a run of one letter, and the length of the run decides among them."""
    tokenizer, text = tokenizers[kind], TEXTS[name]

    def encode(part: str) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        seen.append(len(part))
        found = tokenizer.encode(part, add_special_tokens=False)
        return np.array(found.ids, np.int32), np.array(found.offsets, np.int64).reshape(-1, 2)

    seen: list[int] = []
    whole = np.array(tokenizer.encode(text, add_special_tokens=False).ids)
    cuts = [text[start : start + 700] for start in range(0, len(text), 700)]
    found = list(pieces(iter(cuts), encode, window=1200, margin=300))
    ids = np.concatenate([piece.ids for piece in found])
    assert "".join(piece.text for piece in found) == text
    assert [piece.last for piece in found] == [False] * (len(found) - 1) + [True]
    assert len(found) > 4
    assert max(seen) <= 1200 + 700 + 300
    if kind == "words" and name in ("no spaces", "one letter", "two letters", "digits", "emoji"):
        assert not all(piece.exact for piece in found)
        return
    assert all(piece.exact for piece in found)
    if (kind, name) == ("unigram", "one letter"):
        assert abs(len(ids) - len(whole)) <= 2
        return
    np.testing.assert_array_equal(ids, whole)


def _documents(rng: np.random.Generator, eos: int) -> list[TokenDocument]:
    lengths = rng.integers(1, 60, 12)
    closes = rng.random(12) < 0.7
    flags = [rng.integers(0, 2, n).astype(np.uint8) * 16 if rng.random() < 0.5 else None for n in lengths]
    return [
        TokenDocument(i, rng.integers(1, 9, n).astype(np.int32), f"doc {i}", flags=flag, close=bool(close))
        for i, (n, flag, close) in enumerate(zip(lengths, flags, closes, strict=True))
    ]


def _in_pieces(documents: list[TokenDocument], rng: np.random.Generator) -> Iterator[TokenDocument]:
    for one in documents:
        n = len(one.tokens)
        ends = sorted({*rng.integers(1, n + 1, rng.integers(0, 6)).tolist(), n})
        for start, stop in zip([0, *ends], ends, strict=False):
            flags = None if one.flags is None else one.flags[start:stop]
            yield replace(one, tokens=one.tokens[start:stop], flags=flags, start=start, more=stop < n)


def _same(mine: list[Block], theirs: list[Block]) -> None:
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert one.documents == other.documents
        for name in ("tokens", "doc_id", "pos_in_doc", "flags"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("bos", [0, None, 5])
@pytest.mark.parametrize("alone", [None, False, True])
@pytest.mark.parametrize("most", [None, 7, 16])
def test_pieces_are_packed_as_the_whole_document(bos: int | None, alone: bool | None, most: int | None) -> None:
    """Token 5 is EOS, and with bos 5 also BOS."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        documents, split = _documents(rng, 5), bool(seed % 2)
        spec = PackSpec(ctx=int(rng.integers(3, 12)), block=2, bos=bos, eos=5, pad=0, close=True)

        def packed(given: Any, spec: PackSpec = spec, split: bool = split) -> list[Block]:
            chosen = limited(given, most, split)
            return list(pack(chosen, spec) if alone is None else pack_apart(chosen, spec, alone=alone))

        _same(packed(_in_pieces(documents, rng)), packed(documents))


def _tokenizer(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("<bos>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>")


@pytest.mark.parametrize("special", ["text", "parse"])
def test_long_documents_between_short_ones(special: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers, sources, flags and special tokens are those of the whole document, and so is their count."""
    from sparse_pipeline.harvest.data import encode

    tokenizer = _tokenizer(_trained("bytes"))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    long = "<bos>" + "<eos>".join(SENTENCES[:60]) + "<eos>"
    given = [
        Document("short", "a"),
        Document(long, "b"),
        Document("", "c", parts=lambda: iter([long[:5000], long[5000:]])),
    ]
    given += [Document("short", "d")]
    made = {}
    for window in (1 << 20, 2000):
        monkeypatch.setattr(encode, "WHOLE", window)
        encoder = Encoder(tokenizer, special, bos=bos, eos=eos, window=max(window, 4096))
        reading = Reading()
        found = list(tokenise(iter(given), encoder, reading))
        joined: dict[int, list[TokenDocument]] = {}
        for one in found:
            joined.setdefault(one.index, []).append(one)
        assert list(joined) == [0, 1, 2, 3]
        assert len(joined[1]) == (1 if window > 2000 else len(joined[2]))
        for some in joined.values():
            assert [one.more for one in some] == [True] * (len(some) - 1) + [False]
            assert [one.start for one in some] == [0, *np.cumsum([len(one.tokens) for one in some])[:-1]]
        flags = [[one.flags for one in some] for some in joined.values()]
        made[window] = (
            [np.concatenate([one.tokens for one in some]).tolist() for some in joined.values()],
            [None if parts[0] is None else np.concatenate(parts).tolist() for parts in flags],
            [(some[0].source, some[-1].close) for some in joined.values()],
            dict(reading.spelled),
            reading.notes() if special == "parse" else len(reading.notes()),
        )
    assert made[1 << 20] == made[2000]
    assert made[2000][0][1] == made[2000][0][2]
    assert (special == "text") == bool(made[2000][3])


@pytest.mark.slow
def test_memory_of_200_megabytes_without_a_space(tmp_path: Path, root: Path) -> None:
    """All of it tokenised and packed, in a process of its own: at most 300 MB more than before."""
    import subprocess
    import sys

    file = tmp_path / "long.txt"
    with file.open("w") as out:
        for seed in range(200):
            out.write("".join(random.Random(seed).choices("abcdefghijklmnopqrstuvwxyz", k=1_000_000)))
    code = f"""
import resource, sys
sys.path.insert(0, {str(root.parent)!r})
from sparse_pipeline.harvest.config import HarvestConfig
from sparse_pipeline.harvest.prepare import prepare
job = prepare(HarvestConfig(dataset={str(file)!r}, tokens=None, device="cpu"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = sum(block.tokens.size for block in job.blocks())
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=3000)
    rows, kilobytes = map(int, done.stdout.split())
    assert rows > 50_000_000
    assert kilobytes < 300_000
