"""Which rows fit a probe, which tune its threshold, and which score it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]

TEST_SHARE = 0.2
"""Share of the groups that score."""

VALIDATION_SHARE = 0.2
"""Share of the remaining groups that tune thresholds."""


@dataclass(frozen=True)
class ProbeSplit:
    """Indices into n rows; `test` is disjoint from the other two.

    Attributes:
        train: rows that fit the weights.
        validation: rows that choose the threshold and the number of latents.
        test: rows that every reported figure is computed on.
    """

    train: Index
    validation: Index
    test: Index


def split_groups(groups: NDArray[np.generic], seed: int) -> ProbeSplit:
    """80 % of the groups to learn from (a fifth of them for thresholds), 20 % to score.

    Rows of one document (or of one word) share their context, so a probe that has seen some of them knows the others.
    Therefore each group lies in one part with all its rows.

    Args:
        groups: [n] the group of each row.
        seed: of the permutation of groups.
    """
    distinct, group = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(distinct))
    n_test = round(len(distinct) * TEST_SHARE)
    n_validation = round((len(distinct) - n_test) * VALIDATION_SHARE)
    part = np.zeros(len(distinct), np.int8)  # 0 train, 1 validation, 2 test
    part[order[:n_test]] = 2
    part[order[n_test : n_test + n_validation]] = 1
    part_of_row = part[group.reshape(-1)]
    return ProbeSplit(*(np.flatnonzero(part_of_row == which).astype(np.int64) for which in (0, 1, 2)))
