"""Between two lines of the log the host never waits for the device.

On a CPU nothing waits, but the same operators are called: a mode refuses those whose result the host would read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparse_pipeline.shared.cache import open_cache
from sparse_pipeline.train.config import ReseedConfig
from sparse_pipeline.train.data.stream import open_stream
from sparse_pipeline.train.penalties import PENALTIES, build_penalty
from sparse_pipeline.train.samplers import build_sampler
from sparse_pipeline.train.step.autograd import train_step
from sparse_pipeline.train.step.begin import new_trainee
from sparse_pipeline.train.step.reseed import reseed
from tests.train.kernels.test_training import config
from tests.train.penalties.conftest import Case
from tests.train.penalties.conftest import case as case  # a fixture


class WaitedError(Exception):
    """The host would have waited."""


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait: a number read from a tensor, or a result whose size depends on values."""

    READS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::bincount", "aten::equal")

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        if name.startswith(self.READS):
            raise WaitedError(name)
        if name.startswith("aten::index"):
            chosen = args[1] if isinstance(args[1], Sequence) else ()
            if any(i is not None and i.dtype == torch.bool for i in chosen):
                raise WaitedError("how many are in a mask")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("read", [lambda t: float(t.sum()), lambda t: t[t > 0], lambda t: bool((t > 0).any())])
def test_the_mode_finds_what_waits(read: Any) -> None:
    values = torch.randn(5)
    with NoWaiting(), pytest.raises(WaitedError):
        read(values)


def test_a_step_does_not_wait_for_the_device(device: torch.device, tmp_path: Path) -> None:
    """With dead latents, clipping, averaged terms and re-seeding; the first step may ask how many are dead."""
    made = config(tmp_path, device, fused="on", dead_after=8, reseed=ReseedConfig(every=100, silent=10))
    made = replace(made, coder=replace(made.coder, aux_k=2), data=replace(made.data, tokens=20))
    assert made.cache is not None
    cache = open_cache(made.cache)
    trainee = new_trainee(made, cache, 4, cache.n_rows, device)
    with open_stream(cache, [made.source, made.target_site], made.data, build_sampler(made.sampler)) as stream:
        batches = [next(stream) for _ in range(4)]
    trainee.coder.since_fired[:3] = 100
    train_step(trainee, batches[0])
    with NoWaiting():
        results = [train_step(trainee, batch) for batch in batches[1:]]
        for batch in batches[1:]:
            reseed(trainee, batch)
    assert all("aux" in result.terms.values for result in results)
    assert float(results[0].terms.values["aux"]) > 0


@pytest.mark.parametrize("name", ["decoder_orthogonality", "ortsae", "position_diversity"])
def test_penalties_that_choose_nothing_do_not_wait(name: str, case: Case) -> None:
    penalty = build_penalty(PENALTIES[name].config_class())
    with NoWaiting():
        value = case.value(penalty)
    assert value > 0
