"""Labels and scores of latents of which it is known what they fire on."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

import sparse_pipeline as sp
from sparse_pipeline import pipeline
from sparse_pipeline.explain.config import ExplainConfig
from sparse_pipeline.explain.examples import Examiner, Examples
from sparse_pipeline.explain.firings import Firings
from sparse_pipeline.explain.scores import score
from sparse_pipeline.explain.text import Text
from sparse_pipeline.shared.errors import DamagedError, DataError, UsageError
from sparse_pipeline.shared.runs.folder import create_run
from sparse_pipeline.shared.runs.verify import verify_run
from tests.explain.worlds import AFTER, AHEAD, DEAD, NOISE, OWN, RARE, TOKEN, World, word
from tests.sealed import flip

SMALL = {"learn": 20, "learn_silent": 20, "test": 20}


def test_the_rule_finds_what_was_planted(run: Path) -> None:
    result = sp.run_explain(run, **SMALL)
    frame = sp.explanations(run)
    assert list(frame.index) == [TOKEN, AFTER, NOISE]
    assert frame["label"][TOKEN] == f"`{word(OWN)}`"
    assert frame["label"][AFTER] == f"tokens after `{word(AHEAD)}`"
    for latent in (TOKEN, AFTER):
        assert frame["detection"][latent] == 1
        assert frame["fuzzing"][latent] == 1
        assert 0.85 < frame["detection_low"][latent] < 1
        assert frame["detection_random"][latent] < 0.75
    assert frame["detection"][NOISE] < 0.75
    # The own label against the controls, over latents; and what is not explained says why.
    summary = result.document["summary"]["detection"]
    own = [frame["detection"][latent] for latent in frame.index]
    assert summary["own"]["value"] == pytest.approx(np.mean(own), abs=1e-6)
    assert summary["shuffled"]["value"] < summary["own"]["value"]
    why = {one["latent"]: one["why"] for one in result.document["not_explained"]}
    assert RARE not in why or "at least 10" in why[RARE]
    assert DEAD not in why, "a latent that never fires is not chosen"


def test_the_same_again(run: Path) -> None:
    first = sp.run_explain(run, latents=[AFTER, NOISE], **SMALL)
    before = first.path.read_bytes()
    assert sp.run_explain(run, latents=[AFTER, NOISE], **SMALL).path.read_bytes() == before


def test_examples_are_what_they_say(planted_world: World) -> None:
    cache, z = planted_world.cache, planted_world.z[:, TOKEN]
    text = Text.of(cache, cache.shards)
    rows = np.flatnonzero((z > 0) & text.counts)
    config = ExplainConfig(learn=20, learn_silent=10, test=20, before=5, after=3)
    found = Examiner(text, config).examples(Firings(rows, z[rows]), TOKEN)
    assert isinstance(found, Examples)
    tokens, flags = planted_world.tokens, cache.flags.reshape(-1)
    spelt = {word(token): token for token in range(63)}
    windows = {
        tuple(word(t) for t in tokens[max(begin, r - 5) : min(end, r + 4)]): r
        for r in range(len(tokens))
        for begin, end in [(r - r % cache.ctx + 1, r - r % cache.ctx + cache.ctx)]
        if flags[r] & 1 == 0
    }
    documents = cache.doc_id.reshape(-1)
    learned = {int(documents[windows[one.tokens]]) for one in (*found.lesson.active, *found.lesson.silent)}
    tested = {int(documents[windows[one.tokens]]) for one in found.test.plain}
    assert not learned & tested, "no document on both sides"
    assert sum(found.test.truth) == 20
    assert len(found.test.truth) == 40
    for plain, marked, active in zip(found.test.plain, found.test.marked, found.test.truth, strict=True):
        ids = [spelt[token] for token in plain.tokens]
        assert (OWN in ids) == active
        assert plain.tokens == marked.tokens
        assert not any(plain.marks)
        assert any(marked.marks)
        if active:
            assert all(ids[i] == OWN for i in np.flatnonzero(marked.marks))
    strongest = [z[windows[one.tokens]] for one in found.lesson.active[:10]]
    assert strongest == sorted(strongest, reverse=True)


@pytest.mark.parametrize(("hits", "rejections"), [(20, 20), (13, 7), (0, 20)])
def test_intervals_are_those_of_the_posterior(hits: int, rejections: int) -> None:
    """Against draws from the two Beta posteriors."""
    truth = [True] * 20 + [False] * 30
    answers = [i < hits for i in range(20)] + [i >= rejections for i in range(30)]
    found = score(truth, answers)
    assert found is not None
    assert found.value == pytest.approx((hits / 20 + rejections / 30) / 2)
    rng = np.random.default_rng(0)
    draws = (beta.rvs(hits + 1, 21 - hits, size=200_000, random_state=rng) +
             beta.rvs(rejections + 1, 31 - rejections, size=200_000, random_state=rng)) / 2  # fmt: skip
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.low == pytest.approx(min(low, found.value), abs=2e-3)
    assert found.high == pytest.approx(max(high, found.value), abs=2e-3)


def test_unanswered_windows_are_excluded_and_counted() -> None:
    found = score([True, True, False, False], [True, None, False, None])
    assert found is not None
    assert (found.value, found.active, found.silent, found.unanswered) == (1.0, 1, 1, 2)
    assert score([True, False], [None, False]) is None


def test_the_command(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(run.parent.parent)
    small = [f"--set=explain.{name}={value}" for name, value in SMALL.items()]
    assert pipeline.run(["explain", "planted", "--dry-run", "--json", *small]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["judge"], document["latents"], document["requests"]) == ("rule", 3, 0)
    assert not (run / "explanations").exists()
    assert pipeline.run(["explain", "planted", "--latents", f"{TOKEN},{DEAD}", *small]) == 0
    out, _ = capsys.readouterr()
    assert "balanced accuracy" in out
    assert f"`{word(OWN)}`" in out
    assert "not explained: 1 latent (fires in 0 windows" in out
    assert max(map(len, out.splitlines())) <= 120
    for wrong, said in (
        (["--latents", "99"], "the coder has latents 0 to 4"),
        (["--judge", "rules"], "'rules'"),
        (["--judge", "endpoint"], "the endpoint's model is not named"),
        (["--judge", "local", "--model", "nowhere"], "nowhere"),
    ):
        assert pipeline.run(["explain", "planted", *wrong]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert "Traceback" not in err
    assert pipeline.run(["explain", "plante"]) == 3
    assert "did you mean 'planted'" in capsys.readouterr().err


def test_labels_are_shown_where_latents_are(run: Path) -> None:
    sp.run_explain(run, latents=[TOKEN, AFTER], **SMALL)
    made = sp.run_analyze(run, {"out": str(run.parent.parent / "reports")}, only="top_activations", controls=False)
    latents = sp.open_report(made.report).latents()
    assert latents["label"].tolist() == [f"`{word(OWN)}`", f"tokens after `{word(AHEAD)}`", "", "", ""]
    assert latents["detection"].tolist()[:2] == [1.0, 1.0]
    assert latents["detection"].isna().tolist() == [False, False, True, True, True]
    with gzip.open(made.report.parent / "planted" / "latents.jsonl.gz", "rt") as file:
        block = json.loads(file.readline())["panels"]["top_activations"][0]
    assert block["title"] == f"Label: `{word(OWN)}`"
    assert block["rows"][0][:2] == ["detection", "100% (88% … 100%)"]


def test_damage_is_found_and_repaired(run: Path) -> None:
    result = sp.run_explain(run, latents=[TOKEN], **SMALL)
    assert verify_run(run).ok
    flip(result.path, 200)
    report = verify_run(run)
    assert any("explanations.json" in problem for problem in report.problems)
    with pytest.raises(DamagedError, match="explanations.json"):
        sp.explanations(run)
    assert pipeline.run(["verify", str(run), "--repair"]) == 0
    assert verify_run(run).ok
    with pytest.raises(DataError, match="has no explanations") as error:
        sp.explanations(run)
    assert error.value.hint == f"pipeline explain {run}"


def test_too_few_examples_are_an_error_that_says_so(run: Path) -> None:
    with pytest.raises(UsageError, match="no latent of planted has enough examples: fires in 0 windows"):
        sp.run_explain(run, latents=[DEAD])


def test_another_cache_in_the_place_of_the_runs_own_is_refused(planted_world: World, tmp_path: Path) -> None:
    cache, coder = planted_world.cache, planted_world.run.load_coder()
    run = create_run(tmp_path / "runs", "elsewhere", {"seed": 0}, {})
    known = {"path": str(cache.path), "identity": "0" * 64}
    sites = {"source": coder.source, "target": coder.target}
    run.finish(coder, {"steps": 1, "tokens": 1}, {**sites, "cache": known, "training": {"seed": 0}})
    refusal = f"trained on a cache with identity 000000000000…, but {cache.path} now has identity {cache.identity[:12]}"
    with pytest.raises(DataError, match=re.escape(refusal)) as error:
        sp.run_explain(run.path, latents=[TOKEN])
    assert error.value.hint == f"--set explain.cache={cache.path} to read that cache anyway"
    assert sp.run_explain(run.path, latents=[TOKEN], cache=str(cache.path)).document["latents"]
