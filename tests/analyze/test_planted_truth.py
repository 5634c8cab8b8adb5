"""Everything that was planted is found, nothing else is flagged, and the numbers are NumPy's and SciPy's in float64."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from sparse_pipeline.analyze.config import AnalyzeConfig
from sparse_pipeline.analyze.run import AnalyzeResult, analyze
from tests.analyze import planted as truth
from tests.analyze.planted import Planted, planted


@pytest.fixture(scope="module", params=["concat", "apart"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Planted, AnalyzeResult, dict]:
    """Sequences that begin with BOS, and such that have one before every document: each is position 0."""
    folder = tmp_path_factory.mktemp("planted")
    made = planted(folder / "cache", packing=request.param)
    run = made.run(folder / "runs")
    result = analyze([run.path], AnalyzeConfig(out=folder / "reports", controls=False))
    return made, result, json.loads((result.report.parent / "report.json").read_text())


def table(world: tuple, name: str) -> dict[str, list]:
    return pq.read_table(world[1].report.parent / "planted" / f"{name}.parquet").to_pydict()


def rows(world: tuple, mask: str) -> np.ndarray:
    made = world[0]
    return {"rest": made.position > 0, "all": made.position >= 0}[mask] & ((made.table.flags.reshape(-1) & 4) == 0)


def test_every_pair_has_its_kind_and_no_other_pair_is_flagged(world: tuple) -> None:
    found = table(world, "pairs")
    kinds = {(i, j): kind for i, j, kind in zip(found["i"], found["j"], found["kind"], strict=True)}
    a, b, c = truth.STRUCTURAL
    assert kinds == {
        (a, b): "structural",
        (a, c): "structural",
        (b, c): "structural",
        truth.FUNCTIONAL: "functional",
        truth.SPLIT: "split",
        truth.ANTIPODAL: "antipodal",
    }


def test_correlations_are_numpys(world: tuple) -> None:
    made, found = world[0], table(world, "pairs")
    rest, every = made.z[rows(world, "rest")].astype(np.float64), made.z[rows(world, "all")].astype(np.float64)
    for k, (i, j) in enumerate(zip(found["i"], found["j"], strict=True)):
        x, y = rest[:, i], rest[:, j]
        assert found["r"][k] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
        assert found["r_with_bos"][k] == pytest.approx(np.corrcoef(every[:, i], every[:, j])[0, 1], abs=1e-9)
        both, either = ((x > 0) & (y > 0)).sum(), ((x > 0) | (y > 0)).sum()
        assert (found["fired_i"][k], found["fired_j"][k], found["fired_both"][k]) == (
            (x > 0).sum(),
            (y > 0).sum(),
            both,
        )
        assert found["jaccard"][k] == pytest.approx(both / either)
        assert found["p_j_given_i"][k] == pytest.approx(both / (x > 0).sum())
        w = made.coder.w_dec.detach().double().numpy()
        assert found["decoder_cosine"][k] == pytest.approx(w[i] @ w[j], abs=1e-6)


def test_neighbours_are_the_largest_correlations(world: tuple) -> None:
    made, found = world[0], {key: np.array(values) for key, values in table(world, "neighbours").items()}
    rest = made.z[rows(world, "rest")].astype(np.float64)
    fires = (rest > 0).astype(np.float64)
    together, fired = fires.T @ fires, fires.sum(axis=0)
    scored = fired >= 50
    with np.errstate(invalid="ignore"):
        r = np.corrcoef(rest.T)
    allowed = scored[:, None] & scored & (together > 0) & ~np.eye(truth.F, dtype=bool)
    w = made.coder.w_dec.detach().double().numpy()
    for i in range(truth.F):
        mine = found["latent"] == i
        j = found["neighbour"][mine]
        assert found["rank"][mine].tolist() == list(range(1, 1 + min(20, allowed[i].sum())))
        np.testing.assert_allclose(found["r"][mine], np.sort(r[i, allowed[i]])[::-1][:20], atol=1e-6)
        np.testing.assert_allclose(found["r"][mine], r[i, j], atol=1e-6)
        np.testing.assert_array_equal(found["fired_both"][mine], together[i, j])
        np.testing.assert_allclose(found["jaccard"][mine], together[i, j] / (fired[i] + fired[j] - together[i, j]))
        np.testing.assert_allclose(found["p_neighbour_given_latent"][mine], together[i, j] / fired[i])
        np.testing.assert_allclose(found["decoder_cosine"][mine], w[j] @ w[i], atol=1e-6)


@pytest.mark.parametrize("name", ["pairs", "neighbours", "position", "latents"])
def test_tables_name_their_schema_and_the_page_explains_every_column(world: tuple, name: str) -> None:
    schema = pq.read_schema(world[1].report.parent / "planted" / f"{name}.parquet")
    document = world[2]
    assert schema.metadata == {
        b"schema": document["schema"].encode(),
        b"schema_version": str(document["schema_version"]).encode(),
        b"table": name.encode(),
        b"run": b"planted",
    }
    page = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text(encoding="utf-8")
    (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}.parquet` |"))
    documented = re.findall(r"`([a-z0-9_]+)`", row.split("|")[2])
    assert documented == schema.names


def test_pairs_that_only_position_0_joins_count_with_it_alone(world: tuple) -> None:
    report = world[2]["runs"][0]["reports"]["correlation"]
    figure = report["figures"]["n_pairs_above"]
    assert (figure["value"], figure["with_bos"]) == (4, 5)
    assert report["data"]["n_pairs_only_with_bos"] == 1
    fooled = next(t for t in report["tables"] if t["key"] == "only_with_bos")["rows"]
    assert [tuple(row[:2]) for row in fooled] == [truth.BOS_LOCKED]
    assert fooled[0][2] > 0.9
    assert abs(fooled[0][3]) < 0.1


def test_clusters_and_their_weakest_edge(world: tuple) -> None:
    made = world[0]
    found = world[2]["runs"][0]["reports"]["correlation"]["data"]["clusters"]
    assert [tuple(c["members"]) for c in found] == [truth.STRUCTURAL, truth.FUNCTIONAL]
    rest = made.z[rows(world, "rest")].astype(np.float64)
    r = np.corrcoef(rest[:, list(truth.STRUCTURAL)].T)
    edges = sorted(r[np.triu_indices(3, 1)])
    # Three edges, of which the spanning tree takes the two strongest: its weakest is the middle one.
    assert found[0]["weakest_edge"][2] == pytest.approx(edges[1], abs=1e-9)


def test_histogram_counts_every_scored_pair(world: tuple) -> None:
    made, report = world[0], world[2]["runs"][0]["reports"]["correlation"]
    rest = made.z[rows(world, "rest")].astype(np.float64)
    scored = (rest > 0).sum(axis=0) >= 50
    r = np.corrcoef(rest[:, scored].T)[np.triu_indices(scored.sum(), 1)]
    assert report["data"]["scored_pairs"] == len(r)
    counts = np.histogram(r, np.linspace(-1, 1, 101))[0] / len(r)
    chart = next(c for c in report["charts"] if c["key"] == "r_histogram")
    drawn = next(s for s in chart["series"] if s["role"] == "data")["y"]
    assert np.abs(np.array([v or 0 for v in drawn]) - counts).max() <= 1.5 / len(
        r
    )  # a value on an edge may fall either way


def test_position_bias(world: tuple) -> None:
    found = table(world, "position")
    assert tuple(np.flatnonzero(found["bos_biased"])) == truth.BOS_LOCKED
    assert tuple(np.flatnonzero(found["position_biased"])) == (truth.POSITION_LOCKED,)
    assert found["largest_bin"][truth.POSITION_LOCKED] == 4
    assert np.isnan(found["bos_share"][truth.RARE])
    assert np.isnan(found["bos_q"][truth.DEAD])


def test_position_measures_are_scipys(world: tuple) -> None:
    made, found = world[0], table(world, "position")
    keep = rows(world, "all")
    position = made.position[keep]
    z = made.z[keep]
    n, n_first = len(z), int((position == 0).sum())
    p = [
        stats.binomtest(int((z[position == 0, i] > 0).sum()), int((z[:, i] > 0).sum()), n_first / n, "greater").pvalue
        for i in range(truth.F)
        if (z[:, i] > 0).sum() >= 50
    ]
    scored = ~np.isnan(np.array(found["bos_p"]))
    np.testing.assert_allclose(np.array(found["bos_p"])[scored], p, rtol=1e-9)
    np.testing.assert_allclose(np.array(found["bos_q"])[scored], stats.false_discovery_control(p), rtol=1e-9)
    for i in (truth.POSITION_LOCKED, 20, 21):
        rest = position > 0
        bins = (position[rest] - 1) * 10 // (truth.CTX - 1)
        fired = z[rest, i] > 0
        observed = np.bincount(bins[fired], minlength=10)
        base = np.bincount(bins, minlength=10) / rest.sum()
        kl = stats.entropy(observed / observed.sum(), base, base=2) - 9 / (2 * observed.sum() * np.log(2))
        assert found["kl"][i] == pytest.approx(kl, abs=1e-9)
        mean = [z[position == q, i].astype(np.float64).mean() for q in range(1, truth.CTX)]
        assert found["spearman"][i] == pytest.approx(stats.spearmanr(mean, np.arange(1, truth.CTX)).statistic, abs=1e-9)
    assert found["mi_excess"][truth.POSITION_LOCKED] > 20 * max(abs(found["mi_excess"][i]) for i in range(20, truth.F))


def test_share_of_position_0_among_the_largest(world: tuple) -> None:
    made, found = world[0], table(world, "position")
    i = truth.BOS_LOCKED[0]
    assert found["bos_share_top100"][i] == 1.0
    # All rows at position 0 are one context; the rest of its list are its other firings, at most a hundred in all.
    others = min(99, len({*np.flatnonzero((made.z[:, i] > 0) & (made.position > 0))}))
    assert found["bos_share_top100_distinct"][i] == pytest.approx(1 / (1 + others))
    assert found["bos_share_top100"][20] == 0.0


def test_reconstruction_and_sparsity(world: tuple) -> None:
    made, figures = world[0], world[2]["runs"][0]["reports"]["global"]["figures"]
    y = made.y.astype(np.float64)
    y_hat = made.z.astype(np.float64) @ made.coder.w_dec.detach().double().numpy()
    for mask, key in (("rest", "value"), ("all", "with_bos")):
        inside = rows(world, mask)
        mean = y[inside].mean(axis=0)
        fvu = ((y - y_hat)[inside] ** 2).sum() / ((y[inside] - mean) ** 2).sum()
        assert figures["fvu"][key] == pytest.approx(fvu, rel=1e-5)
        assert figures["l0"][key] == pytest.approx((made.z[inside] > 0).sum(axis=1).mean(), rel=1e-12)
    assert figures["dead"]["value"] == 1
    assert world[1].runs[0]["fvu"] == figures["fvu"]["value"]


def test_specialised_is_the_latent_of_one_token(world: tuple) -> None:
    found = table(world, "latents")
    assert found["specialised"][truth.ONE_TOKEN].startswith("token")
    assert found["fires_on"][truth.ONE_TOKEN] == "<7>"
    assert found["specialised"][truth.RARE] == "rare"
    assert found["specialised"][truth.DEAD] == "dead"
    fired = (world[0].z[rows(world, "rest")] > 0).sum(axis=0)
    for i in set(range(truth.F)) - {truth.ONE_TOKEN, truth.DEAD}:
        assert found["specialised"][i] == ("general" if fired[i] >= 64 else "rare")


def test_statistics_of_the_samples(world: tuple) -> None:
    """Samples, their range, distinct contexts, how much of the document stands before a peak: counted by hand."""
    made, data = world[0], world[2]["runs"][0]["reports"]["top_activations"]["data"]
    in_document, context = made.table.pos_in_doc.reshape(-1), made.context
    kept, values, distinct, shares, lengths = [], [], 0, [], []
    for i in np.flatnonzero((made.z > 0).any(axis=0)):
        rows_of = [int(row) for row in np.argsort(-made.z[:, i], kind="stable") if made.z[row, i] > 0]
        different = {context(row) for row in rows_of[:100]}
        kept.append(len(rows_of[:100]))
        values += made.z[rows_of[:100], i].tolist()
        distinct += len(different)
        shares.append(len(different) / kept[-1])
        first_of = {context(row): row for row in reversed(rows_of)}  # the largest of each context
        shown = sorted(first_of.values(), key=rows_of.index)[:20]
        lengths.append([int(in_document[row]) + 1 for row in shown])
    samples = data["samples"]
    assert (samples["total"], samples["per_latent"]["max"]) == (sum(kept), 100)
    assert samples["per_latent"]["mean"] == pytest.approx(sum(kept) / truth.F)
    assert samples["activation_range"] == pytest.approx([min(values), max(values)])
    assert samples["distinct_contexts"] == distinct
    assert samples["context_diversity"] == pytest.approx(np.mean(shares))
    length = data["context_length"]
    assert length["mean"] == pytest.approx(np.mean([np.mean(some) for some in lengths]))
    assert (length["min"], length["max"]) == (min(map(min, lengths)), max(map(max, lengths)))


def test_examples_are_the_largest_with_identical_contexts_once(world: tuple) -> None:
    made = world[0]
    with gzip.open(world[1].report.parent / "planted" / "latents.jsonl.gz", "rt") as file:
        latents = [json.loads(line) for line in file]
    tokens = made.table.tokens.reshape(-1)
    for i in (truth.BOS_LOCKED[0], 20, truth.ONE_TOKEN):
        groups = next(b for b in latents[i]["panels"]["top_activations"] if b["type"] == "examples")["groups"]
        seen, expected = set(), []
        for row in np.argsort(-made.z[:, i], kind="stable"):
            context = made.context(int(row))
            if made.z[row, i] > 0 and context not in seen and len(expected) < 20:
                seen.add(context)
                expected.append(int(row))
        items = groups[0]["items"]
        assert [item["sequence"] * truth.CTX + item["position"] for item in items] == expected
        for item, row in zip(items, expected, strict=True):
            assert item["value"] == pytest.approx(float(made.z[row, i]), rel=1e-3)
            assert item["token_id"] == tokens[row]
            around = made.z[row - item["peak"] : row - item["peak"] + len(item["tokens"]), i]
            np.testing.assert_allclose(item["activations"], around, atol=float(made.z[:, i].max()) / 99 + 1e-3)
        silent = next((g for g in groups if g["title"].startswith("Silent")), {"items": []})
        for item in silent["items"]:
            assert made.z[item["sequence"] * truth.CTX + item["position"], i] == 0
    assert "top_activations" not in latents[truth.DEAD]["panels"]
