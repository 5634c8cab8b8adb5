"""What is wrong with a file of a cache, and what repairs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One file that does not match what else is known of the cache.

    Attributes:
        drop: files to delete, so that the same harvest writes them again.
        write: content that the file must have, where that follows from other files.
        shard: the shard that is computed again.
        beside: a file beside the arrays: documents, tokenizer.
        missing: a commit that does not exist; the harvest writes it, nothing needs to be dropped.
        lasting: nothing in the folder can repair it.
        advice: what to do about a lasting one.
    """

    path: Path
    found: str
    expected: str
    drop: tuple[Path, ...] = ()
    write: bytes | None = field(default=None, repr=False)
    shard: int | None = None
    beside: bool = False
    missing: bool = False
    lasting: bool = False
    advice: str | None = None

    def __str__(self) -> str:
        return f"{self.path}: found {self.found}, expected {self.expected}"
