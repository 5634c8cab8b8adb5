"""Clusters of latents that duplicate one another, and the link that holds each together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from ....shared.codes.clusters import components


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


def clusters(pairs: NDArray[np.integer], strength: NDArray[np.floating]) -> list[Cluster]:
    """Connected components of the graph with edges `pairs` [P, 2], each pair once, largest first.

    Args:
        strength: [P] r of each pair.
    """
    ids, label = components(pairs[:, 0], pairs[:, 1])
    # Ranks as weights, 1 for the strongest edge: no two are equal, so the minimum spanning tree of the ranks is the one
    # maximum spanning tree that takes the first of equally strong edges.
    order = np.argsort(-strength, kind="stable")
    rank = np.empty(len(pairs))
    rank[order] = np.arange(1, len(pairs) + 1)
    ends = np.searchsorted(ids, pairs)
    tree = minimum_spanning_tree(coo_array((rank, (ends[:, 0], ends[:, 1])), shape=(len(ids), len(ids)))).tocoo()
    last = np.zeros(label.max(initial=-1) + 1, np.int64)
    np.maximum.at(last, label[tree.row], tree.data.astype(np.int64))
    found = []
    for number, rank_of_weakest in enumerate(last):
        edge = order[rank_of_weakest - 1]
        i, j = pairs[edge].tolist()
        found.append(Cluster(tuple(ids[label == number].tolist()), (i, j, float(strength[edge]))))
    return sorted(found, key=lambda c: (-len(c.members), c.members))
