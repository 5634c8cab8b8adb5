"""What a judge will be asked about a run: its latents' examples, and which of them are also scored with controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..shared.cache import Cache, open_cache
from ..shared.cache.spread import choose_shards
from ..shared.coders import Coder
from ..shared.console import Console
from ..shared.device import device_named
from ..shared.errors import DataError, UsageError, command
from ..shared.joint_names import parts_of
from ..shared.runs.explanations import SCORES
from ..shared.runs.folder import Run
from ..shared.runs.own_cache import is_imported, own_cache_path, refuse_another
from .config import ExplainConfig
from .examples import Examiner, Examples
from .firings import choose_latents, firings_of
from .judges.base import Judge, Label, Lesson, Question
from .text import Text


@dataclass(frozen=True)
class Prepared:
    """What the judge will be asked.

    Attributes:
        examples: latent → its examples.
        too_few: latent → why it is not explained.
        controlled: latents that are also scored with controls.
        nothing: lessons of no latent, one for each of these.
        rows: rows of the cache that were read.
    """

    examples: dict[int, Examples]
    too_few: dict[int, str]
    controlled: tuple[int, ...]
    nothing: tuple[Lesson, ...]
    rows: int

    @property
    def lessons(self) -> list[Lesson]:
        """All that the judge will label: the latents, then nothing."""
        return [*(one.lesson for one in self.examples.values()), *self.nothing]

    def questions(self, labels: Mapping[tuple[str, int], Label]) -> dict[tuple[str, int, str], Question]:
        """(whose label, latent, score) → the question.

        Args:
            labels: ("own" or a control, latent) → a label.
        """
        return {
            (whose, latent, name): Question(label, test.marked if name == "fuzzing" else test.plain, name == "fuzzing")
            for (whose, latent), label in labels.items()
            for test in [self.examples[latent].test]
            for name in SCORES
        }


def prepare(run: Run, config: ExplainConfig, judge: Judge, console: Console) -> Prepared:
    """The examples of every latent, from one pass over the cache, and a short one before it to choose latents."""
    cache = _cache(run, config)
    if not cache.has_tokens:
        raise UsageError(f"explanations need tokens, and {cache.path} has none", "--set explain.cache=CACHE")
    coder = run.load_coder().to(device_named(config.device, "explain.device"))
    shards = choose_shards(cache, config.max_tokens)
    text = Text.of(cache, shards)
    if judge.reads_text and not text.vocabulary.known:
        raise UsageError(f"{cache.path} has no tokenizer, and {judge.name} reads text", "--set explain.judge.kind=rule")
    rows = sum(len(cache.layout.rows_of(shard)) for shard in shards)
    latents = _wanted(coder, config)
    with console.progress(rows, "tokens", f"explain {run.name}") as progress:
        if latents is None:
            latents = choose_latents(cache, coder, shards, config.count)
        found = firings_of(cache, coder, shards, text, latents, progress.advance)
    examiner = Examiner(text, config)
    examples: dict[int, Examples] = {}
    too_few: dict[int, str] = {}
    for latent, firings in zip(latents, found, strict=True):
        one = examiner.examples(firings, latent)
        if isinstance(one, str):
            too_few[latent] = one
        else:
            examples[latent] = one
    if not examples:
        why = next(iter(too_few.values()), "no latent fires")
        raise UsageError(f"no latent of {run.name} has enough examples: {why}", "--set explain.max_tokens=null")
    ranks = np.linspace(0, len(examples) - 1, min(config.controls, len(examples))).astype(np.int64)
    controlled = tuple(list(examples)[place] for place in ranks.tolist()) if config.controls else ()
    nothing = tuple(examiner.nothing(len(examples[latent].lesson.active), latent) for latent in controlled)
    return Prepared(examples, too_few, controlled, nothing, rows)


def _wanted(coder: Coder, config: ExplainConfig) -> tuple[int, ...] | None:
    """The latents that the settings name; None: none."""
    if config.latents is None:
        return None
    beyond = [latent for latent in config.latents if latent >= coder.n_latents]
    if beyond:
        raise UsageError(
            f"explain.latents names {beyond[0]}, but the coder has latents 0 to {coder.n_latents - 1}",
            f"--latents {coder.n_latents - 1}   (or other latents that it has)",
        )
    return tuple(dict.fromkeys(config.latents))


def _cache(run: Run, config: ExplainConfig) -> Cache:
    """The cache that the settings name, or the run's own."""
    source = run.final["source"]
    if config.cache is not None:
        cache = open_cache(config.cache)
    else:
        cache = open_cache(own_cache_path(run, "explain.cache"), identity=run.final["cache"].get("identity"))
        if not is_imported(run.final):
            refuse_another(run, cache, f"--set explain.cache={cache.path} to read that cache anyway")
    if any(part not in cache.sites for part in parts_of(source)):
        raise DataError(
            f"the source of run {run.name} is {source}, but {cache.path} holds {', '.join(cache.sites)}",
            command("inspect", cache.path),
        )
    return cache
