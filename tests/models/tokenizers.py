"""Tokenizers made for a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def save_word_tokenizer(path: Path, words: Sequence[str], **specials: str) -> Any:
    """One token for each word, then <unk>, then the special tokens (bos="<s>", eos=…), saved into a folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    every = dict.fromkeys([*words, "<unk>", *specials.values()])
    model = Tokenizer(WordLevel({word: index for index, word in enumerate(every)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    named = {f"{name}_token": text for name, text in specials.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>", **named)
    tokenizer.save_pretrained(path)
    return tokenizer
