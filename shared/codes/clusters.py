"""Connected components of a graph of latents."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def components(i: NDArray[Any], j: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Connected components of the graph with edges (i, j) [P].

    Returns:
        (the latents that have an edge, ascending [m]; the number of each one's component [m], numbered from 0).
    """
    ids, place = np.unique(np.concatenate([i, j]).astype(np.int64), return_inverse=True)
    graph = coo_array((np.ones(len(i), np.int8), (place[: len(i)], place[len(i) :])), shape=(len(ids), len(ids)))
    _, label = connected_components(graph, directed=False)
    return ids, label.astype(np.int64)
