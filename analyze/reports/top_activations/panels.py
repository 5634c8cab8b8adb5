"""What a latent's panel shows: examples in context by strength, its activations, the tokens it promotes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...stream.keep import Keeper
from ...subject.subject import Subject
from .collected import Collected
from .config import TopActivationsConfig
from .kernels import LOWEST_OCTAVE, PER_OCTAVE
from .labels import label_block
from .logit_lens import LogitLens
from .statistics import Statistics


class Panels:
    """Examples of one latent, as blocks for its panel.

    An example is [value, sequence, position, document, index of the peak, tokens, heat]: heat · the block's unit is the
    activation on each token, to four digits of the largest on ordinary rows; "" where the latent is silent throughout.
    """

    def __init__(
        self,
        collected: Collected,
        s: Statistics,
        lens: LogitLens | None,
        subject: Subject,
        config: TopActivationsConfig,
    ) -> None:
        self.collected, self.s, self.lens, self.config = collected, s, lens, config
        cache = subject.cache
        self.tokens, self.doc_id, self.ctx = cache.tokens.reshape(-1), cache.doc_id.reshape(-1), cache.ctx
        self.label = subject.vocabulary.label
        self.explanations = subject.explanations
        self.before, self.after = config.before, config.after
        self.by_token: dict[int, list[int]] = {}
        """Token → the drawn rows with it, ascending."""
        for row in sorted(collected.silent):
            self.by_token.setdefault(int(self.tokens[row]), []).append(row)

    def __call__(self, latent: int) -> list[dict[str, Any]]:
        label = label_block(self.explanations, latent)
        if not self.s.fired[latent]:
            return [*label, *self._lens(latent)]
        groups = [
            *self._strongest(latent, self.collected.top, "Top activations", "ordinary rows, identical contexts once"),
            *self._bands(latent),
            *self._strongest(latent, self.collected.apart, "Position 0 or massive", "the strongest of those rows"),
        ]
        silent = self._silent(latent)
        if silent:
            groups.append({"title": "Silent on the same token", "note": "does not fire here", "items": silent})
        return [
            *label,
            {"type": "examples", "max": self._scale(latent), "unit": self._unit(latent), "groups": groups},
            self._histogram(latent),
            *self._lens(latent),
        ]

    def _strongest(self, latent: int, keeper: Keeper, title: str, note: str) -> list[dict[str, Any]]:
        """What a keeper holds of a latent, as a group of examples; none where it holds nothing."""
        n = int(keeper.kept_of(latent))
        if not n:
            return []
        heat = self._heat(latent, keeper)
        return [{"title": title, "note": note, "items": [self._example(latent, keeper, k, heat[k]) for k in range(n)]}]

    def _scale(self, latent: int) -> float:
        """The activation drawn at full strength: the largest on ordinary rows, or of all where it fires on none."""
        ordinary = float(self.s.largest_ordinary[latent])
        return ordinary if np.isfinite(ordinary) else float(self.s.largest[latent])

    def _histogram(self, latent: int) -> dict[str, Any]:
        """Its activations, from the first bin that holds any to the last."""
        histogram = self.collected.histogram[latent]
        used = np.flatnonzero(histogram)
        low, high = int(used[0]), int(used[-1]) + 1
        edges = 2.0 ** (LOWEST_OCTAVE + np.arange(low, high + 1) / PER_OCTAVE)
        return {
            "type": "chart",
            "title": "Activations where it fires",
            "note": f"{int(self.s.fired[latent]):,} firings",
            "x": [float(f"{edge:.3g}") for edge in edges],
            "series": [{"name": "firings", "role": "data", "y": histogram[low:high].tolist()}],
            "x_label": "activation (log scale)",
            "y_label": "rows",
        }

    def _lens(self, latent: int) -> list[dict[str, Any]]:
        """Output tokens that the decoder row promotes and suppresses."""
        if self.lens is None:
            return []
        label, lens = self.label, self.lens
        rows = [
            [label(int(up)), float(f"{more:.3g}"), label(int(down)), float(f"{less:.3g}")]
            for up, more, down, less in zip(
                lens.top[latent], lens.top_value[latent], lens.bottom[latent], lens.bottom_value[latent], strict=True
            )
        ]
        return [
            {
                "type": "table",
                "title": "Output tokens",
                "note": "logit lens with the last norm's gain; later layers ignored",
                "columns": [["promotes", "text"], ["logit", "number"], ["suppresses", "text"], ["logit", "number"]],
                "rows": rows,
            }
        ]

    def _heat(self, latent: int, keeper: Keeper) -> list[list[int]]:
        """The activations around each kept entry of a latent, in units."""
        heat: list[list[int]] = np.rint(keeper.heat_of(latent) / self._unit(latent)).astype(np.int64).tolist()
        return heat

    def _unit(self, latent: int) -> float:
        """The power of ten in which the activation drawn at full strength has four digits: whole numbers take little
        room."""
        return float(f"1e{math.floor(math.log10(self._scale(latent))) - 3}")

    def _example(self, latent: int, keeper: Keeper, k: int, heat: list[int]) -> list[Any]:
        return self._item(int(keeper.row[latent, k]), float(keeper.value[latent, k]), heat)

    def _item(self, row: int, value: float, heat: list[int] | None) -> list[Any]:
        sequence, position = divmod(row, self.ctx)
        ahead, behind = min(position, self.before), min(self.ctx - 1 - position, self.after)
        return [
            float(f"{value:.4g}"),
            sequence,
            position,
            int(self.doc_id[row]),
            ahead,
            self.tokens[row - ahead : row + behind + 1].tolist(),
            "" if heat is None else heat[self.before - ahead : self.before + behind + 1],
        ]

    def _bands(self, latent: int) -> list[dict[str, Any]]:
        """Random firings from each band of its activations, strongest band first, none of them shown already."""
        config, sample, top = self.config, self.collected.sample, self.collected.top
        n = int(sample.kept_of(latent))
        if not config.per_band or n < config.bands:
            return []
        shown = {int(row) for row in top.row[latent] if row >= 0}
        seen = {int(key) for key in top.key[latent, : top.kept_of(latent)]}  # contexts
        order = np.argsort(-sample.value[latent, :n], kind="stable")
        groups, heat = [], self._heat(latent, sample)
        for b, band in enumerate(np.array_split(order, config.bands)):
            items: list[list[Any]] = []
            # The sample is in random order (by hash), so the first of a band, in that order, are a random choice.
            for k in sorted(band.tolist()):
                key = int(sample.key[latent, k])
                if len(items) < config.per_band and int(sample.row[latent, k]) not in shown and key not in seen:
                    seen.add(key)
                    items.append(self._example(latent, sample, k, heat[k]))
            if items:
                high, low = 100 - 100 * b // config.bands, 100 - 100 * (b + 1) // config.bands
                groups.append({"title": f"Percentiles {low}–{high}", "note": "random firings", "items": items})
        return groups

    def _silent(self, latent: int) -> list[list[Any]]:
        """Drawn rows with one of its favourite tokens on which it does not fire."""
        items: list[list[Any]] = []
        for token in self.s.favourites[latent].tolist():
            for row in self.by_token.get(token, ()):
                if len(items) >= self.config.silent:
                    return items
                if not (self.collected.silent[row] == latent).any():
                    items.append(self._item(row, 0.0, None))
        return items
