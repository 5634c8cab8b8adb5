"""Power cuts, simulated: what a disk may hold when the power goes between a write, a sync and a rename.

What is durable is followed at each fsync: of a file its content, of a folder its entries. At a power cut, everything
durable is there, and of the rest any part may be: each folder has its last synced entries or its present ones, and a
file that was never synced is empty, half written or whole.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

COUNTED = ("fsync", "replace", "rename", "unlink", "mkdir")


class Disk:
    """Follows what is durable below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[int, bytes] = {}
        self.folders: dict[int, dict[str, int]] = {}

    def synced(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path != self.root and not path.is_relative_to(self.root):
            return
        if path.is_dir():
            self.folders[path.stat().st_ino] = {one.name: one.stat().st_ino for one in path.iterdir()}
        else:
            self.files[path.stat().st_ino] = path.read_bytes()

    def forget(self, path: Path) -> None:
        """The name is gone; its number may be given to another file."""
        if path.is_file():
            self.files.pop(path.stat().st_ino, None)

    def after_a_cut(self, into: Path, rng: random.Random | None) -> None:
        """Writes what is left of the folder. Without ``rng``: only what is durable."""
        self._copy(self.root, into, rng)

    def _copy(self, folder: Path, into: Path, rng: random.Random | None) -> None:
        into.mkdir(parents=True)
        present = {one.name: one for one in folder.iterdir()}
        numbers = {one.stat().st_ino: one for one in present.values()}
        names = self.folders.get(folder.stat().st_ino, {})
        if rng is not None and rng.random() < 0.5:
            names = {name: one.stat().st_ino for name, one in present.items()}
        for name, number in names.items():
            one = numbers.get(number)
            if one is not None and one.is_dir():
                self._copy(one, into / name, rng)
            elif number in self.files:
                (into / name).write_bytes(self.files[number])
            elif one is not None:
                data = one.read_bytes()
                kept = 0 if rng is None else rng.choice((0, len(data) // 2, len(data)))
                (into / name).write_bytes(data[:kept])


@contextmanager
def followed(root: Path, at_each: Callable[[Disk], None]) -> Iterator[Disk]:
    """Calls ``at_each`` before every operation that matters below the folder."""
    disk, busy = Disk(root), False

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal busy
            if busy:
                return real(*args, **options)
            busy = True
            try:
                at_each(disk)
                if name in ("replace", "rename"):
                    disk.forget(Path(args[1]))
                result = real(*args, **options)
                if name == "fsync":
                    disk.synced(args[0])
                return result
            finally:
                busy = False

        return call

    with mock.patch.multiple(os, **{name: wrapped(name, getattr(os, name)) for name in COUNTED}):
        yield disk


def crash_states(root: Path, work: Callable[[], None], states: Path, seed: int, every: int) -> list[Path]:
    """Folders as a power cut may leave them, at every n-th operation: what is durable, and at random more than that."""
    rng, made, count = random.Random(seed), [], 0

    def at_each(disk: Disk) -> None:
        nonlocal count
        count += 1
        if count % every == 0 and root.exists():
            for chance in (None, rng):
                made.append(states / f"{len(made):05d}")
                disk.after_a_cut(made[-1], chance)

    states.mkdir()
    with followed(root, at_each):
        work()
    return made
