"""Settings of the activation samples."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SamplesConfig:
    """The strongest activations of each latent, with their text, collected while training."""

    every: int = 100
    """Steps between batches that are looked at; the last batch is looked at too."""
    per_latent: int = 100
    """Most samples kept of each latent."""
    threshold: float = 0.1
    """Samples are activations above this."""
    context: int = 20
    """Most tokens before the peak, back to the last BOS; samples that agree in them and in the peak are identical."""
    after: int = 8
    """Tokens after the peak, of the same sequence and document."""
    distinct: bool = True
    """Keep one sample of each context, the strongest; false: keep repeats."""
    max_bos_share: float | None = None
    """Largest share of a latent's samples that may lie at position 0 or on massive rows; null: the sampler's, 0.2 where
    it has none."""
    save_latents: int | None = 100
    """Most latents written to samples.json, those with the largest activations on ordinary rows; null: all that have
    samples."""
    save_per_latent: int | None = 10
    """Most samples written of each, the strongest under the same cap; null: all that are kept."""

    def __post_init__(self) -> None:
        for name in ("every", "per_latent", "save_latents", "save_per_latent"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("threshold", "context", "after"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.max_bos_share is not None and not 0 <= self.max_bos_share <= 1:
            raise ValueError(f"max_bos_share: a share in [0, 1], not {self.max_bos_share}")
