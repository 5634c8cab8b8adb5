"""Absorption rates of a coder, label by label and family by family, and when no rate is given.

A rate needs something to absorb. Therefore:

- a label is evaluable if its dense probe has F1 > 0.6 and enough true positives on held-out rows, and if the coder has
  latents for it: their probe must have an MCC of 0.3, and where they fire they must carry more of the label's
  direction than random rows do;
- a family needs enough labels that pass the dense probe (20 of the 26 first letters), and latents for half of them;
- a family that fails is "not evaluable", with the reason and the probes' scores, never 0.0: an untrained coder would
  score 0.0.

The family's figures are means over its evaluable labels. SAEBench has no gate on the coder's latents: `coder_mcc=-1,
coder_share_of_a=0` gives its rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from ...probes.dense import LinearProbes
from ...probes.intervals import estimate, mean_estimate
from ...probes.labels import Labels, family_of
from ...probes.scores import Scores
from ...probes.splits import ProbeSplit
from .config import F1_JUMP, MAX_K
from .main_latents import KSparse, k_sparse_probes
from .outcome import Absorber, FamilyAbsorption, Gates, LabelAbsorption, Rows
from .rows import decoder_cosines, row_absorption

Doubles = NDArray[np.float64]


def absorption_rates(
    x: Tensor,
    codes: sparse.csr_array,
    w_dec: NDArray[np.floating],
    labels: Labels,
    splits: Sequence[tuple[ProbeSplit, LinearProbes]],
    *,
    adapted: bool = False,
    gates: Gates | None = None,
    origin: NDArray[np.floating] | None = None,
    l1: float = 0.01,
    max_k: int = MAX_K,
    jump: float = F1_JUMP,
    seed: int = 0,
) -> list[FamilyAbsorption]:
    """Absorption of each family of labels, measured on the test rows of each split.

    Args:
        x: [n, d] raw activations of the site that the decoder writes to (and the probes read).
        codes: [n, F] ≥ 0, of the same rows, as multiples of unit decoder rows in the space of x (:func:`unit_codes`).
        w_dec: [F, d] decoder rows in the space of x.
        labels: of the rows.
        splits: each with the probes trained on it, in the same order of labels. True positives of all splits are
            pooled; each split has main latents of its own.
        adapted: whether the coder is a transcoder.
        gates: when a label and a family are evaluable; None: the defaults.
        origin: [d] subtracted from x before it is projected on a probe; None: the zero vector, as in SAEBench.
        l1, max_k, jump: of :func:`~.main_latents.k_sparse_probes`.
        seed: of the intervals.

    Raises:
        ValueError: the probes of a split are for other labels.
    """
    gates = gates or Gates()
    rng = np.random.default_rng(seed)
    by_split = []
    for split, probes in splits:
        if probes.names != labels.names:
            raise ValueError(f"expected probes of {labels.names}, found probes of {probes.names}")
        main = k_sparse_probes(codes, labels, split, l1=l1, max_k=max_k, jump=jump)
        by_split.append(
            _labels(x, codes, w_dec, labels, split=split, probes=probes, main=main, origin=origin, gates=gates)
        )
    families = dict.fromkeys(family_of(name) for name in labels.names)
    return [
        _family(
            family,
            [[label for label in found if family_of(label.label) == family] for found in by_split],
            form="adapted" if adapted else "SAE",
            gates=gates,
            rng=rng,
        )
        for family in families
    ]


def unit_codes(codes: sparse.csr_array, w_dec: NDArray[np.floating]) -> sparse.csr_array:
    """Codes [n, F] as multiples of unit decoder rows: z_i ‖w_i‖.

    Args:
        codes: [n, F].
        w_dec: [F, d] decoder rows in raw target space.
    """
    norms = np.linalg.norm(w_dec.astype(np.float64), axis=1)
    scaled = sparse.csr_array(codes, copy=True)
    scaled.data = (scaled.data * norms[scaled.indices]).astype(np.float32)
    return scaled


def _labels(
    x: Tensor,
    codes: sparse.csr_array,
    w_dec: NDArray[np.floating],
    labels: Labels,
    *,
    split: ProbeSplit,
    probes: LinearProbes,
    main: Sequence[KSparse],
    origin: NDArray[np.floating] | None,
    gates: Gates,
) -> list[LabelAbsorption]:
    """Every label on the test rows of one split. Rates and their intervals are computed in :func:`_pool`."""
    held_out = x[torch.from_numpy(split.test)].to(torch.float64)
    says_yes = probes.positive(held_out)  # probes have a bias of their own: they read x before the origin is subtracted
    if origin is not None:
        held_out = held_out - torch.from_numpy(origin.astype(np.float64))
    test_codes = sparse.csr_array(codes[split.test])
    cosines = decoder_cosines(w_dec, probes.directions)
    results = []
    for i in range(len(labels.names)):
        hits = np.flatnonzero(says_yes[:, i] & (labels.values[split.test, i] == 1))
        direction = probes.directions[i].astype(np.float64)
        projection = (held_out[torch.from_numpy(hits)] @ torch.from_numpy(direction)).numpy()
        results.append(
            _label(
                probes.scores[i],
                main[i],
                test_codes[hits],
                projection=projection,
                cosines=cosines[i],
                least=least_share(gates, *w_dec.shape),
                gates=gates,
            )
        )
    return results


def _label(
    probe: Scores,
    main: KSparse,
    codes: sparse.csr_array,
    *,
    projection: Doubles,
    cosines: Doubles,
    least: float,
    gates: Gates,
) -> LabelAbsorption:
    """One label on one split: its status, and its rows where it is evaluable.

    Args:
        probe: scores of the dense probe.
        main: main latents with their scores.
        codes: [m, F] on the m true positives.
        projection: [m] of the true positives on the probe's direction.
        cosines: [F] of decoder rows with that direction.
        least: share of the projection that main latents must carry (:func:`least_share`).
    """
    n_hits = len(projection)
    carried = carried_share(projection, codes, cosines, main.latents)
    mcc = 0.0 if main.scores is None else main.scores.mcc
    probed = probe.f1 > gates.probe_f1 and n_hits >= gates.true_positives
    if probe.f1 <= gates.probe_f1:
        status = f"probe F1 {probe.f1:.2f}, must exceed {gates.probe_f1:g}"
    elif not probed:
        status = f"{n_hits} true positives, needs {gates.true_positives}"
    elif mcc < gates.coder_mcc:
        status = f"no latents for it: their probe has MCC {mcc:.2f}, needs {gates.coder_mcc:g}"
    elif carried < least:
        status = f"no latents for it: where they fire, they carry {carried:.1%} of the projection, needs {least:.1%}"
    else:
        status = "evaluable"
    own = tuple(float(cosines[latent]) for latent in main.latents)
    found = LabelAbsorption(
        label=main.label,
        status=status,
        probed=probed,
        probe=probe,
        sparse=main.scores,
        main_latents=main.latents,
        main_cosines=own,
        true_positives=n_hits,
    )
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


def carried_share(projection: Doubles, codes: sparse.csr_array, cosines: Doubles, main: Sequence[int]) -> float:
    """Median share of the projection a that the main latents carry, over rows with a > 0 on which one of them fires.

    0 where none fires. The share does not depend on the coder's normalisation, unlike a cosine.

    Args:
        projection: [m] a of each row.
        codes: [m, F] multiples of unit decoder rows.
        cosines: [F] of decoder rows with the direction.
        main: latents.
    """
    if not len(main):
        return 0.0
    own = codes[:, list(main)].toarray().astype(np.float64)
    rows = (own > 0).any(1) & (projection > 0)
    return float(np.median((own @ cosines[list(main)])[rows] / projection[rows])) if rows.any() else 0.0


def least_share(gates: Gates, n_latents: int, width: int) -> float:
    """The share from which main latents count as representing a label: twice what chance gives, or more.

    A random row that reads a direction with cosine c writes c² of it, and the best of F random rows in d dimensions has
    c² ≈ 2 ln F/d. A gate of 0 or below is none.
    """
    return max(gates.coder_share_of_a, 4 * float(np.log(n_latents)) / width) if gates.coder_share_of_a > 0 else -np.inf


def _pool(splits: Sequence[LabelAbsorption], rng: np.random.Generator) -> LabelAbsorption:
    """One label over all splits: evaluable if it is so in more than half of them.

    Rates pool the true positives of these splits. Everything else is of the first split with the same outcome.
    """
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
    *,
    form: Literal["SAE", "adapted"],
    gates: Gates,
    rng: np.random.Generator,
) -> FamilyAbsorption:
    """One family from its labels on each split."""
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
            f"{gates.true_positives} true positives, needs {needed} (best F1 {best:.2f}): the model's activations "
            "do not represent enough of this family",
        )
    if len(counted) < max(1.0, gates.coder_share * len(probed)):
        return replace(
            result,
            reason=f"the coder has latents (k-sparse probe with MCC ≥ {gates.coder_mcc:g}, which carry more of "
            f"the direction than chance) for {len(counted)} of the {len(probed)} labels that pass the dense probe, "
            f"needs {gates.coder_share:.0%}: a label without latents cannot be absorbed",
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
    """The mean; NaN of an empty list (a split in which no evaluable label has a true positive)."""
    return float(np.mean(values)) if values else float("nan")
