"""The crosscoder report as data: its lead, figures, charts, tables and columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...result import Chart, Column, Figure, Series, Table, TableColumn
from .config import CrosscoderConfig
from .norms import Norms

Doubles = NDArray[np.float64]
Ratios = tuple[Doubles, Doubles] | None
BARS = 40

ARTEFACT = (
    "An L1 penalty makes latents look exclusive that are not: it shrinks the shorter decoder row to zero (complete "
    "shrinkage), and splits a shared concept into one latent for each site (latent decoupling). BatchTopK crosscoders "
    "show this less (Minder et al. 2025)."
)


def real(norms: Norms, config: CrosscoderConfig, ratios: Ratios) -> NDArray[np.bool_] | None:
    """[F] exclusive latents that latent scaling confirms; None without it."""
    if ratios is None:
        return None
    exclusive = np.isin(norms.classes(config), ("first", "second"))
    shrunk, decoupled = (np.nan_to_num(ratio, nan=np.inf) for ratio in ratios)
    confirmed: NDArray[np.bool_] = exclusive & (shrunk <= config.shrunk_above) & (decoupled <= config.decoupled_above)
    return confirmed


def lead(norms: Norms, config: CrosscoderConfig, sites: Sequence[str], ratios: Ratios) -> str:
    """What the latents write, in two or three sentences."""
    alive = norms.alive
    n = int(alive.sum())
    if not n:
        return "No latent fires."
    if len(sites) > 2:
        spread = norms.spread[alive]
        return (
            f"A latent that fires writes {np.median(spread):.2f} of {len(sites)} sites (median of the effective number "
            f"of sites); {int((spread < 1.1).sum()):,} of {n:,} write one site alone."
        )
    kinds, dense = norms.classes(config), norms.dense(config)
    first, shared, second = (int((kinds == kind).sum()) for kind in ("first", "shared", "second"))
    text = (
        f"Of {n:,} latents that fire, {shared:,} are shared, {first:,} are exclusive to {sites[0]} and {second:,} to "
        f"{sites[1]} by their decoder norms; {int(dense.sum()):,} fire on more than {config.dense_above:.0%} of the "
        f"rows. {ARTEFACT}"
    )
    confirmed = real(norms, config, ratios)
    if confirmed is not None and first + second:
        text += f" Latent scaling confirms {int(confirmed.sum()):,} of the {first + second:,} exclusive ones."
    return text


def figures(norms: Norms, config: CrosscoderConfig, sites: Sequence[str], ratios: Ratios) -> list[Figure]:
    """Of any number of sites the effective number; of two, shared, exclusive and dense latents."""
    alive = norms.alive
    spread = float(np.median(norms.spread[alive])) if alive.any() else None
    found = [
        Figure(
            "effective_sites",
            "effective sites per latent",
            spread,
            "Median over latents that fire of e to the entropy of their decoder norms' shares: 1 where a latent writes "
            f"one site, {len(sites)} where it writes all {len(sites)} alike.",
        )
    ]
    if len(sites) != 2:
        return found
    kinds, dense = norms.classes(config), norms.dense(config)
    low, high = 0.5 - config.shared_within, 0.5 + config.shared_within
    found += [
        _number("shared_latents", "shared latents", kinds == "shared", f"Relative norm between {low:g} and {high:g}."),
        _number(
            "exclusive_first", f"exclusive to {sites[0]}", kinds == "first",
            f"Relative norm at most {1 - config.exclusive_above:.2g}.",
        ),
        _number(
            "exclusive_second", f"exclusive to {sites[1]}", kinds == "second",
            f"Relative norm at least {config.exclusive_above:.2g}.",
        ),
        _number(
            "exclusive_dense", "dense exclusive latents", dense & np.isin(kinds, ("first", "second")),
            f"Exclusive latents that fire on more than {config.dense_above:.0%} of the rows.",
        ),
    ]  # fmt: skip
    confirmed = real(norms, config, ratios)
    if confirmed is not None:
        found.append(
            _number(
                "exclusive_confirmed",
                "exclusive latents confirmed",
                confirmed,
                f"Exclusive latents with ν_error ≤ {config.shrunk_above:g} and ν_reconstruction ≤ "
                f"{config.decoupled_above:g} (latent scaling).",
            )
        )
    return found


def charts(norms: Norms, sites: Sequence[str]) -> list[Chart]:
    """Of two sites the histogram of the relative norm; of any number, how the norms are shared out."""
    alive = norms.alive
    shares = norms.shares[alive]
    found = [
        Chart(
            "norms_by_site",
            "Decoder norms by site",
            "Mean share of each site in the decoder norms of a latent that fires.",
            list(sites),
            [Series("share", shares.mean(axis=0).tolist() if len(shares) else [0.0] * len(sites))],
            "site",
            "share of norms",
        )
    ]
    if len(sites) == 2:
        edges = np.linspace(0, 1, BARS + 1)
        found.insert(
            0,
            Chart(
                "relative_norm",
                "Relative decoder norm",
                f"Latents that fire, by relative norm: 0 writes {sites[0]} alone, ½ both alike, 1 {sites[1]} alone. "
                + ARTEFACT,
                edges.round(3).tolist(),
                [Series("latents", np.histogram(norms.relative[alive], edges)[0].tolist())],
                "relative norm",
                "latents",
                log_y=True,
            ),
        )
    else:
        edges = np.linspace(1, len(sites), BARS + 1)
        found.append(
            Chart(
                "effective_sites",
                "Sites that a latent writes",
                "Latents that fire, by the effective number of sites.",
                edges.round(3).tolist(),
                [Series("latents", np.histogram(norms.spread[alive], edges)[0].tolist())],
                "effective sites",
                "latents",
            )
        )
    return found


def tables(norms: Norms, config: CrosscoderConfig, sites: Sequence[str], ratios: Ratios) -> list[Table]:
    """The sites; of two, the exclusive latents that fire most."""
    alive, shares = norms.alive, norms.shares
    rows = [
        [site, int((alive & (norms.peak == place)).sum()), float(shares[alive, place].mean()) if alive.any() else None]
        for place, site in enumerate(sites)
    ]
    columns = [
        TableColumn("site", "text"),
        TableColumn("latents that write most here", "integer"),
        TableColumn("mean share of norms", "percent"),
    ]
    found = [Table("norms", "Sites", "Where the latents that fire write.", columns, rows, len(rows))]
    if len(sites) != 2:
        return found
    kinds = norms.classes(config)
    exclusive = np.flatnonzero(np.isin(kinds, ("first", "second")))
    order = exclusive[np.argsort(-norms.fired[exclusive], kind="stable")]
    listed = []
    for latent in order[: config.listed].tolist():
        row = [latent, sites[kinds[latent] == "second"], float(norms.relative[latent])]
        row += [float(norms.fired[latent] / max(1, norms.n_rows))]
        listed.append(row + ([] if ratios is None else [float(ratio[latent]) for ratio in ratios]))
    columns = [
        TableColumn("latent", "latent"),
        TableColumn("site", "text"),
        TableColumn("relative norm", "number"),
        TableColumn("firing rate", "percent"),
    ]
    if ratios is not None:
        columns += [TableColumn("ν error", "number", _SHRUNK), TableColumn("ν reconstruction", "number", _DECOUPLED)]
    found.append(
        Table(
            "exclusive", "Exclusive latents", f"Those that fire most. {ARTEFACT}", columns, listed, len(order),
            "sites.parquet",
        )
    )  # fmt: skip
    return found


def columns(norms: Norms, config: CrosscoderConfig, sites: Sequence[str], ratios: Ratios) -> list[Column]:
    """Of each latent: the site it writes most, how many, and of two sites its class and latent scaling."""
    names = np.asarray(sites)
    found = [
        Column("site", "site", "Where its decoder row is longest.", names[norms.peak].tolist(), "text", shown=False),
        Column("effective_sites", "sites", "Effective number of sites that it writes.", norms.spread, shown=False),
    ]
    if len(sites) == 2:
        found += [
            Column("relative_norm", "relative norm", "0 first site alone, ½ both, 1 second alone.", norms.relative),
            Column("sharing", "sharing", "By relative norm.", norms.classes(config).tolist(), "text", shown=False),
        ]
    if ratios is not None:
        found += [
            Column("nu_error", "ν error", _SHRUNK, ratios[0], shown=False),
            Column("nu_reconstruction", "ν reconstruction", _DECOUPLED, ratios[1], shown=False),
        ]
    return found


_SHRUNK = "Latent scaling: large where the other site has the concept too, although the decoder row there is short."
_DECOUPLED = "Latent scaling: large where other latents write the same direction into the other site at the same time."


def definitions(config: CrosscoderConfig, sites: Sequence[str], scaled: bool) -> list[tuple[str, str]]:
    """The terms."""
    found = [("Decoder norms", "Lengths of the decoder rows in the normalised space of each site.")]
    if len(sites) == 2:
        found.append(
            (
                "Relative norm",
                "½(1 + (‖w²‖ − ‖w¹‖)/max(‖w¹‖, ‖w²‖)). Exclusive: at most "
                f"{1 - config.exclusive_above:.2g} or at least {config.exclusive_above:.2g}. Shared: within "
                f"{config.shared_within:g} of ½. {ARTEFACT}",
            )
        )
    if scaled:
        found.append(
            (
                "Latent scaling",
                "d is the raw decoder row at the site where it is longer, β(y) = Σ z⟨d, y⟩/(‖d‖² Σ z²) over the rows "
                "excluding position 0, ν = β(other site)/β(own site): ν_error of the errors plus z w_j, "
                "ν_reconstruction of the latents' sum. After Minder et al. 2025, arXiv 2504.02922.",
            )
        )
    return found


def _number(key: str, label: str, which: NDArray[np.bool_], definition: str) -> Figure:
    return Figure(key, label, int(which.sum()), definition, "integer")
