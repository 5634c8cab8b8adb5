"""The codes of the last few batches.

A window keeps codes, not sums over pairs: n_i, Σz_i, Σz_i², Σz_i z_j and n_ij of every pair that fires together follow
from them on request (pairs.py). Storing is free: the tensors of a step are kept, not copied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...shared.coders import Codes

if TYPE_CHECKING:
    from ...shared.codes.sparse import SparseCodes


class _Kept(NamedTuple):
    """One batch: values and latents [B, K] as Codes has them, position [B]."""

    values: Tensor
    latents: Tensor
    position: Tensor


class CodeWindow:
    """A ring of the codes of at most `batches` steps."""

    def __init__(self, batches: int) -> None:
        self._ring: deque[_Kept] = deque(maxlen=batches)
        self._n_latents = 0

    def __len__(self) -> int:
        return len(self._ring)

    def push(self, codes: Codes, position: Tensor) -> None:
        """Keep the codes of one step, dropping the oldest."""
        latents, values = codes.latents, codes.values.detach()
        if latents is None:
            width = max(int(codes.l0().max()), 1)
            values, latents = values.topk(min(width, codes.n_latents), dim=1)
        self._n_latents = codes.n_latents
        self._ring.append(_Kept(values, latents, position))

    def clear(self) -> None:
        """Forget everything."""
        self._ring.clear()

    def codes(self) -> SparseCodes:
        """The active codes of all rows, oldest first, on the host."""
        from ...shared.codes.sparse import SparseCodes  # numba, which a run without monitors need not load

        if not self._ring:
            nothing = np.zeros(0, np.int32)
            return SparseCodes.sorted(np.zeros(1, np.int64), nothing, nothing.astype(np.float32), self._n_latents)
        # Three copies from the device, however many batches there are. What torch.cat returns, a copy of one tensor
        # too, may be sorted in place.
        counts = torch.cat([(kept.values > 0).sum(dim=1) for kept in self._ring]).cpu().numpy()
        latents = torch.cat([kept.latents.to(torch.int32).flatten() for kept in self._ring]).cpu().numpy()
        values = torch.cat([kept.values.flatten() for kept in self._ring]).to(torch.float32).cpu().numpy()
        active = values > 0
        if not active.all():  # seldom with TopK
            latents, values = latents[active], values[active]
        return SparseCodes.sorted(np.concatenate([[0], counts.cumsum()]), latents, values, self._n_latents)

    def position(self) -> NDArray[np.int32]:
        """Position of each row of `codes` in its sequence, 0 at every BOS [R]."""
        if not self._ring:
            return np.zeros(0, np.int32)
        position: NDArray[np.int32] = torch.cat([kept.position for kept in self._ring]).to(torch.int32).cpu().numpy()
        return position

    # A resumed run

    def state(self) -> dict[str, Tensor]:
        """Tensors from which `load_state` restores the window, by name; empty where nothing is kept."""
        found: dict[str, Tensor] = {}
        for number, kept in enumerate(self._ring):
            tensors = {"values": kept.values, "latents": kept.latents.to(torch.int32), "position": kept.position}
            found |= {f"window.{number:04d}.{name}": tensor for name, tensor in tensors.items()}
        if found:
            found["window.n_latents"] = torch.tensor(self._n_latents)
        return found

    def load_state(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Restore what `state` returned."""
        self._ring.clear()
        own = {name.removeprefix("window."): value for name, value in state.items() if name.startswith("window.")}
        if not own:
            return
        self._n_latents = int(own.pop("n_latents"))
        numbers = sorted({name.split(".")[0] for name in own})
        for number in numbers:
            values, latents, position = (
                own[f"{number}.{name}"].to(device) for name in ("values", "latents", "position")
            )
            self._ring.append(_Kept(values, latents.to(torch.int64), position))
