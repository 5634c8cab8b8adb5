"""Settings of the explain stage."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from ..shared.objects.address import settled
from .judges import AnyJudgeConfig, RuleConfig


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Which latents are explained, from which examples, by which judge."""

    judge: AnyJudgeConfig = field(default_factory=RuleConfig)
    """Who labels latents and is scored with the labels: rule, endpoint or local."""
    cache: Path | None = None
    """The cache to take examples from: its folder, its address in object storage, or its name in harvest.cache_dir;
    null: the run's own."""
    name: str | None = None
    """Name of the folder of explanations in the run's folder; null: the judge or its model."""
    count: int = 64
    """Latents to explain, evenly by firing rate, of those that fire."""
    latents: tuple[int, ...] | None = None
    """These latents; null: `count` of them."""
    controls: int = 32
    """Latents, of those explained, that are also scored with another latent's label and with a label of nothing."""
    max_tokens: int | None = 1_000_000
    """Rows of the cache to take examples from, in whole shards spread evenly over it; null: all."""
    before: int = 23
    """Tokens of a window ahead of the peak."""
    after: int = 8
    """Tokens of a window after the peak."""
    learn: int = 40
    """Windows with activations that a label is learned from: half of them the strongest, the others evenly by rank."""
    learn_silent: int = 40
    """Windows without activations shown beside them, the most similar ones first."""
    test: int = 50
    """Held-out windows with activations, evenly by rank, and as many without: half of these similar, half random."""
    least: int = 10
    """Fewest windows of each kind; a latent with fewer is not explained."""
    threshold: float = 0.3
    """Tokens are marked from this share of the window's largest activation on."""
    max_requests: int = 10_000
    """Most requests to a language model in one command."""
    max_cost: float = 1.0
    """Most that one command may cost, in the currency of the judge's prices; needs judge.price_in and price_out."""
    device: str = "auto"
    """Where the coder, and a local judge, run: cpu, cuda, or auto."""
    seed: int = 0
    """Seed of what is drawn: windows without activations, the order of questions, controls."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", None if self.cache is None else settled(self.cache))
        if self.count < 1 or self.least < 2 or min(self.learn, self.test) < self.least:
            raise ValueError("count is at least 1, least at least 2, learn and test at least `least`")
        if min(self.before, self.after, self.learn_silent, self.controls, self.max_requests) < 0:
            raise ValueError("before, after, learn_silent, controls and max_requests are at least 0")
        if self.latents is not None and (not self.latents or min(self.latents) < 0):
            raise ValueError("latents lists numbers from 0 on")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 < self.threshold <= 1 or self.max_cost < 0:
            raise ValueError("threshold lies between 0 and 1, max_cost is at least 0")
        if self.name is not None and not re.fullmatch(r"[\w-][\w.-]*", self.name):
            raise ValueError(f"name: {self.name!r} cannot name a folder: letters, digits, dots, hyphens")

    @property
    def folder(self) -> str:
        """Name of the folder of explanations."""
        return self.name or self.judge.folder
