"""Several runs side by side: their figures before and after, the frontier, and how alike their latents are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..result import Chart, Number, Role, Series, chart_dict, plain, show, table_dict
from ..subject.analysed import Analysed
from .likeness import DEFINITIONS, pairs_of, sharing, similarity_table
from .sample import SampledCodes
from .seeds import baseline_first, before_after, figures_over_seeds, group_runs
from .similarity import Matching
from .tuning import tuning_table

ROLES: tuple[tuple[str, str, Role], ...] = (("run", "runs", "data"), ("control", "controls", "null"))
"""(role of a run, what a legend calls it, its colour)."""

FVU = {"heldout_fvu": "Held-out FVU", "fvu": "FVU"}
"""The FVU that runs are compared by, the first that all of them have, and what a reader sees."""


@dataclass(frozen=True)
class Comparison:
    """The comparison as plain data for every renderer: {"title", "lead", "charts", "tables", "data"}.

    `matches`: run → (other run, their matching, whether this run is its second), for links from latent to latent.
    """

    document: dict[str, Any]
    definitions: list[tuple[str, str]]
    matches: dict[str, list[tuple[str, Matching, bool]]] = field(default_factory=dict)


def compare(
    analysed: Sequence[Analysed], samples: Mapping[str, SampledCodes], baseline: str | None = None
) -> Comparison | None:
    """Compare the trained runs (and, by activations, the untrained controls); None for fewer than two trained ones.

    Args:
        samples: drawn codes by name; coders of different caches (or of one before and after it grew) have no rows in
            common.
        baseline: the run whose setting the others are compared with; None: the first.
    """
    trained = [one for one in analysed if one.facts["trained"]]
    if len(trained) < 2:
        return None
    groups = baseline_first(group_runs(trained), baseline)
    pairs = pairs_of(groups, [one for one in analysed if not one.facts["trained"]], samples)
    estimates = figures_over_seeds(groups)
    tables = [table for table in [before_after(groups), tuning_table(trained)] if table is not None and table.rows]
    if pairs:
        tables.append(similarity_table(pairs))
    charts = [_pairs_chart(trained), _frontier(analysed)]
    data = {
        "groups": {label: [one.subject.name for one in members] for label, members in groups.items()},
        "pairs": [pair.to_dict() for pair in pairs],
        "before_after": estimates,
    }
    document = {
        "title": "Comparison",
        "lead": " ".join([*_leads(list(groups), estimates), *sharing(pairs)]),
        "charts": [chart_dict(chart) for chart in charts if chart is not None],
        "tables": [table_dict(table) for table in tables],
        "data": plain(data),
    }
    matches: dict[str, list[tuple[str, Matching, bool]]] = {}
    for pair in pairs:
        if pair.matching is not None:
            matches.setdefault(pair.a, []).append((pair.b, pair.matching, False))
            matches.setdefault(pair.b, []).append((pair.a, pair.matching, True))
    return Comparison(document, DEFINITIONS, matches)


def _leads(labels: Sequence[str], estimates: Mapping[str, Any]) -> list[str]:
    """Pairs and FVU of every setting, in words; nothing where there is one setting alone."""
    out = []
    if "n_pairs_above" in estimates and len(labels) > 1:
        pairs, with_bos = estimates["n_pairs_above"], estimates.get("n_pairs_above_with_bos")
        counts = (
            f"{label} {show(pairs[label]['mean'])}"
            + (f" (including position 0: {show(with_bos[label]['mean'])})" if with_bos else "")
            for label in labels
            if label in pairs
        )
        out.append(f"Correlated pairs: {', '.join(counts)}.")
    key = "heldout_fvu" if set(labels) == estimates.get("heldout_fvu", {}).keys() else "fvu"
    if key in estimates and len(labels) > 1:
        fvu = (f"{label} {show(found['mean'])}" for label, found in estimates[key].items())
        out.append(f"{FVU[key]}: {', '.join(fvu)}.")
    return out


def _value(one: Analysed, key: str) -> Number:
    """A figure's value, or its twin's by the twin's key; None where the run has none."""
    return one.summary.get(key)


def _pairs_chart(runs: Sequence[Analysed]) -> Chart | None:
    values = [_value(one, "n_pairs_above") for one in runs]
    if any(value is None for value in values):
        return None
    return Chart(
        "pairs_above",
        "Correlated pairs",
        "Pairs of latents beyond the threshold in each run. The difference between the bars is position 0 alone.",
        [one.subject.name for one in runs],
        [
            Series("excluding position 0", values),
            Series("including position 0", [_value(one, "n_pairs_above_with_bos") for one in runs], "with_bos"),
        ],
        x_label="run",
        y_label="pairs",
    )


def _frontier(runs: Sequence[Analysed]) -> Chart | None:
    trained = [one for one in runs if one.facts["trained"]]
    key = "fvu" if any(_value(one, "heldout_fvu") is None for one in trained) else "heldout_fvu"
    points = [(one.subject.name, one.subject.role, _value(one, "l0"), _value(one, key)) for one in trained]
    points = [point for point in points if point[2] is not None and point[3] is not None]
    if not points:
        return None
    points.sort(key=lambda point: float(point[2] or 0))
    return Chart(
        "frontier",
        "Reconstruction against sparsity",
        f"{FVU[key]} over L0, excluding position 0; nearer to the corner is better. Controls are grey.",
        [float(l0 or 0) for _, _, l0, _ in points],
        [
            Series(role, [fvu if r == name else None for _, r, _, fvu in points], colour)
            for name, role, colour in ROLES
            if any(r == name for _, r, _, _ in points)
        ],
        x_label="L0",
        y_label=FVU[key],
        kind="scatter",
        labels=[name for name, _, _, _ in points],
    )
