"""Text as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, offsets: bool = False, parse: bool = False
) -> Mapping[str, Any]:
    """The token ids of each text ("input_ids"), without special tokens around it.

    Args:
        offsets: also the characters of each token ("offset_mapping").
        parse: read a special token that the text spells out ("<eos>") as the token, not as plain text.
    """
    encoded: Mapping[str, Any] = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_offsets_mapping=offsets,
        split_special_tokens=not parse,
        verbose=False,
    )
    return encoded
