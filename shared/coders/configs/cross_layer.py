"""Settings of cross-layer coders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .batchtopk import BatchTopKConfig


@dataclass(frozen=True, kw_only=True)
class CrossLayerConfig(BatchTopKConfig):
    """A latent reads one layer and writes it and all later ones: cross-layer transcoder, weakly causal crosscoder."""

    architecture: Literal["cross-layer"] = "cross-layer"  # type: ignore[assignment]
    latents: int = 1024
    """Dictionary size F over all layers: F/L latents read each of the L source sites."""
    k: int = 16
    """Latents kept per row and layer; with `selection: batchtopk`, on average over a batch."""
    selection: Literal["topk", "batchtopk"] = "batchtopk"
    """How latents are selected, in each layer by itself. threshold_ema and threshold_warmup apply to batchtopk."""
    skip: bool = False
    """Add a linear path from each source to the target of its layer, W_skip [L, d_out, d_in], starting at zero."""

    @property
    def selects_over(self) -> Literal["row", "batch"]:
        return "batch" if self.selection == "batchtopk" else "row"

    def problem(self, sites: int) -> str | None:
        """Why the settings do not fit a number of sites, or None."""
        if self.latents % sites:
            return (
                f"coder.latents = {self.latents} cannot be shared out among {sites} sites: give a multiple of {sites}"
            )
        if max(self.k, self.k_start or 0) > self.latents // sites:
            return f"coder.k = {self.k}, but each of the {sites} sites has {self.latents // sites} latents"
        return None
