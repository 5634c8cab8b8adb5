"""Which latents are dead, and how many there can be, without asking the device at every step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sparse_pipeline.train.kernels import room as module
from sparse_pipeline.train.kernels.ahead import Answer, Ring
from sparse_pipeline.train.kernels.room import EVERY, Room, dead_ids


@pytest.mark.parametrize("room", [1, 3, 8])
def test_dead_latents_are_listed_and_padded(room: int) -> None:
    since = torch.tensor([5, 90, 0, 100, 100, 99, 300, 7])
    ids, slot, n = dead_ids(since, 100, room)
    expected = np.flatnonzero(since.numpy() >= 100)[:room]
    assert n.item() == len(expected)
    assert ids.tolist() == [*expected, *[0] * (room - len(expected))]
    assert slot.tolist() == [list(expected).index(i) if i in expected else -1 for i in range(8)]
    assert dead_ids(since, 1000, room).n.item() == 0


@pytest.mark.parametrize(("dead_after", "every"), [(40_000, EVERY), (900, 11), (5, 1)])
def test_there_is_always_room(dead_after: int, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents fall silent and fire again at random; the count is requested every few steps and read one time later."""
    asked: list[int] = []
    monkeypatch.setattr(module, "Answer", lambda counted: (asked.append(step), Answer(counted))[1])
    rows, generator = 10, torch.Generator().manual_seed(0)
    coder: Any = SimpleNamespace(dead_after=dead_after, since_fired=torch.zeros(500, dtype=torch.int64), n_latents=500)
    coder.since_fired[:200] = dead_after - 60 * rows
    room, step, most = Room(coder), 0, 0
    for step in range(1, 130):
        size = room.of(step, rows)
        n = int((coder.since_fired >= dead_after).sum())
        assert n <= size <= 500, step
        assert size == 0 or size == 500 or size & (size - 1) == 0
        most = max(most, n)
        fired = torch.rand(500, generator=generator) < torch.where(torch.arange(500) < 200, 0.002, 0.1)
        coder.since_fired.add_(rows).masked_fill_(fired, 0)
    assert most > 100
    assert asked == [1, *range(every, 130, every)] if every > 1 else len(asked) == 130


def test_a_resumed_run_has_the_same_room() -> None:
    coder: Any = SimpleNamespace(dead_after=40_000, since_fired=torch.zeros(500, dtype=torch.int64), n_latents=500)
    coder.since_fired[:70] = 39_700
    first = Room(coder)
    sizes = [first.of(step, 10) for step in range(1, 50)]
    state = first.state()
    second = Room(coder)
    second.load_state({name: value.clone() for name, value in state.items()})
    coder.since_fired.zero_()
    assert [second.of(step, 10) for step in range(50, 100)] == [first.of(step, 10) for step in range(50, 100)]
    assert sizes[-1] == 128
    assert first.of(128, 10) == 0
    third = Room(coder)
    third.load_state({})
    assert third.of(50, 10) == 0


def test_numbers_arrive_in_order_however_often_the_ring_goes_round() -> None:
    ring, to = Ring(3, torch.float32, torch.device("cpu"), slots=4), torch.zeros(3)
    for step in range(11):
        ring.send((step, step + 0.5, -step), to)
        assert to.tolist() == [step, step + 0.5, -step]
