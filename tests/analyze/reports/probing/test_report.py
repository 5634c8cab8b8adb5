"""The probing report on a planted cache, beside an untrained coder."""

from __future__ import annotations

import json

import pytest

from sparse_pipeline.analyze.reports.probing.report import ProbingConfig
from sparse_pipeline.shared.cache import Cache
from tests.analyze.hierarchy import Hierarchy, absorbing_coder, hierarchy
from tests.analyze.labelled_cache import TOKEN_LABELS, labelled_cache, report, untrained


@pytest.fixture(scope="module")
def tree() -> Hierarchy:
    return hierarchy(n=9000, seed=3)


@pytest.fixture(scope="module")
def cache(tree: Hierarchy, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return labelled_cache(tree, tmp_path_factory.mktemp("planted") / "cache")


def test_probing_beside_its_controls(cache: Cache, tree: Hierarchy) -> None:
    config = ProbingConfig(families=(*TOKEN_LABELS, "position"), rows=9000)
    result = report("probing", config, cache, absorbing_coder(tree, 0.0))
    by_family = result.data["family_auc"]
    for name in TOKEN_LABELS:
        assert by_family[name]["1"] > 0.99
        assert by_family[name]["dense"] > 0.99
    assert by_family["position"]["5"] == pytest.approx(0.5, abs=0.05)  # the planted rows know nothing of it
    assert result.figure("probing_auc_1").null == 0.5
    control = report("probing", config, cache, untrained(tree.x.shape[1]))
    assert control.data["family_auc"]["digit"]["1"] < 0.9
    assert control.data["family_auc"]["digit"]["dense"] == by_family["digit"]["dense"]
    json.dumps(result.to_dict(), allow_nan=False)
