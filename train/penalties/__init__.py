"""Penalties: one per file, one line in PENALTIES. They compose with every architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shared.registry import keyed
from train.penalties.base import Penalty, PenaltyConfig, StepBatch
from train.penalties.decoder_orthogonality import DecoderOrthogonality

__all__ = ["PENALTIES", "Penalties", "Penalty", "PenaltyConfig", "StepBatch", "build_penalty"]

PENALTIES: dict[str, type[Penalty]] = {
    "decoder_orthogonality": DecoderOrthogonality,
}

if TYPE_CHECKING:
    Penalties = dict[str, PenaltyConfig]
else:
    Penalties = keyed({name: penalty.config_class for name, penalty in PENALTIES.items()})


def build_penalty(config: PenaltyConfig) -> Penalty:
    """The penalty that the settings name."""
    return PENALTIES[config.kind](config)
