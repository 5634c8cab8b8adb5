"""The first-letter prompts: words of the vocabulary, ten other words before, the right token marked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sparse_pipeline.analyze.probes.first_letter import first_letter_prompts, vocabulary_words, write_prompts
from sparse_pipeline.shared.cache.vocabulary import Vocabulary
from sparse_pipeline.shared.errors import DataError


@pytest.fixture(scope="module")
def file(root: Path) -> Path:
    """The demo model's own tokenizer (byte-level BPE)."""
    return root / "harvest" / "demo" / "model" / "tokenizer.json"


def test_words_are_letters_with_at_most_one_space(file: Path) -> None:
    words = vocabulary_words(Tokenizer.from_file(str(file)), Vocabulary(file))
    assert len(words) > 1000
    assert all(re.fullmatch(r" ?[A-Za-z]+", word) for word in words)
    assert len(set(words)) == len(words)


def test_prompts(file: Path) -> None:
    tokenizer = Tokenizer.from_file(str(file))
    prompts = first_letter_prompts(file, max_words=50, seed=1)
    assert len({prompt.word for prompt in prompts}) == 50
    for prompt in prompts:
        lines = prompt.text.split("\n")
        assert lines[0] == ""
        assert len(lines) == 12
        for line in lines[1:11]:
            word, letter = re.fullmatch(r"( ?[A-Za-z]+) has the first letter: ([A-Z])", line).groups()  # type: ignore[union-attr]
            assert word.strip()[0].upper() == letter
            assert word != prompt.word
        assert lines[11] == f"{prompt.word} has the first letter:"
        encoded = tokenizer.encode(prompt.text, add_special_tokens=False)
        assert len(encoded.ids) == prompt.tokens
        stop = encoded.offsets[prompt.target][1]
        assert prompt.text[stop:] == " has the first letter:"
        assert prompt.letter == prompt.word.strip()[0].lower()


def test_seeds(file: Path) -> None:
    one, again, other = (first_letter_prompts(file, max_words=20, seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one != other


def test_written_as_a_prompt_set(file: Path, tmp_path: Path) -> None:
    prompts = first_letter_prompts(file, max_words=5)
    write_prompts(tmp_path / "p.jsonl", prompts)
    lines = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["target"] for line in lines] == [prompt.target for prompt in prompts]
    assert lines[0]["text"] == prompts[0].text
    assert lines[0]["labels"] == {"first_letter": prompts[0].letter, "word": prompts[0].word.strip().lower()}


def test_errors(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tokenizer\.json"):
        first_letter_prompts(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="not a tokenizer"):
        first_letter_prompts(tmp_path)


def test_from_the_command_line_to_labels_in_a_cache(file: Path, tmp_path: Path) -> None:
    """Write the set, harvest it, and meet every word at its own row with its own label."""
    from sparse_pipeline import pipeline
    from sparse_pipeline.harvest.config import HarvestConfig
    from sparse_pipeline.harvest.run import harvest
    from sparse_pipeline.shared.cache import open_cache
    from sparse_pipeline.shared.cache.documents import read_documents

    out = tmp_path / "letters.jsonl"
    assert pipeline.run(["prompts", "first-letter", str(file.parent), str(out), "--words", "40"]) == 0
    assert pipeline.run(["prompts", "first-letter", str(file.parent), str(out)]) == 2  # never overwritten
    longest = max(prompt.tokens for prompt in first_letter_prompts(file, max_words=40))
    harvest(
        HarvestConfig(
            dataset=str(out), packing="prompts", tokens=None, ctx=longest + 2, sites=("layer_01.resid_mid",),
            cache_dir=tmp_path, name="letters", device="cpu",
        )
    )  # fmt: skip
    cache = open_cache(tmp_path / "letters")
    vocabulary = Vocabulary.of(cache)
    records = list(read_documents(cache.path))
    assert len(records) == 40
    for record in records:
        assert record.target_row is not None
        piece = vocabulary.piece(int(cache.tokens.reshape(-1)[record.target_row]))
        assert str(record.labels["word"]).endswith(piece.strip().lower())  # the word, or its last part
