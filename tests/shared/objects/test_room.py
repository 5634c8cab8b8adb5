"""The room of copies: what was used least recently goes first, and the bound is said in the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sparse_pipeline.shared.errors import UsageError
from sparse_pipeline.shared.objects.address import Address
from sparse_pipeline.shared.objects.room import BYTES, DOWNLOAD, FOLDER, Room, folder_of, touch


def chunk(root: Path, cache: str, number: int, n_bytes: int = 100) -> Path:
    file = root / cache / "acts.zarr" / "site" / f"c.{number}.0"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(bytes(n_bytes))
    os.utime(file, ns=(number, 5))
    return file


@pytest.mark.parametrize(
    ("text", "n"), [("1000", 1000), ("1.5GB", 1_500_000_000), ("20 kb", 20_000), ("2T", 2 * 10**12), ("1e3", 1000)]
)
def test_the_bound_in_the_environment(text: str, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BYTES, text)
    assert Room(tmp_path).limit == n


def test_without_one_half_of_the_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BYTES, raising=False)
    usage = os.statvfs(tmp_path)
    assert Room(tmp_path / "new").limit == pytest.approx(usage.f_bavail * usage.f_frsize / 2, rel=0.05)


def test_no_number_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BYTES, "much")
    with pytest.raises(UsageError, match=f"{BYTES}=much: expected a number of bytes"):
        Room(tmp_path).make(1)


def test_the_least_recently_used_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight files of 100 bytes in two caches under a bound of 800: a ninth leaves at most 90 % of it."""
    monkeypatch.setenv(BYTES, "800")
    files = [chunk(tmp_path, f"cache{n % 2}", n) for n in range(8)]
    document = tmp_path / "cache0" / "manifest.json"
    document.write_bytes(bytes(5000))
    with files[0].open("rb") as used:
        touch(files[0], used.fileno())
    assert files[0].stat().st_mtime_ns == 5, "what a checksum was noted for stays the same file"
    Room(tmp_path).make(100)
    assert [n for n, file in enumerate(files) if not file.exists()] == [1, 2]
    assert document.exists(), "only chunk files are removed"


def test_a_file_larger_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BYTES, "800")
    kept = chunk(tmp_path, "cache", 1)
    with pytest.raises(UsageError, match="one chunk file has 900 bytes, and .* may hold 800"):
        Room(tmp_path).make(900)
    assert kept.exists()


def test_the_folder_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert folder_of(Address("s3", "bucket", "a/b")) == tmp_path / "s3" / "bucket" / "a" / "b"


def test_what_is_being_written_is_not_evicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer would find nothing to rename."""
    monkeypatch.setenv(BYTES, "300")
    oldest = chunk(tmp_path, "a", 1)
    partial = oldest.rename(oldest.with_name(oldest.name + DOWNLOAD))
    later = [chunk(tmp_path, "a", number) for number in (2, 3)]
    Room(tmp_path).make(100)
    assert partial.exists()
    assert not later[0].exists()
