"""How alike the latents of two runs are: by their activations on the same rows, and by their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...shared.memory import rows_within
from ..result import Table, TableColumn, plain
from ..subject.analysed import Analysed
from ..subject.subject import Subject
from .sample import MIN_ROWS, SampledCodes
from .seeds import Groups
from .similarity import CCA, Components, Grams, Matching, cca, chance_cca, cka, match, principal_components

BATCH = 512
"""Rows in one minibatch of CKA."""

SAME_SETTING = "seeds of one setting"
SAME_START, OTHER_START = "setting, same seed", "setting and seed"
"""How two runs with different settings are related: coders that began alike keep many latents in place."""

MAX_PAIRS = 45
"""Pairs of coders compared by activations and weights; of more, the ones named first (seeds of one setting come
first).
"""


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


def pairs_of(groups: Groups, untrained: Sequence[Analysed], samples: Mapping[str, SampledCodes]) -> list[Pair]:
    """Every two trained runs, then every trained run and untrained control; of more than MAX_PAIRS, the first ones."""

    @cache
    def components(name: str) -> Components | None:
        return principal_components(samples[name].codes)

    @cache
    def grams(name: str) -> Grams | None:
        return _grams(samples[name])

    pairs = []
    for a, b, relation in islice(_wanted(groups, untrained), MAX_PAIRS):
        one, other = a.subject, b.subject
        likeness = correlations = matching = null = None
        if _same_rows(one, other, samples):
            k, other_k = grams(one.name), grams(other.name)
            likeness = cka(k, other_k) if k is not None and other_k is not None else None
            x, y = components(one.name), components(other.name)
            correlations = cca(x, y) if x is not None and y is not None else None
        same_spaces = (one.coder.d_in, one.coder.d_out) == (other.coder.d_in, other.coder.d_out)
        if same_spaces and one.w_dec.any() and other.w_dec.any():  # a transcoder's decoder starts at 0: no direction
            raw = {one.coder.config.normalise, other.coder.config.normalise} != {"scalar"}
            matching = match(*_rows(one, raw), *_rows(other, raw))
            null = random_mmcs(one.n_latents, other.n_latents, one.coder.d_out, one.seed)
        pairs.append(Pair(one.name, other.name, relation, likeness, correlations, matching, null))
    return pairs


def _rows(one: Subject, raw: bool) -> tuple[Tensor, Tensor]:
    """(encoder, decoder) rows. Two scalars leave cosines alone; other normalisations differ between coders, so that
    their rows can be compared in raw space only."""
    rows = (one.raw_w_enc, one.raw_w_dec) if raw else (one.w_enc, one.w_dec)
    return torch.from_numpy(rows[0]), torch.from_numpy(rows[1])


def _wanted(groups: Groups, untrained: Sequence[Analysed]) -> Iterator[tuple[Analysed, Analysed, str]]:
    """Two runs each, and how they are related; seeds of one setting come first."""
    for members in groups.values():
        yield from ((a, b, SAME_SETTING) for a, b in combinations(members, 2))
    for these, those in combinations(groups.values(), 2):
        yield from ((a, b, SAME_START if _seed(a) == _seed(b) else OTHER_START) for a in these for b in those)
    trained = [one for members in groups.values() for one in members]
    yield from ((a, b, "against untrained") for a in trained for b in untrained)


def _seed(one: Analysed) -> Any:
    return dict(one.facts.get("settings") or {}).get("seed")


def _same_rows(one: Subject, other: Subject, samples: Mapping[str, SampledCodes]) -> bool:
    """Whether both were sampled at the same rows: of one cache, and not before and after it grew."""
    if one.cache.path != other.cache.path or not {one.name, other.name} <= samples.keys():
        return False
    return np.array_equal(samples[one.name].wanted, samples[other.name].wanted)


def _grams(sample: SampledCodes) -> Grams | None:
    n = min(len(sample.wanted), MIN_ROWS)
    spans = [(start, start + BATCH) for start in range(0, n - BATCH + 1, BATCH)] or ([(0, n)] if n >= 4 else [])
    return Grams.of(sample.codes[start:stop] for start, stop in spans) if spans else None


def random_mmcs(n: int, m: int, d: int, seed: int, sample: int = 512) -> float:
    """The null of MMCS: mean largest cosine of random directions with m others in d dimensions."""
    generator = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize
    a = unit(torch.randn(min(n, sample), d, generator=generator), dim=1)
    b = unit(torch.randn(m, d, generator=generator), dim=1)
    return float(torch.cat([(part @ b.T).amax(1) for part in torch.split(a, rows_within(4 * m, sample))]).mean())


def similarity_table(pairs: Sequence[Pair]) -> Table:
    rows = []
    for pair in pairs:
        found = pair.to_dict()
        keys = ("cka", "svcca", "pwcca", "cca_null", "mmcs", "mmcs_back", "mmcs_null", "shared_share")
        rows.append([pair.a, pair.b, pair.relation, *(found.get(key) for key in keys)])
    return Table(
        "similarity",
        "How alike the latents are",
        "By activations on the same rows (CKA, CCA; excluding position 0) and by weights (MMCS, shared latents), each "
        "beside what unrelated coders of that size would score.",
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


def sharing(pairs: Sequence[Pair]) -> list[str]:
    """What the pairs say in words, of each relation that occurs."""
    shares: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.matching is not None:
            shares.setdefault(pair.relation, []).append(pair.matching.share)
    sentences = {
        SAME_SETTING: "Two seeds of one setting share {:.0f}% of their latents.",
        OTHER_START: "Different settings from different seeds share {:.0f}%.",
        SAME_START: "Different settings from the same seed share {:.0f}%, much of which is due to the same initial "
        "weights.",
    }
    return [text.format(100 * float(np.mean(shares[key]))) for key, text in sentences.items() if key in shares]


DEFINITIONS = [
    (
        "CKA",
        f"Centred kernel alignment of two coders' activations on the same rows: linear, unbiased HSIC, minibatches "
        f"of {BATCH} rows.",
    ),
    (
        "SVCCA, PWCCA",
        "Canonical correlations after reducing each coder's activations to the principal components that hold 99 % "
        "of their variance. With many components even unrelated sets correlate: the null is Wachter's law for that "
        "many rows.",
    ),
    (
        "Same seed",
        "Coders of one size and seed begin with the same weights, and a latent that stays in place counts as "
        "shared. Only runs from different seeds show what the setting makes coders agree on.",
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
