"""What absorption gives for a label and for a family of labels, and the gates that decide whether it gives a rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...probes.intervals import Estimate
from ...probes.scores import Scores

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Gates:
    """When a label and a family are evaluable.

    Attributes:
        probe_f1: F1 that a label's dense probe must exceed on held-out rows.
        true_positives: number of held-out true positives that the probe needs.
        labels: family → number of labels that must pass the dense probe; other families need one.
        coder_mcc: Matthews correlation (of their k-sparse probe, held-out rows) from which the coder counts as having
            latents for a label. Chance has 0, the best few of 2,048 random latents up to 0.3 (measured), and a parent
            that is silent on 90 % of its rows still 0.3.
        coder_share_of_a: share of the projection on the probe that the main latents must carry where they fire (median
            of true positives); at least twice what chance gives (:func:`~.rates.least_share`). A few random latents can
            tell a common label's rows by MCC, but they write next to nothing of its direction. 0: no such gate.
        coder_share: of the labels that pass the dense probe, the share for which the coder must have latents.
    """

    probe_f1: float = 0.6
    true_positives: int = 10
    labels: Mapping[str, int] = field(default_factory=lambda: {"first_letter": 20})
    coder_mcc: float = 0.3
    coder_share_of_a: float = 0.05
    coder_share: float = 0.5


@dataclass(frozen=True)
class Absorber:
    """A latent that fully absorbs a label on `rows` true positives; `cosine`: of its decoder row and the probe."""

    latent: int
    rows: int
    cosine: float


class Rows(NamedTuple):
    """The three measures on n true positives, all [n]: those of :class:`LabelAbsorption`."""

    full: Doubles
    fraction: Doubles
    full_first: Doubles

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of several splits, one after another."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@dataclass(frozen=True)
class LabelAbsorption:
    """Absorption of one label. Rates are None unless the label is evaluable.

    Attributes:
        status: "evaluable", or why not.
        probed: whether the dense probe passes its gate.
        probe: scores of the dense probe.
        sparse: scores of the main latents' probe; None where no latent has a positive weight.
        main_latents: more than one is feature splitting.
        main_cosines: of their decoder rows with the probe.
        true_positives: number of held-out true positives of the dense probe.
        full, fraction: rates with intervals over rows.
        full_first: full absorption if only the first main latent counts as one. The split rule counts frequent
            absorbers as main latents, so `full` is a lower bound and `full_first` an upper bound.
        main_silent: share of true positives on which no main latent fires.
        positive_projection: share of true positives with a > 0; where a ≤ 0 neither measure detects absorption.
        absorbers: latents that absorb fully, most rows first.
        rows: the measures on each true positive, for means over labels and splits.
    """

    label: str
    status: str
    probed: bool
    probe: Scores
    sparse: Scores | None
    main_latents: tuple[int, ...]
    main_cosines: tuple[float, ...]
    true_positives: int
    full: Estimate | None = None
    fraction: Estimate | None = None
    full_first: Estimate | None = None
    main_silent: float | None = None
    positive_projection: float | None = None
    absorbers: tuple[Absorber, ...] = ()
    rows: Rows | None = field(default=None, repr=False, compare=False)

    @property
    def evaluable(self) -> bool:
        """Whether there are rates."""
        return self.status == "evaluable"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, excluding the rows."""
        return {
            "label": self.label,
            "status": self.status,
            "probed": self.probed,
            "probe": self.probe.to_dict(),
            "sparse_probe": None if self.sparse is None else self.sparse.to_dict(),
            "main_latents": list(self.main_latents),
            "main_cosines": list(self.main_cosines),
            "true_positives": self.true_positives,
            "full": _plain(self.full),
            "fraction": _plain(self.fraction),
            "full_first": _plain(self.full_first),
            "main_silent": self.main_silent,
            "positive_projection": self.positive_projection,
            "absorbers": [{"latent": a.latent, "rows": a.rows, "cosine": a.cosine} for a in self.absorbers],
        }


@dataclass(frozen=True)
class FamilyAbsorption:
    """Absorption of one family: means over its evaluable labels. None unless the family is evaluable.

    Attributes:
        status: "evaluable" or "not evaluable".
        reason: why it is not evaluable; empty otherwise.
        form: "SAE", or "adapted" for a transcoder.
        labels: all labels of the family.
        n_probed: number of labels that pass the dense probe.
        n_evaluable: of those, the number for which the coder has latents.
        full, fraction, full_first: means over evaluable labels, with intervals over labels and rows.
        mean_main_latents: mean number of main latents per label (1 = no splitting).
        true_positives: of all evaluable labels.
        full_by_split: the mean rate of each split, which shows how much the choice of rows matters.
    """

    family: str
    status: Literal["evaluable", "not evaluable"]
    reason: str
    form: Literal["SAE", "adapted"]
    labels: tuple[LabelAbsorption, ...]
    n_probed: int
    n_evaluable: int
    full: Estimate | None = None
    fraction: Estimate | None = None
    full_first: Estimate | None = None
    mean_main_latents: float | None = None
    true_positives: int = 0
    full_by_split: tuple[float, ...] = ()

    @property
    def evaluable(self) -> bool:
        """Whether there are rates."""
        return self.status == "evaluable"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with that of the labels."""
        return {
            "family": self.family,
            "status": self.status,
            "reason": self.reason,
            "form": self.form,
            "full": _plain(self.full),
            "fraction": _plain(self.fraction),
            "full_first": _plain(self.full_first),
            "mean_main_latents": self.mean_main_latents,
            "true_positives": self.true_positives,
            "n_probed": self.n_probed,
            "n_evaluable": self.n_evaluable,
            "full_by_split": list(self.full_by_split),
            "labels": [label.to_dict() for label in self.labels],
        }


def _plain(value: Estimate | None) -> dict[str, float] | None:
    return None if value is None else value.to_dict()
