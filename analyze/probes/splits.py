"""Which rows a probe learns from, which tune its threshold, and which score it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Indices into n rows; `test` is disjoint from the others.

    Attributes:
        train: the probe's weights.
        validation: its threshold, and the number of latents.
        test: every figure that is reported.
    """

    train: Index
    validation: Index
    test: Index


def split_rows(groups: NDArray[np.generic], seed: int, test: float = 0.2, validation: float = 0.2) -> Split:
    """80 % to learn from (a fifth of it for thresholds), 20 % to score, whole groups together.

    Rows of one document (or of one word) share their context, so a probe that has seen some of them knows the others:
    a group lies on one side.

    Args:
        groups: [n] the group of each row.
        test: share of groups that score.
        validation: share of the remaining groups that tune.
    """
    if not (0 < test < 1 and 0 < validation < 1):
        raise ValueError(f"shares lie between 0 and 1, not {test} and {validation}")
    distinct, group = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(distinct))
    n_test = round(len(distinct) * test)
    n_validation = round((len(distinct) - n_test) * validation)
    part = np.zeros(len(distinct), np.int8)
    part[order[:n_test]] = 2
    part[order[n_test : n_test + n_validation]] = 1
    part_of_row = part[group.reshape(-1)]
    return Split(*(np.flatnonzero(part_of_row == which).astype(np.int64) for which in (0, 1, 2)))
