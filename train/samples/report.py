"""Writes the samples of a run: the strongest with their text, figures over all of them, and a table."""

from __future__ import annotations

from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...shared.cache import Cache, positions
from ...shared.cache.documents import domains_of, sources_of_rows
from ...shared.cache.files import sync_folder, write_file, write_json
from ...shared.cache.rows import rest_rows
from ...shared.cache.vocabulary import Vocabulary
from ...shared.page import Column, Page, Section, Table, write_page
from ...shared.runs.samples import FOLDER, STATISTICS, TABLE, LatentSamples, Sample, SampleSet, save_samples
from .collect import Kept, SampleCollector

LOOKED_AT = 16
"""Samples of a latent, the strongest ones, that decide whether it is specialised; latents with fewer are rare."""

LEVEL, GATE = 0.01, 0.1
"""False discovery rate and least agreement of a specialised latent: the defaults of `pipeline analyze`."""

SHOWN = 30
"""Latents in the table."""

TEXTS = 5
"""Samples of a latent on the page."""

PAGE = "index.html"


class SampleWriter:
    """Writes the samples of a run at one step; the files depend on that step alone.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path, collector: SampleCollector, cache: Cache) -> None:
        self.run, self.collector, self.cache = run, collector, cache
        self.vocabulary = Vocabulary.of(cache)

    def write(self, step: int) -> SampleSet:
        """Write samples.json, statistics.json, statistics.md and index.html; return what the first holds."""
        collector, config = self.collector, self.collector.config
        kept = collector.kept()
        verdict = self._verdicts(kept)
        saved = kept if config.save_per_latent is None else collector.kept(config.save_per_latent)
        # by ordinary rows: position 0 and massive rows would fill the list with one context; then latents with no other
        strongest = np.lexsort((-kept.value[:, 0], -kept.largest))
        chosen = strongest[kept.value[strongest, 0] > 0][: config.save_latents]
        latents = tuple(self._latent(int(i), kept, saved, str(verdict[i])) for i in chosen)
        settings = {**asdict(config), "max_bos_share": collector.max_bos_share}
        found = SampleSet(step, collector.collections, settings, latents)
        save_samples(self.run, found)
        statistics = {"step": step, "collections": collector.collections, **self._statistics(kept, verdict)}
        write_json(self.run / FOLDER / STATISTICS, statistics)
        write_file(self.run / FOLDER / TABLE, [table(statistics, found).encode()])
        write_page(self.run / FOLDER / PAGE, samples_page(self.run.name, statistics, found))
        sync_folder(self.run / FOLDER)
        return found

    def _latent(self, i: int, kept: Kept, saved: Kept, verdict: str) -> LatentSamples:
        n = int(kept.count[i])
        samples = tuple(self._sample(saved, i, s) for s in range(int(saved.count[i])))
        largest = float(kept.largest[i])
        return LatentSamples(i, n, largest, float(kept.value[i, :n].mean(dtype=np.float64)), verdict, samples)

    def _sample(self, saved: Kept, i: int, s: int) -> Sample:
        row = int(saved.row[i, s])
        tokens = self.cache.tokens.reshape(-1)
        window = self.collector.window(row)
        context = tuple(int(tokens[r]) for r in window)
        peak = row - window.start
        return Sample(
            value=float(saved.value[i, s]),
            token=context[peak],
            position=int(positions(np.array(row), self.cache.flags.reshape(-1)[row], self.cache.ctx)),
            pos_in_doc=int(self.cache.pos_in_doc.reshape(-1)[row]),
            doc_id=int(self.cache.doc_id.reshape(-1)[row]),
            row=row,
            step=int(saved.step[i, s]),
            context=context,
            peak=peak,
            ordinary=not saved.apart[i, s],
            text=self.vocabulary.marked(context, peak),
        )

    @cached_property
    def _labels(self) -> tuple[str, NDArray[np.int64], NDArray[np.bool_]]:
        """The kind of source (document or domain), the source of each row, and which rows are the corpus."""
        source, of_row = sources_of_rows(self.cache.doc_id.reshape(-1), domains_of(self.cache.path))
        return source, of_row, rest_rows(self.cache.flags, self.cache.ctx).reshape(-1)

    def _verdicts(self, kept: Kept) -> NDArray[np.str_]:
        """Specialised or general, of each latent [F]: do its strongest samples agree more than rows of the corpus?"""
        from ...shared.codes.specialisation import concentration, verdicts

        count = kept.count
        scored = count >= LOOKED_AT
        if not scored.any():
            return np.where(count > 0, "rare", "none")
        source, of_row, corpus = self._labels
        tokens = self.cache.tokens.reshape(-1)
        rows = np.where(kept.row >= 0, kept.row, 0)[:, :LOOKED_AT]
        by_token = concentration(tokens[rows], scored, np.bincount(tokens[corpus]), 0, LEVEL, GATE)
        by_source = concentration(of_row[rows], scored, np.bincount(of_row[corpus]), 1, LEVEL, GATE)
        found = verdicts(by_token, by_source, source, np.ones(len(count), np.bool_), scored)
        return np.where(count > 0, found, "none")

    def _statistics(self, kept: Kept, verdict: NDArray[np.str_]) -> dict[str, Any]:
        """Figures over all samples that are kept, saved or not."""
        there = kept.value > 0
        count = kept.count
        some, total = count[count > 0], int(count.sum())
        values = kept.value[there].astype(np.float64)
        unique = len(np.unique(kept.key[there]))
        names, latents = np.unique(verdict, return_counts=True)
        apart = (kept.apart.sum(axis=1) / np.maximum(count, 1))[count > 0]
        return {
            "latents": {"all": len(count), "with_samples": len(some)},
            "samples": {
                "total": total,
                "per_latent": {
                    "mean": float(some.mean()) if total else None,
                    "median": float(np.median(some)) if total else None,
                    "min": int(some.min()) if total else None,
                    "max": int(some.max()) if total else None,
                },
            },
            "activation": {
                "min": float(values.min()) if total else None,
                "mean": float(values.mean()) if total else None,
                "max": float(values.max()) if total else None,
            },
            "contexts": {"unique": unique, "diversity_percent": 100 * unique / total if total else None},
            "position_0_or_massive": {
                "share": int(kept.apart.sum()) / total if total else None,
                "largest_share_of_a_latent": float(apart.max()) if total else None,
            },
            "specialisation": {str(name): int(n) for name, n in zip(names, latents, strict=True)},
        }


def figures(statistics: dict[str, Any]) -> list[tuple[str, str]]:
    """(figure, value) over all samples."""
    s, per = statistics["samples"], statistics["samples"]["per_latent"]
    activation, contexts, apart = (statistics[name] for name in ("activation", "contexts", "position_0_or_massive"))
    specialised = ", ".join(f"{n:,} {name}" for name, n in statistics["specialisation"].items())
    return [
        ("batches looked at", _show(statistics["collections"])),
        ("latents with samples", f"{statistics['latents']['with_samples']:,} of {statistics['latents']['all']:,}"),
        ("samples", _show(s["total"])),
        ("samples per latent: mean, median, range", f"{_show(per['mean'])}, {_show(per['median'])}, {_range(per)}"),
        ("activation: mean, range", f"{_show(activation['mean'])}, {_range(activation)}"),
        ("unique contexts", _show(contexts["unique"])),
        ("context diversity, %", _show(contexts["diversity_percent"])),
        ("share at position 0 or massive", _show(apart["share"])),
        ("largest such share of a latent", _show(apart["largest_share_of_a_latent"])),
        ("specialised or general", specialised),
    ]


def table(statistics: dict[str, Any], samples: SampleSet) -> str:
    """The figures and the strongest latents, as Markdown."""
    lines = [f"# Activation samples after step {statistics['step']:,}", "", "| | |", "|---|---:|"]
    lines += [f"| {name} | {value} |" for name, value in figures(statistics)]
    lines += ["", "| latent | max | mean | samples | specialised | strongest sample |", "|---:|---:|---:|---:|---|---|"]
    for latent in samples.latents[:SHOWN]:
        head = f"| {latent.latent} | {latent.max:.4g} | {latent.mean:.4g} | {latent.kept} | {latent.specialised} |"
        lines.append(f"{head} {_cell(latent.strongest.text)} |")
    return "\n".join(lines) + "\n"


def samples_page(run: str, statistics: dict[str, Any], samples: SampleSet) -> Page:
    """The figures, the strongest latents, and the text of their samples, as a page."""
    columns = [
        Column("latent"),
        Column("max", "Largest activation on an ordinary row (neither at position 0 nor massive)."),
        Column("mean", "Mean activation of its samples."),
        Column("samples", "Samples that training kept."),
        Column(
            "specialised",
            "What its samples share: a token, a document or domain, or both; else general, or rare.",
            True,
        ),
        Column("strongest sample", "The peak is marked «so».", True),
    ]
    rows = [
        [
            str(one.latent),
            f"{one.max:.4g}",
            f"{one.mean:.4g}",
            str(one.kept),
            one.specialised,
            _flat(one.strongest.text),
        ]
        for one in samples.latents[:SHOWN]
    ]
    texts = [
        Section(
            f"Latent {one.latent}",
            tables=(
                Table(
                    [Column("activation"), Column("step"), Column("position"), Column("text", text=True)],
                    [
                        [f"{sample.value:.4g}", f"{sample.step:,}", str(sample.position), _flat(sample.text)]
                        for sample in one.samples[:TEXTS]
                    ],
                ),
            ),
        )
        for one in samples.latents[:SHOWN]
    ]
    overall = Table([Column("figure", text=True), Column("value", text=True)], figures(statistics))
    about = f"after step {statistics['step']:,}; the strongest {min(SHOWN, len(samples.latents))} latents"
    return Page(
        f"Activation samples of {run}",
        about,
        (),
        [Section("Figures", tables=(overall,)), Section("Strongest latents", tables=(Table(columns, rows),)), *texts],
    )


def _flat(text: str) -> str:
    return text.replace("\r", "").replace("\n", "↵").replace("\t", "⇥")


def _show(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _range(found: dict[str, Any]) -> str:
    return f"{_show(found['min'])} … {_show(found['max'])}"


def _cell(text: str) -> str:
    """Text within a cell of a table."""
    return _flat(text.replace("\\", "\\\\").replace("|", "\\|"))
