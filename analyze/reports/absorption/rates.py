"""Absorption of a coder, label by label and family by family, and when not to give a number.

A rate is only a rate where there is something to absorb. So:

- a label counts if its dense probe has F1 > 0.6 and enough true positives on held-out rows, and if the coder has
  latents for it: their probe must do better than a guess;
- a family needs enough labels that pass the dense probe (20 of the 26 first letters), and latents for half of them;
- a family that fails is "not evaluable", with the reason and the probes' scores, never 0.0: that is what an untrained
  coder would score.

The family's figures are the means over its labels that count. SAEBench does not ask whether the coder has latents for a
label: `coder_mcc=-1` is its rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from ...probes.fit import LinearProbes, ThresholdRule
from ...probes.intervals import Estimate, estimate, mean_estimate
from ...probes.labels import Labels, family_of
from ...probes.scores import Scores
from ...probes.splits import Split
from .main_latents import F1_JUMP, MAX_K, KSparse, k_sparse_probes
from .rows import decoder_cosines, row_absorption

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Gates:
    """When a label and a family are evaluable.

    Attributes:
        probe_f1: F1 that a label's dense probe must exceed on held-out rows.
        true_positives: held-out rows that the probe must rightly say yes to.
        labels: how many labels that pass the dense probe a family needs; families that are not named need one.
        coder_mcc: Matthews correlation at which the coder counts as having latents for a label (their k-sparse probe,
            held-out rows). A guess has 0, the best few of 2,048 random latents have up to 0.3 (measured); a parent that
            is silent on 90 % of its rows still has 0.3.
        coder_share: share of the labels that pass the dense probe for which the coder must have latents.
    """

    probe_f1: float = 0.6
    true_positives: int = 10
    labels: Mapping[str, int] = field(default_factory=lambda: {"first_letter": 20})
    coder_mcc: float = 0.3
    coder_share: float = 0.5


@dataclass(frozen=True)
class Absorber:
    """A latent that stands in for a label's main latents on `rows` of its true positives."""

    latent: int
    rows: int
    cosine: float


class Rows(NamedTuple):
    """The three measures on every true positive, all [n]."""

    full: Doubles
    fraction: Doubles
    full_first: Doubles

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@dataclass(frozen=True)
class LabelAbsorption:
    """One label.

    Attributes:
        status: "evaluable", or why not.
        probed: whether the dense probe passes its gate.
        probe: scores of the dense probe.
        sparse: scores of the main latents' probe; None where no latent has a positive weight.
        main_latents: main latents; more than one is feature splitting.
        main_cosines: of their decoder rows with the probe.
        true_positives: held-out rows that the probe rightly says yes to.
        full, fraction: rates with intervals over rows; None unless evaluable.
        full_first: full absorption if only the first main latent counts as one. The split rule takes frequent absorbers
            for splits, so `full` is a lower bound and this an upper one.
        main_silent: share of true positives on which no main latent fires.
        positive_projection: share of true positives with a > 0; where a ≤ 0 neither measure can see absorption.
        absorbers: latents that absorb fully, most rows first.
        rows: the measures on every true positive, for means over labels and splits.
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
        return self.status == "evaluable"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, without the rows."""

        def plain(value: Estimate | None) -> dict[str, float] | None:
            return None if value is None else value.to_dict()

        return {
            "label": self.label,
            "status": self.status,
            "probed": self.probed,
            "probe": self.probe.to_dict(),
            "sparse_probe": None if self.sparse is None else self.sparse.to_dict(),
            "main_latents": list(self.main_latents),
            "main_cosines": list(self.main_cosines),
            "true_positives": self.true_positives,
            "full": plain(self.full),
            "fraction": plain(self.fraction),
            "full_first": plain(self.full_first),
            "main_silent": self.main_silent,
            "positive_projection": self.positive_projection,
            "absorbers": [{"latent": a.latent, "rows": a.rows, "cosine": a.cosine} for a in self.absorbers],
        }


@dataclass(frozen=True)
class FamilyAbsorption:
    """One family of labels: means over the labels that count, None unless evaluable.

    Attributes:
        status: "evaluable" or "not evaluable".
        reason: why not; empty otherwise.
        form: "SAE", or "adapted" for a transcoder.
        mean_main_latents: mean number of main latents per label (1 = no splitting).
        n_probed: labels that pass the dense probe.
        n_evaluable: of those, labels that the coder has latents for: the ones that count.
        full_by_split: the mean rate of each split, to show how much hangs on the choice of rows.
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
        return self.status == "evaluable"

    def to_dict(self) -> dict[str, Any]:
        def plain(value: Estimate | None) -> dict[str, float] | None:
            return None if value is None else value.to_dict()

        return {
            "family": self.family,
            "status": self.status,
            "reason": self.reason,
            "form": self.form,
            "full": plain(self.full),
            "fraction": plain(self.fraction),
            "full_first": plain(self.full_first),
            "mean_main_latents": self.mean_main_latents,
            "true_positives": self.true_positives,
            "n_probed": self.n_probed,
            "n_evaluable": self.n_evaluable,
            "full_by_split": list(self.full_by_split),
            "labels": [label.to_dict() for label in self.labels],
        }


def absorption_rates(
    x: Tensor,
    codes: sparse.csr_array,
    w_dec: NDArray[np.floating],
    labels: Labels,
    splits: Sequence[tuple[Split, LinearProbes]],
    *,
    adapted: bool = False,
    gates: Gates | None = None,
    origin: NDArray[np.floating] | None = None,
    l1: float = 0.01,
    max_k: int = MAX_K,
    jump: float = F1_JUMP,
    threshold: ThresholdRule = "tuned",
    unit: float | None = None,
    seed: int = 0,
) -> list[FamilyAbsorption]:
    """Absorption for every family of labels, measured on the test rows of every split.

    Args:
        x: [n, d] raw activations of the site that the decoder writes to (and the probes read).
        codes: [n, F] ≥ 0, of the same rows, as multiples of unit decoder rows in the space of x (:func:`unit_codes`).
        w_dec: [F, d] decoder rows.
        labels: of the rows.
        splits: each with the probes trained on it, in the same order of labels. True positives of all splits are
            pooled; each split has main latents of its own.
        adapted: the coder is a transcoder.
        origin: [d] what a is measured from; None: the zero vector, as SAEBench has it.
        l1, max_k, jump, threshold, unit: of :func:`analyze.splitting.k_sparse_probes`.
        seed: of the intervals.
    """
    gates = gates or Gates()
    rng = np.random.default_rng(seed)
    by_split = []
    for split, probes in splits:
        if probes.names != labels.names:
            raise ValueError("probes and labels differ")
        main = k_sparse_probes(codes, labels, split, l1=l1, max_k=max_k, jump=jump, threshold=threshold, unit=unit)
        by_split.append(_labels(x, codes, w_dec, labels, split, probes, main, origin, gates))
    families = dict.fromkeys(family_of(name) for name in labels.names)
    return [
        _family(
            family,
            [[label for label in found if family_of(label.label) == family] for found in by_split],
            "adapted" if adapted else "SAE",
            gates,
            rng,
        )
        for family in families
    ]


def unit_codes(codes: sparse.csr_array, w_dec: NDArray[np.floating], target_scale: float = 1.0) -> sparse.csr_array:
    """Codes as multiples of unit decoder rows in raw target space: z_i ‖w_i‖ · target_scale."""
    norms = np.linalg.norm(w_dec.astype(np.float64), axis=1) * target_scale
    scaled = sparse.csr_array(codes, copy=True)
    scaled.data = (scaled.data * norms[scaled.indices]).astype(np.float32)
    return scaled


def _labels(
    x: Tensor,
    codes: sparse.csr_array,
    w_dec: NDArray[np.floating],
    labels: Labels,
    split: Split,
    probes: LinearProbes,
    main: Sequence[KSparse],
    origin: NDArray[np.floating] | None,
    gates: Gates,
) -> list[LabelAbsorption]:
    """Every label on one split; rates without intervals are left to :func:`_pool`."""
    held_out = x[torch.from_numpy(split.test)].to(torch.float64)
    says_yes = probes.positive(held_out)
    if origin is not None:
        held_out = held_out - torch.from_numpy(origin.astype(np.float64))
    test_codes = sparse.csr_array(codes[split.test])
    results = []
    for i in range(len(labels.names)):
        hits = np.flatnonzero(says_yes[:, i] & (labels.values[split.test, i] == 1))
        direction = probes.directions[i].astype(np.float64)
        projection = (held_out[torch.from_numpy(hits)] @ torch.from_numpy(direction)).numpy()
        cosines = decoder_cosines(w_dec, direction)
        results.append(_label(probes.scores[i], main[i], projection, test_codes[hits], cosines, gates))
    return results


def _label(
    probe: Scores, main: KSparse, projection: Doubles, codes: sparse.csr_array, cosines: Doubles, gates: Gates
) -> LabelAbsorption:
    n_hits = len(projection)
    mcc = 0.0 if main.scores is None else main.scores.mcc
    probed = probe.f1 > gates.probe_f1 and n_hits >= gates.true_positives
    if probe.f1 <= gates.probe_f1:
        status = f"probe F1 {probe.f1:.2f}, more than {gates.probe_f1:g} is needed"
    elif not probed:
        status = f"{n_hits} true positives, {gates.true_positives} are needed"
    elif mcc < gates.coder_mcc:
        status = f"no latents for it: MCC {mcc:.2f} of their probe, {gates.coder_mcc:g} is needed"
    else:
        status = "evaluable"
    own = tuple(float(cosines[latent]) for latent in main.latents)
    found = LabelAbsorption(main.label, status, probed, probe, main.scores, main.latents, own, n_hits)
    if status != "evaluable":
        return found
    rows = row_absorption(projection, codes, cosines, main.latents)
    first = row_absorption(projection, codes, cosines, main.latents[:1])
    latents, counts = np.unique(rows.top_latent[rows.full], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return replace(
        found,
        main_silent=float(rows.main_silent.mean()),
        positive_projection=float((projection > 0).mean()),
        absorbers=tuple(Absorber(int(latents[j]), int(counts[j]), float(cosines[latents[j]])) for j in order),
        rows=Rows(rows.full.astype(np.float64), rows.fraction, first.full.astype(np.float64)),
    )


def _pool(splits: Sequence[LabelAbsorption], rng: np.random.Generator) -> LabelAbsorption:
    """One label over all splits: it counts if it does in more than half of them. What is not a rate is that of the
    first split in which it has the status it ends with."""
    good = [label for label in splits if label.evaluable]
    if 2 * len(good) <= len(splits):
        return next(label for label in splits if not label.evaluable)
    rows = Rows.joined([label.rows for label in good if label.rows is not None])
    return replace(
        good[0],
        true_positives=len(rows.full),
        full=estimate(rows.full, rng),
        fraction=estimate(rows.fraction, rng),
        full_first=estimate(rows.full_first, rng),
        rows=rows,
    )


def _family(
    family: str,
    by_split: Sequence[Sequence[LabelAbsorption]],
    form: Literal["SAE", "adapted"],
    gates: Gates,
    rng: np.random.Generator,
) -> FamilyAbsorption:
    labels = [_pool(list(found), rng) for found in zip(*by_split, strict=True)]
    probed = [label for label in labels if label.probed]
    counted = [label for label in labels if label.evaluable]
    needed = gates.labels.get(family, 1)
    best = max((label.probe.f1 for label in labels), default=0.0)
    result = FamilyAbsorption(
        family=family,
        status="not evaluable",
        reason="",
        form=form,
        labels=tuple(labels),
        n_probed=len(probed),
        n_evaluable=len(counted),
        true_positives=sum(label.true_positives for label in counted),
    )
    if len(probed) < needed:
        return replace(
            result,
            reason=f"{len(probed)} of {len(labels)} labels have a dense probe with F1 > {gates.probe_f1:g} and "
            f"{gates.true_positives} true positives, {needed} are needed (best F1 {best:.2f}): the model's activations "
            "do not say enough of this family",
        )
    if len(counted) < max(1.0, gates.coder_share * len(probed)):
        return replace(
            result,
            reason=f"the coder has latents (k-sparse probe with MCC ≥ {gates.coder_mcc:g}) for {len(counted)} of "
            f"the {len(probed)} labels that the dense probe finds, {gates.coder_share:.0%} are needed: what has no "
            "latent cannot be absorbed from it",
        )
    rows = [label.rows for label in counted if label.rows is not None]
    names = {label.label for label in counted}
    return replace(
        result,
        status="evaluable",
        full=mean_estimate([r.full for r in rows], rng),
        fraction=mean_estimate([r.fraction for r in rows], rng),
        full_first=mean_estimate([r.full_first for r in rows], rng),
        mean_main_latents=float(
            np.mean([len(r.main_latents) for found in by_split for r in found if r.label in names])
        ),
        full_by_split=tuple(
            mean_or_nan([float(r.rows.full.mean()) for r in found if r.label in names and r.rows is not None])
            for found in by_split
        ),
    )


def mean_or_nan(values: list[float]) -> float:
    """Their mean; NaN where there are none (a split in which no label that counts has a true positive)."""
    return float(np.mean(values)) if values else float("nan")
