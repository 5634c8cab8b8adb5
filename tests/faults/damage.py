"""Ways to damage a file, each with what it does to whoever trusts it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path, random.Random], None]


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    at = rng.randrange(len(data) * 8)
    data[at // 8] ^= 1 << at % 8
    file.write_bytes(data)


def cut(file: Path, rng: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: rng.randrange(len(data))])


def lengthen(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.randint(1, 9)))


def zero_a_quarter(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    quarter = max(1, len(data) // 4)
    at = rng.randrange(len(data) - quarter + 1)
    data[at : at + quarter] = bytes(quarter)
    if bytes(data) == file.read_bytes():
        data[at] ^= 1
    file.write_bytes(data)


def delete(file: Path, rng: random.Random) -> None:
    file.unlink()


def folder_in_its_place(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def pipe_in_its_place(file: Path, rng: random.Random) -> None:
    file.unlink()
    os.mkfifo(file)


def swap_with_a_sibling(file: Path, rng: random.Random) -> None:
    """Two files of one kind exchanged: each is sound by itself."""
    data = file.read_bytes()
    others = [
        one for one in sorted(file.parent.iterdir()) if one != file and one.is_file() and one.suffix == file.suffix
    ]
    others = [one for one in others if one.read_bytes() != data and one.name != ".lock"]
    if not others:
        return flip(file, rng)
    other = rng.choice(others)
    file.write_bytes(other.read_bytes())
    other.write_bytes(data)
    return None


KINDS: dict[str, Damage] = {
    "flip": flip,
    "cut": cut,
    "lengthen": lengthen,
    "zeros": zero_a_quarter,
    "delete": delete,
    "folder": folder_in_its_place,
    "pipe": pipe_in_its_place,
    "swap": swap_with_a_sibling,
}
