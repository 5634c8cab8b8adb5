"""Several runs side by side: the same figures before and after, the frontier, and how alike their latents are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
import torch

from ...shared.codes.sparse import SparseCodes
from ..probes.intervals import difference, over_seeds
from ..result import Chart, Number, Role, Series, Table, TableColumn, chart_dict, plain, show, table_dict
from ..stream.batches import StreamBatch
from ..subject.subject import Subject
from .similarity import (
    CCA,
    EXACT_PCA,
    RANDOM_RANK,
    Components,
    Grams,
    Matching,
    cca,
    chance_cca,
    cka,
    match,
    principal_components,
)

if TYPE_CHECKING:
    from ..subject.analysed import Analysed

ROWS_PER_DIM = 10
"""Rows that canonical correlations are computed on, for each component that a coder may have …"""

MIN_ROWS = 10_240
"""… and at least so many."""

BATCH = 512
"""Rows in one minibatch of CKA."""

SAME_START, OTHER_START = "setting, same seed", "setting and seed"
"""How two runs of different settings are related: coders that began alike keep many latents in place."""

MAX_PAIRS = 45
"""Pairs of coders compared by activations and weights; of more, the ones named first (seeds of one setting come
first).
"""

BEFORE_AFTER = (
    ("correlation", "n_pairs_above"),
    ("correlation", "largest_r"),
    ("correlation", "mean_max_r"),
    ("correlation", "n_in_clusters"),
    ("position", "bos_share_top"),
    ("position", "bos_share_top_distinct"),
    ("position", "n_bos_biased"),
    ("position", "n_position_biased"),
    ("global", "fvu"),
    ("global", "l0"),
    ("global", "dead"),
    ("global", "mean_max_cosine"),
)
"""Figures of the before/after table: (report, key)."""

ENDS = ("value", "low", "high")

MAX_BOS_SHARE = 0.2
"""Share of the top activations at position 0 that training against duplicates is to stay below."""

ROLES: tuple[tuple[str, str, Role], ...] = (("run", "runs", "data"), ("control", "controls", "null"))
"""(role of a run, what a legend calls it, its colour)."""

NOT_THE_SETTING = {
    "seed", "name", "runs", "cache", "variant", "log_every", "checkpoint_every", "keep_checkpoints", "wandb", "device",
    "eval_rows",
}  # fmt: skip
"""Training settings in which two seeds of one setting may differ."""


class CodeSample:
    """Collects the codes of rows drawn uniformly (position 0 left out), the same rows for every coder of a cache."""

    def __init__(self, subject: Subject, rows: int) -> None:
        seen = np.flatnonzero(subject.rest_rows)
        rng = np.random.default_rng(subject.seed)
        self.wanted = np.sort(rng.choice(seen, min(rows, len(seen)), replace=False))
        self.parts: dict[int, SparseCodes] = {}

    def update(self, batch: StreamBatch) -> None:
        """Take in one shard."""
        first = batch.rows.start
        low, high = np.searchsorted(self.wanted, [first, first + len(batch.rows)])
        if high > low:
            mask = np.zeros(len(batch.rows), np.bool_)
            mask[self.wanted[low:high] - first] = True
            self.parts[first] = batch.codes.rows(mask)

    def merge(self, other: CodeSample) -> None:
        """Take in what was collected from other shards."""
        self.parts |= other.parts

    @cached_property
    def codes(self) -> sp.csr_matrix[np.float32]:
        """Activations [n, F] of the drawn rows, in the order of the cache; asked for when the pass is over."""
        return SparseCodes.stack([self.parts[key] for key in sorted(self.parts)]).csr()


def sample_rows(subjects: Sequence[Subject]) -> int:
    """How many rows to draw for these coders."""
    dims = (s.n_latents if s.n_latents <= EXACT_PCA else RANDOM_RANK for s in subjects)
    return max(MIN_ROWS, ROWS_PER_DIM * max(dims))


@dataclass(frozen=True)
class Pair:
    """Two coders over the same rows. None where they cannot be compared that way."""

    a: str
    b: str
    relation: str
    cka: float | None
    cca: CCA | None
    matching: Matching | None
    mmcs_null: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        out: dict[str, Any] = {"a": self.a, "b": self.b, "relation": self.relation, "cka": self.cka}
        if self.cca is not None:
            out |= {
                "svcca": self.cca.svcca,
                "pwcca": self.cca.pwcca,
                "cca_null": chance_cca(*self.cca.dims, self.cca.rows),
                "cca_dims": list(self.cca.dims),
                "cca_variance_kept": list(self.cca.kept),
                "rows": self.cca.rows,
            }
        if self.matching is not None:
            out |= {
                "mmcs": self.matching.mmcs,
                "mmcs_back": self.matching.mmcs_back,
                "mmcs_null": self.mmcs_null,
                "shared_share": self.matching.share,
                "matching_exact": self.matching.exact,
            }
        return plain(out)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Comparison:
    """The comparison as plain data for every renderer: {"title", "lead", "charts", "tables", "data"}."""

    document: dict[str, Any]
    definitions: list[tuple[str, str]]


def settings_key(facts: dict[str, Any], training: dict[str, Any]) -> str:
    """What two runs share that differ in their seed alone."""
    kept = {key: value for key, value in training.items() if key not in NOT_THE_SETTING}
    kept["data"] = {key: value for key, value in dict(training.get("data", {})).items() if key != "seed"}
    return repr(
        (
            *(facts[key] for key in ("cache", "trained_on", "source", "target")),
            sorted(plain(kept).items(), key=lambda item: item[0]),
        )
    )


def group_runs(analysed: Sequence[Analysed]) -> dict[str, list[Analysed]]:
    """Runs by setting, in the order given; the name of a group of several is what their names have in common."""
    groups: dict[str, list[Analysed]] = {}
    for one in analysed:
        training = one.facts.get("settings") or {"run": one.subject.name}
        groups.setdefault(settings_key(one.facts, training), []).append(one)
    named: dict[str, list[Analysed]] = {}
    for members in groups.values():
        names = [one.subject.name for one in members]
        label = names[0]
        if len(names) > 1:
            common = names[0]
            for name in names[1:]:
                while not name.startswith(common):
                    common = common[:-1]
            label = re.sub(r"[-_.]?(seed)?[-_.=]?$", "", common) or names[0]
        while label in named:
            label += "′"
        named[label] = members
    return named


def compare(
    analysed: Sequence[Analysed], samples: dict[str, CodeSample], baseline: str | None = None
) -> Comparison | None:
    """Compare the trained runs (and, by activations, the untrained controls); None for fewer than two trained ones.

    Args:
        samples: CodeSample by name; coders of different caches (or of one before and after it grew) have no rows in
            common.
        baseline: the run whose setting the figures of the others are held against; None: the first.
    """
    trained = [one for one in analysed if one.facts["trained"]]
    if len(trained) < 2:
        return None
    groups = baseline_first(group_runs(trained), baseline)
    pairs = _pairs(groups, [one for one in analysed if not one.facts["trained"]], samples)
    tables = [table for table in [before_after(groups)] if table.rows]
    if pairs:
        tables.append(_similarity_table(pairs))
    charts = [_pairs_chart(trained), _frontier(analysed)]
    data = {
        "groups": {label: [one.subject.name for one in members] for label, members in groups.items()},
        "pairs": [pair.to_dict() for pair in pairs],
        "before_after": figures_over_seeds(groups),
    }
    document = {
        "title": "Comparison",
        "lead": _lead(groups, pairs),
        "charts": [chart_dict(chart) for chart in charts if chart is not None],
        "tables": [table_dict(table) for table in tables],
        "data": plain(data),
    }
    return Comparison(document, DEFINITIONS)


def baseline_first(groups: dict[str, list[Analysed]], baseline: str | None) -> dict[str, list[Analysed]]:
    """The groups, the one that the run `baseline` belongs to ahead of the others."""
    if baseline is None:
        return groups
    first = next(label for label, members in groups.items() if baseline in {one.subject.name for one in members})
    return {first: groups[first], **groups}


# --- figures over seeds ---------------------------------------------------------------------------------------------


def _value(one: Analysed, report: str, key: str, twin: bool = False) -> Number:
    if report not in one.results:
        return None
    found = [figure for figure in one.results[report].figures if figure.key == key]
    return (found[0].with_bos if twin else found[0].value) if found else None


def figures_over_seeds(groups: dict[str, list[Analysed]]) -> dict[str, Any]:
    """key → group → {"values", "mean", "low", "high", "change"}, and "aim": "met" where the figure has an aim.

    The interval is Student's over seeds, from three seeds on. The change, {"value", "low", "high"}, is the difference
    to the first group's mean; its interval is Welch's.
    """
    out: dict[str, Any] = {}
    aims = _aims(groups)
    for report, key in BEFORE_AFTER:
        for twin in (False, True):
            by_group: dict[str, dict[str, Any]] = {}
            before: list[float] = []
            for place, (label, members) in enumerate(groups.items()):
                values = [float(v) for one in members if (v := _value(one, report, key, twin)) is not None]
                if not values:
                    continue
                interval = over_seeds(values)
                found = by_group[label] = {
                    "values": values,
                    "mean": float(np.mean(values)),
                    "low": interval.low if interval else None,
                    "high": interval.high if interval else None,
                }
                if place == 0:
                    before = values
                elif before:
                    change = difference(values, before)
                    value = float(np.mean(values) - np.mean(before))
                    found["change"] = change.to_dict() if change else {"value": value, "low": None, "high": None}
                if key in aims and not twin:
                    found["met"] = aims[key](found["mean"])
            if by_group:
                out[f"{key}_with_bos" if twin else key] = by_group
    return out


def _threshold(groups: dict[str, list[Analysed]]) -> float | None:
    """|r| beyond which pairs are reported, where the runs have that report."""
    results = next(iter(groups.values()))[0].results
    return float(results["correlation"].data["threshold"]) if "correlation" in results else None


def _aims(groups: dict[str, list[Analysed]]) -> dict[str, Callable[[float], bool]]:
    """What anti-duplication training is for: no pair beyond the threshold, hardly a top activation at position 0."""
    threshold = _threshold(groups)
    aims: dict[str, Callable[[float], bool]] = {"bos_share_top": lambda share: share <= MAX_BOS_SHARE}
    if threshold is not None:
        aims |= {"n_pairs_above": lambda pairs: pairs == 0, "largest_r": lambda r: r <= threshold}
    return aims


def before_after(groups: dict[str, list[Analysed]]) -> Table:
    estimates = figures_over_seeds(groups)
    labels = list(groups)
    aims = {"n_pairs_above": "0", "largest_r": f"≤ {_threshold(groups):g}" if _threshold(groups) else ""}
    aims["bos_share_top"] = f"≤ {MAX_BOS_SHARE:.0%}"
    first = next(iter(groups.values()))[0]
    forms = {}
    for report, key in BEFORE_AFTER:
        for figure in first.results[report].figures if report in first.results else ():
            if figure.key == key:
                forms[key], forms[f"{key}_with_bos"] = (figure.label, figure), ("… with position 0", figure)
    rows = []
    for key, by_group in estimates.items():
        if key not in forms:
            continue
        name, figure = forms[key]
        row: list[Any] = [name, aims.get(key, "")]
        for label in labels:
            found = by_group.get(label)
            if found is None:
                row.append("–")
                continue
            form = "number" if figure.format == "integer" else figure.format
            text = show(found["mean"], form)
            if found["low"] is not None:
                text += f" [{show(found['low'], form)}, {show(found['high'], form)}]"
            text += " ✓" if found.get("met") else ""
            row.append(text + _change(found.get("change"), by_group[labels[0]]["mean"] if labels[0] in by_group else 0))
        rows.append(row)
    seeds = ", ".join(f"{label}: {len(members)}" for label, members in groups.items() if len(members) > 1)
    return Table(
        "before_after",
        "Before and after",
        f"The figures of every setting, change against {labels[0]} in round brackets; ✓ where the aim is met. "
        + (
            f"Means over seeds ({seeds}). From three seeds on, 95 % intervals in square brackets: Student's of a mean, "
            f"Welch's of a change. A change whose interval holds 0 may be chance."
            if seeds
            else "One run each: without more seeds nothing here says what chance would change."
        ),
        [
            TableColumn("figure", "text"),
            TableColumn("aim", "text", "What training against duplicates is to reach."),
            *(TableColumn(label + _role(members), "text") for label, members in groups.items()),
        ],
        rows,
        len(rows),
    )


def _role(members: Sequence[Analysed]) -> str:
    return " (control)" if all(one.subject.role == "control" for one in members) else ""


def _change(change: dict[str, Any] | None, base: float) -> str:
    """ " (−12% [−15, −9])", relative to the first group's mean."""
    if change is None or not base:
        return ""
    value, low, high = (np.nan if end is None else 100 * end / abs(base) for end in map(change.get, ENDS))
    if np.isfinite(low):
        return f" ({value:+.0f}% [{low:+.0f}, {high:+.0f}])"
    return f" ({value:+.0f}%)" if abs(value) >= 0.5 else " (same)"


def _pairs_chart(runs: Sequence[Analysed]) -> Chart | None:
    values = [(one.subject.name, _value(one, "correlation", "n_pairs_above"), one) for one in runs]
    if any(v is None for _, v, _ in values):
        return None
    return Chart(
        "pairs_above",
        "Correlated pairs",
        "Pairs of latents beyond the threshold in each run. The difference between the bars is position 0 alone.",
        [name for name, _, _ in values],
        [
            Series("without position 0", [v for _, v, _ in values]),
            Series(
                "with position 0",
                [_value(one, "correlation", "n_pairs_above", True) for _, _, one in values],
                "with_bos",
            ),
        ],
        "run",
        "pairs",
    )


def _frontier(runs: Sequence[Analysed]) -> Chart | None:
    points = [
        (one.subject.name, one.subject.role, _value(one, "global", "l0"), _value(one, "global", "fvu"))
        for one in runs
        if one.facts["trained"]
    ]
    points = [point for point in points if point[2] is not None and point[3] is not None]
    if not points:
        return None
    points.sort(key=lambda point: float(point[2] or 0))
    return Chart(
        "frontier",
        "Reconstruction against sparsity",
        "FVU over L0, position 0 left out; nearer to the corner is better. Controls are grey.",
        [float(l0 or 0) for _, _, l0, _ in points],
        [
            Series(role, [fvu if r == name else None for _, r, _, fvu in points], colour)
            for name, role, colour in ROLES
            if any(r == name for _, r, _, _ in points)
        ],
        "L0",
        "FVU",
        kind="scatter",
        labels=[name for name, _, _, _ in points],
    )


def _seed(one: Analysed) -> Any:
    return dict(one.facts.get("settings") or {}).get("seed")


# --- likeness -------------------------------------------------------------------------------------------------------


def _pairs(
    groups: dict[str, list[Analysed]], untrained: Sequence[Analysed], samples: dict[str, CodeSample]
) -> list[Pair]:
    wanted: list[tuple[Analysed, Analysed, str]] = []
    for members in groups.values():
        wanted += [(a, b, "seeds of one setting") for a, b in combinations(members, 2)]
    for these, those in combinations(groups.values(), 2):
        wanted += [(a, b, SAME_START if _seed(a) == _seed(b) else OTHER_START) for a in these for b in those]
    trained = [one for members in groups.values() for one in members]
    wanted += [(a, b, "against untrained") for a in trained for b in untrained]
    components: dict[str, Components | None] = {}
    grams: dict[str, Grams | None] = {}

    def of(name: str) -> Components | None:
        if name not in components:
            components[name] = principal_components(samples[name].codes)
        return components[name]

    pairs = []
    for a, b, relation in wanted[:MAX_PAIRS]:
        one, other = a.subject, b.subject
        likeness = correlations = matching = null = None
        if _same_rows(one, other, samples):
            for name in (one.name, other.name):
                if name not in grams:
                    grams[name] = _grams(samples[name])
            k, other_k = grams[one.name], grams[other.name]
            likeness = cka(k, other_k) if k is not None and other_k is not None else None
            x, y = of(one.name), of(other.name)
            correlations = cca(x, y) if x is not None and y is not None else None
        same_spaces = (one.coder.d_in, one.coder.d_out) == (other.coder.d_in, other.coder.d_out)
        if same_spaces and one.w_dec.any() and other.w_dec.any():  # a transcoder's decoder starts at 0: no direction
            enc_a, dec_a, enc_b, dec_b = (torch.from_numpy(w) for w in (one.w_enc, one.w_dec, other.w_enc, other.w_dec))
            matching = match(enc_a, dec_a, enc_b, dec_b)
            null = random_mmcs(one.n_latents, other.n_latents, one.coder.d_out, one.seed)
        pairs.append(Pair(one.name, other.name, relation, likeness, correlations, matching, null))
    return pairs


def _same_rows(one: Subject, other: Subject, samples: dict[str, CodeSample]) -> bool:
    """Whether both were sampled at the same rows: of one cache, and not before and after it grew."""
    if one.cache.path != other.cache.path or not {one.name, other.name} <= samples.keys():
        return False
    return np.array_equal(samples[one.name].wanted, samples[other.name].wanted)


def _grams(sample: CodeSample) -> Grams | None:
    n = min(len(sample.wanted), MIN_ROWS)
    spans = [(start, start + BATCH) for start in range(0, n - BATCH + 1, BATCH)] or ([(0, n)] if n >= 4 else [])
    return Grams.of(sample.codes[start:stop] for start, stop in spans) if spans else None


def random_mmcs(n: int, m: int, d: int, seed: int, sample: int = 512) -> float:
    """The null of MMCS: mean largest cosine of random directions with m others in d dimensions."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize
    a = unit(torch.randn(min(n, sample), d, generator=generator), dim=1)
    b = unit(torch.randn(m, d, generator=generator), dim=1)
    return float((a @ b.T).amax(1).mean())


def _similarity_table(pairs: Sequence[Pair]) -> Table:
    rows = []
    for pair in pairs:
        found = pair.to_dict()
        keys = ("cka", "svcca", "pwcca", "cca_null", "mmcs", "mmcs_back", "mmcs_null", "shared_share")
        rows.append([pair.a, pair.b, pair.relation, *(found.get(key) for key in keys)])
    return Table(
        "similarity",
        "How alike the latents are",
        "By activations on the same rows (CKA, CCA; position 0 left out) and by weights (MMCS, shared latents), each "
        "beside "
        "what unrelated coders of that size would score.",
        [
            TableColumn("a", "text"),
            TableColumn("b", "text"),
            TableColumn("differ in", "text"),
            TableColumn("CKA", "number", "Debiased linear CKA over minibatches; unrelated features score 0."),
            TableColumn(
                "SVCCA", "number", "Mean canonical correlation of the components that hold 99 % of the variance."
            ),
            TableColumn("PWCCA", "number", "The same, weighted by what each direction explains of a."),
            TableColumn("CCA null", "number", "Mean canonical correlation of independent sets of that size."),
            TableColumn("MMCS a→b", "number", "Mean over a's latents of the largest decoder cosine with one of b."),
            TableColumn("MMCS b→a", "number"),
            TableColumn("MMCS null", "number", "Of random directions."),
            TableColumn(
                "shared latents", "percent", "Of a: same partner in b by encoder and by decoder, decoder cosine ≥ 0.7."
            ),
        ],
        rows,
        len(rows),
    )


def _lead(groups: dict[str, list[Analysed]], pairs: Sequence[Pair]) -> str:
    labels = list(groups)
    estimates = figures_over_seeds(groups)
    parts = []
    if "n_pairs_above" in estimates and len(labels) > 1:
        counts = ", ".join(
            f"{label} {show(estimates['n_pairs_above'][label]['mean'])}"
            + (
                f" (with position 0 {show(estimates['n_pairs_above_with_bos'][label]['mean'])})"
                if "n_pairs_above_with_bos" in estimates
                else ""
            )
            for label in labels
        )
        parts.append(f"Correlated pairs: {counts}.")
    if "fvu" in estimates and len(labels) > 1:
        parts.append("FVU: " + ", ".join(f"{label} {show(estimates['fvu'][label]['mean'])}" for label in labels) + ".")
    seeds = [pair.matching.share for pair in pairs if pair.relation == "seeds of one setting" and pair.matching]
    same, others = (
        [pair.matching.share for pair in pairs if pair.relation == relation and pair.matching]
        for relation in (SAME_START, OTHER_START)
    )
    if seeds:
        parts.append(f"Two seeds of one setting share {100 * float(np.mean(seeds)):.0f}% of their latents.")
    if others:
        parts.append(f"Different settings from different seeds share {100 * float(np.mean(others)):.0f}%.")
    if same:
        parts.append(
            f"Different settings from the same seed share {100 * float(np.mean(same)):.0f}%, much of which is that "
            f"they "
            "began with the same weights."
        )
    return " ".join(parts)


DEFINITIONS = [
    (
        "CKA",
        f"Centred kernel alignment of two coders' activations on the same rows: linear, unbiased HSIC, minibatches "
        f"of {BATCH} rows.",
    ),
    (
        "SVCCA, PWCCA",
        "Canonical correlations after reducing each coder's activations to the principal components that hold 99 % "
        "of their "
        "variance. With many components even unrelated sets correlate: the null is Wachter's law for that many rows.",
    ),
    (
        "Same seed",
        "Coders of one size and seed begin with the same weights, and a latent that stays where it was counts as "
        "shared. Only runs from different seeds say what the setting makes coders agree on.",
    ),
    ("MMCS", "Mean over latents of the largest decoder cosine with a latent of the other coder."),
    (
        "Shared latents",
        "Latents matched one to one by decoder and by encoder (Hungarian matching): the same partner in both, "
        "decoder cosine ≥ 0.7.",
    ),
    (
        "Seeds",
        "Runs that differ in the seed alone are one setting; from three seeds on there are 95 % intervals over them: "
        "Student's of a mean, Welch's of the difference between two settings.",
    ),
]
