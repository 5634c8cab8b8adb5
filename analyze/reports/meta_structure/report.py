"""Meta-structure: the variance of the decoder's rows that a few shared directions explain."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import torch

from ...result import Figure, ReportResult, Table, TableColumn, significant
from ...stream.batches import StreamBatch
from ...subject.subject import Subject
from ..base import Report, ReportConfig, of_several_sites
from .config import MetaStructureConfig
from .fit import Meta, meta_of, random_rows

LISTED = 20
"""Meta-latents that the table lists."""

MEMBERS = 8
"""Latents of a meta-latent that it lists."""


class MetaStructureReport(Report[MetaStructureConfig]):
    """Reads nothing from the stream: the decoder alone is looked at."""

    config_class: ClassVar[type[ReportConfig]] = MetaStructureConfig
    title: ClassVar[str] = "Meta-structure"
    of_controls: ClassVar[bool] = False  # the figure has random rows as its null

    @classmethod
    def lacks(cls, subject: Subject) -> str | None:
        """Rows over several sites are no directions of one space."""
        return of_several_sites(subject)

    def update(self, batch: StreamBatch) -> None:
        """The decoder needs no rows of a cache."""

    def merge(self, other: Self) -> None:
        """Nothing was collected."""

    def finalise(self) -> ReportResult:
        subject, config = self.subject, self.config
        rows = torch.from_numpy(subject.raw_w_dec).to(subject.device)
        found = meta_of(torch.nn.functional.normalize(rows, dim=1), config, subject.seed)
        null = meta_of(random_rows(len(rows), rows.shape[1], subject.seed).to(rows.device), config, subject.seed)
        per_row = float(found.codes.l0.mean())
        return ReportResult(
            "meta_structure",
            self.title,
            f"{found.codes.n_latents:,} meta-latents, {per_row:.1f} of them in a decoder row, explain "
            f"{significant(found.explained)} of the variance of the {len(rows):,} rows; of random directions "
            f"{significant(null.explained)}.",
            [
                Figure(
                    "meta_structure",
                    "decoder variance explained by meta-latents",
                    found.explained,
                    "1 − Σ‖row − reconstruction‖² / Σ‖row − mean‖² over decoder rows of length 1, by a BatchTopK coder "
                    f"of them with {found.codes.n_latents:,} latents and k = {config.k}. High: latents share parts. "
                    "The null has as many random directions.",
                    null=null.explained,
                    better="lower",
                    short="meta var.",
                    sweep=True,
                )
            ],
            tables=[_table(found)],
            data={"meta_latents": found.codes.n_latents, "per_row": per_row, "explained": found.explained},
            definitions=_DEFINITIONS,
        )


def _table(found: Meta) -> Table:
    """The meta-latents that most latents share, and those with the largest code of each."""
    shared = found.codes.fired
    order = np.argsort(-shared, kind="stable")[:LISTED]
    by_meta = found.codes.csr().tocsc()
    rows = []
    for meta in order[shared[order] > 0].tolist():
        entries = slice(by_meta.indptr[meta], by_meta.indptr[meta + 1])
        strongest = np.argsort(-by_meta.data[entries], kind="stable")[:MEMBERS]
        rows.append([meta, int(shared[meta]), by_meta.indices[entries][strongest].tolist()])
    columns = [
        TableColumn("meta-latent", "integer"),
        TableColumn("shared by", "integer", "Latents whose decoder row it is part of."),
        TableColumn("latents", "latents", f"Those with the largest part, at most {MEMBERS}."),
    ]
    caption = "Directions that the decoder rows of many latents have in common."
    return Table("meta_latents", "Meta-latents", caption, columns, rows, int((shared > 0).sum()))


_DEFINITIONS = [
    (
        "Meta-structure",
        "A second sparse coder, trained on the first one's decoder rows as if they were activations. What it explains "
        "is structure that latents share: a latent of a narrow meaning may be a sum of broader ones (Leask et al. "
        "2025, arXiv 2502.04878).",
    )
]
