"""Crosscoders: which sites each latent writes. Over two models: what they share, and whether differences are real."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from ....shared.cache.beside import CachesBeside
from ....shared.joint_names import parts_of
from ...result import Column, ReportResult
from ...stream.batches import StreamBatch
from ...subject.subject import Subject
from ..base import Report, ReportConfig
from .config import CrosscoderConfig
from .figures import charts, columns, definitions, figures, lead, tables
from .norms import Norms
from .scaling import Scaling


class CrosscoderReport(Report[CrosscoderConfig]):
    """One coder of several sites."""

    config_class: ClassVar[type[ReportConfig]] = CrosscoderConfig
    title: ClassVar[str] = "Sites of a crosscoder"
    reconstructs: ClassVar[bool] = True
    of_controls: ClassVar[bool] = False
    about_some: ClassVar[bool] = True

    @classmethod
    def lacks(cls, subject: Subject) -> str | None:
        return "the coder writes one site" if subject.coder.n_targets == 1 else None

    def __init__(self, config: CrosscoderConfig, subject: Subject) -> None:
        super().__init__(config, subject)
        coder = subject.coder
        self.sites = named(subject)
        self.fired = np.zeros(subject.n_latents, np.int64)
        self.rows = 0
        with torch.no_grad():
            self.norms: NDArray[np.float64] = coder.site_norms().double().cpu().numpy()
        # directions of two sites can be compared where they lie in one space: the same site of two models
        kinds = {site.partition("@")[0] for site in parts_of(subject.target)}
        alike = len(set(coder.target_widths)) == len(kinds) == 1
        self.scaling = Scaling.empty(subject.n_latents) if alike and len(self.sites) == 2 else None
        if self.scaling is not None:
            self.own = self.norms.argmax(axis=1)
            raw = torch.from_numpy(subject.raw_w_dec).view(subject.n_latents, 2, -1)
            self.rows_own = raw[torch.arange(subject.n_latents), torch.from_numpy(self.own)]
            self.rows_other = raw[torch.arange(subject.n_latents), torch.from_numpy(1 - self.own)]
            self.bias = coder.denormalise_target(coder.b_dec.detach().unsqueeze(0)).cpu()

    def update(self, batch: StreamBatch) -> None:
        rest = batch.rows.rest
        codes = batch.codes.rows(rest)
        self.fired += codes.fired
        self.rows += int(rest.sum())
        if self.scaling is None:
            return
        if batch.y is None or batch.y_hat is None:
            raise ValueError("the crosscoder report needs reconstructions")
        kept = torch.from_numpy(np.flatnonzero(rest))
        y, y_hat = batch.y.cpu()[kept].float(), batch.y_hat.cpu()[kept]
        errors, sums = ((one).view(len(kept), 2, -1) for one in (y - y_hat, y_hat - self.bias))
        self.scaling.add(codes, errors, sums, self.rows_own, self.own)

    def merge(self, other: Self) -> None:
        self.fired += other.fired
        self.rows += other.rows
        if self.scaling is not None and other.scaling is not None:
            self.scaling.merge(other.scaling)

    def finalise(self) -> ReportResult:
        config, norms = self.config, Norms(self.norms, self.fired, self.rows)
        ratios = None
        if self.scaling is not None:
            ratios = self.scaling.ratios(self.rows_own.double().numpy(), self.rows_other.double().numpy())
        return ReportResult(
            "crosscoder",
            self.title,
            lead(norms, config, self.sites, ratios),
            figures(norms, config, self.sites, ratios),
            charts(norms, self.sites),
            tables(norms, config, self.sites, ratios),
            [*_reads(self.subject), *columns(norms, config, self.sites, ratios)],
            {"sites": list(self.sites), "rows": self.rows, "latent_scaling": ratios is not None},
            tables_on_disk={"sites": self._on_disk(norms, ratios)},
            definitions=definitions(config, self.sites, ratios is not None),
        )

    def _on_disk(
        self, norms: Norms, ratios: tuple[NDArray[np.float64], NDArray[np.float64]] | None
    ) -> dict[str, NDArray[np.generic]]:
        """Every latent's norms by site, and the ratios of latent scaling."""
        found: dict[str, NDArray[np.generic]] = {"latent": np.arange(len(self.norms), dtype=np.int32)}
        found |= {f"norm {site}": self.norms[:, place] for place, site in enumerate(self.sites)}
        if len(self.sites) == 2:
            found |= {"relative_norm": norms.relative, "class": norms.classes(self.config).astype(object)}
        if ratios is not None:
            found |= {"nu_error": ratios[0], "nu_reconstruction": ratios[1]}
        return found


def _reads(subject: Subject) -> list[Column]:
    """Which site each latent reads; none where every latent reads all sites."""
    reads = subject.coder.reads
    if reads is None or subject.coder.n_sources == 1:
        return []
    names = np.asarray(parts_of(subject.source))[reads.cpu().numpy()]
    return [
        Column("reads", "reads", "The site that it reads; it writes that layer and later ones.", names.tolist(), "text")
    ]


def named(subject: Subject) -> tuple[str, ...]:
    """The target sites; of several caches each with the name of its own."""
    sites = parts_of(subject.target)
    if not isinstance(subject.cache, CachesBeside):
        return sites
    caches = [subject.cache.path.name, *(other.path.name for other in subject.cache.others)]
    return tuple(f"{site} of {caches[int(mark or 1) - 1]}" for site, _, mark in (one.partition("@") for one in sites))
