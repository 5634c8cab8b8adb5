"""What the pass over a cache counted for the correlation report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....shared.codes.moments import CodeMoments
from ...stream.keep import Keeper
from .kept_pairs import KeptPairs
from .pair_sums import PairSums
from .rows_apart import RowsApart


@dataclass(frozen=True)
class Counted:
    """Exact sums over all rows under analysis; the rows at position 0 are counted apart from the rest.

    Attributes:
        rest, first: moments of each latent excluding position 0, and at position 0 alone.
        massive: moments of each latent in massive rows alone; they are part of `rest`.
        pairs: sums of all pairs excluding position 0, or the codes that they are formed from.
        first_rows, massive_rows: the codes at position 0, and those of massive rows.
        null: pair sums of the latents `null_ids` [m] (ascending), the rows of one latent of each pair shuffled.
        tops: the few largest activations of each latent.
    """

    rest: CodeMoments
    first: CodeMoments
    massive: CodeMoments
    pairs: PairSums | KeptPairs
    first_rows: RowsApart
    massive_rows: RowsApart
    null: PairSums
    null_ids: NDArray[np.int32]
    tops: Keeper
