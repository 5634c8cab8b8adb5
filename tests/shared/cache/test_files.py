"""Folders synced for several threads at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sparse_pipeline.shared.cache import files
from sparse_pipeline.shared.cache.files import SharedSync


def test_one_sync_serves_all_that_wait_for_it_and_none_that_began_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread makes a file and asks for a sync; the sync sees only the files that were there when it began."""
    seen: list[set[str]] = []
    begun, go_on = threading.Event(), threading.Event()

    def slow(folder: Path) -> None:
        seen.append({file.name for file in folder.iterdir()})
        begun.set()
        assert go_on.wait(60)

    monkeypatch.setattr(files, "sync_folder", slow)
    shared = SharedSync()
    returned: dict[str, bool] = {}

    def make(name: str) -> None:
        (tmp_path / name).touch()
        shared.sync(tmp_path)
        returned[name] = any(name in found for found in seen)

    first = threading.Thread(target=make, args=("a",))
    first.start()
    assert begun.wait(60)
    others = [threading.Thread(target=make, args=(name,)) for name in "bcd"]
    for thread in others:
        thread.start()
    while shared._states[tmp_path].asked < 4:  # all of them wait for the sync of the first to end
        threading.Event().wait(0.001)
    go_on.set()
    for thread in (first, *others):
        thread.join(60)
    assert returned == dict.fromkeys("abcd", True)
    assert seen == [{"a"}, {"a", "b", "c", "d"}]


def test_a_sync_that_failed_vouches_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing(folder: Path) -> None:
        calls.append(folder)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(files, "sync_folder", failing)
    shared = SharedSync()
    with pytest.raises(OSError, match="Input/output"):
        shared.sync(tmp_path)
    shared.sync(tmp_path)
    assert len(calls) == 2
