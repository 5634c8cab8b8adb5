"""Room for the dead latents of a step: how many there may be is known to the host without asking at every step.

Which latents are dead is decided on the device, at each step, from `since_fired` (`dead_ids`). The host only chooses
the size of the buffers, a power of two, so that the launches of a step are the same from one step to the next and fit a
CUDA graph. A latent that dies within the next h rows has been silent for dead_after − h by now, so their number bounds
the dead latents of all steps until then: it is counted every `EVERY` steps, for twice as many, and read `EVERY` steps
later, when it has long arrived.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...shared.coders import Coder
from .ahead import Answer

EVERY = 32
"""Steps from one count to the next."""

LEAST = 64
"""Smallest room: below it a smaller product takes no less time."""


class Dead(NamedTuple):
    """The dead latents of one step.

    `ids` [room] int64, ascending, padded with 0; `slot` [F] int32: the place of each latent among them, −1: it is not
    dead; `n` [] int64: how many there are.
    """

    ids: Tensor
    slot: Tensor
    n: Tensor


def dead_ids(since_fired: Tensor, dead_after: int, room: int) -> Dead:
    """The first `room` latents that have been silent for `dead_after` rows. Nothing here waits for the device."""
    dead = since_fired >= dead_after
    place = dead.cumsum(0) - 1
    n = place[-1] + 1
    fits = dead & (place < room)
    # one element more, which takes what has no place
    ids = torch.zeros(room + 1, dtype=torch.int64, device=since_fired.device)
    ids.scatter_(0, torch.where(fits, place, room), torch.arange(len(dead), device=since_fired.device))
    return Dead(ids[:room], torch.where(fits, place, -1).int(), n.clamp(max=room))


class Room:
    """The size of the buffers for a coder's dead latents.

    Args:
        coder: with `dead_after` and `since_fired`, tokens since each latent fired.
    """

    def __init__(self, coder: Coder) -> None:
        self._coder = coder
        self._size: int | None = None
        self._rows = 0
        self._every = EVERY
        self._asked: Answer | None = None

    def forget(self) -> None:
        """Ask the device at the next step: something else than steps has changed `since_fired`."""
        self._size = None

    def of(self, step: int, n_rows: int) -> int:
        """Room for the dead latents of update number `step`, of `n_rows` rows; 0: there is none."""
        if self._size is None or self._rows != n_rows:
            self._asked = None
            self._begin(n_rows)
            self._size = self._rounded(self._count().read())
        if step % self._every == 0:
            if self._asked is not None:
                self._size = self._rounded(self._asked.read())
            self._asked = self._count()
        return self._size

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps: padding changes the last bits of sums, so a resumed run goes on with the same."""
        asked = -1 if self._asked is None else self._asked.read()
        return {} if self._size is None else {"room": torch.tensor([self._size, self._rows, asked])}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        if "room" in state:
            self._size, rows, asked = state["room"].tolist()
            self._begin(rows)
            self._asked = None if asked < 0 else Answer(torch.tensor(asked))

    def _begin(self, n_rows: int) -> None:
        """Counts far apart only where `dead_after` is long: otherwise the bound would be much too large."""
        assert self._coder.dead_after is not None
        self._rows, self._every = n_rows, max(1, min(EVERY, self._coder.dead_after // (8 * n_rows)))

    def _count(self) -> Answer:
        """Latents that can be dead within the next two intervals."""
        assert self._coder.dead_after is not None
        return Answer((self._coder.since_fired >= self._coder.dead_after - 2 * self._every * self._rows).sum())

    def _rounded(self, n: int) -> int:
        return min(max(LEAST, 1 << (n - 1).bit_length()), self._coder.n_latents) if n else 0
