"""Clusters of latents."""

from __future__ import annotations

import numpy as np

from sparse_pipeline.analyze.reports.correlation.clusters import clusters


def test_clusters_and_weakest_edges() -> None:
    pairs = np.array([[0, 1], [1, 2], [0, 2], [5, 4], [7, 8], [8, 9], [9, 7], [9, 10]])
    strength = np.array([0.9, 0.85, 0.95, 0.99, 0.9, 0.8, 0.82, 0.97])
    found = clusters(pairs, strength)
    assert [c.members for c in found] == [(7, 8, 9, 10), (0, 1, 2), (4, 5)]
    assert [c.weakest for c in found] == [(9, 7, 0.82), (0, 1, 0.9), (5, 4, 0.99)]
    assert clusters(np.zeros((0, 2), int), np.zeros(0)) == []


def test_clusters_are_those_of_kruskals_algorithm() -> None:
    """Random graphs with many equally strong edges: the strongest first, ties in the order given."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(2, 40))
        upper = np.stack(np.triu_indices(n, 1), axis=1)
        pairs = upper[np.sort(rng.choice(len(upper), min(len(upper), int(rng.integers(1, 30))), replace=False))]
        strength = rng.integers(-3, 4, len(pairs)) / 4
        part = {node: {node} for node in np.unique(pairs).tolist()}
        joined_by: dict[frozenset[int], tuple[int, int, float]] = {}
        for e in np.argsort(-strength, kind="stable"):
            i, j = pairs[e].tolist()
            if part[i] is not part[j]:
                part[i] |= part[j]
                for node in part[j]:
                    part[node] = part[i]
                joined_by[frozenset(part[i])] = (i, j, strength[e])
        expected = {frozenset(nodes): joined_by[frozenset(nodes)] for nodes in part.values()}
        found = clusters(pairs, strength)
        assert {frozenset(c.members): c.weakest for c in found} == expected
        assert [len(c.members) for c in found] == sorted((len(c.members) for c in found), reverse=True)
