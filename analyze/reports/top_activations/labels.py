"""The labels that explanations give a run's latents, as columns and as a block of a latent's panel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....shared.runs.explanations import SCORES, Explanations
from ...result import Column


def label_columns(explanations: Explanations | None, n_latents: int) -> list[Column]:
    """Label and scores of each latent; none without explanations."""
    if explanations is None:
        return []
    by = f"By {explanations.judge} (`pipeline explain`)"
    texts = [explanations.labels.get(latent, "") for latent in range(n_latents)]
    return [
        Column("label", "label", f"What it fires on, in one line. {by}.", texts, format="text"),
        *(
            Column(
                name,
                name,
                f"Balanced accuracy of a judge who has the label alone, on held-out text; ½ is chance. {by}.",
                values,
                format="percent",
            )
            for name, values in _scores(explanations, n_latents).items()
        ),
    ]


def labels_on_disk(explanations: Explanations | None, n_latents: int) -> dict[str, NDArray[Any]]:
    """The same for latents.parquet."""
    if explanations is None:
        return {}
    texts = np.array([explanations.labels.get(latent, "") for latent in range(n_latents)])
    return {"label": texts, **_scores(explanations, n_latents)}


def _scores(explanations: Explanations, n_latents: int) -> dict[str, NDArray[np.float64]]:
    out = {name: np.full(n_latents, np.nan) for name in SCORES}
    for latent, one in explanations.by_latent.items():
        for name in SCORES:
            if one[name] is not None:
                out[name][latent] = one[name]["value"]
    return out


def label_block(explanations: Explanations | None, latent: int) -> list[dict[str, Any]]:
    """The block of one latent: its label, and its scores beside the controls; none without a label."""
    found = None if explanations is None else explanations.by_latent.get(latent)
    if explanations is None or found is None:
        return []
    rows = [
        [name, _spelt(found[name]), *(_spelt(found["controls"].get(c, {}).get(name)) for c in ("shuffled", "random"))]
        for name in SCORES
    ]
    return [
        {
            "type": "table",
            "title": f"Label: {found['label']}",
            "note": f"by {explanations.judge}; balanced accuracy on held-out text, ½ is chance",
            "columns": [
                ["score", "text"],
                ["this label", "text"],
                ["another latent's", "text"],
                ["of random windows", "text"],
            ],
            "rows": rows,
        }
    ]


def _spelt(score: Mapping[str, Any] | None) -> str:
    return "–" if score is None else f"{score['value']:.0%} ({score['low']:.0%} … {score['high']:.0%})"
