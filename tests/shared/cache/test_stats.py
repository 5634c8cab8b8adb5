from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.cache import CacheWriter, Flag, open_cache, positions, tensor_stats
from sparse_pipeline.shared.cache.stats import Moments, SiteStats, decode_vector, encode_vector, merge_stats, site_stats
from sparse_pipeline.shared.cache.tensor_stats import Classes, TensorSums
from sparse_pipeline.shared.errors import DataError
from tests.second_device import DEVICE, second_device
from tests.synthetic import make_cache, token_table, write_missing


def check(moments: Moments, rows: np.ndarray, rtol: float) -> None:
    """Against plain float64 sums over the same rows."""
    norms = np.sqrt((rows**2).sum(1))
    assert moments.n == len(rows)
    scale = max(1e-30, float(np.abs(rows).sum(0).max())) if len(rows) else 1.0
    np.testing.assert_allclose(moments.sum, rows.sum(0), rtol=rtol, atol=rtol * scale)
    np.testing.assert_allclose(moments.sum_sq, (rows**2).sum(0), rtol=rtol)
    assert moments.sum_norm == pytest.approx(norms.sum(), rel=rtol)
    assert moments.sum_norm_sq == pytest.approx((norms**2).sum(), rel=rtol)


@pytest.mark.parametrize(
    ("n_seq", "ctx", "width"), [(40, 16, 32), (3, 700, 257), (1, 1, 5), (9, 7, 1), (2, 5, 140_000)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_moments_equal_float64_sums(n_seq: int, ctx: int, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(n_seq)
    x = (torch.randn(n_seq * ctx, width, generator=generator) * 3 + 0.7).to(dtype)
    rng = np.random.default_rng(1)
    padding, bos = rng.random(n_seq * ctx) < 0.2, rng.random(n_seq * ctx) < 0.1
    stored = x.view(torch.uint16).numpy() if dtype == torch.bfloat16 else x.numpy()
    stats = site_stats(stored, ctx, np.where(padding, 4, np.where(bos, 1, 0)).astype(np.uint8))

    exact, position = x.double().numpy(), np.arange(n_seq * ctx) % ctx
    check(stats.first, exact[~padding & ((position == 0) | bos)], 1e-5)
    check(stats.rest, exact[~padding & (position > 0) & ~bos], 1e-5)
    check(stats.all, exact[~padding], 1e-5)
    assert stats.nonfinite == 0
    for p in range(min(ctx, 20)):
        rows = exact[~padding & (position == p)]
        assert stats.position_n[p] == len(rows)
        assert stats.position_sum_norm[p] == pytest.approx(np.linalg.norm(rows, axis=1).sum(), rel=1e-5)


def test_means_variances_and_norms() -> None:
    x = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32) * 2 + 1
    stats = site_stats(x, 8, np.zeros(64, np.uint8))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(stats.all.mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(stats.all.var, exact.var(0), rtol=1e-5)
    assert stats.all.mean_sq_norm == pytest.approx((exact**2).sum(1).mean(), rel=1e-6)
    assert stats.all.mean_norm == pytest.approx(np.linalg.norm(exact, axis=1).mean(), rel=1e-6)
    norms = np.linalg.norm(exact, axis=1).reshape(8, 8).mean(0)
    np.testing.assert_allclose(stats.position_sum_norm / stats.position_n, norms, rtol=1e-6)


@pytest.mark.parametrize("mean_in_std", [10, 100, 300])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.bfloat16, 1e-9), (torch.float32, 1e-4)])
def test_the_variance_survives_a_mean_far_from_zero(mean_in_std: int, dtype: torch.dtype, rtol: float) -> None:
    """8,192 rows of width 64: a sum of squares in float32 loses more than half of this variance."""
    x = (torch.randn(8192, 64, generator=torch.Generator().manual_seed(0)) + mean_in_std).to(dtype)
    stored = x.view(torch.uint16).numpy() if dtype == torch.bfloat16 else x.numpy()
    flags = np.zeros(8192, np.uint8)
    flags[::2] = int(Flag.BOS)  # both classes
    stats, exact = site_stats(stored, 128, flags), x.double().numpy()
    np.testing.assert_allclose(stats.first.var, exact[::2].var(0), rtol=rtol)
    np.testing.assert_allclose(stats.rest.var, exact[1::2].var(0), rtol=rtol)
    np.testing.assert_allclose(stats.all.mean, exact.mean(0), rtol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_row_is_counted_and_left_out(bad: float) -> None:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[0, 1], x[13, 3], x[14, 0] = bad, bad, bad
    flags = np.zeros(32, np.uint8)
    flags[14] = Flag.PADDING  # a padding row is not counted, not even as non-finite
    stats = site_stats(x.view(torch.uint16).numpy(), 8, flags)
    kept = np.ones(32, bool)
    kept[[0, 13, 14]] = False
    assert stats.nonfinite == 2
    check(stats.all, x.double().numpy()[kept], 1e-5)
    assert stats.position_n.tolist() == [3, 4, 4, 4, 4, 3, 3, 4]
    assert np.isfinite(stats.rest.sum_sq).all()


def test_finite_values_whose_squares_overflow_float32_count() -> None:
    x = torch.ones(16, 4).bfloat16()
    x[5] = 3e38
    stats = site_stats(x.view(torch.uint16).numpy(), 8, np.zeros(16, np.uint8))
    assert (stats.nonfinite, stats.all.n) == (0, 16)
    check(stats.all, x.double().numpy(), 1e-6)


@pytest.mark.parametrize("place", ["cpu", "second device"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_on_a_tensor_are_those_of_the_writer(
    dtype: torch.dtype, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_stats, "PIECE_NUMBERS", 7 * 33)  # 7 rows at a time, so pieces end anywhere
    n_seq, ctx, width = 12, 16, 33
    x = (torch.randn(n_seq * ctx, width, generator=torch.Generator().manual_seed(5)) * 3 + 0.7).to(dtype)
    x[20, 3], x[57, 0], x[90] = float("nan"), float("inf"), 3e38  # the last is finite, its square in float32 is not
    rng = np.random.default_rng(1)
    flags = np.where(rng.random(n_seq * ctx) < 0.2, Flag.PADDING, rng.random(n_seq * ctx) < 0.1).astype(np.uint8)
    flags[[20, 57, 90]] = 0
    rows = slice(4 * ctx, n_seq * ctx)  # the second shard of a unit
    device = torch.device("cpu") if place == "cpu" else DEVICE
    with second_device() as second:
        sums = TensorSums(Classes(flags, ctx, device), rows, width)
        for start in range(rows.start, rows.stop, 50):
            sums.add(start, x[start : min(start + 50, rows.stop)].to(device))
        assert not second.reads
        sums.send()
        assert sum(second.reads.values()) == (place != "cpu")
        found = sums.stats()
    stored = x[rows].view(torch.uint16).numpy() if dtype == torch.bfloat16 else x[rows].numpy()
    expected = site_stats(stored, ctx, flags[rows])
    assert (found.nonfinite, found.first.n, found.rest.n) == (expected.nonfinite, expected.first.n, expected.rest.n)
    assert found.position_n.tolist() == expected.position_n.tolist()
    kept = ((flags & Flag.PADDING) == 0) & x.isfinite().all(1).numpy()
    kept[: rows.start] = False
    first = (np.arange(n_seq * ctx) % ctx == 0) | ((flags & Flag.BOS) != 0)
    exact = x.double().numpy()
    check(found.first, exact[kept & first], 1e-12)
    check(found.rest, exact[kept & ~first], 1e-12)
    np.testing.assert_allclose(found.position_sum_norm, expected.position_sum_norm, rtol=1e-6)


def test_the_same_bits_in_whatever_order_the_shards_are_written(tmp_path: Path) -> None:
    table = token_table(60, 16, seed=3)
    acts = {"layer_00.resid_mid": torch.randn(960, 48, generator=torch.Generator().manual_seed(0)).bfloat16()}
    one = make_cache(tmp_path / "a", 60, 16, acts=acts, table=table)
    with CacheWriter.create(tmp_path / "b", one.layout, one.config, {"made_by": "tests"}) as writer:
        for shard in [2, 0, 3, 1]:
            seqs, rows = one.layout.seqs_of(shard), one.layout.rows_of(shard)
            cut = slice(seqs.start, seqs.stop)
            writer.write_shard(
                shard,
                **{name: getattr(table, name)[cut] for name in ("tokens", "doc_id", "pos_in_doc", "flags")},
                acts={name: value[rows.start : rows.stop] for name, value in acts.items()},
            )
        writer.finish()
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_statistics_of_a_cache_leave_padding_out(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=50, ctx=16, packing="document", doc_length=(3, 20))
    site = "layer_01.mlp_out"
    x = torch.cat([cache.chunk(site, shard) for shard in cache.shards]).double().numpy()
    padding = (cache.flags.reshape(-1) & Flag.PADDING) != 0
    position = np.arange(cache.n_rows) % 16
    assert padding.any()
    check(cache.stats(site).first, x[~padding & (position == 0)], 1e-5)
    check(cache.stats(site).rest, x[~padding & (position > 0)], 1e-5)
    assert cache.manifest["n_tokens"] == (~padding).sum()
    # every sequence begins with the same BOS row, so its norm stands out at position 0
    norms = cache.stats(site).position_sum_norm / cache.stats(site).position_n
    assert norms[0] > 3 * norms[1]


def test_a_bos_within_the_sequence_is_of_the_class_first(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=50, ctx=16, packing="apart", doc_length=(3, 20))
    site = "layer_01.mlp_out"
    x = torch.cat([cache.chunk(site, shard) for shard in cache.shards]).double().numpy()
    flags, place = cache.flags.reshape(-1), np.arange(cache.n_rows) % 16
    kept, bos = (flags & Flag.PADDING) == 0, (flags & Flag.BOS) != 0
    assert (bos & (place > 0)).sum() > 20
    assert not kept.all()
    stats = cache.stats(site)
    check(stats.first, x[bos], 1e-5)
    check(stats.rest, x[kept & ~bos], 1e-5)
    np.testing.assert_allclose(stats.first.var, 0, atol=1e-9)  # all of them are one vector
    # by place, rows are counted whatever they are
    assert stats.position_n.tolist() == kept.reshape(-1, 16).sum(0).tolist()
    norms = np.where(kept, np.linalg.norm(x, axis=1), 0).reshape(-1, 16)
    np.testing.assert_allclose(stats.position_sum_norm, norms.sum(0), rtol=1e-5)


def test_position_is_the_place_in_the_sequence_and_0_at_every_bos() -> None:
    flags = np.array([[1, 0, 0, 9, 0], [0, 2, 4, 5, 8]], np.uint8)
    expected = [[0, 1, 2, 0, 4], [0, 1, 2, 0, 4]]
    assert positions(np.arange(5), flags, 5).tolist() == expected
    assert positions(np.arange(10), flags.reshape(-1), 5).reshape(2, 5).tolist() == expected
    assert positions(np.array([8, 4]), flags.reshape(-1)[[8, 4]], 5).tolist() == [0, 4]


def test_an_incomplete_cache_has_the_statistics_of_its_commits(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c")
    (tmp_path / "c/manifest.json").unlink()
    (tmp_path / "c/commits/000001.json").unlink()
    part = open_cache(tmp_path / "c", allow_incomplete=True)
    x = torch.cat([part.chunk("layer_01.mlp_out", shard) for shard in (0, 2, 3)]).double().numpy()
    assert part.shards == [0, 2, 3]
    check(part.stats("layer_01.mlp_out").all, x, 1e-5)
    assert cache.stats("layer_01.mlp_out").all.n == 4 * 256
    # …and once written again, the finished cache is the same
    with CacheWriter.create(tmp_path / "c", cache.layout, cache.config, {}) as writer:
        assert writer.missing_shards() == [1]


def test_vectors_survive_text_exactly() -> None:
    vector = np.array([0.1, -0.0, 5e-324, 1.7e308, 3.0])
    assert decode_vector(encode_vector(vector)).tobytes() == vector.tobytes()
    with pytest.raises(DataError, match="cannot be decoded"):
        decode_vector("AAA")


def test_site_stats_survive_json_and_merging_starts_at_zero() -> None:
    x = np.random.default_rng(2).standard_normal((24, 3)).astype(np.float32)
    stats = site_stats(x, 6, np.zeros(24, np.uint8))
    again = SiteStats.from_dict(stats.to_dict())
    assert again.to_dict() == stats.to_dict()
    assert merge_stats([stats], 3, 6).to_dict() == stats.to_dict()
    assert merge_stats([stats, stats], 3, 6).all.n == 48
    nothing = merge_stats([], 3, 6)
    assert nothing.all.mean.tolist() == [0, 0, 0]
    assert not nothing.position_n.any()


def test_write_missing_is_what_the_cache_was_made_of(tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c")
    with CacheWriter.create(tmp_path / "c", cache.layout, cache.config, {}) as writer:
        assert writer.complete
        write_missing(writer, token_table(64, 16), {})  # nothing is missing, so no activations are needed
