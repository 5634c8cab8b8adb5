"""Settings of the analyze stage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from ..shared.config.registry import did_you_mean
from ..shared.errors import UsageError
from ..shared.objects.address import on_this_machine, settled
from .reports import REPORTS, ReportConfig, Reports


def default_report(name: str) -> ReportConfig:
    """A report's default settings."""
    config: ReportConfig = REPORTS.configs()[name]()
    return config


def usual_reports() -> dict[str, ReportConfig]:
    """The reports of `by_default`, with their default settings."""
    return {name: config for name in REPORTS if (config := default_report(name)).by_default}


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """What to report, on which rows, and where to write it."""

    cache: Path | None = None
    """The cache to read: its folder, or its name in harvest.cache_dir; null: the one that each run was trained on."""
    out: Path = Path("reports")
    """Folder of reports."""
    name: str | None = None
    """Name of the report's folder below `out`, in place of any report there; null: from runs, reports and cache."""
    reports: Reports = field(default_factory=usual_reports)
    """Reports to make, by name; null removes one. Only when requested: absorption, probing, scr, tpp,
    description_length, meta_structure."""
    documents: Literal["all", "heldout"] = "all"
    """Documents to analyze: all, or only those that training held out (train.data.heldout)."""
    max_tokens: int | None = None
    """Rows of the cache to analyze, in whole shards spread evenly over it; null: all."""
    controls: bool = True
    """Also measure each run's coder as it was before training."""
    compare: bool = True
    """Compare the latents of several runs: CKA, CCA, matching."""
    baseline: str | None = None
    """Run whose setting the before/after table compares the others with; null: the first run given."""
    nonfinite: Literal["refuse", "skip"] = "refuse"
    """Rows with an infinity or a NaN at the runs' sites: refuse to analyze, or skip them in every figure."""
    checksums: bool = True
    """Compare each chunk file with the checksum in its commit when it is first read."""
    page_latents: int = 32_768
    """Latents of all runs together up to which the page is one file that holds everything. Beyond, what is known of
    each latent is in files beside the page (data/), loaded when they are needed: keep the folder together."""
    processes: int = 1
    """Processes that share the pass, each with shards and pair sums of its own (CPU only)."""
    device: str = "auto"
    """Where coders run: cpu, cuda, or auto. Pairs of latents are summed on the CPU."""
    seed: int = 0
    """Seed of the nulls and samples."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", None if self.cache is None else settled(self.cache))
        object.__setattr__(self, "out", on_this_machine("out", self.out))
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=%#,-]*", self.name):
            plain = re.sub(r"[^A-Za-z0-9._+=%#,-]+", "-", self.name).strip("-.") or "report"
            allowed = "letters, digits and . _ + - = % # and commas"
            raise ValueError(f"name: expected only {allowed}, found {self.name!r}; try {plain!r} (analyze.out: where)")
        if not self.reports:
            raise ValueError(f"at least one report is required, of {', '.join(REPORTS)}")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if self.page_latents < 0:
            raise ValueError(f"page_latents must be at least 0, not {self.page_latents}")
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1, not {self.processes}")
        if self.device not in ("auto", "cpu") and not self.device.startswith("cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, not {self.device!r}")


def only_reports(config: AnalyzeConfig, only: Sequence[str]) -> AnalyzeConfig:
    """The settings with these reports only; unchanged if `only` is empty. Raises UsageError for an unknown one."""
    if not only:
        return config
    known = {**dict.fromkeys(config.reports), **dict.fromkeys(REPORTS)}
    unknown = [name for name in only if name not in known]
    if unknown:
        close = did_you_mean(unknown[0], known)
        raise UsageError(f"--only {unknown[0]}: no such report{close}", f"one of: {', '.join(known)}")
    # One that config.reports lacks gets its default settings.
    kept = {name: config.reports.get(name) or default_report(name) for name in known if name in only}
    return replace(config, reports=kept)
