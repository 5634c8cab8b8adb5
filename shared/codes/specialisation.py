"""Specialised or general: does a latent fire on few kinds of thing?

Take m uniformly drawn firings of a latent and the label of each (its token, its document, its domain). The chance that
two of them carry the same label,

    C = Σ_labels c(c − 1) / (m(m − 1)),

is unbiased for Σ p² (Simpson's index), and 1/C is the effective number of labels. Under the null the m rows are drawn
from the whole corpus; the distribution of C is then found by simulation, a gamma distribution fitted to it gives the
p-value, and Benjamini–Hochberg the q-value over latents. A latent is specialised when q and an effect gate agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .statistics import benjamini_hochberg, gamma_upper

REPLICATES = 4000


@dataclass(frozen=True)
class Concentration:
    """Per latent [F], NaN where not scored.

    Attributes:
        collision: C. effective: 1/C, at most m. q: of C against the corpus. base: C of the corpus.
        specialised: q < the level and C ≥ the gate.
    """

    collision: NDArray[np.float64]
    effective: NDArray[np.float64]
    q: NDArray[np.float64]
    base: float
    specialised: NDArray[np.bool_]


def collisions(labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """C of each row of labels [F, m]: the share of its pairs that agree."""
    m = labels.shape[1]
    ordered = np.sort(labels, axis=1)
    # Runs of equal labels in sorted order: a run of c contributes 0 + 1 + … + (c − 1) = c(c − 1)/2 pairs.
    run = np.zeros(len(labels), np.int64)
    pairs = np.zeros(len(labels), np.int64)
    for column in range(1, m):
        run = np.where(ordered[:, column] == ordered[:, column - 1], run + 1, 0)
        pairs += run
    share: NDArray[np.float64] = pairs / (m * (m - 1) / 2)
    return share


def concentration(
    labels: NDArray[np.integer],
    scored: NDArray[np.bool_],
    corpus: NDArray[np.integer],
    seed: int,
    level: float,
    gate: float,
) -> Concentration:
    """Test every latent's labels against the corpus.

    Args:
        labels: [F, m] of the drawn firings; rows that are not scored may hold anything.
        corpus: [n_labels] rows of the corpus that carry each label.
        gate: the C that a specialised latent reaches at least; raised to twice the corpus's own where that is more (to
            halfway between it and 1 where it exceeds 1/3).
    """
    share = corpus / max(1, corpus.sum())
    m = labels.shape[1]
    rng = np.random.default_rng(seed)
    null = collisions(rng.choice(len(corpus), size=(REPLICATES, m), p=share))
    observed = np.where(scored, collisions(labels), np.nan)
    n = len(observed)
    p = np.full(n, np.nan)
    p[scored] = gamma_upper(
        observed[scored], np.full(scored.sum(), null.mean()), np.full(scored.sum(), null.var(ddof=1))
    )
    q = benjamini_hochberg(p)
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = np.minimum(1 / observed, m)
    base = float((share**2).sum())
    # Where the corpus itself agrees often (few domains), the gate rises with it.
    gate = max(gate, min(2 * base, (1 + base) / 2))
    return Concentration(observed, effective, q, base, (q < level) & (observed >= gate))


def verdicts(
    by_token: Concentration,
    by_source: Concentration,
    source: str,
    alive: NDArray[np.bool_],
    scored: NDArray[np.bool_],
) -> NDArray[np.str_]:
    """What each latent is specialised in (token, the source of its rows, or both); or general, rare (not scored), dead.

    Args:
        source: what `by_source` looked at: document or domain.
        alive, scored: [F].
    """
    both = by_token.specialised & by_source.specialised
    cases = [~alive, ~scored, both, by_token.specialised, by_source.specialised]
    return np.select(cases, ["dead", "rare", f"token + {source}", "token", source], "general")
