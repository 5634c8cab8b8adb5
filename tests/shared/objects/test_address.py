"""Addresses: what is one, how it is spelled, and what is refused without showing a credential."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparse_pipeline.resolve import resolve
from sparse_pipeline.shared.config.settings import to_dict
from sparse_pipeline.shared.errors import ConfigError, UsageError
from sparse_pipeline.shared.objects.address import Address, address_of, settled, spelled


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s3://bucket/caches/one", Address("s3", "bucket", "caches/one")),
        ("s3:/bucket/caches/one", Address("s3", "bucket", "caches/one")),  # what pathlib makes of it
        ("gs://my-bucket/a/b/", Address("gs", "my-bucket", "a/b")),
        ("az://container", Address("az", "container", "")),
        ("cache/one", None),
        ("/data/s3/one", None),
        ("file:///data/one", None),
    ],
)
def test_what_is_an_address(text: str, found: Address | None) -> None:
    assert address_of(text) == address_of(Path(text)) == found
    if found is not None:
        assert spelled(Path(text)) == str(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("http://host/x", "not a storage"),
        ("s3a://bucket/x", "not a storage"),
        ("s3://key:SECRET@bucket/x", "holds a bucket and a key only"),
        ("az://container/x?sig=SECRET", "holds a bucket and a key only"),
        ("s3://bucket/../x", "with parts of letters"),
        ("s3://bucket//x", "with parts of letters"),
        ("s3:///x y", "with parts of letters"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        address_of(text)
    assert "SECRET" not in f"{caught.value.message} {caught.value.hint}"


def test_a_file_address_is_its_folder() -> None:
    assert settled(Path("file:///data/one")) == Path("/data/one")
    assert resolve(sets=["harvest.cache_dir=file:///data"], here=False).harvest.cache_dir == Path("/data")


def test_settings_keep_both_slashes() -> None:
    whole = resolve(sets=["harvest.cache_dir=s3://bucket/caches", "train.cache=gs://bucket/c"], here=False)
    assert to_dict(whole)["harvest"]["cache_dir"] == "s3://bucket/caches"
    assert to_dict(whole)["train"]["cache"] == "gs://bucket/c"


@pytest.mark.parametrize("setting", ["train.runs", "train.init", "analyze.out", "tune.run"])
def test_runs_and_reports_stay_on_this_machine(setting: str) -> None:
    with pytest.raises(ConfigError, match="lies in object storage, which holds activation caches only"):
        resolve(sets=[f"{setting}=s3://bucket/runs"], here=False)
