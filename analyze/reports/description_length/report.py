"""Description length: the bits of a row's codes, and the reconstruction from codes of so many bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from ....shared.codes.sparse import SparseCodes
from ...result import Chart, Figure, ReportResult, Series, Table, TableColumn, significant
from ...stream.batches import StreamBatch, encode
from ...subject.subject import Subject
from ..base import Report, ReportConfig, of_several_sites
from .bits import rounded
from .config import DescriptionLengthConfig

AT_ONCE = 4096
"""Rows whose reconstructions are held at once."""


@dataclass(frozen=True)
class Length:
    """Codes rounded to bins: bits per row, the same as SAEBench counts them, and the FVU from them."""

    bins: int
    bits: float
    bits_as_saebench: float
    fvu: float | None


class DescriptionLengthReport(Report[DescriptionLengthConfig]):
    """Everything is computed in finalise, on rows that are read again."""

    config_class: ClassVar[type[ReportConfig]] = DescriptionLengthConfig
    title: ClassVar[str] = "Description length"

    @classmethod
    def lacks(cls, subject: Subject) -> str | None:
        """A coder of several sites has no one decoder to round the codes of."""
        return of_several_sites(subject)

    def update(self, batch: StreamBatch) -> None:
        """Nothing: the sample is chosen from all rows."""

    def merge(self, other: Self) -> None:
        """Nothing."""

    def finalise(self) -> ReportResult:
        subject, config = self.subject, self.config
        every = np.flatnonzero(subject.rest_rows)
        rows = (
            every[np.linspace(0, len(every) - 1, min(config.rows, len(every)), dtype=np.int64)] if len(every) else every
        )
        plain, lengths = lengths_of(subject, rows, config.bins)
        chosen = choose(plain, lengths, config.tolerance)
        return ReportResult(
            "description_length",
            self.title,
            _lead(chosen, plain, len(rows)),
            _figures(chosen, plain, len(rows), config),
            [_chart(lengths)],
            [_table(lengths)],
            data={"rows": len(rows), "fvu": plain, "lengths": [vars(one) for one in lengths]},
            definitions=_DEFINITIONS,
        )


def lengths_of(subject: Subject, rows: NDArray[np.int64], bins: tuple[int, ...]) -> tuple[float | None, list[Length]]:
    """(FVU from the codes as they are, lengths and FVU at each number of bins, fewest first)."""
    sites, cache = subject.coder_sites(reconstruct=True), subject.cache
    mean = (subject.trained_on or cache).stats(subject.target).rest.mean
    parts, errors, variance = [], [], 0.0
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        codes, y_hat = encode(sites, cache.rows(subject.source, some).to(subject.device), np.ones(len(some), np.bool_))
        assert y_hat is not None
        y = cache.rows(subject.target, some).double().numpy()
        parts.append(codes)
        errors.append(y - y_hat.double().cpu().numpy())
        variance += float(np.square(y - mean).sum())
    if not parts or variance <= 0:
        return None, [Length(n, 0.0, 0.0, None) for n in sorted(bins)]
    whole, error = SparseCodes.stack(parts), np.concatenate(errors)
    lengths = []
    for n in sorted(bins):
        found = rounded(whole, n)
        matrix = sp.csr_matrix((found.values - whole.values, whole.latents, whole.indptr), (len(rows), whole.n_latents))
        left = error - matrix @ subject.raw_w_dec.astype(np.float64)
        fvu = float(np.square(left).sum()) / variance
        lengths.append(Length(n, found.bits, found.bits_as_saebench, fvu))
    return float(np.square(error).sum()) / variance, lengths


def choose(plain: float | None, lengths: list[Length], tolerance: float) -> Length:
    """The fewest bins with an FVU of at most (1 + tolerance) times the one without rounding, else the most bins."""
    near = [one for one in lengths if None not in (one.fvu, plain) and one.fvu <= (1 + tolerance) * plain]  # type: ignore[operator]
    return near[0] if near else lengths[-1]


def _figures(chosen: Length, plain: float | None, rows: int, config: DescriptionLengthConfig) -> list[Figure]:
    with_bins = f"{rows:,} rows, each latent's activations rounded to {chosen.bins} bins"
    return [
        Figure(
            "description_length",
            "description length (bits per row)",
            chosen.bits,
            f"Sum over latents of the entropy of whether it fires and in which bin, {with_bins}: the fewest whose FVU "
            f"is within {config.tolerance:.0%} of the unrounded one.",
            better="lower",
            short="bits a row",
            sweep=True,
        ),
        Figure(
            "description_length_saebench",
            "description length as SAEBench counts it",
            chosen.bits_as_saebench,
            f"Σ H(fires) + p · H(bin), the bins of all rows, silent ones in the first ({with_bins}).",
            better="lower",
        ),
        Figure(
            "fvu_rounded",
            "FVU from rounded codes",
            chosen.fvu,
            f"Fraction of variance unexplained by the reconstruction from those codes; {significant(plain)} without "
            "rounding.",
            better="lower",
        ),
    ]


def _lead(chosen: Length, plain: float | None, rows: int) -> str:
    if plain is None:
        return "No row was seen."
    return (
        f"{chosen.bits:.1f} bits a row say which latents fire and how strongly, with each latent's activations rounded "
        f"to {chosen.bins} bins ({rows:,} rows, excluding position 0). The FVU from these codes is "
        f"{significant(chosen.fvu)}, and {significant(plain)} without rounding."
    )


def _chart(lengths: list[Length]) -> Chart:
    return Chart(
        "description_length",
        "Bits and reconstruction",
        "FVU from rounded codes over the bits that they take; each point is a number of bins.",
        [one.bits for one in lengths],
        [Series("rounded codes", [one.fvu for one in lengths])],
        "bits per row",
        "FVU",
        kind="scatter",
        labels=[f"{one.bins} bins" for one in lengths],
    )


def _table(lengths: list[Length]) -> Table:
    columns = [
        TableColumn("bins", "integer"),
        TableColumn("bits per row", "number", "Entropy of whether a latent fires and in which bin, over all latents."),
        TableColumn("as SAEBench", "number", "Σ H(fires) + p · H(bin) with silent rows in the first bin."),
        TableColumn("FVU", "number", "From the rounded codes."),
    ]
    rows = [[one.bins, one.bits, one.bits_as_saebench, one.fvu] for one in lengths]
    return Table("description_length", "Numbers of bins", "More bins, more bits, less lost.", columns, rows, len(rows))


_DEFINITIONS = [
    (
        "Description length",
        "Bits to send a row's codes to one who knows each latent's frequencies: latents are taken as independent, so "
        "it is an upper bound of their joint entropy. The decoder itself is not counted.",
    ),
]
