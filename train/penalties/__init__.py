"""Penalties added to the loss: one per file, one line in PENALTIES. They work with every architecture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...shared.config.registry import keyed
from .activation_correlation import ActivationCorrelation
from .base import Penalty, PenaltyConfig, StepBatch
from .decoder_orthogonality import DecoderOrthogonality
from .ortsae import OrtSAE
from .position_diversity import PositionDiversity
from .self_contrastive import SelfContrastive
from .topk_pairs import TopkPairs
from .tracked_pairs import TrackedPairs

__all__ = ["PENALTIES", "Penalties", "Penalty", "PenaltyConfig", "StepBatch", "build_penalty"]

PENALTIES: dict[str, type[Penalty]] = {
    "decoder_orthogonality": DecoderOrthogonality,
    "ortsae": OrtSAE,
    "activation_correlation": ActivationCorrelation,
    "position_diversity": PositionDiversity,
    "topk_pairs": TopkPairs,
    "tracked_pairs": TrackedPairs,
    "self_contrastive": SelfContrastive,
}

if TYPE_CHECKING:
    Penalties = dict[str, PenaltyConfig]
else:
    Penalties = keyed({name: penalty.config_class for name, penalty in PENALTIES.items()})


def build_penalty(config: PenaltyConfig) -> Penalty:
    """The penalty that the settings name."""
    return PENALTIES[config.kind](config)
