"""Settings of the crosscoder report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..base import ReportConfig


@dataclass(frozen=True, kw_only=True)
class CrosscoderConfig(ReportConfig):
    """Of coders of several sites: which sites each latent writes; of two models, what they share."""

    kind: Literal["crosscoder"] = "crosscoder"
    exclusive_above: float = 0.9
    """A latent is exclusive to a site where its relative norm lies at least this far towards it."""
    shared_within: float = 0.1
    """A latent is shared by two sites where its relative norm is at most this far from ½."""
    dense_above: float = 0.1
    """Firing rate (excluding position 0) above which a latent counts as dense."""
    shrunk_above: float = 0.2
    """Latent scaling: ν of the errors above which an exclusive latent is explained by complete shrinkage."""
    decoupled_above: float = 0.5
    """Latent scaling: ν of the reconstruction above which an exclusive latent is explained by latent decoupling."""
    listed: int = 20
    """Exclusive latents that the table lists, those that fire most."""

    def __post_init__(self) -> None:
        if not 0.5 < self.exclusive_above < 1:
            raise ValueError(f"exclusive_above lies between 0.5 and 1, not {self.exclusive_above}")
        if not 0 < self.shared_within < self.exclusive_above - 0.5:
            raise ValueError(f"shared_within lies between 0 and exclusive_above − 0.5, not {self.shared_within}")
        for name in ("dense_above", "shrunk_above", "decoupled_above"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} lies between 0 and 1, not {getattr(self, name)}")
        if self.listed < 1:
            raise ValueError(f"listed must be at least 1, not {self.listed}")
