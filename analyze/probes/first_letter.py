"""The first-letter task: one prompt for each word of a tokenizer's vocabulary, asking for its first letter.

Chanin et al. 2024 (arXiv 2409.14507), in SAEBench's form: ten lines "{word} has the first letter: {LETTER}" about other
words, then "{word} has the first letter:". The target row is the word's (last) token. The prompts are harvested like
any text (`pipeline harvest` with a prompt set), once per model; all coders are measured on that cache.
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
from ...shared.errors import DataError
from ...shared.overview.find import frozen_settings, kind_of
from ...shared.untrusted import check_tokenizer
from .labels import word_of

QUESTION = " has the first letter:"
N_EXAMPLES = 10
"""Lines about other words before the question."""


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        text: all lines.
        tokens: number of tokens, excluding special ones.
        target: index of the word's last token.
        word: as in the vocabulary, including a leading space.
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
    """Words of one token: ASCII letters after at most one leading space; in order of token id."""
    pieces = (vocabulary.piece(token) for token in range(tokenizer.get_vocab_size(with_added_tokens=True)))
    ids = enumerate(pieces)
    return [piece for token, piece in ids if token not in vocabulary.special and word_of(piece) is not None]


def tokenizer_file(path: Path | str) -> Path:
    """The tokenizer.json of a cache or of a model's folder, or that file itself.

    Raises:
        DataError: not found.
    """
    path = Path(path)
    for file in (path, path / "tokenizer" / "tokenizer.json", path / "tokenizer.json"):
        if file.is_file():
            return file
    raise DataError(f"no tokenizer.json found at {path}", "name a cache, a model's folder, or a tokenizer.json")


def first_letter_prompts(
    tokenizer_path: Path | str,
    *,
    max_words: int | None = None,
    seed: int = 0,
) -> list[Prompt]:
    """The prompt set of a tokenizer: one prompt per word, shuffled.

    Args:
        tokenizer_path: tokenizer.json, or a cache or a model's folder with one.
        max_words: at most this many words, drawn uniformly; None: all.
        seed: of the order of the words and of each prompt's examples.

    Raises:
        DataError: no tokenizer found, or its vocabulary has too few words.
    """
    path = tokenizer_file(tokenizer_path)
    vocabulary = Vocabulary(path)
    check_tokenizer(path)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise DataError(f"{path} is not a tokenizer: {error}") from None
    words = vocabulary_words(tokenizer, vocabulary)
    if len(words) <= N_EXAMPLES:
        raise DataError(
            f"{path} has {len(words)} words among its tokens; the first-letter task needs more than {N_EXAMPLES}"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(words))
    chosen = order if max_words is None else order[:max_words]
    return [_prompt(tokenizer, words, int(index), rng) for index in chosen]


def _prompt(tokenizer: Tokenizer, words: Sequence[str], index: int, rng: np.random.Generator) -> Prompt:
    # One more than needed, because the word itself may be drawn.
    others = [int(i) for i in rng.choice(len(words), N_EXAMPLES + 1, replace=False) if i != index]
    lines = [f"{words[i]}{QUESTION} {_letter(words[i]).upper()}" for i in others[:N_EXAMPLES]]
    word = words[index]
    # A line break goes first, so that no word is at the very start of the text (some tokenizers treat it differently).
    head = "".join(f"\n{line}" for line in lines) + "\n"
    text = f"{head}{word}{QUESTION}"
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    target = token_ending_at(offsets, len(head) + len(word))
    return Prompt(text, len(offsets), target, word, _letter(word))


def token_ending_at(offsets: Sequence[tuple[int, int]], end: int) -> int:
    """Index of the token with the character before `end`, from the tokens' (start, stop) character offsets.

    Raises:
        DataError: no token contains it.
    """
    for index, (start, stop) in enumerate(offsets):
        if start < end <= stop:
            return index
    raise DataError(f"no token of the text contains character {end - 1}")


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
"""Settings of a cache's own text that do not apply to a prompt set, with the values that a prompt set needs."""


def described(path: Path, prompts: Sequence[Prompt], source: Path) -> tuple[dict[str, Any], str]:
    """A written prompt set as a JSON document and as text, both with the command that harvests it.

    Args:
        path: the file of the prompt set.
        prompts: its prompts.
        source: the cache or the folder of its tokenizer. Of a cache, the command runs the same model at the same sites;
            of a folder, the model in it.
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
