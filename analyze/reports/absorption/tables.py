"""Charts, tables and columns of the absorption report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from ...probes.intervals import Estimate
from ...probes.labels import family_of
from ...result import Chart, Column, Series, Table, TableColumn, significant
from .outcome import FamilyAbsorption, LabelAbsorption

LISTED = 100
"""Labels in the table of labels; report.json has all."""

LETTERS = "first_letter"
"""The family of the published task."""

CHARTED = 40
"""Labels in the chart."""


def charts(labels: Sequence[LabelAbsorption]) -> list[Chart]:
    """Rates by label; no chart where no label is evaluable."""
    shown = [label for label in labels if label.full is not None][:CHARTED]
    if not shown:
        return []
    return [
        Chart(
            "absorption_by_label",
            "Absorption by label",
            "Evaluable labels. Upper bound: only the first main latent counts as one, so feature splits count as "
            "absorption.",
            [label.label for label in shown],
            [
                Series("full", [label.full.value if label.full else None for label in shown]),
                Series("fraction", [label.fraction.value if label.fraction else None for label in shown], "reference"),
                Series(
                    "upper bound", [label.full_first.value if label.full_first else None for label in shown], "null"
                ),
            ],
            "label",
            "share of true positives",
        )
    ]


def family_table(families: Sequence[FamilyAbsorption]) -> Table:
    """One row per family."""
    rows = [
        [
            family.family,
            family.status,
            family.full.value if family.full else None,
            interval_text(family.full),
            family.fraction.value if family.fraction else None,
            interval_text(family.fraction),
            family.full_first.value if family.full_first else None,
            family.mean_main_latents,
            f"{family.n_probed} of {len(family.labels)}",
            family.n_evaluable,
            family.true_positives,
            family.reason,
        ]
        for family in families
    ]
    return Table(
        "absorption_families",
        "Families of labels",
        "Means over evaluable labels. A family that the activations do not represent, or that the coder has no latents "
        "for, has no rate: an untrained coder would get 0.",
        [
            TableColumn("family", "text"),
            TableColumn("status", "text"),
            TableColumn("full", "percent", "No main latent fires, and one other latent carries the direction."),
            TableColumn("95 %", "text"),
            TableColumn("fraction", "percent", "Mean share of the direction that other latents carry."),
            TableColumn("95 %", "text"),
            TableColumn("upper bound", "percent", "Full absorption if only the first main latent counts as one."),
            TableColumn("main latents", "number", "Mean per label; more than 1 is feature splitting."),
            TableColumn("labels", "text", "Labels whose dense probe passes the gate."),
            TableColumn(
                "with latents", "integer", "Of those, labels for which the coder has latents: the evaluable ones."
            ),
            TableColumn("true positives", "integer"),
            TableColumn("why not", "remark"),
        ],
        rows,
        len(rows),
    )


def label_table(labels: Sequence[LabelAbsorption]) -> Table:
    """One row per label, most absorbed first; at most LISTED."""
    ordered = sorted(labels, key=lambda label: -(label.full.value if label.full else -1))
    rows = [
        [
            label.label,
            label.full.value if label.full else None,
            interval_text(label.full),
            label.fraction.value if label.fraction else None,
            label.full_first.value if label.full_first else None,
            label.main_silent,
            label.true_positives,
            label.probe.f1,
            label.sparse.f1 if label.sparse else None,
            list(label.main_latents),
            [absorber.latent for absorber in label.absorbers[:5]],
            label.positive_projection,
            "" if label.evaluable else label.status,
        ]
        for label in ordered[:LISTED]
    ]
    return Table(
        "absorption_labels",
        "Labels",
        "One row per label, most absorbed first. Latents and probe scores are of the first split.",
        [
            TableColumn("label", "text"),
            TableColumn("full", "percent"),
            TableColumn("95 %", "text"),
            TableColumn("fraction", "percent"),
            TableColumn("upper bound", "percent"),
            TableColumn(
                "main silent", "percent", "True positives on which no main latent fires, whether absorbed or missed."
            ),
            TableColumn("true positives", "integer"),
            TableColumn("probe F1", "number", "Dense probe, held-out rows."),
            TableColumn("main F1", "number", "Probe of the main latents alone, held-out rows."),
            TableColumn("main latents", "latents"),
            TableColumn("stand in", "latents", "Latents that absorb fully, most rows first."),
            TableColumn(
                "a > 0", "percent", "True positives with a positive projection; only there can absorption be detected."
            ),
            TableColumn("why not", "remark"),
        ],
        rows,
        len(ordered),
        "report.json, data.families",
    )


def letter_table(families: Sequence[FamilyAbsorption], positives: Mapping[str, int], min_positives: int) -> list[Table]:
    """The published first-letter task: a row per letter, in order of the alphabet. [] without that family.

    Args:
        positives: label → number of positive rows in the sample, of all labels that the sample was given.
        min_positives: letters with fewer are not probed.
    """
    found = {label.label: label for family in families if family.family == LETTERS for label in family.labels}
    letters = [name for name in positives if family_of(name) == LETTERS]
    rows = []
    for name in letters:
        label = found.get(name)
        if label is None:
            few = f"no: fewer than {min_positives} positive or negative rows, or none in a part of a split"
            rows.append([name.split(":")[1], positives[name], None, few, None, "", None, None])
            continue
        rows.append(
            [
                name.split(":")[1],
                positives[name],
                label.probe.f1,
                "yes" if label.evaluable else f"no: {label.status}",
                label.full.value if label.full else None,
                interval_text(label.full),
                label.true_positives,
                len(label.main_latents),
            ]
        )
    counted = sum(label.evaluable for label in found.values())
    description = f"{counted} of {len(letters)} letters are evaluable; the headline is their mean."
    columns = [
        TableColumn("letter", "text"),
        TableColumn("positives", "integer", "Rows of the sample whose word begins with it."),
        TableColumn("probe F1", "number", "Dense probe, held-out rows."),
        TableColumn("evaluable", "text"),
        TableColumn("full", "percent", "No main latent fires, and one other latent carries the direction."),
        TableColumn("95 %", "text"),
        TableColumn("true positives", "integer", "Held-out rows that the dense probe finds, of all splits."),
        TableColumn("main latents", "integer", "More than one is feature splitting."),
    ]
    if not letters:
        return []
    return [Table("absorption_letters", "First letters", description, columns, rows, len(rows))]


def columns(labels: Sequence[LabelAbsorption], n_latents: int) -> list[Column]:
    """For each latent, the labels it is a main latent of, and on how many true positives it absorbs."""
    main: dict[int, list[str]] = {}
    absorbs: Counter[int] = Counter()
    for label in labels:
        if not label.evaluable:
            continue
        for latent in label.main_latents:
            main.setdefault(latent, []).append(label.label)
        for absorber in label.absorbers:
            absorbs[absorber.latent] += absorber.rows
    counts = np.zeros(n_latents, np.int64)
    counts[list(absorbs)] = list(absorbs.values())
    return [
        Column(
            "main_of",
            "label",
            "Labels for which this latent is a main latent.",
            [", ".join(main.get(latent, ())) for latent in range(n_latents)],
            "text",
            shown=False,
            without="none",
        ),
        Column(
            "absorbs",
            "absorbs",
            "True positives on which it absorbs fully: all main latents are silent.",
            counts,
            "integer",
            shown=False,
        ),
    ]


def interval_text(value: Estimate | None) -> str:
    """A 95 % interval in per cent; "" for None."""
    return "" if value is None else f"{significant(100 * value.low)}–{significant(100 * value.high)} %"
