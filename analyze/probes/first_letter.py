"""The first-letter task: a prompt set that asks for the first letter of every word in a tokenizer's vocabulary.

Chanin et al. 2024 (arXiv 2409.14507), as SAEBench asks it: ten lines "{word} has the first letter: {LETTER}" of other
words, then "{word} has the first letter:"; the row of interest is the word's (last) token. The prompts are harvested
like any text (`pipeline harvest` with a prompt set), once per model; any number of coders are measured on that cache.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ...shared.cache.files import write_file
from ...shared.cache.vocabulary import Vocabulary
from ...shared.errors import DataError, UsageError
from ...shared.overview.find import frozen_settings, kind_of
from .labels import word_of

TEMPLATE = "{word} has the first letter:"
N_EXAMPLES = 10


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: all lines.
        tokens: how many tokens they are, special tokens aside.
        target: index of the word's last token among them.
        word: as it stands in the vocabulary, leading space included.
        letter: its first letter, a … z.
    """

    text: str
    tokens: int
    target: int
    word: str
    letter: str

    def to_dict(self) -> dict[str, object]:
        """A line of the prompt set."""
        group = self.word.strip().lower()
        return {"text": self.text, "target": self.target, "labels": {"first_letter": self.letter, "word": group}}


def vocabulary_words(tokenizer: Tokenizer, vocabulary: Vocabulary) -> list[str]:
    """Words that are one token: ASCII letters, at most one leading space; by token id."""
    pieces = (vocabulary.piece(token) for token in range(tokenizer.get_vocab_size(with_added_tokens=True)))
    ids = enumerate(pieces)
    return [piece for token, piece in ids if token not in vocabulary.special and word_of(piece) is not None]


def tokenizer_file(path: Path | str) -> Path:
    """The tokenizer.json of a cache, of a model's folder, or that file itself.

    Raises:
        DataError: there is none.
    """
    path = Path(path)
    for file in (path, path / "tokenizer" / "tokenizer.json", path / "tokenizer.json"):
        if file.is_file():
            return file
    raise DataError(f"{path} is no tokenizer.json and no folder with one", "name a cache, or a model's folder")


def first_letter_prompts(
    tokenizer_path: Path | str,
    *,
    max_words: int | None = None,
    examples: int = N_EXAMPLES,
    template: str = TEMPLATE,
    seed: int = 0,
) -> list[Prompt]:
    """The prompt set of a tokenizer, one prompt per word, in the order of a seeded shuffle.

    Args:
        tokenizer_path: tokenizer.json, or a cache or a model's folder with one.
        max_words: take at most so many words, evenly drawn.
        examples: lines before the question.
        template: what a line says; `{word}` stands for the word.

    Raises:
        UsageError: a template without {word}.
        DataError: the vocabulary holds too few words.
    """
    path = tokenizer_file(tokenizer_path)
    if "{word}" not in template:
        raise UsageError(f"the template {template!r} has no place for {{word}}")
    vocabulary = Vocabulary(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{path} is not a tokenizer: {error}") from None
    words = vocabulary_words(tokenizer, vocabulary)
    if len(words) <= examples:
        raise DataError(
            f"{path} has {len(words)} words among its tokens; the first-letter task needs more than {examples}"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(words))
    chosen = order if max_words is None else order[:max_words]
    return [_prompt(tokenizer, words, int(index), examples, template, rng) for index in chosen]


def _prompt(
    tokenizer: Tokenizer, words: Sequence[str], index: int, examples: int, template: str, rng: np.random.Generator
) -> Prompt:
    others = [int(i) for i in rng.choice(len(words), min(examples + 1, len(words)), replace=False) if i != index]
    lines = [f"{template.format(word=words[i])} {_letter(words[i]).upper()}" for i in others[:examples]]
    word = words[index]
    # A line break goes first, so that no word stands at the very start of the text (some tokenizers treat that apart).
    head = "".join(f"\n{line}" for line in lines) + "\n"
    text = head + template.format(word=word)
    end = len(head) + template.index("{word}") + len(word)
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    return Prompt(text, len(offsets), token_ending_at(offsets, end), word, _letter(word))


def token_ending_at(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """Index of the token that holds the last character before `end`, from the tokens' (start, stop) characters.

    Raises:
        DataError: no token does.
    """
    for index, (start, stop) in enumerate(offsets):
        if start < end <= stop:
            return index
    raise DataError(f"no token of the text holds character {end - 1}")


def _letter(word: str) -> str:
    return word.strip()[0].lower()


def write_prompts(path: Path | str, prompts: Sequence[Prompt]) -> None:
    """A prompt set as JSON lines: {"text", "target", "labels": {"first_letter", "word"}}."""

    def lines() -> Iterator[bytes]:
        for prompt in prompts:
            yield (json.dumps(prompt.to_dict(), ensure_ascii=False) + "\n").encode()

    write_file(Path(path), [b"".join(lines())])


_OF_ANOTHER_TEXT: dict[str, Any] = {
    "text_column": "text",
    "domain_column": None,
    "label_columns": [],
    "shard_rows": 0,
    "chunk_rows": 0,
}
"""Settings of a cache's own text that do not fit a prompt set, and what they are for one."""


def described(path: Path, prompts: Sequence[Prompt], source: Path) -> tuple[dict[str, Any], str]:
    """A prompt set that was written, as a document and as text, with the command that harvests it.

    Args:
        source: what its tokenizer came from: the command runs that cache's model at its sites, or the folder's model.
    """
    longest = max(prompt.tokens for prompt in prompts)
    settings: dict[str, Any] = {"dataset": str(path), "packing": "prompts", "tokens": None, "ctx": longest + 2}
    words = ["pipeline", "harvest"]
    if kind_of(source) == "cache":
        words += ["-c", str(source)]
        own = frozen_settings(source)["harvest"]
        settings |= {key: value for key, value in _OF_ANOTHER_TEXT.items() if own.get(key, value) != value}
        settings["name"] = re.sub(r"[^A-Za-z0-9._+-]+", "-", path.stem)
    elif (source / "config.json").is_file():
        settings["model"] = str(source)
    for key, value in settings.items():
        words += ["--set", f"harvest.{key}={value if isinstance(value, str) else json.dumps(value)}"]
    document = {"path": str(path), "prompts": len(prompts), "longest": longest, "harvest": settings}
    document["next"] = shlex.join(words)
    return document, f"{path}: {len(prompts):,} prompts of at most {longest} tokens\nnext: {document['next']}"
