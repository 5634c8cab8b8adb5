"""The correlation report of a planted cache: every planted pair is found, no other is, and the numbers are NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analyze import planted as truth
from tests.analyze.planted import World


def test_every_pair_has_its_kind_and_no_other_pair_is_flagged(world: World) -> None:
    found = world.table("pairs")
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


def test_correlations_are_numpys(world: World) -> None:
    made, found = world.made, world.table("pairs")
    rest, every = made.z[world.rows("rest")].astype(np.float64), made.z[world.rows("all")].astype(np.float64)
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


def test_named_latents_are_a_matrix_in_their_order(world: World) -> None:
    tables = world.document["runs"][0]["reports"]["correlation"]["tables"]
    (table,) = (table for table in tables if table["key"] == "named")
    assert [column["label"] for column in table["columns"][2:]] == [str(latent) for latent in truth.NAMED]
    assert [row[0] for row in table["rows"]] == list(truth.NAMED)
    rest = world.made.z[world.rows("rest")][:, truth.NAMED].astype(np.float64)
    np.testing.assert_allclose([row[2:] for row in table["rows"]], np.corrcoef(rest.T), atol=1e-9)
    assert [row[1] for row in table["rows"]] == (rest > 0).sum(axis=0).tolist()


def test_neighbours_are_the_largest_correlations(world: World) -> None:
    made, found = world.made, {key: np.array(values) for key, values in world.table("neighbours").items()}
    rest = made.z[world.rows("rest")].astype(np.float64)
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


def test_pairs_that_only_position_0_joins_count_with_it_alone(world: World) -> None:
    report = world.document["runs"][0]["reports"]["correlation"]
    figure = report["figures"]["n_pairs_above"]
    assert (figure["value"], figure["with_bos"]) == (4, 5)
    assert report["data"]["n_pairs_only_with_bos"] == 1
    fooled = next(t for t in report["tables"] if t["key"] == "only_with_bos")["rows"]
    assert [tuple(row[:2]) for row in fooled] == [truth.BOS_LOCKED]
    assert fooled[0][2] > 0.9
    assert abs(fooled[0][3]) < 0.1


def test_clusters_and_their_weakest_edge(world: World) -> None:
    made = world.made
    found = world.document["runs"][0]["reports"]["correlation"]["data"]["clusters"]
    assert [tuple(c["members"]) for c in found] == [truth.STRUCTURAL, truth.FUNCTIONAL]
    rest = made.z[world.rows("rest")].astype(np.float64)
    r = np.corrcoef(rest[:, list(truth.STRUCTURAL)].T)
    edges = sorted(r[np.triu_indices(3, 1)])
    # Three edges, of which the spanning tree takes the two strongest: its weakest is the middle one.
    assert found[0]["weakest_edge"][2] == pytest.approx(edges[1], abs=1e-9)


def test_histogram_counts_every_scored_pair(world: World) -> None:
    made, report = world.made, world.document["runs"][0]["reports"]["correlation"]
    rest = made.z[world.rows("rest")].astype(np.float64)
    scored = (rest > 0).sum(axis=0) >= 50
    r = np.corrcoef(rest[:, scored].T)[np.triu_indices(scored.sum(), 1)]
    assert report["data"]["scored_pairs"] == len(r)
    counts = np.histogram(r, np.linspace(-1, 1, 101))[0] / len(r)
    chart = next(c for c in report["charts"] if c["key"] == "r_histogram")
    drawn = next(s for s in chart["series"] if s["role"] == "data")["y"]
    assert np.abs(np.array([v or 0 for v in drawn]) - counts).max() <= 1.5 / len(
        r
    )  # a value on an edge may fall either way
