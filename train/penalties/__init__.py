"""Penalties added to the loss: one per file, its settings in configs/, one line in PENALTIES.

They work with every architecture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...shared.config.registry import Registry, keyed
from ...shared.lazy import lazily
from .configs.activation_correlation import ActivationCorrelationConfig
from .configs.base import PenaltyConfig
from .configs.decoder_orthogonality import DecoderOrthogonalityConfig
from .configs.massive_rows import MassiveRowsConfig
from .configs.ortsae import OrtSAEConfig
from .configs.position_diversity import PositionDiversityConfig
from .configs.self_contrastive import SelfContrastiveConfig
from .configs.topk_pairs import TopkPairsConfig
from .configs.tracked_pairs import TrackedPairsConfig

if TYPE_CHECKING:
    from .base import Merges, Penalty, StepBatch

__all__ = ["PENALTIES", "Merges", "Penalties", "Penalty", "PenaltyConfig", "StepBatch", "build_penalty"]

PENALTIES: Registry[type[Penalty]] = Registry(
    __package__,
    {
        "decoder_orthogonality": (DecoderOrthogonalityConfig, "decoder_orthogonality.DecoderOrthogonality"),
        "ortsae": (OrtSAEConfig, "ortsae.OrtSAE"),
        "activation_correlation": (ActivationCorrelationConfig, "activation_correlation.ActivationCorrelation"),
        "position_diversity": (PositionDiversityConfig, "position_diversity.PositionDiversity"),
        "topk_pairs": (TopkPairsConfig, "topk_pairs.TopkPairs"),
        "tracked_pairs": (TrackedPairsConfig, "tracked_pairs.TrackedPairs"),
        "massive_rows": (MassiveRowsConfig, "massive_rows.MassiveRows"),
        "self_contrastive": (SelfContrastiveConfig, "self_contrastive.SelfContrastive"),
    },
)

if TYPE_CHECKING:
    Penalties = dict[str, PenaltyConfig]
else:
    Penalties = keyed(PENALTIES.configs())


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is first used."""
    return lazily(__name__, name, {"Merges": "base", "Penalty": "base", "StepBatch": "base"})


def build_penalty(config: PenaltyConfig) -> Penalty:
    """The penalty that the settings name."""
    return PENALTIES[config.kind](config)
