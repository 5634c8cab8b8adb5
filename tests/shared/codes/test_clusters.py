"""Connected components against a small graph worked out by hand."""

from __future__ import annotations

import numpy as np

from sparse_pipeline.shared.codes.clusters import components


def test_components() -> None:
    ids, label = components(np.array([0, 1, 5, 7, 6]), np.array([1, 2, 6, 8, 5]))
    assert ids.tolist() == [0, 1, 2, 5, 6, 7, 8]
    found = {frozenset(ids[label == number].tolist()) for number in range(label.max() + 1)}
    assert found == {frozenset({0, 1, 2}), frozenset({5, 6}), frozenset({7, 8})}


def test_no_edges_have_no_components() -> None:
    nothing = np.array([], np.int64)
    assert [len(part) for part in components(nothing, nothing)] == [0, 0]
