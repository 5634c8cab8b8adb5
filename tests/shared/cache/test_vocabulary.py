"""Tokens as text: the bytes of a window are decoded together, for byte-level and byte-fallback tokenizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from sparse_pipeline.shared.cache.vocabulary import Vocabulary

TEXTS = {
    "ascii": "plain text",
    "cjk": "漢字かな and 한국어",
    "emoji": "a 🤖 b 👩🏽\u200d🚀!",
    "flags": "🇫🇷🇩🇪 🏴\U000e0067\U000e0062\U000e007f",
    "marks": "e\u0301a\u0308\u0323 नमस्ते ก็",
    "lower planes": "ñandú – größer",
}
"""Text of several scripts."""

UNITS = {
    "cjk": ["漢", "字", "か", "な"],
    "emoji": ["🤖", "👩🏽\u200d🚀"],
    "flags": ["🇫🇷", "🇩🇪", "🏴\U000e0067\U000e0062\U000e007f"],
    "marks": ["e\u0301", "a\u0308\u0323", "ก็"],
    "lower planes": ["ñ", "ú", "–", "ö", "ß"],
}
"""What a reader sees as one character (UAX #29), among others."""


def byte_level() -> Tokenizer:
    """One token a byte, as GPT-2 spells bytes, and one word that was added."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Letters of ASCII as themselves, everything else as <0x..>."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256, "▁": 257}
    vocabulary |= {chr(c): 258 + c for c in range(ord("!"), ord("~") + 1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


@pytest.fixture(params=[byte_level, byte_fallback])
def vocabulary(request: pytest.FixtureRequest, tmp_path: Path) -> Vocabulary:
    tokenizer = request.param()
    tokenizer.add_special_tokens(["<bos>"])
    tokenizer.add_tokens(["漢語"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return Vocabulary(tmp_path / "tokenizer.json")


def ids_of(vocabulary: Vocabulary, text: str) -> list[int]:
    return list(Tokenizer.from_file(str(vocabulary.path)).encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", TEXTS)
def test_a_window_is_decoded_together(vocabulary: Vocabulary, name: str) -> None:
    text = TEXTS[name]
    ids = ids_of(vocabulary, text)
    pieces = vocabulary.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text == vocabulary.text(ids)
    assert "�" not in "".join(pieces)
    for unit in UNITS.get(name, []):
        assert unit in pieces
    if name != "ascii":
        assert "" in pieces
    for peak in range(len(ids)):
        marked = vocabulary.marked(ids, peak)
        assert marked.replace("«", "").replace("»", "") == text
        inside = marked.partition("«")[2].partition("»")[0]
        assert inside
        assert inside in pieces


def test_special_and_added_tokens_stand_alone(vocabulary: Vocabulary) -> None:
    ids = ids_of(vocabulary, "漢語<bos>é<bos>")
    assert [piece for piece in vocabulary.pieces(ids) if piece] == ["漢語", "<bos>", "é", "<bos>"]
    assert vocabulary.piece(ids[0]) == "漢語"
    # a mark after a special token has no letter to join
    assert vocabulary.pieces(ids_of(vocabulary, "a<bos>\u0301"))[:2] == ["a", "<bos>"]


def test_a_character_that_the_window_cuts_is_one_sign(vocabulary: Vocabulary) -> None:
    ids = ids_of(vocabulary, "🤖a🤖")
    assert "".join(vocabulary.pieces(ids[:2])) == "�"
    cut = "".join(vocabulary.pieces([*ids[2:5], *ids[5:7], ids_of(vocabulary, "<bos>")[0]]))
    assert cut.endswith("�<bos>")
    assert "a" in cut
    assert vocabulary.label(ids[0]) == "<0xF0>"
    assert vocabulary.piece(ids[0]) == "�"


@pytest.mark.parametrize("text", ["\ufffd", "a\ufffdb"])
def test_the_sign_for_unknown_itself_is_text(vocabulary: Vocabulary, text: str) -> None:
    assert "".join(vocabulary.pieces(ids_of(vocabulary, text))) == text
