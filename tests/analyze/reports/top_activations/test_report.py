"""The top activations of a planted cache, recounted by hand."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.analyze import planted as truth
from tests.analyze.planted import World


def test_specialised_is_the_latent_of_one_token(world: World) -> None:
    found = world.table("latents")
    assert found["specialised"][truth.ONE_TOKEN].startswith("token")
    assert found["fires_on"][truth.ONE_TOKEN] == "<7>"
    assert found["specialised"][truth.RARE] == "rare"
    assert found["specialised"][truth.DEAD] == "dead"
    fired = (world.made.z[world.rows("rest")] > 0).sum(axis=0)
    for i in set(range(truth.F)) - {truth.ONE_TOKEN, truth.DEAD}:
        assert found["specialised"][i] == ("general" if fired[i] >= 64 else "rare")


def test_statistics_of_the_samples(world: World) -> None:
    """Samples, their range, distinct contexts, how long the contexts shown are: counted by hand."""
    made, data = world.made, world.document["runs"][0]["reports"]["top_activations"]["data"]
    context = made.context
    kept, values, distinct, shares, lengths = [], [], 0, [], []
    ordinary = ordinary_rows(world)
    for i in np.flatnonzero((made.z > 0).any(axis=0)):
        rows_of = [int(row) for row in np.argsort(-made.z[:, i], kind="stable") if made.z[row, i] > 0]
        different = {context(row) for row in rows_of[:100]}
        kept.append(len(rows_of[:100]))
        values += made.z[rows_of[:100], i].tolist()
        distinct += len(different)
        shares.append(len(different) / kept[-1])
        first_of = {context(row): row for row in reversed(rows_of) if ordinary[row]}  # the largest of each context
        shown = sorted(first_of.values(), key=rows_of.index)[:20]
        if shown:
            lengths.append([min(row % truth.CTX, 20) + 1 + min(truth.CTX - 1 - row % truth.CTX, 8) for row in shown])
    samples = data["samples"]
    assert (samples["total"], samples["per_latent"]["max"]) == (sum(kept), 100)
    assert samples["per_latent"]["mean"] == pytest.approx(sum(kept) / truth.F)
    assert samples["activation_range"] == pytest.approx([min(values), max(values)])
    assert samples["distinct_contexts"] == distinct
    assert samples["context_diversity"] == pytest.approx(np.mean(shares))
    length = data["context_length"]
    assert length["mean"] == pytest.approx(np.mean([np.mean(some) for some in lengths]))
    assert (length["min"], length["max"]) == (min(map(min, lengths)), max(map(max, lengths)))


def ordinary_rows(world: World) -> NDArray[np.bool_]:
    """Neither at position 0 nor massive [n_rows]; the cache has rows of all three classes."""
    massive = world.made.cache.massive_rows([truth.SOURCE, truth.TARGET])
    assert massive.any()
    return world.rows("rest") & ~massive


def test_strength_of_specialised_against_general_latents(world: World) -> None:
    found = world.table("latents")
    figures = world.document["runs"][0]["reports"]["top_activations"]["figures"]
    for kind in ("specialised", "general"):
        some = [m for m, v in zip(found["mean"], found["specialised"], strict=True)
                if (v == "general") == (kind == "general") and v not in ("rare", "dead")]  # fmt: skip
        assert figures[f"strength_{kind}"]["value"] == pytest.approx(np.mean(some))
        assert figures["specialised_share"]["before_after"]
        assert figures["context_diversity"]["before_after"]


def test_strongest_latents_are_ranked_without_position_0_and_massive_rows(world: World) -> None:
    """By their largest activation on ordinary rows; a context in which several peak is one entry."""
    made, report = world.made, world.document["runs"][0]["reports"]["top_activations"]
    ordinary = ordinary_rows(world)
    z = np.where(ordinary[:, None], made.z, 0)
    peaks: dict[object, list[int]] = {}
    alive = np.flatnonzero(z.max(0) > 0)
    for i in alive[np.argsort(-z.max(0)[alive], kind="stable")].tolist():
        peaks.setdefault(made.context(int(z[:, i].argmax())), []).append(i)
    ranking = report["data"]["ranking"]
    assert [[row["latent"], *row["others"]] for row in ranking] == list(peaks.values())
    assert [row["max"] for row in ranking] == pytest.approx([z[:, i].max() for i, *_ in peaks.values()])
    assert max(map(len, peaks.values())) > 1, "copies of one latent peak together"
    table = next(table for table in report["tables"] if table["key"] == "ranking")
    assert table["total"] == len(peaks)
    assert [row[-2] for row in table["rows"]] == [len(latents) for latents in peaks.values()]
    assert not {i for i in truth.BOS_LOCKED if ranking[0]["latent"] == i}
    found = world.table("latents")
    np.testing.assert_allclose(np.array(found["max_ordinary"])[alive], z.max(0)[alive], rtol=1e-6)
    fires = (made.z[ordinary] > 0).mean(0)
    np.testing.assert_allclose(found["density_without_massive"], fires)


def test_examples_are_the_largest_of_ordinary_rows_with_identical_contexts_once(world: World) -> None:
    made, ordinary = world.made, ordinary_rows(world)
    with gzip.open(world.folder / "latents.jsonl.gz", "rt") as file:
        latents = [json.loads(line) for line in file]
    tokens = made.table.tokens.reshape(-1)
    for i in (truth.BOS_LOCKED[0], 20, truth.ONE_TOKEN):
        groups = next(b for b in latents[i]["panels"]["top_activations"] if b["type"] == "examples")["groups"]
        seen, expected = set(), []
        for row in np.argsort(-made.z[:, i], kind="stable"):
            context = made.context(int(row))
            if ordinary[row] and made.z[row, i] > 0 and context not in seen and len(expected) < 20:
                seen.add(context)
                expected.append(int(row))
        by_title = {group["title"]: group["items"] for group in groups}
        items = by_title.get("Top activations", [])
        assert [item["sequence"] * truth.CTX + item["position"] for item in items] == expected
        aside = made.z[world.rows("all") & ~ordinary, i]
        apart = by_title.get("Position 0 or massive", [])
        assert [item["value"] for item in apart] == pytest.approx([aside.max()] if aside.any() else [], rel=1e-3)
        for item, row in zip(items, expected, strict=True):
            assert item["value"] == pytest.approx(float(made.z[row, i]), rel=1e-3)
            assert item["token_id"] == tokens[row]
            around = made.z[row - item["peak"] : row - item["peak"] + len(item["tokens"]), i]
            largest = float(made.z[ordinary, i].max())
            np.testing.assert_allclose(item["activations"], around, rtol=1e-3, atol=largest * 1e-3)
        silent = next((g for g in groups if g["title"].startswith("Silent")), {"items": []})
        for item in silent["items"]:
            assert made.z[item["sequence"] * truth.CTX + item["position"], i] == 0
    assert "top_activations" not in latents[truth.DEAD]["panels"]
