from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.cache import Cache, Flag
from sparse_pipeline.shared.cache.heldout import split_rows
from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.train.evaluate import evaluate, evaluation_rows
from sparse_pipeline.train.normalisation import moments_of
from tests.synthetic import make_cache
from tests.train.conftest import MATRYOSHKA, SOURCE, TARGET, TOPK


@pytest.mark.parametrize("packing", ["concat", "apart"])
def test_figures_equal_the_formula_over_several_coders_in_one_read(packing: str, tmp_path: Path) -> None:
    cache = make_cache(tmp_path / "c", n_seq=160, ctx=16, packing=packing)
    split = split_rows(cache, 0.3)
    rows = evaluation_rows(split, 10_000)
    assert np.array_equal(rows, np.flatnonzero(split.heldout))
    tasks = [(TOPK, SOURCE, TARGET), (MATRYOSHKA, SOURCE, SOURCE)]
    coders = []
    for config, source, target in tasks:
        coder = build_coder(config, 32, 32, tied=source == target, generator=torch.Generator().manual_seed(1))
        coder.randomise_decoder(torch.Generator().manual_seed(2))
        coder.set_normalisation(*(moments_of(cache, site, config.normalise) for site in (source, target)))
        coders.append((coder.train(), source, target))
    for (coder, source, target), found in zip(coders, evaluate(coders, cache, rows), strict=True):
        assert coder.training  # as it was
        x, y = cache.rows(source, rows), cache.rows(target, rows).double().numpy()
        with torch.no_grad():
            codes = coder.encode(x)
            y_hat = coder.decode(codes, x).double().numpy()
        flags, stats = cache.flags.reshape(-1)[rows], cache.stats(target)
        rest = (rows % cache.ctx > 0) & (flags & int(Flag.BOS) == 0)
        assert (rest.sum() < (rows % cache.ctx > 0).sum()) == (packing == "apart")
        assert found.fvu == pytest.approx(((y - y_hat)[rest] ** 2).sum() / ((y[rest] - stats.rest.mean) ** 2).sum())
        assert found.fvu_with_bos == pytest.approx(((y - y_hat) ** 2).sum() / ((y - stats.all.mean) ** 2).sum())
        assert found.l0 == pytest.approx(codes.l0()[torch.from_numpy(rest)].double().mean().item())
        assert found.rows == len(rows)


def test_a_limit_spreads_the_rows_and_without_held_out_documents_training_rows_serve(cache: Cache) -> None:
    split = split_rows(cache, 0.3)
    few = evaluation_rows(split, 50)
    assert len(few) == 50
    assert split.heldout[few].all()
    assert few[-1] - few[0] > cache.n_rows / 2
    none = split_rows(cache, 0.0)
    assert np.array_equal(evaluation_rows(none, 10_000), np.flatnonzero(none.train))
