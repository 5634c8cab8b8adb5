"""Settings of the report of top activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..base import ReportConfig


@dataclass(frozen=True, kw_only=True)
class TopActivationsConfig(ReportConfig):
    """What latents fire on."""

    kind: Literal["top_activations"] = "top_activations"
    needs_tokens: ClassVar[bool] = True
    top: int = 20
    """Examples with the largest activation on ordinary rows, identical contexts once."""
    bands: int = 4
    """Quantile bands of the activation distribution that are shown, strongest first …"""
    per_band: int = 3
    """… with this many examples each."""
    silent: int = 4
    """Rows with the latent's favourite tokens on which it does not fire."""
    sample: int = 64
    """Firings drawn uniformly per latent (excluding position 0), for bands and statistics."""
    raw_top: int = 100
    """Largest activations, repeats included, for the statistics of context diversity."""
    before: int = 20
    """Tokens shown ahead of the peak; also how many must agree for two contexts to be identical."""
    after: int = 8
    """Tokens shown after the peak."""
    silent_rows: int = 20_000
    """Rows of the cache drawn to look for silent examples."""
    lens: int = 10
    """Output tokens that each latent promotes and suppresses most (logit lens), if its model is here; 0: none."""
    specialised_q: float = 0.01
    """False discovery rate of the tests of specialisation."""
    specialised_share: float = 0.1
    """Effect gate: two random firings of a specialised latent agree at least this often (at most ten effective
    labels).
    """

    def __post_init__(self) -> None:
        if min(self.top, self.bands, self.sample, self.raw_top) < 1 or min(self.per_band, self.silent) < 0:
            raise ValueError("top, bands, sample and raw_top are at least 1; per_band and silent at least 0")
        if min(self.before, self.after, self.lens) < 0:
            raise ValueError("before, after and lens are at least 0")
        if self.sample < 8:
            raise ValueError("sample is at least 8: the statistics need something to count")
