"""The charts of the report of top activations."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...result import Chart, Series
from .config import TopActivationsConfig
from .statistics import Statistics


def charts(s: Statistics, config: TopActivationsConfig) -> list[Chart]:
    """How often latents fire, and on how many different tokens."""
    return [_density(s), _effective_tokens(s, config.sample)]


def _density(s: Statistics) -> Chart:
    decades = np.arange(-6, 0.001, 0.25)

    def histogram(density: NDArray[np.float64]) -> list[int]:
        some = density[s.alive & (density > 0)]
        counts: list[int] = np.histogram(np.clip(np.log10(some), -6, 0), decades)[0].tolist()
        return counts

    return Chart(
        "density",
        "How often latents fire",
        "Latents by the share of rows on which they fire (powers of ten).",
        decades.round(2).tolist(),
        [
            Series("excluding position 0", histogram(s.density)),
            Series("including position 0", histogram(s.density_all), "with_bos"),
        ],
        x_label="log₁₀ of the firing rate",
        y_label="latents",
    )


def _effective_tokens(s: Statistics, sample: int) -> Chart:
    effective = s.tokens.effective[np.isfinite(s.tokens.effective)]
    edges = np.linspace(0, sample, 33)
    null = 1 / max(s.tokens.base, 1 / sample)
    return Chart(
        "effective_tokens",
        "On how many different tokens",
        f"Effective number of tokens that a latent fires on (1 / the chance that two of its firings fall on the same "
        f"one; {sample} firings each). Rows drawn at random from the corpus: {null:.1f}.",
        edges.round(2).tolist(),
        [Series("latents", np.histogram(effective, edges)[0].tolist())],
        x_label="effective tokens",
        y_label="latents",
        marks=[(min(null, sample), "random rows")],
    )
