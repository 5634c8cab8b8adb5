"""The table of letters."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from sparse_pipeline.analyze.probes.dense import train_probes
from sparse_pipeline.analyze.probes.labels import Labels
from sparse_pipeline.analyze.probes.splits import split_groups
from sparse_pipeline.analyze.reports.absorption.outcome import Gates
from sparse_pipeline.analyze.reports.absorption.rates import absorption_rates, unit_codes
from sparse_pipeline.analyze.reports.absorption.tables import letter_table
from tests.analyze.hierarchy import absorbing_coder, hierarchy


def test_letters_with_their_rates_and_reasons() -> None:
    """Three letters with latents, one whose rows say nothing of it, one with too few rows; the mean is of the three."""
    tree = hierarchy(n=6000, seed=1)
    coder = absorbing_coder(tree, 0.25)
    with torch.no_grad():
        codes = sparse.csr_array(coder.encode(tree.x).dense().numpy())
    w_dec = coder.w_dec.detach().numpy()
    silent = (np.random.default_rng(0).random(len(tree.x)) < 0.1).astype(np.int8)
    labels = Labels(tuple(f"first_letter:{c}" for c in "abcd"), np.column_stack([tree.labels(), silent]))
    split = split_groups(np.arange(len(tree.x)), 0)
    splits = [(split, train_probes(tree.x, labels, split))]
    gates = Gates(labels={"first_letter": 3})
    families = absorption_rates(tree.x, unit_codes(codes, w_dec), w_dec, labels, splits, gates=gates)
    positives = dict(zip(labels.names, labels.values.sum(0).tolist(), strict=True)) | {"first_letter:e": 7, "digit": 90}
    (table,) = letter_table(families, positives, 50)
    rows = [dict(zip((column.label for column in table.columns), row, strict=True)) for row in table.rows]
    assert [row["letter"] for row in rows] == list("abcde")
    assert [row["positives"] for row in rows] == [*labels.values.sum(0).tolist(), 7]
    assert [row["evaluable"] for row in rows[:3]] == ["yes"] * 3
    assert rows[3]["evaluable"].startswith("no: probe F1")
    assert rows[4]["evaluable"].startswith("no: fewer than 50")
    assert rows[3]["full"] is rows[4]["full"] is rows[4]["probe F1"] is None
    assert [row["main latents"] for row in rows[:3]] == [1, 1, 1]
    assert families[0].full is not None
    assert families[0].full.value == np.mean([row["full"] for row in rows[:3]])
    assert table.caption == "3 of 5 letters are evaluable; the headline is their mean."
    assert letter_table([], {"digit": 90}, 50) == []
