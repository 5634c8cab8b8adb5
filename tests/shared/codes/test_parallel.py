"""Ranges of latents cover every latent once."""

from __future__ import annotations

import numpy as np

from sparse_pipeline.shared.codes.parallel import over_latents


def test_ranges_cover_every_latent_once() -> None:
    for weight in (np.ones(7), np.zeros(5), np.array([0, 0, 100, 0]), np.random.default_rng(0).random(1000) ** 8):
        seen = np.zeros(len(weight), int)

        def count(first: int, stop: int, seen: np.ndarray = seen) -> None:
            seen[first:stop] += 1

        over_latents(count, weight)
        assert (seen <= 1).all()
        assert (seen[weight > 0] == 1).all()
