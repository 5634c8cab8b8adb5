from __future__ import annotations

from pathlib import Path

import pytest

from sparse_pipeline.shared.cache import Layout, SiteSpec
from sparse_pipeline.shared.cache.format import ARRAYS, commit_name, differences, shard_of_commit
from sparse_pipeline.shared.errors import UsageError
from tests.synthetic import make_cache


def test_a_shard_holds_whole_sequences_up_to_8192_rows() -> None:
    assert Layout(1000, 64).shard_rows == 8192
    assert Layout(1000, 100).shard_rows == 8100
    assert Layout(3, 20_000).shard_rows == 20_000


def test_rows_and_sequences_of_every_shard_tile_the_cache() -> None:
    layout = Layout(37, 16, 160)
    assert layout.n_shards == 4
    assert [row for shard in range(4) for row in layout.rows_of(shard)] == list(range(37 * 16))
    assert [seq for shard in range(4) for seq in layout.seqs_of(shard)] == list(range(37))
    assert layout.rows_of(3) == range(480, 592)
    with pytest.raises(UsageError, match="4 shards"):
        layout.rows_of(4)


def test_predicted_bytes_are_the_bytes_on_disk(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=37, ctx=16, shard_rows=160, sites={"layer_00.resid_mid": 24, "a.b:out": 7})
    found = sum(file.stat().st_size for file in (tmp_path / "c" / ARRAYS).glob("*/c.*"))
    assert cache.layout.bytes_on_disk() == found
    assert cache.manifest["bytes"] == found
    per_row = 4 + 4 + 2 + 1 + 2 * (24 + 7)
    assert found == 4 * (160 * per_row + 6 * 4)  # four full chunks of six arrays, each with its checksum


def test_a_layout_survives_json() -> None:
    layout = Layout(5, 8, 16, (SiteSpec("layer_01.mlp_out", 3, "float32", "m.1", 1, "mlp_out", "in"),))
    assert Layout.from_dict(layout.to_dict()) == layout


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Layout(0, 8), "at least one sequence"),
        (lambda: Layout(4, 8, 12), "not a multiple of ctx 8"),
        (lambda: SiteSpec("layer_00.x", 0), "width 0"),
        (lambda: SiteSpec("layer_00.x", 4, "float16"), "float16"),
        (lambda: SiteSpec("tokens", 4), "cannot name an array"),
        (lambda: SiteSpec("a/b", 4), "cannot name an array"),
        (lambda: Layout(4, 8, 8, (SiteSpec("s.x:out", 2), SiteSpec("s.x:out", 2))), "named twice"),
        (lambda: Layout(4, 8).site("nope"), "no site 'nope'"),
    ],
)
def test_impossible_shapes_are_refused(make, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make()


def test_commit_names() -> None:
    assert commit_name(7) == "000007.json"
    assert shard_of_commit(commit_name(1_234_567)) == (1_234_567, 0)
    assert shard_of_commit(commit_name(7, 2)) == (7, 2)
    assert shard_of_commit("000007.json.partial") is None


def test_differences_name_every_field() -> None:
    found = {"model": {"name": "a", "layers": [1, 2]}, "ctx": 64, "old": 1}
    wanted = {"model": {"name": "b", "layers": [1, 3]}, "ctx": 64, "new": None}
    assert differences(found, wanted) == [
        "model.layers[1]: the cache has 2, this config has 3",
        'model.name: the cache has "a", this config has "b"',
        "new: the cache has none, this config has null",
        "old: the cache has 1, this config has none",
    ]
    assert differences({"x": 1}, {"x": 1.0}) == ["x: the cache has 1, this config has 1.0"]
    assert differences([1, 2], [1, 2, 3], "l") == ["l: the cache has [1, 2], this config has [1, 2, 3]"]
