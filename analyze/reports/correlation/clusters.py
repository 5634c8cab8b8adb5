"""Clusters of latents that duplicate one another, and the link that holds each together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Cluster:
    """Latents joined by duplicate pairs.

    Attributes:
        members: ascending.
        weakest: the pair whose removal splits the cluster first, (i, j, r): the weakest edge of the maximum spanning
            tree. A cluster is only as good as this edge: chains of good pairs can join latents that have little in
            common.
    """

    members: tuple[int, ...]
    weakest: tuple[int, int, float]


def clusters(pairs: NDArray[np.integer], strength: NDArray[np.floating], n_latents: int) -> list[Cluster]:
    """Connected components of the graph with edges `pairs` [P, 2], largest first (union-find, strongest edge first).

    Args:
        strength: [P] r of each pair.
    """
    parent = np.arange(n_latents)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    weakest: dict[int, tuple[int, int, float]] = {}
    # Kruskal: edges that join two parts, strongest first, are the maximum spanning tree; the last one is its weakest.
    for edge in np.argsort(-strength, kind="stable"):
        i, j = int(pairs[edge, 0]), int(pairs[edge, 1])
        a, b = root(i), root(j)
        if a != b:
            parent[max(a, b)] = min(a, b)
            weakest.pop(max(a, b), None)
            weakest[min(a, b)] = (i, j, float(strength[edge]))
    members: dict[int, list[int]] = {}
    for i in np.unique(pairs).tolist():
        members.setdefault(root(i), []).append(i)
    found = [Cluster(tuple(ids), weakest[top]) for top, ids in members.items()]
    return sorted(found, key=lambda c: (-len(c.members), c.members))
