"""The explain stage: examples from the cache, labels and answers from the judge, scores beside their controls."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..shared.console import Console, count
from ..shared.errors import UsageError
from ..shared.runs.explanations import FOLDER as EXPLANATIONS
from ..shared.runs.explanations import write_explanations
from ..shared.runs.folder import Run, open_run
from .config import ExplainConfig
from .judges import JUDGES
from .judges.answers import FILE as ANSWERS
from .judges.base import Estimate, Judge, Label
from .prepare import Prepared, prepare
from .result import CONTROLS, ExplainResult, document_of
from .scores import score


@dataclass(frozen=True)
class Plan:
    """What an explanation will take, before anything is asked."""

    run: str
    judge: str
    latents: int
    controlled: int
    too_few: dict[int, str]
    estimate: Estimate

    def to_dict(self) -> dict[str, Any]:
        """The --json document of --dry-run."""
        return {
            "run": self.run,
            "judge": self.judge,
            "latents": self.latents,
            "controls": self.controlled,
            "not_explained": [{"latent": latent, "why": why} for latent, why in self.too_few.items()],
            "requests": self.estimate.requests,
            "tokens_in": self.estimate.tokens_in,
            "tokens_out": self.estimate.tokens_out,
            "cost": self.estimate.cost,
            "answered_before": self.estimate.known,
        }

    def __str__(self) -> str:
        one = self.estimate
        lines = [f"{self.run}: {count(self.latents, 'latent')}, judge {self.judge}; controls on {self.controlled}"]
        if self.too_few:
            lines.append(f"{len(self.too_few)} not explained: too few examples")
        if one.requests or one.known:
            cost = "price not known (explain.judge.price_in, price_out)" if one.cost is None else f"cost {one.cost:.4g}"
            known = f", {one.known} answered before" if one.known else ""
            tokens = f"about {one.tokens_in:,} tokens in, at most {one.tokens_out:,} out"
            lines.append(f"at most {count(one.requests, 'request')}{known}, {tokens}; {cost}")
        return "\n".join(lines)


def explain(path: Path, config: ExplainConfig, console: Console | None = None) -> ExplainResult:
    """Labels a run's latents and scores the labels, from its cache alone.

    Raises:
        UsageError: the cache has no tokens, a latent does not exist, or the estimate is above a limit.
        DataError: the run or its cache is missing, unfinished or damaged.
        PipelineError: the judge failed; what it answered is kept, and the same command continues.
    """
    console = console or Console(quiet=True)
    started = time.perf_counter()
    run = open_run(path)
    judge = _judge(run, config)
    prepared = prepare(run, config, judge, console)
    planned = _plan(run, prepared, judge)
    console.info(str(planned))
    _check_limits(planned.estimate, config)
    labels = _labels(judge, prepared, config, console)
    questions = prepared.questions(labels)
    answers = judge.answer(list(questions.values()), console)
    scores = {
        key: score(prepared.examples[key[1]].test.truth, answer) for key, answer in zip(questions, answers, strict=True)
    }
    document = document_of(run, config, judge, prepared, labels, scores)
    written = write_explanations(run.path, config.folder, document)
    return ExplainResult(written, document, time.perf_counter() - started)


def plan(path: Path, config: ExplainConfig, console: Console | None = None) -> Plan:
    """What :func:`explain` would ask, without asking: reads the cache and writes nothing."""
    run = open_run(path)
    judge = _judge(run, config)
    return _plan(run, prepare(run, config, judge, console or Console(quiet=True)), judge)


def _judge(run: Run, config: ExplainConfig) -> Judge:
    judge: Judge = JUDGES[config.judge.kind](
        config.judge,
        run.path / EXPLANATIONS / config.folder / ANSWERS,
        max_requests=config.max_requests,
        max_cost=config.max_cost,
        device=config.device,
    )
    return judge


def _plan(run: Run, prepared: Prepared, judge: Judge) -> Plan:
    own = {("own", latent): Label("") for latent in prepared.examples}
    others = {(whose, latent): Label("") for whose in CONTROLS for latent in prepared.controlled}
    estimate = judge.estimate(prepared.lessons, list(prepared.questions({**own, **others}).values()))
    return Plan(run.name, judge.name, len(prepared.examples), len(prepared.controlled), prepared.too_few, estimate)


def _check_limits(estimate: Estimate, config: ExplainConfig) -> None:
    """Raises UsageError where more would be asked, or spent, than the settings allow."""
    if estimate.requests > config.max_requests:
        raise UsageError(
            f"this takes up to {estimate.requests:,} requests, explain.max_requests allows {config.max_requests:,}",
            f"--set explain.max_requests={estimate.requests}   (or fewer latents: --set explain.count=16)",
        )
    if estimate.cost is not None and estimate.cost > config.max_cost:
        raise UsageError(
            f"this costs up to {estimate.cost:.4g}, explain.max_cost allows {config.max_cost:g}",
            f"--set explain.max_cost={estimate.cost * 1.05:.3g}   (or fewer latents: --set explain.count=16)",
        )


def _labels(judge: Judge, prepared: Prepared, config: ExplainConfig, console: Console) -> dict[tuple[str, int], Label]:
    """("own", "shuffled" or "random", latent) → a label. A latent that the judge gives no label has none."""
    given = judge.label(prepared.lessons, console)
    own = {latent: label for latent, label in zip(prepared.examples, given, strict=False) if label is not None}
    of_nothing = dict(zip(prepared.controlled, given[len(prepared.examples) :], strict=True))
    labels: dict[tuple[str, int], Label] = {("own", latent): label for latent, label in own.items()}
    ring = np.random.default_rng((config.seed, 2)).permutation(list(own)).tolist()
    for place, latent in enumerate(ring):
        if latent in of_nothing:
            if len(ring) > 1:
                labels["shuffled", latent] = own[ring[place - 1]]
            label = of_nothing[latent]
            if label is not None:
                labels["random", latent] = label
    return labels
