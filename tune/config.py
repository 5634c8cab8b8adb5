"""Settings of end-to-end tuning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..shared.objects.address import on_this_machine

MOST_TOKENS = 4_000_000
RANK = 16


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """End-to-end tuning: a finished coder is trained on, in the running model."""

    run: Path | None = None
    """The run to tune: its folder, or its name in train.runs. The command's RUN."""
    name: str | None = None
    """Name of the new run, beside the one that is tuned; null: RUN-tuned."""
    update: Literal["full", "encoder", "decoder", "lora"] = "full"
    """What moves: every parameter; those of the encoder; those of the decoder, with the codes as they are; or a product
    of two thin matrices added to encoder and decoder each, merged at the end."""
    rank: int | None = None
    """lora: rank of each product; null: 16."""
    beta: float = 1.0
    """Weight β of the KL divergence against the squared error; 0: the squared error alone."""
    tokens: int | None = None
    """Rows to train on, rounded up to whole steps; null: 4 million, or one pass over the training documents if that is
    shorter."""
    sequences: int = 8
    """Sequences of the cache in one step."""
    lr: float | None = None
    """Peak learning rate of Adam; it rises over the first twentieth of the steps, then falls to 0 along a line. Null:
    1e-4 / √(latents / 2^14), and ten times that with lora."""
    grad_clip: float | None = 1.0
    """Largest global norm of the gradient; null: no clipping."""
    seed: int = 0
    """Seed of the order of the sequences and of the thin matrices of lora."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the model; auto: as the harvest ran it. The coder stays float32."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto: cuda if available, else cpu."""
    model: str | None = None
    """A checkpoint in place of the one that the run's cache names; null: that one. It is checked either way."""
    eval_sequences: int = 64
    """Sequences that the figures before and after come from, spread evenly over those with held-out rows."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    keep_checkpoints: int | None = 1
    """How many checkpoints to keep on disk, the newest; null: all."""

    def __post_init__(self) -> None:
        if self.run is not None:
            object.__setattr__(self, "run", on_this_machine("run", self.run))
        for name in ("sequences", "eval_sequences", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("rank", "tokens", "keep_checkpoints"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1 (or null), not {value}")
        for name in ("lr", "grad_clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive (or null), not {value}")
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta must be 0 or more, not {self.beta}")
        if self.rank is not None and self.update != "lora":
            raise ValueError(f"rank: {self.rank} does nothing with update: {self.update}; set update: lora")

    @property
    def rank_in_use(self) -> int:
        return RANK if self.rank is None else self.rank

    def rate(self, step: int, total_steps: int, latents: int) -> float:
        """The learning rate of update number `step` (1 … total_steps)."""
        peak = self.lr
        if peak is None:
            peak = (10 if self.update == "lora" else 1) * 1e-4 / math.sqrt(latents / 2**14)
        warmup = max(1, total_steps // 20)
        return peak * min(step / warmup, (total_steps - step + 1) / (total_steps - warmup + 1))


OPERATIONAL = ("run", "name", "device", "model", "log_every", "checkpoint_every", "keep_checkpoints")
"""Settings that a resumed run may change: they do not affect the weights."""
