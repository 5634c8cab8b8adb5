"""The coder as a whole: reconstruction, sparsity, dead and dense latents, geometry, use of nested groups."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ....shared.coders.ops import weighted_rows
from ...result import ReportResult
from ...stream.batches import StreamBatch
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .charts import charts
from .config import ReconstructionConfig
from .counts import Counts
from .decoder import Decoder
from .figures import DEFINITIONS, columns, figures, lead
from .tables import by_site, groups, panel, sites


class ReconstructionReport(Report[ReconstructionConfig]):
    """One coder compared with its target."""

    config_class: ClassVar[type[ReportConfig]] = ReconstructionConfig
    title: ClassVar[str] = "The coder as a whole"
    reconstructs: ClassVar[bool] = True

    def __init__(self, config: ReconstructionConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        self.prefixes = subject.coder.prefixes or (subject.n_latents,)
        # FVU is relative to the variance about the training cache's mean, so that it has one scale on every cache.
        stats = (subject.trained_on or subject.cache).stats(subject.target)
        self.mean_rest = torch.from_numpy(stats.rest.mean).to(subject.device)
        self.mean_all = torch.from_numpy(stats.all.mean).to(subject.device)
        ordinary = (subject.trained_on or subject.cache).outliers(subject.target).ordinary
        self.mean_ordinary = torch.from_numpy(ordinary.mean).to(subject.device)
        scale = (subject.trained_on or subject.cache).balance(subject.target)
        self.scale = torch.ones((), device=subject.device) if scale is None else torch.from_numpy(scale)
        self.scale = self.scale.to(subject.device)
        self.counts = Counts.empty(
            positions=subject.n_positions,
            latents=subject.n_latents,
            prefixes=len(self.prefixes),
            width=subject.coder.d_out,
        )

    def update(self, batch: StreamBatch) -> None:
        if batch.y is None or batch.y_hat is None:
            raise ValueError("the global report needs reconstructions")
        subject, rows = self.subject, batch.rows
        # Held-out documents are a few rows of a shard: nothing is computed for the others.
        kept = torch.from_numpy(np.flatnonzero(rows.keep)).to(batch.y.device)
        y, y_hat = batch.y[kept].double(), batch.y_hat[kept]
        squared = self._squares(y - y_hat.double())
        about_rest = self._squares(y - self.mean_rest)
        self.counts.add(
            rows,
            batch.codes,
            errors=self._errors(batch, y, y_hat, squared),
            about_rest=_row_sums(about_rest),
            about_all=_row_sums(self._squares(y - self.mean_all)),
        )
        self.counts.rest.add(squared, about_rest, rows.rest[rows.keep])
        if subject.has_massive:
            ordinary = rows.rest & ~subject.massive_target[rows.start : rows.start + len(rows)]
            self.counts.ordinary.add(squared, self._squares(y - self.mean_ordinary), ordinary[rows.keep])
            self.counts.add_massive(batch.codes, subject.massive_of(rows))

    def _squares(self, difference: Tensor) -> Tensor:
        """Squares [K, d_out]; of a joint target in units of each part's variance, so that all parts count alike."""
        return (difference if self.scale.dim() == 0 else difference * self.scale).square()

    def _errors(self, batch: StreamBatch, y: Tensor, y_hat: Tensor, squared: Tensor) -> list[NDArray[np.float64]]:
        """‖y − ŷ‖² of the K rows that count [K] for each prefix of the dictionary, the whole dictionary last.

        Args:
            y: [K, d_out], float64.
            y_hat: [K, d_out].
            squared: (y − ŷ)² of the whole dictionary [K, d_out], float64.
        """
        out = [_row_sums(squared)]
        if len(self.prefixes) > 1:
            coder, codes = self.subject.coder, batch.codes
            w_dec = coder.raw_directions(coder.w_dec.detach()).float().cpu()
            missing = torch.zeros_like(y_hat, device="cpu")
            row = np.repeat(np.arange(len(y)), codes.l0[batch.rows.keep])
            # From the outermost group inwards: ŷ of a prefix is ŷ of the next longer one less the latents between them.
            # `missing` is the sum of all groups taken off so far, so each code is decoded once.
            for low, high in zip(self.prefixes[-2::-1], self.prefixes[:0:-1], strict=True):
                inside = (codes.latents >= low) & (codes.latents < high)
                starts = np.searchsorted(row[inside], np.arange(len(y)))
                missing += weighted_rows(
                    torch.from_numpy(codes.values[inside]),
                    torch.from_numpy(codes.latents[inside].astype(np.int64)),
                    w_dec,
                    offsets=torch.from_numpy(starts),
                )
                nested = y.cpu() - (y_hat.cpu() - missing).double()
                out.append(_row_sums(self._squares(nested.to(self.scale.device))))
        return out[::-1]

    def merge(self, other: Self) -> None:
        self.counts.merge(other.counts)

    def finalise(self) -> ReportResult:
        config, subject, counts = self.config, self.subject, self.counts
        decoder, outliers = Decoder.of(subject), subject.cache.outliers(subject.target)
        architecture = subject.coder.config.architecture
        kind = subject.coder.kind
        trained_on = "training cache" if subject.trained_on else "cache under analysis (training cache not found)"
        tables = [groups(counts, self.prefixes), sites(counts, subject)]
        return ReportResult(
            "global",
            self.title,
            lead(counts, config, f"{architecture} {kind}", outliers, subject.measured.get("fvu")),
            figures(
                counts,
                decoder,
                config,
                outliers,
                trained_on=trained_on,
                measured=subject.measured,
                heldout=subject.heldout is not None,
            ),
            charts(counts, decoder),
            [table for table in tables if table is not None],
            columns(subject, decoder, self.prefixes),
            {
                "rows": counts.n_rest,
                "rows_with_bos": counts.n_all,
                "massive_rows": counts.n_massive,
                "outlying_dimensions": list(outliers.dimensions),
                "latents": subject.n_latents,
                "source": subject.source,
                "target": subject.target,
                "architecture": architecture,
                "kind": kind,
                **({"by_site": by_site(counts, subject)} if subject.coder.n_targets > 1 else {}),
                "l0_distribution": counts.l0[1],
                "l0_distribution_at_position_0": counts.l0[0],
                "pairs_with_close_decoder_rows": decoder.geometry.n_close,
            },
            panel(decoder.geometry),
            definitions=DEFINITIONS,
        )


def _row_sums(squares: Tensor) -> NDArray[np.float64]:
    sums: NDArray[np.float64] = squares.sum(dim=1).cpu().numpy()
    return sums
