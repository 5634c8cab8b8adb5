"""The class of a coder that several processes train, and how they share out its steps."""

from __future__ import annotations

from ...shared.coders import Coder
from ...shared.coders.registry import ARCHITECTURES
from ..config import TrainConfig
from .base import Sharing
from .latents import LatentSharing, Slice, sliced
from .peers import Peers
from .rows import RowSharing, sharing_rows


def class_of(config: TrainConfig, peers: Peers | None) -> type[Coder]:
    """The architecture's class, for training with `peers`."""
    kind = ARCHITECTURES[config.coder.architecture]
    if peers is None:
        return kind
    return sliced(kind, peers) if config.parallel == "latents" else sharing_rows(kind, peers)


def sharing_of(coder: Coder, peers: Peers | None) -> Sharing | None:
    """How its steps are shared out; None: one process trains it."""
    if peers is None:
        return None
    return LatentSharing(peers, coder) if isinstance(coder, Slice) else RowSharing(peers, coder)
