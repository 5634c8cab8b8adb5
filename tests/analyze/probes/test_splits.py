"""Splits keep groups whole and depend on the seed alone."""

from __future__ import annotations

import numpy as np

from sparse_pipeline.analyze.probes.splits import split_groups


def test_split_keeps_groups_whole() -> None:
    groups = np.random.default_rng(0).integers(0, 100, 5000)
    split = split_groups(groups, seed=1)
    parts = [set(groups[part].tolist()) for part in (split.train, split.validation, split.test)]
    assert [len(part) for part in parts] == [64, 16, 20]
    assert len(parts[0] | parts[1] | parts[2]) == 100  # so no group lies in two parts
    assert len(split.train) + len(split.validation) + len(split.test) == 5000
    again, other = split_groups(groups, seed=1), split_groups(groups, seed=2)
    assert np.array_equal(split.test, again.test)
    assert not np.array_equal(split.test, other.test)
