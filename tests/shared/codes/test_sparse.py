"""Sparse codes in their two orders against dense arrays."""

from __future__ import annotations

import numpy as np
import torch

from sparse_pipeline.shared.coders import Codes
from sparse_pipeline.shared.codes.sparse import SparseCodes


def dense(rows: int, n_latents: int, rate: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random((rows, n_latents)) < rate, rng.exponential(1.0, (rows, n_latents)) + 0.1, 0).astype(
        np.float32
    )


def test_codes_of_any_order_become_sorted_rows() -> None:
    values = torch.tensor([[0.5, 0.0, 2.0], [1.0, 3.0, 0.25], [0.0, 0.0, 0.0]])
    latents = torch.tensor([[7, 7, 1], [4, 0, 9], [2, 2, 2]])
    codes = SparseCodes.from_parts([Codes(values, latents, 10), Codes(values[:1], latents[:1], 10)], 10)
    assert codes.indptr.tolist() == [0, 2, 5, 5, 7]
    assert codes.latents.tolist() == [1, 7, 0, 4, 9, 1, 7]
    assert codes.values.tolist() == [2.0, 0.5, 3.0, 1.0, 0.25, 2.0, 0.5]
    starts, rows, entry = codes.by_latent
    assert starts.tolist() == [0, 1, 3, 3, 3, 4, 4, 4, 6, 6, 7]
    assert rows.tolist() == [1, 0, 3, 1, 0, 3, 1]
    np.testing.assert_array_equal(codes.latents[entry], np.repeat(np.arange(10), np.diff(starts)))
    inside = np.array([False, True, True, False, True])
    kept = SparseCodes.from_parts([Codes(values, latents, 10)], 10, inside)
    assert kept.l0.tolist() == [0, 2, 3, 0, 0]


def test_rows_and_columns_of_codes() -> None:
    z = dense(60, 30, 0.2)
    codes = SparseCodes.from_dense(z)
    mask = np.arange(60) % 3 == 1
    np.testing.assert_array_equal(codes.rows(mask).csr().toarray(), z[mask])
    new = np.full(30, -1, np.int32)
    new[[2, 5, 29]] = [0, 1, 2]
    np.testing.assert_array_equal(codes.columns(new, 3).csr().toarray(), z[:, [2, 5, 29]])
    np.testing.assert_array_equal(
        SparseCodes.stack([codes, codes.rows(mask)]).csr().toarray(), np.concatenate([z, z[mask]])
    )
