"""Explanations as data, and as a table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..shared.config.settings import to_dict
from ..shared.console import count, duration
from ..shared.provenance import provenance
from ..shared.runs.explanations import SCORES
from ..shared.runs.folder import Run
from ..shared.text_table import legend, text_table
from .config import ExplainConfig
from .judges.base import Judge, Label
from .prepare import Prepared
from .scores import Score, mean

CONTROLS = {"shuffled": "another latent's label", "random": "a label of random windows"}
"""Control → what it is."""


@dataclass(frozen=True)
class ExplainResult:
    """Explanations as they were written.

    Attributes:
        path: the file.
        document: its content.
    """

    path: Path
    document: dict[str, Any] = field(repr=False)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The --json document: the file's content and where it lies."""
        return {"explanations": str(self.path), **self.document, "seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        summary, judge = self.document["summary"], self.document["judge"]["name"]
        rows = [[name, *(_mean(summary[name][whose]) for whose in ("own", *CONTROLS))] for name in SCORES]
        header = ["balanced accuracy", "own label", *(f"{name} label" for name in CONTROLS)]
        table = "\n".join([text_table(rows, header), legend([*header, *SCORES])])
        best = sorted(
            (one for one in self.document["latents"] if one["detection"]),
            key=lambda one: -one["detection"]["value"],
        )[:5]
        lines = [f"  {one['latent']:>6}  {one['detection']['value']:.2f}  {one['label']}" for one in best]
        missing = self.document["not_explained"]
        more = ", …" if len({one["why"] for one in missing}) > 1 else ""
        lacking = [f"not explained: {count(len(missing), 'latent')} ({missing[0]['why']}{more})"] if missing else []
        head = f"{count(len(self.document['latents']), 'latent')} labelled by {judge}"
        shown = ["latents that their labels tell best (detection):", *lines] if lines else []
        return "\n".join([head, table, *shown, *lacking, f"explanations: {self.path} ({duration(self.seconds)})"])


def document_of(
    run: Run,
    config: ExplainConfig,
    judge: Judge,
    prepared: Prepared,
    labels: Mapping[tuple[str, int], Label],
    scores: Mapping[tuple[str, int, str], Score | None],
) -> dict[str, Any]:
    """The content of explanations.json, without its version and seal."""

    def scored(whose: str, latent: int) -> dict[str, Any]:
        found = {name: scores.get((whose, latent, name)) for name in SCORES}
        return {name: None if one is None else one.to_dict() for name, one in found.items()}

    latents = [
        {
            "latent": latent,
            "label": labels["own", latent].text,
            **scored("own", latent),
            "controls": {
                whose: {"label": labels[whose, latent].text, **scored(whose, latent)}
                for whose in CONTROLS
                if (whose, latent) in labels
            },
            "learned_from": len(prepared.examples[latent].lesson.active),
        }
        for latent in prepared.examples
        if ("own", latent) in labels
    ]
    unlabelled = {latent: "the judge gave no label" for latent in prepared.examples if ("own", latent) not in labels}
    return {
        "run": run.name,
        "coder_sha256": run.final["sha256"],
        "cache": run.final.get("cache") if config.cache is None else {"path": str(config.cache)},
        "judge": {"name": judge.name, **to_dict(config.judge)},
        "settings": to_dict(replace(config, cache=None)),
        "rows": prepared.rows,
        "spent": judge.spent(),
        "summary": _summary(scores, config.seed),
        "latents": latents,
        "not_explained": [{"latent": latent, "why": why} for latent, why in {**prepared.too_few, **unlabelled}.items()],
        "made_with": provenance(),
    }


def _summary(scores: Mapping[tuple[str, int, str], Score | None], seed: int) -> dict[str, Any]:
    """Score → whose label → the mean over latents; and own less shuffled, over the latents that have both."""

    def values(whose: str, name: str) -> dict[int, float]:
        return {latent: one.value for (w, latent, n), one in scores.items() if one and (w, n) == (whose, name)}

    out: dict[str, Any] = {}
    for name in SCORES:
        found = {whose: values(whose, name) for whose in ("own", *CONTROLS)}
        beyond = [found["own"][latent] - value for latent, value in found["shuffled"].items() if latent in found["own"]]
        out[name] = {whose: mean(list(some.values()), seed) for whose, some in found.items()}
        out[name]["own_less_shuffled"] = mean(beyond, seed)
    return out


def _mean(found: Mapping[str, Any] | None) -> str:
    return "–" if found is None else f"{found['value']:.3f} ({found['low']:.3f} … {found['high']:.3f})"
