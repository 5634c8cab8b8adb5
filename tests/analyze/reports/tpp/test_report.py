"""TPP against each step written out: rows decoded with latents at 0, probes by SciPy, accuracies by counting."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.probes.labels import Labels
from sparse_pipeline.analyze.probes.texts import fit_texts
from sparse_pipeline.analyze.reports.tpp.config import TppConfig
from sparse_pipeline.analyze.reports.tpp.report import TppReport
from sparse_pipeline.analyze.reports.tpp.scores import accuracies, effects_of
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.errors import UsageError
from tests.analyze.classed import TOPICS, Classed, classed, fitted

TOKENS = 12
CONFIG = TppConfig(ns=(3, 500), headline=3, tokens=TOKENS, min_documents=20)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Classed:
    return classed(tmp_path_factory.mktemp("classed") / "cache")


def counted(yes: np.ndarray, of_class: np.ndarray, probe: int) -> float:
    """Accuracy of one probe's answers, over its own documents once and over each other class's evenly."""
    others = [np.mean(~yes[of_class == one]) for one in np.unique(of_class) if one != probe]
    return float((np.mean(yes[of_class == probe]) + np.mean(others)) / 2)


def test_each_step_written_out(made: Classed) -> None:
    collector = made.collected(TppReport, CONFIG)
    drawn = collector.drawn
    result = collector.finalise()
    found = result.data

    counts = {name: int((made.topic == name).sum()) for name in TOPICS}
    assert list(drawn.names) == sorted(TOPICS, key=lambda name: -counts[name])
    assert [made.topic[one] for one in drawn.documents] == [drawn.names[one] for one in drawn.of_class]
    sizes = {(one, scored): int(((drawn.of_class == one) & (drawn.scores == scored)).sum())
             for one in range(4) for scored in (False, True)}  # fmt: skip
    n = min(counts.values())
    assert set(sizes.values()) == {n - round(n / 5), round(n / 5)}

    means = [made.mean(one, TOKENS) for one in drawn.documents]
    x, codes = (np.stack(part) for part in zip(*means, strict=True))
    fit, of_class = ~drawn.scores, drawn.of_class
    decoder = made.subject().raw_w_dec.astype(np.float64)
    member = Labels(drawn.names, (of_class[:, None] == np.arange(4)).astype(np.int8))
    solved = fit_texts(torch.from_numpy(x).float(), member, fit)
    for one in range(4):
        w, b = fitted(x[fit], of_class[fit] == one)
        assert np.append(solved.weight[one], solved.bias[one]) == pytest.approx(np.append(w, b), rel=0.05, abs=0.05)
    # a document on the border of a probe may be on either side: from here on the probes are these
    probes = list(zip(solved.weight.astype(np.float64), solved.bias, strict=True))

    def answers(rows: np.ndarray) -> list[float]:
        return [counted(rows @ w + b > 0, of_class[drawn.scores], probe) for probe, (w, b) in enumerate(probes)]

    clean = np.array(answers(x[drawn.scores]))
    assert found["accuracy"] == pytest.approx(clean)
    total = {n: [] for n in (3, 24)}
    for one, (w, _) in enumerate(probes):
        inside = codes[fit & (of_class == one)].mean(axis=0)
        outside = codes[fit & (of_class != one)].mean(axis=0)
        effect = np.maximum(inside - outside, 0) * (decoder @ w)
        order = [latent for latent in np.argsort(-effect) if effect[latent] > 0]
        assert list(found["latents"][one]) == order
        for n, scores in total.items():
            off = np.array(order[:n])
            after = np.array(answers(np.stack([made.mean(d, TOKENS, off)[0] for d in drawn.documents[drawn.scores]])))
            assert found["after"][str(n)][one] == pytest.approx(after)
            lost = clean - after
            scores.append(lost[one] - np.delete(lost, one).mean())
    assert found["scores"] == pytest.approx({str(n): np.mean(scores) for n, scores in total.items()})
    assert result.figure("tpp").value == pytest.approx(np.mean(total[3]))
    assert result.figure("tpp").value > 0.1, "the planted topics have latents of their own"
    json.dumps(result.to_dict(), allow_nan=False)


def test_accuracy_is_the_mean_over_all_draws_of_other_classes() -> None:
    """SAEBench draws ⌈n/(C − 1)⌉ documents of each other class, and n of these."""
    rng = np.random.default_rng(0)
    of_class = np.repeat(np.arange(3), 4)
    scores = rng.standard_normal((12, 3))
    for probe in range(3):
        one, other = (np.flatnonzero(of_class == c) for c in range(3) if c != probe)
        hits = (scores[of_class == probe, probe] > 0).sum()
        every = [
            (hits + (scores[[*a, *b], probe] <= 0).sum()) / 8
            for a, b in itertools.product(itertools.combinations(one, 2), itertools.combinations(other, 2))
        ]
        assert accuracies(scores, of_class)[probe] == pytest.approx(np.mean(every))


def test_only_latents_that_are_stronger_on_the_class_have_an_effect() -> None:
    codes = sparse.csr_array(np.array([[2.0, 0, 1], [4, 0, 1], [0, 1, 1], [0, 3, 1]]))
    pull = np.array([[1.0, -1], [-1, 1], [5, 5]])
    assert effects_of(codes, np.array([0, 0, 1, 1]), pull).tolist() == [[3, 0, 0], [0, 2, 0]]


def test_the_command_shows_it_beside_an_untrained_coder_and_refuses_what_it_cannot_do(
    made: Classed, tmp_path: Path
) -> None:
    run = made.run(tmp_path / "runs").path
    result = analyze([run], AnalyzeConfig(out=tmp_path / "reports", reports={"tpp": CONFIG}))
    document = json.loads((result.report.parent / "report.json").read_text())
    figures = document["runs"][0]["reports"]["tpp"]["figures"]
    direct = made.collected(TppReport, CONFIG).finalise()
    assert figures["tpp"]["value"] == pytest.approx(direct.figure("tpp").value)
    assert result.runs[0]["tpp"] == figures["tpp"]["value"]
    assert {"tpp", "tpp_intended", "tpp_unintended", "tpp_accuracy"} == set(figures)
    assert result.controls[0]["tpp"] < figures["tpp"]["value"]
    assert "sport" in (result.report.parent / "report.md").read_text()

    with pytest.raises(UsageError, match=r"found documents of domain: art \d+.*at least 500 of three classes"):
        made.collected(TppReport, TppConfig(min_documents=500))
    with pytest.raises(UsageError, match=r"of each of art, law, music") as refused:
        made.collected(TppReport, TppConfig(classes=("art", "law", "music")))
    assert refused.value.hint == "harvest more documents"
    with pytest.raises(UsageError, match=r"have no 'topic': they have domain, tone"):
        made.collected(TppReport, TppConfig(column="topic"))
    with pytest.raises(UsageError, match=r"of tone: c\w+ \d+, c\w+ \d+; expected at least 50 of three classes"):
        made.collected(TppReport, TppConfig(column="tone"))
