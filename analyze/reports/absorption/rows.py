"""Feature absorption: a label's latents are silent where a more specific latent has taken over their direction.

Chanin et al. 2024 (arXiv 2409.14507); both rates are SAEBench's, for any boolean label. On a true positive of the
label's dense probe, with p the probe's unit direction, a = (x − origin)·p, z_i ≥ 0 the code of latent i as a multiple
of its unit decoder row ŵ_i, and proj_i = z_i·cos(ŵ_i, p):

- *full absorption*: all main latents < 1e-8, and the latent with the largest projection has cos ≥ 0.025 and
  proj/a ≥ 0.4;
- *absorption fraction*: s is the sum of the three largest positive projections of other latents with cos ≥ 0.1, m that
  of the main latents. 0 if m ≥ a or s/a < 0.4; 1 if m ≤ 0; else u/(u + m) with u = min(s, a − m).

Main latents are those of :mod:`~.main_latents`. For a transcoder, x is the row at the target site, and the result is
called "adapted".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

FIRES = 1e-8
"""A latent fires if its code is at least this."""

FULL_COS = 0.025
"""Least cosine with the probe of the one latent that absorbs fully."""

FRACTION_COS = 0.1
"""Least cosine with the probe of a latent that counts for the fraction."""

PROPORTION = 0.4
"""Least share of a that absorbers carry."""

MAX_ABSORBERS = 3
"""Number of latents that count for the fraction."""

Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class RowAbsorption:
    """Absorption on n rows, all [n].

    Attributes:
        full: whether one other latent carries the direction of silent main latents.
        fraction: the share of the label's direction that other latents carry.
        top_latent: the latent with the largest projection on the probe (−1 where none is positive).
        top_share: that projection divided by a; 0 where a ≤ 0.
        projection: a itself.
        main_silent: whether no main latent fires.
    """

    full: NDArray[np.bool_]
    fraction: Doubles
    top_latent: Ints
    top_share: Doubles
    projection: Doubles
    main_silent: NDArray[np.bool_]


def row_absorption(
    projection: Doubles, codes: sparse.csr_array, cosines: Doubles, main: tuple[int, ...] | list[int]
) -> RowAbsorption:
    """Full absorption and absorption fraction of each row.

    Args:
        projection: [n] a = (x − origin)·p. Where it is not positive there is nothing to absorb: both measures are 0.
        codes: [n, F] ≥ 0, multiples of unit decoder rows.
        cosines: [F] of decoder rows with p.
        main: the label's main latents.
    """
    # Only entries that fire can have a projection: n × K (K the most that fire on a row) instead of n × F. Latent F of
    # the padding has cosine 0, code 0 and is no main latent, so it takes part in nothing.
    latents, values = padded(codes)
    cos = np.append(cosines, 0.0)[latents]
    proj = values * cos
    is_main = np.append(np.isin(np.arange(len(cosines)), main), False)[latents]
    main_proj = (proj * is_main).sum(1)
    main_silent = ~((values >= FIRES) & is_main).any(1)

    row = np.arange(len(projection))
    if proj.shape[1]:
        top = proj.argmax(1)
        top_proj, top_cos, top_latent = proj[row, top], cos[row, top], latents[row, top]
    else:
        top_proj = top_cos = np.zeros(len(row))
        top_latent = np.full(len(row), len(cosines))
    fires = top_proj > 0  # else the largest projection over all F is 0, of a silent latent
    possible = projection > 0
    safe = np.where(possible, projection, 1.0)
    top_share = np.where(possible & fires, top_proj / safe, 0.0)
    full = main_silent & fires & possible & (top_cos >= FULL_COS) & (top_share >= PROPORTION)

    # The fraction: s = taken, m = main_proj. Where m ≤ 0 the division is skipped and the share is 1.
    others = np.where(~is_main & (cos >= FRACTION_COS) & (proj > 0), proj, 0.0)
    n_top = min(MAX_ABSORBERS, others.shape[1])
    if n_top:
        taken = np.partition(others, others.shape[1] - n_top, axis=1)[:, -n_top:].sum(1)
    else:
        taken = np.zeros(len(row))
    absorbed = possible & (main_proj < projection) & (taken / safe >= PROPORTION)
    unaccounted = np.minimum(taken, projection - main_proj)
    shared = np.divide(unaccounted, unaccounted + main_proj, out=np.ones(len(row)), where=main_proj > 0)
    fraction = np.where(absorbed, np.clip(shared, 0.0, 1.0), 0.0)
    return RowAbsorption(
        full=full,
        fraction=fraction,
        top_latent=np.where(fires, top_latent, -1),
        top_share=top_share,
        projection=projection,
        main_silent=main_silent,
    )


def padded(codes: sparse.csr_array) -> tuple[Ints, Doubles]:
    """Codes [n, F] as (latents, values), both [n, K], K the largest number of entries in a row.

    Rows with fewer entries are filled up with latent F and value 0.
    """
    codes = sparse.csr_array(codes)
    counts = np.diff(codes.indptr)
    width = int(counts.max()) if len(counts) else 0
    latents = np.full((codes.shape[0], width), codes.shape[1], np.int64)
    values = np.zeros((codes.shape[0], width))
    place = np.arange(width) < counts[:, None]
    latents[place], values[place] = codes.indices, codes.data
    return latents, values


def decoder_cosines(w_dec: NDArray[np.floating], directions: NDArray[np.floating]) -> Doubles:
    """Cosine of each decoder row [F, d] with each direction [P, d]: [P, F]; 0 for a zero row."""
    rows = w_dec.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit_rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    wanted = directions.astype(np.float64)
    cosines: Doubles = wanted / np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-300) @ unit_rows.T
    return cosines
