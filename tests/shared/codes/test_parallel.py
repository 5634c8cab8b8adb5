"""Ranges of latents cover every latent once."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from sparse_pipeline.shared.codes.parallel import over_latents, threads


@pytest.mark.parametrize("number", ["1", "2"])
def test_ranges_cover_every_latent_once(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", number)
    used: set[int] = set()
    for weight in (np.ones(7), np.zeros(5), np.array([0, 0, 100, 0]), np.random.default_rng(0).random(1000) ** 8):
        used.clear()
        seen = np.zeros(len(weight), int)

        def count(first: int, stop: int, seen: np.ndarray = seen) -> None:
            seen[first:stop] += 1
            used.add(threading.get_ident())

        over_latents(count, weight)
        assert (seen <= 1).all()
        assert (seen[weight > 0] == 1).all()
    # of the last, which makes several ranges
    assert (threading.get_ident() in used) == (threads() == 1), "work is shared with a pool where there are processors"
