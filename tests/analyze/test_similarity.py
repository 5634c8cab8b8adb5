"""Likeness of two sets of latents: closed forms, nulls, and pairs that are alike by construction."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.sparse import csr_matrix

from sparse_pipeline.analyze.compare import similarity
from sparse_pipeline.analyze.compare.runs import (
    BATCH,
    CodeSample,
    baseline_first,
    before_after,
    figures_over_seeds,
    group_runs,
    random_mmcs,
    settings_key,
)
from sparse_pipeline.analyze.compare.similarity import Grams, cca, chance_cca, cka, hsic, match, principal_components
from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.probes.intervals import Estimate, difference
from sparse_pipeline.analyze.reports.reconstruction.report import GlobalConfig
from sparse_pipeline.analyze.result import Figure, ReportResult
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.analyze.stream.batches import stream
from sparse_pipeline.analyze.subjects import subjects_of
from sparse_pipeline.shared.runs.folder import open_run
from tests.analyze.planted import CTX, N_SEQ, Planted, planted
from tests.analyze.test_run import nested

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


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return planted(tmp_path_factory.mktemp("compare") / "cache")


def test_samples_are_the_codes_of_their_rows(made: Planted, tmp_path: Path) -> None:
    subject = subjects_of(made.cache.path, [("r", open_run(made.run(tmp_path).path))], AnalyzeConfig(controls=False))[0]
    whole, a, b = (CodeSample(subject, 700) for _ in range(3))
    for k, (batch,) in enumerate(stream(subject.cache, [subject.coder_sites(False)], subject.shards)):
        whole.update(batch)
        (a if k % 2 else b).update(batch)
    a.merge(b)
    np.testing.assert_array_equal(whole.codes.toarray(), made.z[whole.wanted])
    np.testing.assert_array_equal(a.codes[10:40].toarray(), made.z[whole.wanted[10:40]])
    assert (whole.wanted % CTX != 0).all()
    assert len(CodeSample(subject, 10**9).wanted) == N_SEQ * (CTX - 1)


def test_three_seeds_before_and_after(made: Planted, tmp_path: Path) -> None:
    """Groups by setting, Student's intervals over their seeds, likeness of every pair, untrained controls."""
    runs = [made.run(tmp_path / "runs", "planted").path]
    runs += [nested(made, tmp_path / "runs", f"nested-seed{s}", seed=s) for s in range(3)]
    result = analyze(runs, AnalyzeConfig(out=tmp_path / "reports", reports={"global": GlobalConfig()}))
    found = result.comparison
    assert found is not None
    assert found["groups"] == {"planted": ["planted"], "nested": ["nested-seed0", "nested-seed1", "nested-seed2"]}
    values = [run["fvu"] for run in result.runs[1:]]
    interval = found["before_after"]["fvu"]["nested"]
    assert interval["values"] == pytest.approx(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (interval["low"], interval["high"]) == (pytest.approx(low), pytest.approx(high))
    assert found["before_after"]["fvu"]["planted"]["low"] is None
    relations = [pair["relation"] for pair in found["pairs"]]
    assert relations.count("seeds of one setting") == 3
    assert (relations.count("setting, same seed"), relations.count("setting and seed")) == (1, 2)
    assert relations.count("against untrained") == 16
    for pair in found["pairs"]:
        if pair["relation"] == "against untrained":
            assert "mmcs" not in pair  # a transcoder's decoder begins at 0, and has no direction yet
        else:
            assert 0 <= pair["shared_share"] <= 1
        assert pair["cka"] <= 1.001
        assert pair["cca_null"] <= pair["svcca"] + 0.05
        assert BATCH <= pair["rows"] == N_SEQ * (CTX - 1)
    # A coder's own start is more like it than that of another seed.
    own = {(p["a"], p["b"]): p["cka"] for p in found["pairs"]}
    assert own["nested-seed0", "untrained (nested-seed0)"] > own["nested-seed0", "untrained (nested-seed1)"] + 0.02
    markdown = (result.report.parent / "report.md").read_text()
    assert "Before and after" in markdown


def facts_of(name: str, setting: int) -> dict[str, object]:
    """Of runs that differ in one setting and the seed."""
    return {"cache": "c", "trained_on": "i", "source": "a", "target": "b", "settings": {"x": setting, "seed": name}}


class Stub:
    """As much of a run as the table of figures looks at."""

    def __init__(self, name: str, setting: int, fvu: float, share: float) -> None:
        self.subject = SimpleNamespace(name=name, role="run")
        self.facts = facts_of(name, setting)
        figures = [Figure("bos_share_top", "share", share, "", "percent"), Figure("fvu", "FVU", fvu, "")]
        self.results = {
            "position": ReportResult("position", "", "", figures[:1]),
            "global": ReportResult("global", "", "", figures[1:]),
        }


def test_a_change_has_welchs_interval_over_seeds() -> None:
    before, after = [0.30, 0.31, 0.33, 0.29], [0.25, 0.27, 0.20]
    runs = [Stub(f"topk-{n}", 0, fvu, 0.9) for n, fvu in enumerate(before)]
    runs += [Stub(f"ortho-{n}", 1, fvu, 0.1) for n, fvu in enumerate(after)]
    runs.append(Stub("single", 2, 0.4, 0.3))
    groups = group_runs(runs)  # type: ignore[arg-type]
    found = figures_over_seeds(groups)["fvu"]
    want = stats.ttest_ind(after, before, equal_var=False).confidence_interval(0.95)
    change = found["ortho"]["change"]
    assert change["value"] == pytest.approx(np.mean(after) - np.mean(before))
    assert (change["low"], change["high"]) == (pytest.approx(want.low), pytest.approx(want.high))
    assert "change" not in found["topk"]
    assert found["single"]["change"] == {"value": pytest.approx(0.4 - np.mean(before)), "low": None, "high": None}
    table = before_after(groups)
    assert [column.label for column in table.columns] == ["figure", "aim", "topk", "ortho", "single"]
    share, fvu = table.rows
    assert share[:2] == ["share", "≤ 20%"]
    assert [cell.count("✓") for cell in share[2:]] == [0, 1, 0]
    low, high = (100 * end / np.mean(before) for end in want)
    assert f"({100 * change['value'] / np.mean(before):+.0f}% [{low:+.0f}, {high:+.0f}])" in fvu[3]
    assert fvu[4] == "0.4 (+30%)"
    turned = baseline_first(groups, "ortho-2")
    assert list(turned) == ["ortho", "topk", "single"]
    assert figures_over_seeds(turned)["fvu"]["topk"]["change"]["value"] == pytest.approx(-change["value"])
    assert difference([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]) == Estimate(0.0, 0.0, 0.0)


def test_one_run_has_nothing_to_compare(made: Planted, tmp_path: Path) -> None:
    result = analyze(
        [made.run(tmp_path / "runs").path], AnalyzeConfig(out=tmp_path / "reports", reports={"global": GlobalConfig()})
    )
    assert result.comparison is None


def test_settings_are_the_same_but_for_the_seed() -> None:
    facts = {"cache": "c", "trained_on": "i", "source": "a", "target": "b"}
    one = {"seed": 0, "name": "x", "coder": {"k": 4}, "data": {"seed": 1, "batch_size": 8}}
    assert settings_key(facts, one) == settings_key(
        facts, {**one, "seed": 3, "name": "y", "data": {"seed": 2, "batch_size": 8}}
    )
    assert settings_key(facts, one) != settings_key(facts, {**one, "coder": {"k": 5}})
    assert settings_key(facts, one) != settings_key({**facts, "cache": "d"}, one)
    assert settings_key(facts, one) != settings_key({**facts, "trained_on": "j"}, one)


def test_names_of_groups(made: Planted) -> None:
    class Subject:
        def __init__(self, name: str) -> None:
            self.name = name

    class One:
        def __init__(self, name: str, setting: int) -> None:
            self.subject = Subject(name)
            self.facts = facts_of(name, setting)

    names = [("topk-0", 1), ("ortho", 2), ("topk-1", 1), ("topk_seed7", 3), ("topk_seed8", 3)]
    found = group_runs([One(*entry) for entry in names])  # type: ignore[arg-type, list-item]
    assert list(found) == ["topk", "ortho", "topk′"]
