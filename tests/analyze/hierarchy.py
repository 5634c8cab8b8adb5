"""A planted hierarchy: parents, children that imply them, and a coder that absorbs exactly as much as it is told to.

All directions are orthonormal, so every number has a closed form. A row with parent p active is
x = a_p v_p + a_c v_c + (unrelated features), c one of p's children (or none). The coder is a real TopK SAE: its latent
for p reads v_p, less κ v_c for every absorbing child c; the child's decoder row carries what is missing, κ of v_p. At κ
large the parent is silent there (full absorption); at a small κ it is weakened (fractional absorption κ a_c/a_p).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.base import Coder
from sparse_pipeline.shared.coders.topk import TopKConfig


@dataclass(frozen=True)
class Hierarchy:
    """n rows of a planted tree.

    Attributes:
        x: [n, d] float32.
        parent: [n] the active parent, −1 none.
        child: [n] the active child as parent · children + index, −1 none.
        parent_size, child_size: [n] a_p, a_c; 0 where absent.
        parents, children: how many of each; children per parent.
        directions: [parents + parents · children + unrelated, d] orthonormal rows, in that order.
    """

    x: torch.Tensor
    parent: NDArray[np.int64]
    child: NDArray[np.int64]
    parent_size: NDArray[np.float64]
    child_size: NDArray[np.float64]
    parents: int
    children: int
    directions: NDArray[np.float64]

    def labels(self) -> NDArray[np.int8]:
        """[n, parents] whether each parent is active."""
        return (self.parent[:, None] == np.arange(self.parents)).astype(np.int8)


def hierarchy(
    n: int = 6000,
    parents: int = 3,
    children: int = 40,
    *,
    child_share: float = 0.8,
    unrelated: int = 24,
    noise: float = 0.01,
    seed: int = 0,
) -> Hierarchy:
    """Rows of which half have a parent; of those, `child_share` have one of its children, each equally often."""
    rng = np.random.default_rng(seed)
    n_features = parents * (1 + children) + unrelated
    d = n_features + 8
    directions = np.linalg.qr(rng.standard_normal((d, d)))[0][:n_features]
    parent = np.where(rng.random(n) < 0.5, rng.integers(0, parents, n), -1)
    has_child = (parent >= 0) & (rng.random(n) < child_share)
    child = np.where(has_child, parent * children + rng.integers(0, children, n), -1)
    parent_size = np.where(parent >= 0, rng.uniform(1.8, 2.2, n), 0.0)
    child_size = np.where(child >= 0, rng.uniform(1.8, 2.2, n), 0.0)
    z = np.zeros((n, n_features))
    row = np.arange(n)
    z[row[parent >= 0], parent[parent >= 0]] = parent_size[parent >= 0]
    z[row[child >= 0], parents + child[child >= 0]] = child_size[child >= 0]
    first_unrelated = parents * (1 + children)
    for _ in range(2):
        z[row, first_unrelated + rng.integers(0, unrelated, n)] = rng.uniform(1.0, 3.0, n)
    x = z @ directions + noise * rng.standard_normal((n, d))
    return Hierarchy(
        torch.from_numpy(x.astype(np.float32)), parent, child, parent_size, child_size, parents, children, directions
    )


def absorbing_children(tree: Hierarchy, rate: float) -> NDArray[np.bool_]:
    """[parents · children] which children absorb: the first so-many of every parent."""
    absorbing = np.arange(tree.children) < round(rate * tree.children)
    return np.tile(absorbing, tree.parents)


def absorbing_coder(tree: Hierarchy, rate: float, kappa: float = 5.0, bias: float = 0.2) -> Coder:
    """A TopK SAE in which the share `rate` of every parent's children takes κ of the parent's direction over.

    Args:
        kappa: what an absorbing child suppresses of its parent, per unit of the child. 5 silences it.
        bias: subtracted from every pre-activation, so that noise does not fire a latent.
    """
    absorbs = absorbing_children(tree, rate)
    n_parents, n_latents = tree.parents, len(tree.directions)
    encoder = tree.directions.copy()
    decoder = tree.directions.copy()
    for child in np.flatnonzero(absorbs):
        p, c = child // tree.children, n_parents + child
        encoder[p] -= kappa * tree.directions[c]
        # What the child carries of the parent: all of it where the parent is silent (both sizes average 2).
        decoder[c] += min(kappa, 1.0) * tree.directions[p]
    norms = np.linalg.norm(decoder, axis=1, keepdims=True)
    coder = build_coder(TopKConfig(latents=n_latents, k=6), len(tree.directions[0]), len(tree.directions[0]), tied=True)
    with torch.no_grad():
        coder.w_enc.copy_(torch.from_numpy((encoder * norms).astype(np.float32)))
        coder.b_enc.copy_(torch.from_numpy((-bias * norms[:, 0]).astype(np.float32)))
        coder.w_dec.copy_(torch.from_numpy((decoder / norms).astype(np.float32)))
    return coder.eval()


def true_rates(tree: Hierarchy, rate: float, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """[parents] share of each parent's rows (among `rows`) on which an absorbing child is active."""
    absorbs = absorbing_children(tree, rate)
    hit = np.zeros(len(tree.child), dtype=bool)
    has = tree.child >= 0
    hit[has] = absorbs[tree.child[has]]
    return np.array([hit[rows][tree.parent[rows] == p].mean() for p in range(tree.parents)])
