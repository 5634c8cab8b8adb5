"""Caches in the memory of the test's process, under ``memory://``; a machine is a folder of copies."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from sparse_pipeline.shared.objects.address import address_of
from sparse_pipeline.shared.objects.room import FOLDER
from sparse_pipeline.shared.objects.store import Objects, connect

_numbers = itertools.count()


def new_address() -> str:
    """An address that no test had before."""
    return f"memory://bucket{next(_numbers)}/caches/one"


def objects(address: str) -> Objects:
    found = address_of(address)
    assert found is not None
    return connect(found)


def stored(address: str) -> dict[str, bytes]:
    """Every object of a cache: name → bytes."""
    there = objects(address)
    return {name: there.read(name, 1 << 30)[0].tobytes() for name in sorted(there.below())}


Machine = Callable[[str], Path]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Makes this process a machine of that name: its copies lie in a folder of their own, which is returned."""

    def become(name: str) -> Path:
        monkeypatch.setenv(FOLDER, str(tmp_path / "machines" / name))
        return tmp_path / "machines" / name

    become("first")
    return become
