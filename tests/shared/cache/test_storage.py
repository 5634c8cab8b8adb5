"""Quantised sites and the sharded layout, against NumPy, a list of all float8 numbers, and Zarr's own files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from sparse_pipeline.shared.cache import Layout, SiteSpec, verify_cache
from sparse_pipeline.shared.cache.format import ARRAYS, default_chunk_rows
from sparse_pipeline.shared.cache.quantise import Quantised, dequantise, quantise
from sparse_pipeline.shared.errors import UsageError
from tests.synthetic import make_cache, sparse_acts, token_table

SITE = "layer_01.resid_mid"
KINDS: list[Quantised] = ["fp8", "int8"]


def activations(n: int = 200, d: int = 48) -> torch.Tensor:
    """Rows of very different norms, one with a single massive number, as at a BOS."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator) * torch.logspace(-12, 12, n)[:, None]
    x[n // 2, 3] = 3000.0 * x[n // 2].abs().max()
    x[n // 3, 4:20] = 0
    return x.bfloat16()


def nearest_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 → the bits of the nearest bfloat16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def every_float8() -> dict[int, float]:
    """Byte → number, by the definition of e4m3fn: bias 7, subnormals below 2^-6, S.1111.111 is NaN."""
    numbers = {}
    for byte in range(256):
        exponent, mantissa = byte >> 3 & 15, byte & 7
        if (exponent, mantissa) != (15, 7):
            size = mantissa / 8 * 2**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
            numbers[byte] = -size if byte >> 7 else size
    return numbers


def test_int8_is_the_nearest_of_255_steps() -> None:
    x = activations()
    codes, scales = quantise(x, "int8")
    full = x.float().numpy()
    scale = np.abs(full).max(axis=1) / np.float32(127)
    np.testing.assert_array_equal(scales.numpy(), scale)
    expected = np.rint(full / scale[:, None])
    np.testing.assert_array_equal(codes.numpy(), expected.astype(np.int8))
    assert np.abs(expected).max() == 127
    found = dequantise(codes, scales, "int8")
    products = codes.numpy().astype(np.float32) * scale[:, None]
    np.testing.assert_array_equal(found.view(torch.uint16).numpy(), nearest_bfloat16(products))
    assert (np.abs(products - full) <= scale[:, None] * 0.5001).all()


def test_fp8_is_the_nearest_float8_under_a_power_of_two() -> None:
    x = activations()
    codes, scales = quantise(x, "fp8")
    full = x.double().numpy()
    largest = np.abs(full).max(axis=1)
    scale = 2.0 ** np.ceil(np.log2(largest / 448))
    np.testing.assert_array_equal(scales.double().numpy(), scale)
    numbers = every_float8()
    grid = np.array(sorted(set(numbers.values())))
    stored = np.array([numbers[byte] for byte in codes.numpy().reshape(-1).tolist()]).reshape(codes.shape)
    wanted = full / scale[:, None]
    nearest = np.abs(wanted[..., None] - grid).min(axis=-1)
    np.testing.assert_array_equal(np.abs(stored - wanted), nearest)
    # exact in bfloat16: nothing is rounded twice
    np.testing.assert_array_equal(dequantise(codes, scales, "fp8").double().numpy(), stored * scale[:, None])
    normal = np.abs(wanted) >= 2.0**-6
    assert (nearest[normal] <= np.abs(wanted[normal]) / 16).all()


def test_fp8_rounds_ties_to_even() -> None:
    row = torch.tensor(
        [[448.0, 17.0, 19.0, 1.0625, 1.1875, 0.0]]
    )  # half way between 16 and 18, 18 and 20, 1 and 1⅛, 1⅛ and 1¼
    assert dequantise(*quantise(row, "fp8"), "fp8").tolist() == [[448.0, 16.0, 20.0, 1.0, 1.25, 0.0]]


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_subnormal_and_damaged_rows(kind: Quantised) -> None:
    x = torch.full((6, 8), 0.5).bfloat16()
    x[1] = 0
    x[2, 5] = torch.inf
    x[3, 0] = torch.nan
    x[4] = 1e-39  # a bfloat16 so small that no normal scale is
    x[5] = torch.finfo(torch.bfloat16).max
    codes, scales = quantise(x, kind)
    found = dequantise(codes, scales, kind)
    assert (found[0] == 0.5).all()
    assert scales[1] == 0
    assert (found[1] == 0).all()
    assert scales[2:4].isnan().all()
    assert found[2:4].isnan().all()
    assert (found[4] == 0).all()
    assert ((found[5].float() / x[5].float() - 1).abs() < 1 / 8).all()  # finite stays finite


@pytest.mark.parametrize("kind", KINDS)
def test_a_massive_row_takes_nothing_from_its_neighbours(kind: Quantised) -> None:
    x = activations()
    alone = dequantise(*quantise(x[:100], kind), kind)
    beside = x.clone()
    beside[100:] = 1e30
    assert torch.equal(dequantise(*quantise(beside, kind), kind)[:100], alone)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_rows", [0, 64])
def test_a_quantised_cache(tmp_path: Path, kind: Quantised, chunk_rows: int) -> None:
    table = token_table(70, 16, packing="document")
    acts = sparse_acts(table, {SITE: 24, "a.b:out": 9})
    made = make_cache(tmp_path / "c", 70, 16, acts=acts, table=table, quantised={SITE: kind}, chunk_rows=chunk_rows)
    codes, scales = quantise(acts[SITE], kind)
    expected = dequantise(codes, scales, kind)
    assert made.sites[SITE].logical_dtype == "bfloat16"
    assert torch.equal(torch.cat([made.chunk(SITE, shard) for shard in made.shards]), expected)
    assert torch.equal(made.rows(SITE, [1119, 3, 3, 256]), expected[[1119, 3, 3, 256]])
    assert torch.equal(torch.cat([made.chunk("a.b:out", shard) for shard in made.shards]), acts["a.b:out"])

    group = zarr.open_group(made.path / ARRAYS, mode="r")
    assert dict(group[SITE].attrs)["quantised"] == kind
    stored, scale = group[SITE][:], group[str(group[SITE].attrs["scale"])][:]
    assert stored.dtype == np.dtype(np.uint8 if kind == "fp8" else np.int8)
    np.testing.assert_array_equal(stored, codes.numpy())
    np.testing.assert_array_equal(scale, scales.numpy())

    padding = (table.flags.reshape(-1) & 4) != 0
    counted = ~padding & (np.arange(1120) % 16 != 0)
    of_readers, of_exact = ((x.double().numpy()[counted] ** 2).sum(axis=0) for x in (expected, acts[SITE]))
    np.testing.assert_allclose(made.stats(SITE).rest.sum_sq, of_readers, rtol=1e-5)
    assert np.abs(made.stats(SITE).rest.sum_sq / of_exact - 1).max() > 1e-4
    found = sum(file.stat().st_size for file in (made.path / ARRAYS).glob("*/c.*"))
    assert made.layout.bytes_on_disk() == made.manifest["bytes"] == found
    per_row = 4 + 4 + 2 + 1 + (24 + 4) + 2 * 9
    trailers = 7 * (4 if chunk_rows == 0 else 4 * 16 + 4)
    assert found == 5 * (256 * per_row + trailers)

    assert verify_cache(made.path).ok
    for array in (SITE, f"{SITE}.scale"):
        file, offset = made.chunk_file(array, 3)
        whole = bytearray(file.read_bytes())
        whole[offset + 9] ^= 4
        file.write_bytes(whole)
        assert [problem.path for problem in verify_cache(made.path).problems] == [file]
        whole[offset + 9] ^= 4
        file.write_bytes(whole)


def test_a_damaged_row_is_counted_as_one(tmp_path: Path) -> None:
    table = token_table(32, 16)
    acts = sparse_acts(table, {SITE: 24})
    acts[SITE][37, 2] = torch.inf
    made = make_cache(tmp_path / "c", 32, 16, acts=acts, table=table, quantised={SITE: "int8"})
    assert made.stats(SITE).nonfinite == 1
    assert made.rows(SITE, [37]).isnan().all()
    assert made.rows(SITE, [36, 38]).isfinite().all()


def test_the_sharded_layout_is_zarrs_own(tmp_path: Path) -> None:
    """Every file has the bytes that Zarr's own writer gives it; the rows of one are one piece of memory."""
    table = token_table(64, 16)
    made = make_cache(tmp_path / "c", 64, 16, table=table, chunk_rows=64)
    group = zarr.open_group(made.path / ARRAYS, mode="r")
    for name, array in made.layout.arrays.items():
        assert (group[name].chunks, group[name].shards) == (array.chunk, array.shard)
        own = zarr.create_array(
            tmp_path / "own",
            name=name,
            shape=array.shape,
            chunks=array.chunk,
            shards=array.shard,
            dtype=array.dtype,
            fill_value=array.fill,
            compressors=None,
            chunk_key_encoding={"name": "default", "separator": "."},
            config={"write_empty_chunks": True},
        )
        own[:] = group[name][:]
        for shard in made.shards:
            assert (made.path / ARRAYS / array.file(shard)).read_bytes() == (
                tmp_path / "own" / array.file(shard)
            ).read_bytes()
    np.testing.assert_array_equal(group["tokens"][:], table.tokens)
    file, offset = made.chunk_file(SITE, 2)
    mapped = np.memmap(file, np.uint16, "r", offset, (256, 32))
    np.testing.assert_array_equal(mapped, made.chunk(SITE, 2).view(torch.uint16).numpy())
    np.testing.assert_array_equal(mapped, group[SITE][512:768])


def test_a_short_shard_and_a_damaged_index_of_the_sharded_layout(tmp_path: Path) -> None:
    table = token_table(70, 16, packing="document")
    made = make_cache(tmp_path / "c", 70, 16, table=table, chunk_rows=64)
    plain = make_cache(tmp_path / "p", 70, 16, table=table)
    group = zarr.open_group(made.path / ARRAYS, mode="r")
    for site in made.sites:
        whole = torch.cat([plain.chunk(site, shard) for shard in plain.shards])
        assert torch.equal(torch.cat([made.chunk(site, shard) for shard in made.shards]), whole)
        np.testing.assert_array_equal(group[site][:], whole.view(torch.uint16).numpy())
    np.testing.assert_array_equal(group["flags"][:], table.flags)
    assert verify_cache(made.path).ok
    file, _ = made.chunk_file(SITE, 4)
    for at in (-1, -30):
        whole_file = bytearray(file.read_bytes())
        whole_file[at] ^= 1
        file.write_bytes(whole_file)
        (problem,) = verify_cache(made.path).problems
        assert (problem.path, problem.found.split()[1]) == (file, "trailer")
        whole_file[at] ^= 1
        file.write_bytes(whole_file)


def test_impossible_storages_and_chunks_are_refused() -> None:
    with pytest.raises(UsageError, match="found 'fp4' of bfloat16"):
        SiteSpec(SITE, 4, quantised="fp4")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="of float32"):
        SiteSpec(SITE, 4, "float32", quantised="int8")
    with pytest.raises(UsageError, match="chunk_rows 24 is no multiple of ctx 16"):
        Layout(8, 16, 48, (), 24)
    with pytest.raises(UsageError, match="does not divide shard_rows 48"):
        Layout(8, 16, 48, (), 32)


def test_the_default_chunk_divides_the_shard() -> None:
    assert default_chunk_rows(128, 8192) == 1024
    assert default_chunk_rows(100, 8100) == 900  # of 81 sequences, 9 rather than 10
    assert default_chunk_rows(4096, 8192) == 4096
