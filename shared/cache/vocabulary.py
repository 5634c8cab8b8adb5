"""Token ids as text, one piece per token, from the tokenizer that the cache carries."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import DataError, repair_command
from ..untrusted import check_tokenizer
from .characters import joined
from .files import inside
from .first_touch import compare_sha256_once
from .reader import Cache

TOKENIZER = "tokenizer.json"


class Vocabulary:
    """Pieces of text by token id. Without a tokenizer, a piece is the id in angle brackets.

    Args:
        path: tokenizer.json, or None.
        tokenizer: one that is loaded already, of `tokenizers`, in place of the file.
    """

    def __init__(self, path: Path | None, tokenizer: Any = None) -> None:
        self.path = path
        if tokenizer is not None:
            self._tokenizer = tokenizer
        self._pieces = _Pieces(self._spell)

    @classmethod
    def of(cls, cache: Cache) -> Vocabulary:
        """The tokenizer in the cache's folder; without one, ids."""
        extra = cache.manifest.get("extra", {})
        path = inside(cache.path, extra.get("tokenizer", TOKENIZER))
        if path.is_file() and "tokenizer_sha256" in extra:
            compare_sha256_once(path, str(extra["tokenizer_sha256"]))
        return cls(path if path.is_file() else None)

    @property
    def known(self) -> bool:
        """Whether there is a tokenizer."""
        return self.path is not None or "_tokenizer" in vars(self)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        check_tokenizer(Path(str(self.path)))
        try:
            return Tokenizer.from_file(str(self.path))
        except Exception as error:  # the library raises a bare Exception
            raise DataError(f"{self.path} is not a tokenizer: {error}", repair_command(Path(str(self.path)))) from None

    @cached_property
    def _byte_level(self) -> bool:
        """Whether the tokenizer spells pieces in GPT-2's printable characters for bytes."""
        return '"ByteLevel"' in json.dumps(json.loads(self._tokenizer.to_str()).get("decoder") or {})

    @cached_property
    def special(self) -> frozenset[int]:
        """Ids of special tokens (BOS, EOS, padding)."""
        return frozenset(token for token, entry in self._added.items() if entry.special)

    @cached_property
    def _added(self) -> dict[int, Any]:
        """The tokens that were added to the vocabulary: they are spelt as they are."""
        return dict(self._tokenizer.get_added_tokens_decoder()) if self.known else {}

    def piece(self, token: int) -> str:
        """The text of one token, including its leading space; � for each part of a character."""
        return self._pieces[token]

    def pieces(self, tokens: Iterable[int]) -> list[str]:
        """The text of each token of a window, decoded together (`shared.cache.characters.joined`): a character that
        several tokens spell stands at the first of them, and the others are empty.

        Takes plain ints: millions are looked up at a time.
        """
        ids = list(tokens)
        alone = list(map(self._pieces.__getitem__, ids))
        if all(map(str.isascii, alone)):
            return alone
        return joined([self._bytes(token) for token in ids], alone)

    def marked(self, tokens: Iterable[int], peak: int) -> str:
        """The text of a window with the character or word of the token at `peak` marked «so»."""
        pieces = self.pieces(tokens)
        while peak > 0 and not pieces[peak]:  # its character stands at an earlier token
            peak -= 1
        pieces[peak] = f"«{pieces[peak]}»"
        return "".join(pieces)

    def _spell(self, token: int) -> str:
        data = self._bytes(token)
        if data is not None:
            return data.decode("utf-8", errors="replace")
        raw = self._tokenizer.id_to_token(token) if self.known else None
        return f"<{token}>" if raw is None else str(raw)

    def _bytes(self, token: int) -> bytes | None:
        """The UTF-8 bytes that a token spells, maybe a part of a character; None for special and unknown tokens."""
        raw = self._tokenizer.id_to_token(token) if self.known else None
        if raw is None or token in self.special:
            return None
        if self._byte_level and token not in self._added:
            return bytes(_STAND_INS[c] for c in raw if c in _STAND_INS)
        if len(raw) == 6 and raw.startswith("<0x") and raw.endswith(">"):
            return bytes([int(raw[3:5], 16)])
        return str(raw).replace("▁", " ").encode()

    def label(self, token: int) -> str:
        """The piece for a table, with white space made visible: "␣to" is another token than "to". A part of a character
        is spelt in bytes, as <0xF0><0x9F>."""
        piece = self.piece(token)
        data = self._bytes(token) if "\ufffd" in piece else None
        if data is not None and piece.encode() != data:
            return "".join(f"<0x{byte:02X}>" for byte in data)
        return visible(piece)

    def text(self, tokens: Iterable[int]) -> str:
        """The pieces joined."""
        return "".join(self.pieces(tokens))


def visible(piece: str) -> str:
    """A piece with its leading spaces, line ends and tabs made visible."""
    bare = piece.strip(" ")
    bare = "␣" * (len(piece) - len(piece.lstrip(" "))) + bare
    return bare.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")


class _Pieces(dict[int, str]):
    """Spells each token once."""

    def __init__(self, spell: Callable[[int], str]) -> None:
        super().__init__()
        self.spell = spell

    def __missing__(self, token: int) -> str:
        piece = self[token] = self.spell(token)
        return piece


def _byte_stand_ins() -> dict[str, int]:
    """GPT-2's map from bytes to printable characters, inverted: printable bytes stand for themselves, the rest follow
    U+0100.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_STAND_INS = _byte_stand_ins()
