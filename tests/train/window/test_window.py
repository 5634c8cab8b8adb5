"""Pair statistics of a window against NumPy's corrcoef on the dense codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.coders import Codes
from sparse_pipeline.train.window.codes import CodeWindow
from sparse_pipeline.train.window.pairs import PairScan, scan_pairs
from tests.second_device import DEVICE, second_device

CTX, F = 6, 12


def batch(seed: int, n_rows: int = 60, k: int = 4) -> tuple[Codes, torch.Tensor]:
    """Latents 0 and 1 fire together with proportional values, 2 and 3 only at position 0; the rest at random."""
    g = torch.Generator().manual_seed(seed)
    position = torch.arange(n_rows) % CTX
    values, latents = torch.zeros(n_rows, k), torch.zeros(n_rows, k, dtype=torch.int64)
    for r in range(n_rows):
        if position[r] == 0:
            chosen = [2, 3]
        elif torch.rand((), generator=g) < 0.3:
            chosen = [1, 0]
        else:
            chosen = (4 + torch.randperm(F - 5, generator=g)[: k - 1]).tolist()
        values[r, : len(chosen)] = torch.rand(len(chosen), generator=g) + 0.5
        latents[r, : len(chosen)] = torch.tensor(chosen)
        if chosen == [1, 0]:
            values[r, 1] = values[r, 0] * 1.5 + 0.02 * torch.rand((), generator=g)
    return Codes(values, latents, F), position


def filled(batches: int, pushed: int, dense: bool = False) -> tuple[CodeWindow, np.ndarray, np.ndarray]:
    window, z, position = CodeWindow(batches), [], []
    for seed in range(pushed):
        codes, at = batch(seed)
        window.push(Codes(codes.dense(), None, F) if dense else codes, at)
        z.append(codes.dense().numpy().astype(np.float64))
        position.append(at.numpy())
    return window, np.concatenate(z[-batches:]), np.concatenate(position[-batches:])


def scan(window: CodeWindow, threshold: float, **limits: float) -> PairScan:
    return scan_pairs(window.codes(), window.position() > 0, threshold=threshold, **limits)


@pytest.mark.parametrize("dense", [False, True])
def test_every_pair_that_fires_together_has_pearsons_r(dense: bool) -> None:
    window, z, position = filled(3, 5, dense)
    found = scan(window, -2.0, min_fired=1, min_both=1)
    rest = z[position > 0]
    with np.errstate(invalid="ignore"):
        r = np.corrcoef(rest.T)
    both = (rest > 0).T.astype(int) @ (rest > 0)
    expected = {(i, j) for i in range(F) for j in range(i + 1, F) if both[i, j]}
    assert set(zip(found.i.tolist(), found.j.tolist(), strict=True)) == expected
    np.testing.assert_allclose(found.r, r[found.i, found.j], rtol=1e-6, atol=1e-9)
    assert found.both.tolist() == both[found.i, found.j].tolist()
    assert found.histogram.sum() == len(expected)
    assert found.histogram[-1] == 1  # the planted pair
    for i in range(F):
        partners = [r[i, j] for j in range(F) if j != i and both[i, j]]
        if rest[:, i].std() == 0:
            assert np.isnan(found.largest[i])
        else:
            assert found.largest[i] == pytest.approx(max([0.0, *partners]), rel=1e-6)


def test_the_planted_pair_is_found_and_one_at_position_zero_only_with_it() -> None:
    window, z, _ = filled(3, 3)
    found = scan(window, 0.8, min_fired=10, min_both=10)
    assert list(zip(found.i, found.j, strict=True)) == [(0, 1)]
    assert found.with_bos == 2
    with np.errstate(invalid="ignore"):
        assert (np.abs(np.corrcoef(z.T))[np.triu_indices(F, 1)] > 0.8).sum() == 2


def test_latents_that_do_not_vary_correlate_with_nothing() -> None:
    window = CodeWindow(1)
    z = (torch.rand(30, generator=torch.Generator().manual_seed(0)) * 10).expand(997, 30).contiguous()
    window.push(Codes(z, None, 30), torch.ones(997, dtype=torch.int64))
    found = scan(window, 0.5, min_fired=1, min_both=1)
    assert not len(found.r)
    assert found.with_bos == 0


def test_rare_latents_and_rare_pairs_are_left_out() -> None:
    window, z, position = filled(2, 2)
    n = (z[position > 0] > 0).sum(axis=0)
    least = int(np.sort(n)[-3])
    found = scan(window, -2.0, min_fired=least, min_both=1)
    assert set(found.i) | set(found.j) <= set(np.flatnonzero(n >= least))
    both = scan(window, -2.0, min_fired=1, min_both=8).both
    assert len(both)
    assert both.min() >= 8


def test_pairs_with_a_large_jaccard_index_are_listed_whatever_their_r() -> None:
    window, z, position = filled(2, 2)
    rest = z[position > 0] > 0
    both = rest.T.astype(int) @ rest
    n = rest.sum(axis=0)
    with np.errstate(invalid="ignore"):
        jaccard = both / (n[:, None] + n[None, :] - both)
    found = scan(window, 2.0, min_fired=1, min_both=1, jaccard=0.35)
    expected = {(i, j) for i in range(F) for j in range(i + 1, F) if jaccard[i, j] >= 0.35}
    assert set(zip(found.i.tolist(), found.j.tolist(), strict=True)) == expected
    assert (0, 1) in expected


def test_more_pairs_than_room_are_all_found() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.rand(300, 120, generator=g) + 0.1
    window = CodeWindow(1)
    window.push(Codes(z, None, 120), torch.ones(300, dtype=torch.int64))
    assert len(scan(window, -2.0, min_fired=1, min_both=1).r) == 120 * 119 // 2 > 4096


def test_moments_of_some_rows() -> None:
    window, z, position = filled(2, 2)
    found = window.codes().rows(window.position() > 0).moments
    rest = z[position > 0]
    assert found.rows == len(rest)
    np.testing.assert_array_equal(found.n, (rest > 0).sum(axis=0))
    np.testing.assert_allclose(found.mean, rest.mean(axis=0))
    np.testing.assert_allclose(found.std, rest.std(axis=0), atol=1e-9)


def test_the_ring_forgets_the_oldest_and_its_state_brings_it_back() -> None:
    window, _, _ = filled(3, 5)
    assert len(window) == 3
    assert window.codes().n_rows == 180
    other = CodeWindow(3)
    other.load_state(window.state(), torch.device("cpu"))
    for name in ("indptr", "latents", "values"):
        np.testing.assert_array_equal(getattr(other.codes(), name), getattr(window.codes(), name))
    np.testing.assert_array_equal(other.position(), window.position())
    codes, at = batch(9)
    for ring in (window, other):
        ring.push(codes, at)
    np.testing.assert_array_equal(other.codes().values, window.codes().values)
    assert other.codes().n_latents == F
    window.clear()
    assert (len(window), window.state()) == (0, {})
    other.load_state({}, torch.device("cpu"))
    assert other.codes().n_rows == 0
    assert len(other.position()) == 0


def test_an_empty_window_has_no_pairs() -> None:
    window = CodeWindow(2)
    codes, at = batch(0)
    window.push(Codes(codes.values * 0, codes.latents, F), at)
    found = scan(window, 0.8, min_fired=1, min_both=1)
    assert len(found.r) == 0
    assert np.isnan(found.largest).all()


def test_a_device_is_read_as_often_for_many_batches_as_for_two() -> None:
    reads = []
    for pushed in (2, 9):
        here, _, _ = filled(9, pushed)
        with second_device() as second:
            there = CodeWindow(9)
            for seed in range(pushed):
                codes, position = batch(seed)
                assert codes.latents is not None
                there.push(Codes(codes.values.to(DEVICE), codes.latents.to(DEVICE), F), position.to(DEVICE))
            found = there.codes()
            assert there.position().tolist() == here.position().tolist()
        np.testing.assert_array_equal(found.csr().toarray(), here.codes().csr().toarray())
        reads.append(sum(second.reads.values()))
    assert reads == [4, 4]
