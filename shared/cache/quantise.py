"""One byte per number and one scale per row: the storages ``fp8`` and ``int8``.

A row is stored as codes and a float32 scale, and read as the bfloat16 nearest to code · scale. Each row has its own
scale, so that a row of massive activations (position 0) costs no other row precision.

- ``fp8``: codes are float8_e4m3fn (Micikevicius et al. 2022, arXiv:2209.05433), the scale is the power of two that
  brings the row's largest magnitude into (224, 448]. Dividing by it and multiplying with it is exact; a code has 3
  bits of mantissa.
- ``int8``: codes are the integers -127 to 127, the scale is the largest magnitude / 127. The step is the same
  everywhere in the row.

A row of zeros, or of magnitudes so small that the scale would not be a normal number (2^-126), has the scale 0 and
reads as zeros. A row with an infinity or a NaN has the scale NaN and reads as NaN throughout, so that it still counts
as non-finite.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from .format import Quantised

CODE_DTYPES = {"fp8": torch.uint8, "int8": torch.int8}

_LARGEST = {"fp8": 448.0, "int8": 127.0}
_SMALLEST_SCALE = 2.0**-126
_PIECE = 1 << 20  # numbers worked on at a time, so that the copies in float32 stay small


def quantise(rows: Tensor, kind: Quantised) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows.

    Args:
        rows: [n, d] bfloat16 or float32, on the CPU.

    Returns:
        codes [n, d], uint8 (bits of float8_e4m3fn) or int8, and scales [n] float32.
    """
    codes = torch.empty(rows.shape, dtype=CODE_DTYPES[kind])
    scales = torch.empty(len(rows), dtype=torch.float32)
    step = max(1, _PIECE // rows.shape[1])
    for start in range(0, len(rows), step):
        x = rows[start : start + step].float()
        largest = x.abs().amax(dim=1)
        scale = _scale(largest, kind)
        usable = scale >= _SMALLEST_SCALE
        x = torch.where(usable[:, None], x / torch.where(usable, scale, 1.0)[:, None], 0.0)
        # Conversion to float8 rounds to nearest, ties to even, and so does round(). Only rows beyond
        # 448 · 2^119, where the scale is capped, are clamped.
        part = (
            x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8) if kind == "fp8" else x.round().to(torch.int8)
        )
        codes[start : start + step] = part
        scale = torch.where(usable, scale, 0.0)
        scales[start : start + step] = torch.where(largest.isfinite(), scale, torch.nan)
    return codes, scales


def codes_under(rows: Tensor, scales: Tensor, kind: Quantised) -> Tensor:
    """Codes [n, d] of rows under scales [n] that are given: the nearest, at most the largest code."""
    usable = scales >= _SMALLEST_SCALE  # not of NaN
    codes = torch.empty(rows.shape, dtype=CODE_DTYPES[kind])
    step = max(1, _PIECE // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        x = rows[part].float() / torch.where(usable[part], scales[part], 1.0)[:, None]
        x = torch.where(usable[part, None] & x.isfinite(), x, 0.0).clamp(-_LARGEST[kind], _LARGEST[kind])
        codes[part] = x.to(torch.float8_e4m3fn).view(torch.uint8) if kind == "fp8" else x.round().to(torch.int8)
    return codes


def _scale(largest: Tensor, kind: Quantised) -> Tensor:
    """Largest magnitude of each row [n] → its scale; 0 where the scale would not be a normal number.

    fp8: the smallest power of two with largest / scale ≤ 448, at most 2^119. A power of two changes the exponent alone,
    so neither the division nor the multiplication rounds. It is built from its exponent bits.
    """
    ratio = largest / _LARGEST[kind]
    if kind == "int8":
        return torch.where(ratio.isfinite(), ratio, 0.0)
    mantissa, exponent = torch.frexp(
        torch.where(ratio.isfinite(), ratio, 0.0)
    )  # ratio = mantissa · 2^exponent, mantissa in [½, 1)
    exponent = exponent - (mantissa == 0.5).int()
    # at most 2^119: under a larger scale, a code rounded up could read as infinity
    power = ((exponent.clamp(-126, 119) + 127) << 23).view(torch.float32)
    return torch.where((mantissa > 0) & (exponent >= -126), power, 0.0)


def dequantise(codes: Tensor, scales: Tensor, kind: Quantised) -> Tensor:
    """[n, d] codes and [n] scales → [n, d] bfloat16: code · scale in float32, rounded once."""
    if codes.device.type == "cpu":
        # a table of 256 numbers is six times faster than torch's conversion from float8 on one core
        values = torch.from_numpy(np.take(_table(kind), codes.view(torch.uint8).numpy()))
    else:
        values = (codes.view(torch.float8_e4m3fn) if kind == "fp8" else codes).float()
    return values.mul_(scales[:, None]).bfloat16()


@cache
def _table(kind: Quantised) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The number that each byte encodes."""
    bytes_ = torch.arange(256, dtype=torch.int16).to(torch.uint8)
    found: np.ndarray[tuple[int], np.dtype[np.float32]] = (
        bytes_.view(torch.float8_e4m3fn if kind == "fp8" else torch.int8).float().numpy()
    )
    return found
