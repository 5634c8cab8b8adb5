"""What the counted sums say: scans over all pairs, the pairs worth naming, clusters of duplicates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.met_pairs import Asked
from ...subject.geometry import Geometry
from .clusters import Cluster, clusters
from .config import CorrelationConfig
from .counted import Counted
from .kept_pairs import KeptPairs
from .named_pairs import Neighbours, PairTable
from .nulls import SortedTop
from .scan import Scan, scan


@dataclass(frozen=True)
class Found:
    """Everything that the report shows of the counted sums.

    Attributes:
        rest, with_bos: scans of all pairs, excluding and including position 0.
        ordinary: scan of all pairs, excluding position 0 and massive rows; None where there are none.
        null: scan of the shuffled latents.
        table: the pairs worth naming. neighbours: each latent's most correlated ones.
        clusters: duplicates joined, largest first.
        scored: [F] whether each latent fires often enough.
    """

    rest: Scan
    with_bos: Scan
    ordinary: Scan | None
    null: Scan
    table: PairTable
    neighbours: Neighbours
    clusters: list[Cluster]
    sorted_top: SortedTop
    scored: NDArray[np.bool_]

    @classmethod
    def of(cls, counted: Counted, config: CorrelationConfig, geometry: Geometry, seed: int) -> Found:
        """Score everything that was counted."""
        rest, with_bos, ordinary = _scans(counted, config)
        # A permutation of rows leaves every latent's moments as they are.
        null = _all_pairs(config)(counted.null.blocks(), counted.rest.take(counted.null_ids), neighbours=1)
        table = PairTable.of(rest, counted, geometry, config)
        duplicate = table.duplicate
        return cls(
            rest=rest,
            with_bos=with_bos,
            ordinary=ordinary,
            null=null,
            table=table,
            neighbours=Neighbours.of(rest, counted.rest, geometry),
            clusters=clusters(table.ids[duplicate], table.r[duplicate]),
            sorted_top=SortedTop.of(counted.tops, config.sorted_top, seed),
            scored=counted.rest.n >= config.min_fired,
        )

    @cached_property
    def in_cluster(self) -> dict[int, int]:
        """Latent → number of its cluster."""
        return {latent: c for c, cluster in enumerate(self.clusters) for latent in cluster.members}

    @cached_property
    def chance(self) -> float | None:
        """Pairs beyond the threshold to expect if all latents were shuffled; None where no shuffled pair is scored."""
        null = self.null
        return null.n_above / null.n_pairs * self.rest.n_pairs if null.n_pairs else None

    @cached_property
    def n_only_with_bos(self) -> int:
        """Listed pairs beyond the threshold including position 0 that are not among those excluding it."""
        size = np.int64(len(self.scored))
        kept, with_bos = (one.pairs[:, 0] * size + one.pairs[:, 1] for one in (self.rest, self.with_bos))
        return int(np.isin(with_bos, kept, invert=True).sum())


def _all_pairs(config: CorrelationConfig) -> Callable[..., Scan]:
    return partial(
        scan,
        threshold=config.threshold,
        min_fired=config.min_fired,
        min_both=config.min_both,
        max_pairs=config.max_pairs,
    )


def _scans(counted: Counted, config: CorrelationConfig) -> tuple[Scan, Scan, Scan | None]:
    """All pairs excluding position 0; including it; excluding massive rows too, None where there are none."""
    moments = [counted.rest, counted.rest + counted.first]
    if counted.massive.rows:
        moments.append(counted.rest - counted.massive)
    if isinstance(counted.pairs, KeptPairs):
        asked = Asked(config.threshold, config.min_fired, config.min_both, config.max_pairs)
        found = counted.pairs.scan(moments, counted.first_rows, counted.massive_rows, asked, config.neighbours)
    else:
        over = _all_pairs(config)
        found = [
            over(counted.pairs.blocks(), moments[0], neighbours=config.neighbours),
            over(counted.first_rows.added_to(counted.pairs), moments[1], neighbours=1),
        ]
        if counted.massive.rows:
            found.append(over(counted.massive_rows.taken_from(counted.pairs), moments[2], neighbours=1))
    return found[0], found[1], found[2] if len(found) > 2 else None
