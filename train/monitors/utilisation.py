"""How much of the dictionary is in use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from .base import Finding, Monitor, MonitorConfig, Seen

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


@dataclass(frozen=True, kw_only=True)
class UtilisationConfig(MonitorConfig):
    """Latents in use, and dead ones."""

    kind: Literal["utilisation"] = "utilisation"
    dense_above: float = 0.1
    """Firing rate above which a latent counts as dense."""

    def __post_init__(self) -> None:
        if not 0 < self.dense_above <= 1:
            raise ValueError(f"dense_above: a rate in (0, 1], not {self.dense_above}")


class UtilisationMonitor(Monitor):
    """Which latents fired in the window, how often, and how evenly the firings are spread over them."""

    config_class: ClassVar[type[MonitorConfig]] = UtilisationConfig
    config: UtilisationConfig

    def look(self, seen: Seen) -> Finding:
        fired, n_rows = seen.codes.fired, seen.codes.n_rows
        rate = fired / max(n_rows, 1)
        shares = fired[fired > 0] / max(fired.sum(), 1)
        return Finding(
            {
                "active": int((fired > 0).sum()),
                "share": float((fired > 0).mean()),
                "dead": int(seen.coder.dead.sum()),
                "dense": int((rate > self.config.dense_above).sum()),
                # As many latents, firing equally often, would have the same entropy.
                "effective": float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else None,
            },
            {
                "rows": n_rows,
                "firing_rate": {
                    f"{q:g}": float(value) for q, value in zip(QUANTILES, np.quantile(rate, QUANTILES), strict=True)
                },
            },
        )
