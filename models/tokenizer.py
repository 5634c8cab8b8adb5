"""A checkpoint's tokenizer: loaded, and checked for whether it fits the model; the tokens that packing adds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..shared.config.registry import did_you_mean
from ..shared.errors import UsageError
from ..shared.untrusted import check_tokenizer
from .checkpoint import ModelCheckpoint, explained
from .weights import Weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILES = frozenset(
    {
        *("tokenizer.json", "tokenizer.model", "tekken.json"),
        *("vocab.json", "vocab.txt", "merges.txt", "bpe.codes"),
        *("spiece.model", "sentencepiece.bpe.model", "sentencepiece.model", "spm.model", "source.spm"),
    }
)
"""Files of which a tokenizer needs at least one; tokenizer_config.json alone holds no vocabulary."""

_PADDED = 256
"""Embeddings are often padded to a multiple of up to this many rows, also those of a small vocabulary."""


@dataclass(frozen=True)
class Specials:
    """Ids of the tokens that packing adds.

    Attributes:
        bos: begins sequences, by `harvest.bos`; None: they begin with text.
        eos: ends documents.
        pad: fills places without a token; any id that the model embeds will do.
        bos_token: text of ``bos``.
    """

    bos: int | None
    eos: int | None
    pad: int
    bos_token: str | None = None

    @property
    def filler(self) -> int:
        """An id that the model embeds, for calls of which the result does not matter."""
        return self.pad if self.bos is None else self.bos


def vocabulary_size(checkpoint: ModelCheckpoint) -> int:
    """Number of token ids that the model embeds."""
    return int(checkpoint.config.get_text_config().vocab_size)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer's vocabulary."""
    return not _FILES.isdisjoint(path.name for path in folder.iterdir())


def load_tokenizer(checkpoint: ModelCheckpoint, name: str) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    A tokenizer with more entries than the model has embeddings is accepted: only such an id in the data is an error.

    Raises:
        UsageError: it was not found; it cannot be saved as one tokenizer.json, which turns the tokens of a
            cache into text; or it knows far fewer tokens than the model, so it belongs to another one.
    """
    weights = checkpoint.weights or Weights(checkpoint.source)
    source, how = weights.source, {} if weights.gguf is None else {"gguf_file": weights.gguf}
    if weights.adapter is not None and has_tokenizer(Path(weights.adapter)):
        source, how = weights.adapter, {}  # an adapter may come with tokens of its own
    folder = Path(source)
    if not how and folder.is_dir() and not has_tokenizer(folder):
        raise UsageError(
            f"{checkpoint.setting}: no tokenizer in {folder}: expected tokenizer.json, tokenizer.model or a vocab file",
            hint="copy the files of the model's tokenizer there: tokenizer.json and tokenizer_config.json",
        )
    if not how and (folder / "tokenizer.json").is_file():
        check_tokenizer(folder / "tokenizer.json")
    with explained(name, checkpoint.source, checkpoint.setting):
        tokenizer = _loaded(source, checkpoint, how)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UsageError(
            f"the tokenizer of {name} ({type(tokenizer).__name__}) cannot be saved as one tokenizer.json",
            hint="convert it, and save it with the checkpoint",
        )
    known, embedded = len(tokenizer), vocabulary_size(checkpoint)
    if 2 * known < embedded and known + _PADDED < embedded:
        raise UsageError(
            f"{checkpoint.setting}: the tokenizer of {name} ({type(tokenizer).__name__}) has {known:,} tokens, the "
            f"model embeds {embedded:,}: it is incomplete, or another model's",
            hint="copy the tokenizer.json that was published with the model into its folder",
        )
    return tokenizer


def _loaded(source: str, checkpoint: ModelCheckpoint, how: dict[str, str]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, revision=checkpoint.revision, trust_remote_code=False, **how
        )
    except (OSError, ValueError, ImportError, KeyError):
        raise
    except Exception as error:  # tokenizers raises a bare Exception for a tokenizer.json that it cannot read
        from tokenizers import __version__

        raise UsageError(
            f"{checkpoint.setting}: tokenizers {__version__} cannot read {Path(source) / 'tokenizer.json'}: "
            f"{' '.join(str(error).split())[:200]}",
            hint="pip install --upgrade tokenizers transformers (the file may be a newer library's), or copy it again",
        ) from None
    return found


def special_tokens(
    tokenizer: PreTrainedTokenizerBase, name: str, *, vocabulary: int, bos: str = "auto", separator: str = "eos"
) -> Specials:
    """The tokens that packing adds.

    Args:
        vocabulary: number of token ids that the model embeds.
        bos: `auto` (the tokenizer's BOS, else its CLS token, else none), `none`, or a token of the vocabulary.
        separator: `eos` requires an EOS token.

    Raises:
        UsageError: the tokenizer lacks `bos` or a required EOS, or the model embeds no such id.
    """
    begin = _bos(tokenizer, name, bos)
    eos = tokenizer.eos_token_id
    if separator == "eos" and eos is None:
        raise UsageError(f"the tokenizer of {name} has no EOS token", hint="--set harvest.separator=none")
    for what, token, cure in (("BOS", begin, "harvest.bos=none"), ("EOS", eos, "harvest.separator=none")):
        if token is not None and token >= vocabulary and not (what == "EOS" and separator != "eos"):
            raise UsageError(
                f"the {what} token of {name}, {tokenizer.convert_ids_to_tokens(token)!r}, has id {token}, but the "
                f"model embeds ids below {vocabulary:,}",
                hint=f"--set {cure}",
            )
    candidates = (tokenizer.pad_token_id, begin, eos, 0)
    pad = next(int(token) for token in candidates if token is not None and token < vocabulary)
    text = None if begin is None else str(tokenizer.convert_ids_to_tokens(begin))
    return Specials(begin, None if eos is None else int(eos), pad, text)


def _bos(tokenizer: PreTrainedTokenizerBase, name: str, wanted: str) -> int | None:
    if wanted == "none":
        return None
    if wanted == "auto":
        found = tokenizer.cls_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        return None if found is None else int(found)
    vocabulary: dict[str, Any] = tokenizer.get_vocab()
    if wanted not in vocabulary:
        raise UsageError(
            f"harvest.bos: the tokenizer of {name} has no token {wanted!r}{did_you_mean(wanted, vocabulary)}",
            hint=f"--set harvest.bos=none, or one of its special tokens: {', '.join(tokenizer.all_special_tokens)}",
        )
    return int(vocabulary[wanted])
