"""SCR against each step written out: rows decoded with latents at 0, the sets by hand, accuracies by counting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.probes.labels import Labels
from sparse_pipeline.analyze.probes.texts import fit_texts, mean_activations
from sparse_pipeline.analyze.reports.scr.config import ScrConfig
from sparse_pipeline.analyze.reports.scr.report import ScrReport
from sparse_pipeline.analyze.reports.scr.scores import Direction, Removed
from sparse_pipeline.analyze.run import analyze
from sparse_pipeline.shared.errors import UsageError
from tests.analyze.classed import SITE, Classed, classed

TOKENS = 12
CONFIG = ScrConfig(ns=(2, 4, 500), headline=4, tokens=TOKENS, min_documents=8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Classed:
    return classed(tmp_path_factory.mktemp("classed") / "cache", n_seq=300)


def test_each_step_written_out(made: Classed) -> None:
    collector = made.collected(ScrReport, CONFIG)
    found = collector.finalise().data
    assert found["columns"] == ["domain", "tone"]
    decoder = made.subject().raw_w_dec.astype(np.float64)
    scores = []
    for pair, one in zip(collector.pairs, found["pairs"], strict=True):
        topic, tone = made.topic[pair.documents], made.tone[pair.documents]
        yes = np.stack([topic == pair.pair[0], tone == pair.values[0]], axis=1)
        agree = yes[:, 0] == yes[:, 1]
        for scored in (False, True):  # equally many of each combination where the labels are balanced, twice where not
            part = pair.scores == scored
            balanced, correlated = part & (pair.labels[:, 0] >= 0), part & (pair.labels[:, 2] >= 0)
            sizes = {int((yes[balanced] == [i, j]).all(axis=1).sum()) for i in (0, 1) for j in (0, 1)}
            assert len(sizes) == 1
            assert {int((yes[correlated, 0] == i).sum()) for i in (0, 1)} == {2 * sizes.pop()}
        inside = pair.labels >= 0
        assert (pair.labels[:, :2][inside[:, :2]] == yes[inside[:, :2]]).all()
        assert (inside[:, 0] == inside[:, 1]).all()
        assert (inside[:, 2] == agree).all()
        assert (pair.labels[agree, 2] == yes[agree, 0]).all()

        texts = collector.codes.texts.only(pair.documents)
        solved = fit_texts(
            mean_activations(made.cache, SITE, texts), Labels(("a", "b", "c"), pair.labels), ~pair.scores
        )
        x, codes = (np.stack(part) for part in zip(*(made.mean(d, TOKENS) for d in pair.documents), strict=True))
        fit = ~pair.scores

        def right(rows: np.ndarray, probe: int, label: int, pair=pair, solved=solved) -> float:
            some = pair.scores & (pair.labels[:, label] >= 0)
            answers = rows[some] @ solved.weight[probe].astype(float) + solved.bias[probe] > 0
            return float((answers == (pair.labels[some, label] == 1)).mean())

        for name, kept, other in (("keep_first", 0, 1), ("keep_second", 1, 0)):
            own = one[name]
            assert own["confused"] == pytest.approx(right(x, 2, kept))
            assert own["clean"] == pytest.approx(right(x, kept, kept))
            means = [codes[fit & (pair.labels[:, other] == answer)].mean(axis=0) for answer in (1, 0)]
            effect = np.abs((means[0] - means[1]) * (decoder @ solved.weight[other].astype(float)))
            order = [latent for latent in np.argsort(-effect) if effect[latent] > 0]
            assert list(own["latents"]) == order
            for n in ("4",):
                ablated = np.stack([made.mean(d, TOKENS, np.array(order[: int(n)]))[0] for d in pair.documents])
                after = right(ablated, 2, kept)
                assert own["after"][n]["accuracy"] == pytest.approx(after)
                gap = own["clean"] - own["confused"]
                assert own["after"][n]["score"] == pytest.approx((after - own["confused"]) / gap if gap > 1e-3 else 0)
        worse = "keep_first" if one["keep_first"]["confused"] <= one["keep_second"]["confused"] else "keep_second"
        assert f"keep_{one['chosen']}" == worse
        scores.append(one[worse]["after"]["4"]["score"])
    assert len(scores) == 2
    assert found["scores"]["4"] == pytest.approx(np.mean(scores))


def test_a_gap_that_closes_and_one_that_is_not_there() -> None:
    half = Direction(0.6, 0.8, {2: 0.7}, np.zeros(0, np.int64))
    none = Direction(0.9, 0.9005, {2: 0.2}, np.zeros(0, np.int64))
    assert half.score(2) == pytest.approx(0.5)
    assert none.score(2) == 0
    assert Removed(half, none).chosen is half
    assert Removed(none, half).chosen is half


def test_the_command_shows_it_and_refuses_what_it_cannot_do(made: Classed, tmp_path: Path) -> None:
    run = made.run(tmp_path / "runs").path
    result = analyze([run], AnalyzeConfig(out=tmp_path / "reports", reports={"scr": CONFIG}))
    document = json.loads((result.report.parent / "report.json").read_text())
    figures = document["runs"][0]["reports"]["scr"]["figures"]
    assert result.runs[0]["scr"] == figures["scr"]["value"]
    assert {"scr", "scr_confused", "scr_after", "scr_clean"} == set(figures)
    text = (result.report.parent / "report.md").read_text()
    assert "calm / cross" in text or "cross / calm" in text

    with pytest.raises(UsageError, match=r"documents: art and \w+ \d+, .*at least 500 of each combination, and 1000"):
        made.collected(ScrReport, ScrConfig(min_documents=500))
    with pytest.raises(UsageError, match=r"art and \w+ \d+, .*music and \w+ 0"):
        made.collected(ScrReport, ScrConfig(pairs=(("art", "music"),)))
    with pytest.raises(UsageError, match=r"have no 'mood': they have domain, tone"):
        made.collected(ScrReport, ScrConfig(columns=("domain", "mood")))
    with pytest.raises(ValueError, match="'tone' is named twice"):
        ScrConfig(columns=("tone", "tone"))
