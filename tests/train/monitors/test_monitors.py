"""Each monitor against NumPy on planted codes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from sparse_pipeline.shared.coders import Coder, Codes, build_coder
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.monitors import MONITORS, Seen, build_monitor
from sparse_pipeline.train.monitors.correlation import CorrelationConfig
from sparse_pipeline.train.monitors.position import PositionConfig
from sparse_pipeline.train.monitors.utilisation import UtilisationConfig
from sparse_pipeline.train.window.codes import CodeWindow

F, CTX = 8, 5


def coder() -> Coder:
    return build_coder(TopKConfig(latents=F, k=2), 6, 6, tied=True)


def seen(z: torch.Tensor, position: torch.Tensor, of: Coder | None = None) -> Seen:
    window = CodeWindow(1)
    window.push(Codes(z, None, F), position)
    return Seen(window.codes(), window.position(), of or coder(), CTX)


@pytest.fixture
def planted() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents 0, 1, 2 fire together in proportion, 3 and 4 on the same rows with unrelated values, 5 at position 0
    only, 6 always, 7 never."""
    g = torch.Generator().manual_seed(0)
    position = torch.arange(400) % CTX
    rest = (position > 0).float()
    z = torch.zeros(400, F)
    first, second = torch.rand(400, generator=g) < 0.3, torch.rand(400, generator=g) < 0.3
    z[:, 0] = first * rest * (0.5 + torch.rand(400, generator=g))
    z[:, 1], z[:, 2] = 2 * z[:, 0], 0.5 * z[:, 0]
    for i in (3, 4):
        z[:, i] = second * rest * (0.1 + 8 * torch.rand(400, generator=g) ** 6)
    z[:, 5] = 1 - rest
    z[:, 6] = 1 + torch.rand(400, generator=g)
    return z, position


def test_correlation(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    z, position = planted
    parallel = coder()
    with torch.no_grad():
        parallel.w_dec[4] = parallel.w_dec[3]
    monitor = build_monitor(CorrelationConfig())
    found = monitor.look(seen(z, position))
    r = np.corrcoef(z[position > 0][:, [0, 1, 2, 3, 4, 6]].numpy().T)[np.triu_indices(6, 1)]
    assert (np.abs(r) > 0.8).sum() == 3  # the planted three; 3 and 4 correlate less
    assert (found.figures["pairs"], found.figures["duplicates"], found.figures["redundant"]) == (3, 3, 2)
    assert found.figures["max_r"] == pytest.approx(1, abs=1e-6)
    assert {(pair["i"], pair["j"]) for pair in found.details["listed"]} == {(0, 1), (0, 2), (1, 2)}
    assert found.details["clusters"] == [3]
    # the same rows and the same direction make a duplicate too, whatever r says
    also = monitor.look(seen(z, position, parallel))
    assert (also.figures["pairs"], also.figures["duplicates"], also.figures["redundant"]) == (3, 4, 3)


def test_position(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    z, position = planted
    found = build_monitor(PositionConfig(bins=4)).look(seen(z, position))
    assert found.figures["bos_rows"] == pytest.approx(0.2)
    assert found.figures["bos_activation"] == pytest.approx(float(z[position == 0].sum() / z.sum()))
    means = [float(z[at].sum(dim=1).mean()) for at in (position == 0, position > 0)]
    assert found.figures["bos_enrichment"] == pytest.approx(means[0] / means[1])
    assert found.figures["bos_locked"] == 1
    assert found.figures["evenness"] == pytest.approx(1)
    assert found.details["rows"] == [80] * 5
    expected = [float(z[position == p].sum()) for p in range(5)]
    assert found.details["activation"] == pytest.approx(expected, rel=1e-3)


def test_utilisation(planted: tuple[torch.Tensor, torch.Tensor]) -> None:
    z, position = planted
    found = build_monitor(UtilisationConfig(dense_above=0.5)).look(seen(z, position))
    fired = (z > 0).sum(dim=0).numpy()
    p = fired[fired > 0] / fired.sum()
    assert found.figures == {
        "active": 7,
        "share": 7 / 8,
        "dead": 0,
        "dense": 1,
        "effective": pytest.approx(np.exp(-(p * np.log(p)).sum())),
    }


@pytest.mark.parametrize("name", MONITORS)
def test_each_is_registered_under_its_own_name_and_bears_silence(name: str) -> None:
    config = MONITORS[name].config_class
    assert {field.name: field.default for field in dataclasses.fields(config)}["kind"] == name
    found = build_monitor(config(kind=name)).look(seen(torch.zeros(4, F), torch.arange(4)))
    assert all(value is None or np.isfinite(value) for value in found.figures.values())
