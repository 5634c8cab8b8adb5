"""Likeness of two sets of latents: closed forms, nulls, and pairs that are alike by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from sparse_pipeline.analyze.compare import similarity
from sparse_pipeline.analyze.compare.likeness import random_mmcs
from sparse_pipeline.analyze.compare.similarity import Grams, cca, chance_cca, cka, hsic, match, principal_components

Generator = torch.Generator


def sparse(n: int, f: int, seed: int) -> torch.Tensor:
    return torch.relu(torch.randn(n, f, generator=Generator().manual_seed(seed), dtype=torch.float64) - 1)


def matrix(x: torch.Tensor) -> csr_matrix:
    return csr_matrix(x.numpy())


def rotation(f: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(f, f, generator=Generator().manual_seed(9), dtype=torch.float64))[0]


def test_hsic_is_unbiased() -> None:
    """The mean over many small batches of independent rows is 0, and of a set with itself the biased value's limit."""
    values = [hsic(a @ a.T, b @ b.T) for a, b in ((sparse(12, 5, s), sparse(12, 5, 1000 + s)) for s in range(800))]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    x = sparse(4000, 5, 1)
    c = (x - x.mean(0)).T @ (x - x.mean(0)) / len(x)
    small = np.mean([hsic(part @ part.T, part @ part.T) for part in x.split(16)])
    assert small == pytest.approx(float(c.square().sum()), rel=0.05)


def test_cka_of_equal_rotated_and_unrelated_sets() -> None:
    a, b = sparse(2048, 40, 1), sparse(2048, 60, 2)

    def of(x: torch.Tensor, y: torch.Tensor) -> float | None:
        return cka(Grams.of(map(matrix, x.split(256))), Grams.of(map(matrix, y.split(256))))

    assert of(a, a) == pytest.approx(1)
    assert of(a, 3 * a @ rotation(40) + 5) == pytest.approx(1)
    assert abs(of(a, b) or 1) < 0.02
    assert of(a, torch.zeros_like(b)) is None
    centred = [(x - x.mean(0)).numpy() for x in (a, torch.cat([a[:, :20], b[:, :20]], 1))]
    plain = np.linalg.norm(centred[0].T @ centred[1]) ** 2 / (
        np.linalg.norm(centred[0].T @ centred[0]) * np.linalg.norm(centred[1].T @ centred[1])
    )
    assert of(a, torch.cat([a[:, :20], b[:, :20]], 1)) == pytest.approx(plain, abs=0.02)


def test_components_are_whitened_and_hold_the_variance() -> None:
    x = sparse(3000, 30, 1) * torch.logspace(0, -3, 30, dtype=torch.float64)
    found = principal_components(matrix(x))
    assert found is not None
    assert found.kept >= 0.99
    scores = found.scores
    torch.testing.assert_close(
        scores.T @ scores / 3000, torch.eye(scores.shape[1], dtype=torch.float64), atol=1e-3, rtol=0
    )
    variance = np.sort(np.linalg.eigvalsh(np.cov(x.numpy().T, bias=True)))[::-1]
    np.testing.assert_allclose(found.weights.numpy(), variance[: scores.shape[1]], rtol=1e-8)
    assert variance[: scores.shape[1] - 1].sum() < 0.99 * variance.sum()
    assert principal_components(matrix(torch.ones(10, 3))) is None


def test_randomised_components_find_the_same_leading_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    x = sparse(2000, 60, 1) * torch.logspace(0, -2, 60, dtype=torch.float64)
    exact = principal_components(matrix(x))
    monkeypatch.setattr(similarity, "EXACT_PCA", 10)
    monkeypatch.setattr(similarity, "RANDOM_RANK", 40)
    rough = principal_components(matrix(x))
    assert exact is not None
    assert rough is not None
    np.testing.assert_allclose(rough.weights[:10].numpy(), exact.weights[:10].numpy(), rtol=1e-3)


def test_canonical_correlations_are_the_textbooks() -> None:
    """Of two sets that share a part: against the eigenvalues of Σaa⁻¹ Σab Σbb⁻¹ Σba."""
    shared = sparse(5000, 6, 1)
    a = torch.cat([shared, sparse(5000, 4, 2)], 1) @ rotation(10)
    b = torch.cat([shared + 0.5 * sparse(5000, 6, 3), sparse(5000, 2, 4)], 1)
    x, y = (principal_components(matrix(part), 1.0, 0.0) for part in (a, b))
    assert x is not None
    assert y is not None
    c = np.cov(torch.cat([a, b], 1).numpy().T)
    aa, ab, bb = c[:10, :10], c[:10, 10:], c[10:, 10:]
    squared = np.sort(np.linalg.eigvals(np.linalg.solve(bb, ab.T) @ np.linalg.solve(aa, ab)).real)[::-1]
    found = cca(x, y)
    assert found.svcca == pytest.approx(np.sqrt(squared.clip(0)).mean(), abs=1e-6)
    assert found.dims == (10, 8)
    same = cca(x, x)
    assert (same.svcca, same.pwcca) == (pytest.approx(1, abs=1e-9), pytest.approx(1, abs=1e-9))


def test_canonical_correlations_of_wide_dictionaries_form_nothing_for_pairs_of_latents() -> None:
    """100,000 latents: a matrix of all pairs would take 40 GB."""
    rng = np.random.default_rng(0)
    rows, latents = np.repeat(np.arange(60), 8), rng.integers(0, 100_000, 480)
    x = csr_matrix((rng.exponential(1.0, 480), (rows, latents)), shape=(60, 100_000))
    found = principal_components(x)
    assert found is not None
    assert cca(found, found).svcca == pytest.approx(1, abs=1e-4)  # the ridge of the components is 1e-6


@pytest.mark.parametrize(("p", "q", "n"), [(50, 50, 1000), (30, 200, 1000), (300, 300, 2000)])
def test_chance_follows_wachters_law(p: int, q: int, n: int) -> None:
    generator = Generator().manual_seed(0)
    a, b = (torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64))[0] for k in (p, q))
    assert chance_cca(p, q, n) == pytest.approx(float(torch.linalg.svdvals(a.T @ b).mean()), abs=0.004)
    assert chance_cca(q, p, n) == chance_cca(p, q, n)
    assert chance_cca(600, 500, 1000) == 1.0


@pytest.mark.parametrize("exact", [True, False])
def test_matching_finds_a_permutation(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exact:
        monkeypatch.setattr(similarity, "HUNGARIAN_MAX", 10)
    generator = Generator().manual_seed(0)
    enc, dec = torch.randn(80, 40, generator=generator), torch.randn(80, 50, generator=generator)
    order = torch.randperm(80, generator=generator)
    other_enc, other_dec = enc[order].clone(), dec[order].clone()
    other_enc[[3, 7]] = other_enc[[7, 3]]  # the same outputs, each other's inputs: not shared
    other_dec[5] = torch.randn(50, generator=generator)  # and the other way about
    found = match(enc, dec, other_enc, other_dec)
    assert found.exact is exact
    unshared = set(np.flatnonzero(~found.shared).tolist())
    assert unshared == {int(order[3]), int(order[7]), int(order[5])}
    for place, latent in enumerate(order.tolist()):
        if latent not in unshared:
            assert found.partner[latent] == place
    assert found.share == pytest.approx(77 / 80)
    unit = torch.nn.functional.normalize
    assert found.mmcs == pytest.approx(float((unit(dec, dim=1) @ unit(other_dec, dim=1).T).amax(1).mean()), abs=1e-6)


def test_random_mmcs_is_that_of_random_directions() -> None:
    generator = Generator().manual_seed(5)
    unit = torch.nn.functional.normalize
    a, b = (unit(torch.randn(n, 20, generator=generator), dim=1) for n in (400, 300))
    assert random_mmcs(400, 300, 20, 0) == pytest.approx(float((a @ b.T).amax(1).mean()), abs=0.02)
