"""Reconstruction and sparsity of a planted cache, in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.analyze.planted import World


def test_reconstruction_and_sparsity(world: World) -> None:
    made, figures = world.made, world.document["runs"][0]["reports"]["global"]["figures"]
    y = made.y.astype(np.float64)
    y_hat = made.z.astype(np.float64) @ made.coder.w_dec.detach().double().numpy()
    for mask, key in (("rest", "value"), ("all", "with_bos")):
        inside = world.rows(mask)
        mean = y[inside].mean(axis=0)
        fvu = ((y - y_hat)[inside] ** 2).sum() / ((y[inside] - mean) ** 2).sum()
        assert figures["fvu"][key] == pytest.approx(fvu, rel=1e-5)
        assert figures["l0"][key] == pytest.approx((made.z[inside] > 0).sum(axis=1).mean(), rel=1e-12)
    assert figures["dead"]["value"] == 1
    assert world.result.runs[0]["fvu"] == figures["fvu"]["value"]
