"""The commands of `pipeline`: what each one takes, runs and prints.

Nothing heavy is imported before a command needs it, so `pipeline --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from . import completion
from .command_line import (
    CONTEXT,
    Group,
    common,
    dry_run,
    heard,
    limited,
    placed,
    settings,
    several_variants,
    shared_out,
    some_latents,
    words_of,
)
from .exchange_commands import ask_command, cache_group, export_command, import_command, publish_command
from .plan_command import plan_command
from .resolve import (
    analyze_config,
    cache_to_train_on,
    explain_config,
    pipeline_class,
    refuse_folders,
    resolve,
    train_configs,
    tune_config,
    unharvested,
    variants,
)
from .shared.config import settings as settings_of
from .shared.console import Console
from .shared.errors import DataError, OtherSettingsError, UsageError
from .shared.objects.address import spelled
from .shared.ranks import refuse_idle
from .sweep_command import sweep_command

if TYPE_CHECKING:
    from .shared.ranks import Rank
    from .train.config import TrainConfig
    from .train.loop import RunSummary

F = TypeVar("F", bound=Callable[..., Any])
DEMO_ROWS = 131_072  # half of the demo's cache: the report in half the time
DEMO_VARIANTS = ("matryoshka", "topk", "frozen-random-decoder")


@click.group(cls=Group, context_settings=CONTEXT)
@click.version_option(None, "-V", "--version", package_name="sparse-coder-pipeline", prog_name="pipeline")
def cli() -> None:
    """Harvest a language model's activations once, train sparse coders on them many times, report what they learned.

    \b
    pipeline demo                          all three steps on the embedded model, in about a minute
    pipeline harvest                       model -> cache/
    pipeline train --variant matryoshka    cache -> runs/
    pipeline analyze                       cache + runs -> report
    pipeline explain RUN                   a label for each latent, scored

    Settings: -c FILE or -c PRESET, else ./pipeline.yaml, else the embedded default; then --set KEY=VALUE.

    Completion in bash: eval "$(_PIPELINE_COMPLETE=bash_source pipeline)"; for zsh and fish see docs/commands.md.

    Exit codes: 0 done, 1 failed, 2 usage or settings, 3 cache or run missing, incomplete, corrupt or with
    different settings, 130 interrupted.
    """


_path = click.argument(
    "path", type=click.Path(path_type=Path), metavar="PATH", shell_complete=completion.CACHES_AND_RUNS
)
VARIANTS = "\b\n" + textwrap.fill(f"Variants: {', '.join(variants())}.", 76, break_on_hyphens=False)
"""Wrapped here: click would break names at their hyphens."""


@cli.command("harvest")
@shared_out
@dry_run
@settings
@limited
@common
def harvest_command(
    console: Console,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    ranks: str | None,
    rank: int | None,
    dry_run: bool,
) -> None:
    """Run the model once and write its activations to a cache, or resume one.

    Settings: the harvest section. Shards already in the cache are kept; a cache with different settings is an
    error. Under torchrun, and with --ranks, each process writes its own shards (docs/scale.md).
    """
    refuse_folders(files, "harvest")
    config = resolve(files, sets).harvest
    from .shared.ranks import processes, rank_of

    this = rank_of(ranks, rank, os.environ)
    console = console if dry_run else heard(this, console)
    console.info(f"harvest: {config.model} on {config.dataset_name}, {', '.join(config.sites)}")
    if dry_run:
        from .harvest.plan import plan

        planned = plan(config)
        console.result(planned.to_dict(), str(planned))
        return
    if this is None:
        from .harvest.together import harvest_together

        together = harvest_together(words_of(files=files, sets=sets), processes(this, ranks), console)
        console.result(together.to_dict(), str(together))
        return
    from .harvest.run import harvest_share

    result = harvest_share(placed(config), this, console)
    console.result(result.to_dict(), str(result))


@cli.command("train", epilog=VARIANTS)
@several_variants("A named combination, listed below; may be repeated.")
@click.option("--name", metavar="NAME", help="Name of the run; with several variants NAME-VARIANT.")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train N seeds side by side, from train.seed on: NAME-seedN.",
)
@click.option("--resume", is_flag=True, help="Resume from the last checkpoint, bit-identical to an uninterrupted run.")
@shared_out
@dry_run
@settings
@limited
@common
def train_command(
    console: Console,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    names: tuple[str, ...],
    name: str | None,
    seeds: int | None,
    resume: bool,
    ranks: str | None,
    rank: int | None,
    dry_run: bool,
) -> None:
    """Train sparse coders from a cache; several variants train side by side on one read of the data.

    Settings: the train section, overridden by the variant. The cache is train.cache, or else the one that `pipeline
    harvest` writes with the same settings; --dry-run plans from that harvest's plan if the cache does not exist yet.
    Under torchrun, and with --ranks, each process trains its own share of the runs, or with train.parallel its share
    of every run (docs/scale.md).
    """
    from .shared.ranks import processes, rank_of, restarted

    this = rank_of(ranks, rank, os.environ)
    console = heard(this, console)
    n = processes(this, ranks)
    configs = train_configs(files, sets, names, name, seeds=seeds)
    if resume:
        from .shared.overview.find import refuse_nothing_to_resume

        refuse_nothing_to_resume([one.path for one in configs])
    resume = resume or restarted(os.environ)
    bound = _bound(configs, n)
    console.info(f"train: {', '.join(one.run_name for one in configs)} on {spelled(configs[0].cache or Path())}")
    from .train.loop import plan, runs_text
    from .train.loop import train as trained

    template = resolve(files, sets, names[0] if names else None).train
    if dry_run:
        planned = plan(configs, unharvested(files, sets), processes=n)
        console.result(planned.to_dict(), str(planned))
        return
    if this is not None and this.count > 1:
        mine = _train_as(this, [placed(one) for one in configs], console, resume=resume, bound=bound)
        console.result({"runs": [one.to_dict() for one in mine]}, runs_text(mine))
        return
    if this is None:
        words = words_of(files=files, sets=sets, names=names, name=name, seeds=seeds, resume=resume)
        _start(["train", *words], configs, n, console, resume=resume, bound=bound)
        resume = True  # they are finished: what follows sums them up
    if template.sites is not None:
        from .train.layers import train_layers

        by_layer = train_layers(configs, name or template.run_name, console, resume=resume)
        console.result(by_layer.to_dict(), str(by_layer))
    else:
        summaries = trained(configs, console, resume=resume)
        console.result({"runs": [one.to_dict() for one in summaries]}, runs_text(summaries))


def _bound(configs: Sequence[TrainConfig], n: int) -> bool:
    """Whether n processes train every run together (train.parallel). If not, each run is trained by one of them.

    Raises:
        UsageError: more processes than runs, or runs of both kinds.
    """
    kinds = {config.parallel for config in configs} if n > 1 else {None}
    if len(kinds) > 1:
        raise UsageError("train.parallel differs between these runs", "one command for each kind")
    if kinds == {None}:
        refuse_idle(n, len(configs), ", or --set train.parallel=data (several processes train one run)")
    return kinds != {None}


def _start(
    words: Sequence[str], configs: Sequence[TrainConfig], n: int, console: Console, *, resume: bool, bound: bool
) -> None:
    """Trains with n processes of this machine; refuses first what each of them would refuse."""
    from .train.plan import plan
    from .train.runs.session import existing_runs
    from .train.together import train_bound, train_together

    existing_runs(plan(configs, processes=n).groups, resume)
    (train_bound if bound else train_together)(words, n, configs, console)


def _train_as(
    this: Rank, configs: Sequence[TrainConfig], console: Console, *, resume: bool, bound: bool
) -> list[RunSummary]:
    """Trains this process's part of every run (`bound`), or its share of the runs."""
    if not bound:
        from .train.layers import train_in_parts

        return train_in_parts(this.part(configs), console, resume=resume)
    from .train.loop import train
    from .train.parallel.peers import meet
    from .train.plan import pick_device

    with meet(this, pick_device(configs[0].device), os.environ) as peers:
        return train(configs, console, resume=resume, peers=peers)


@cli.command("analyze")
@click.argument("runs", nargs=-1, metavar="[RUN]...", shell_complete=completion.RUNS)
@click.option(
    "--only",
    multiple=True,
    metavar="REPORT",
    shell_complete=completion.REPORTS,
    help="Only this report; may be repeated.",
)
@click.option(
    "--latents",
    metavar="N,N,…",
    callback=some_latents,
    help="Show the correlations of these latents with one another (analyze.reports.correlation.latents).",
)
@click.option("--ce", is_flag=True, help="Also measure the model's loss with the coder spliced in (runs the model).")
@settings
@common
def analyze_command(
    console: Console,
    runs: tuple[str, ...],
    files: tuple[str, ...],
    sets: tuple[str, ...],
    only: tuple[str, ...],
    latents: str | None,
    ce: bool,
) -> None:
    """Report what the coders learned; several runs are compared.

    RUN is a run's folder or its name; without RUN, every finished run is analyzed. Settings: the analyze section.
    """
    if latents is not None:
        sets = (*sets, f"analyze.reports.correlation.latents=[{latents}]")
    whole = resolve(files, sets)
    only = (*(only or whole.analyze.reports), "cross_entropy") if ce else only
    from .shared.overview.find import run_paths

    config, paths = analyze_config(whole, only), run_paths(runs, whole.train.runs, console.warn)
    console.info(f"analyze: {', '.join(path.name for path in paths)}")
    from .analyze.run import analyze as analyzed  # what can be refused was refused before this takes its seconds

    result = analyzed(paths, config, console)
    console.result(result.to_dict(), str(result))


@cli.command("tune")
@click.argument("run", required=False, metavar="[RUN]", shell_complete=completion.RUNS)
@click.option("--name", metavar="NAME", help="Name of the new run; else RUN-tuned.")
@click.option("--model", metavar="NAME", help="A checkpoint in place of the one that the run's cache names.")
@click.option("--resume", is_flag=True, help="Resume from the last checkpoint, bit-identical to an uninterrupted run.")
@dry_run
@settings
@limited
@common
def tune_command(
    console: Console,
    run: str | None,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    name: str | None,
    model: str | None,
    resume: bool,
    dry_run: bool,
) -> None:
    """Train a finished coder on in the running model, so that the model's predictions stay as they are.

    RUN is a run's folder or its name; the result is a new run beside it, with its figures before and after. The loss is
    the squared error and the KL divergence between the model's predictions without and with the coder. Settings: the
    tune section.
    """
    config = tune_config(resolve(files, sets), run, name=name, model=model)
    console.info(f"tune: {config.run}" if config.run else "tune")
    from .tune.run import plan, tune

    if dry_run:
        planned = plan(config)
        console.result(planned.to_dict(), str(planned))
    else:
        result = tune(config, console, resume=resume)
        console.result(result.to_dict(), str(result))


@cli.command("explain")
@click.argument("run", metavar="RUN", shell_complete=completion.RUNS)
@click.option(
    "--judge",
    metavar="JUDGE",
    shell_complete=completion.JUDGES,
    help="rule (the default: no language model), endpoint or local (explain.judge.kind).",
)
@click.option("--model", metavar="NAME", help="The judge's model: a name at the endpoint, or a checkpoint's folder.")
@click.option(
    "--latents",
    metavar="N,N,…",
    callback=some_latents,
    help="These latents (explain.latents); else explain.count of them.",
)
@dry_run
@settings
@limited
@common
def explain_command(
    console: Console,
    run: str,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    judge: str | None,
    model: str | None,
    latents: str | None,
    dry_run: bool,
) -> None:
    """Say in one line what each latent fires on, and score how well that line tells where it fires.

    RUN is a run's folder or its name. Examples come from its cache; the language model is not run. Labels are scored on
    held-out text by detection and fuzzing, beside shuffled and random labels, and then appear in `analyze`, `ask` and
    exports. Requests and cost are shown first and limited by explain.max_requests and explain.max_cost.
    """
    given = {"judge.kind": judge, "judge.model": model, "latents": latents and f"[{latents}]"}
    whole = resolve(files, (*sets, *(f"explain.{key}={value}" for key, value in given.items() if value)))
    from .shared.overview.find import run_paths

    config, (path,) = explain_config(whole), run_paths([run], whole.train.runs)
    console.info(f"explain: {path.name}, judge {judge or config.judge.kind}")
    from .explain.run import explain as explained
    from .explain.run import plan

    if dry_run:
        planned = plan(path, config, console)
        console.result(planned.to_dict(), str(planned))
    else:
        result = explained(path, config, console)
        console.result(result.to_dict(), str(result))


for command in (sweep_command, plan_command, export_command, import_command, publish_command, cache_group, ask_command):
    cli.add_command(command)


@cli.group("prompts", cls=Group)
def prompts_group() -> None:
    """Write prompt sets for `pipeline harvest` (harvest.packing: prompts)."""


@prompts_group.command("first-letter")
@click.argument("tokenizer", type=click.Path(path_type=Path), metavar="TOKENIZER")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--words", type=click.IntRange(min=1), help="At most this many words of the vocabulary, drawn evenly.")
@click.option(
    "--seed", type=int, default=0, show_default=True, help="Seed of the choice of words, their order and the examples."
)
@common
def prompts_first_letter(console: Console, tokenizer: Path, out: Path, words: int | None, seed: int) -> None:
    """The first-letter task, for `pipeline analyze --only absorption`: one prompt for each word of a vocabulary.

    TOKENIZER is a cache, a model's folder, or a tokenizer.json. OUT is the file to write, JSON lines.
    """
    from .analyze.probes.first_letter import described, first_letter_prompts, write_prompts

    if out.exists():
        raise UsageError(f"{out} already exists", "choose another file, or remove it")
    prompts = first_letter_prompts(tokenizer, max_words=words, seed=seed)
    write_prompts(out, prompts)
    console.result(*described(out, prompts, tokenizer))


@cli.command("demo")
@settings
@limited
@common
def demo_command(console: Console, files: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Harvest, train and analyze on the embedded model and text: no download, no account, no GPU.

    A cache or run that an earlier demo finished is reused. Settings: the preset `demo`, then -c and --set;
    ./pipeline.yaml is not read.
    """
    files = (str(settings_of.PRESETS / "demo.yaml"), *files)
    whole = resolve(files, sets, here=False)
    configs = train_configs(files, sets, DEMO_VARIANTS, "demo", here=False)
    console.info("1/3 harvest: run the model once, store its activations")
    from .analyze.run import analyze as analyzed
    from .analyze.run import standing_report
    from .harvest.run import harvest as harvested
    from .train.loop import train as trained

    cache = harvested(whole.harvest, console)
    console.info(str(cache))
    console.info(f"2/3 train: {', '.join(DEMO_VARIANTS)}, side by side on one read of the cache")
    earlier = [config.path for config in configs if (config.path / "final" / "config.json").is_file()]
    try:
        runs = trained(configs, console, resume=True)
    except OtherSettingsError as error:
        apart = f"--set train.runs={whole.train.runs}-2 --set analyze.name=demo-2"
        raise OtherSettingsError(error.message, f"{apart}   (keeps the earlier demo beside it)") from None
    for path in earlier:  # said once it is known that they are of this cache and these settings
        console.info(f"{path}: finished by an earlier demo, reused")
    rows = whole.analyze.max_tokens or DEMO_ROWS
    before = whole.analyze.baseline or next((one.name for one in runs if one.variant == "topk"), None)
    named = dataclasses.replace(whole.analyze, name=whole.analyze.name or "demo", max_tokens=rows, baseline=before)
    paths = [Path(one.path) for one in runs]
    if (analysis := standing_report(paths, named)) is not None:
        console.info(f"3/3 analyze: {analysis['report']} was made by an earlier demo, reused")
    else:
        console.info(f"3/3 analyze: what did they learn? Reads at most {rows:,} rows, spread evenly over the cache")
        analysis = analyzed(paths, named, console).to_dict()
    document = {"harvest": cache.to_dict(), "runs": [one.to_dict() for one in runs], "analysis": analysis}
    console.result({**document, "report": analysis["report"]}, _demo_text(runs, analysis["report"]))


def _demo_text(runs: Sequence[RunSummary], report: str) -> str:
    """The result in one table: the runs, the control that never trained, and the path of the report."""
    from .shared.runs.folder import fvu_label
    from .shared.text_table import explained_table

    label = fvu_label(runs[0].evaluated_on)
    rows = [(one.variant or one.name, one.fvu, one.l0) for one in runs]
    rows.append((f"{runs[0].variant}, untrained", runs[0].fvu_untrained, None))
    cells = [
        [name, *("" if n is None else f"{n:.{digits}f}" for n, digits in ((fvu, 4), (l0, 1)))] for name, fvu, l0 in rows
    ]
    return "\n".join(["", explained_table(cells, ["coder", label, "L0"]), "", f"report: {report}"])


@cli.command("status")
@settings
@common
def status_command(console: Console, files: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """List caches, runs, reports and sweeps, which are incomplete, and the command to run next."""
    from .shared.overview.status import status
    from .train.config import SWEEPS

    whole = resolve(files, sets)
    found = status(
        whole.harvest.cache_dir,
        whole.train.runs,
        cache_to_train_on(whole),
        reports_dir=whole.analyze.out,
        sweeps_dir=SWEEPS,
    )
    console.result(found.to_dict(), str(found))


def _existing(path: Path, files: tuple[str, ...], sets: tuple[str, ...]) -> Path:
    """PATH itself, or the run or cache of that name in the folders of the settings. Raises DataError if not found."""
    from .shared.overview.find import kind_of, named

    if kind_of(path) and not (files or sets):
        return path
    whole = resolve(files, sets)
    found = named(path, whole.train.runs, whole.harvest.cache_dir)
    if found.exists() or kind_of(found):
        return found
    raise DataError(f"not found: {spelled(path)} is no folder, and no cache or run has that name", "pipeline status")


@cli.command("inspect")
@_path
@settings
@common
def inspect_command(console: Console, path: Path, files: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Describe a cache or a run. PATH is its folder or its name."""
    found = _existing(path, files, sets)
    from .shared.overview.describe import describe, describe_text

    document = describe(found)
    console.result(document, describe_text(document))


@cli.command("verify")
@_path
@click.option("--repair", is_flag=True, help="Drop what is damaged, and say what the next command computes again.")
@click.option("--no-source", is_flag=True, help="Do not derive a cache's tokens again from a dataset on this machine.")
@settings
@common
def verify_command(
    console: Console, path: Path, files: tuple[str, ...], sets: tuple[str, ...], repair: bool, no_source: bool
) -> None:
    """Check every file of a cache or a run. PATH is its folder or its name.

    Statistics are computed again from the activations, tokens and documents from the dataset, and everything else is
    compared with what it follows from.
    """
    path = _existing(path, files, sets)
    console.info(f"verify: {spelled(path)}")
    from .harvest.check import checked_against_source
    from .shared.cache.repair import repair_cache
    from .shared.cache.verify import verify_cache
    from .shared.overview.find import kind_of
    from .shared.runs.repair import repair_run
    from .shared.runs.verify import verify_run

    further = (lambda report: report) if no_source else checked_against_source
    if repair:
        is_run = kind_of(path) == "run"
        repaired = repair_run(path, console) if is_run else repair_cache(path, console, further)
        console.result(repaired.to_dict(), str(repaired))
        ok, step = repaired.ok, repaired.next
    else:
        report = verify_run(path, console) if kind_of(path) == "run" else further(verify_cache(path, console))
        console.result(report.to_dict(), str(report))
        ok, step = report.ok, report.hint
    if step:
        console.info(f"next: {step}")
    if not ok:
        raise SystemExit(DataError.exit_code)


@cli.group("config", cls=Group)
def config_group() -> None:
    """Show, describe or check settings."""


@config_group.command("show", epilog=VARIANTS)
@click.option(
    "--variant",
    metavar="NAME",
    shell_complete=completion.VARIANTS,
    help="Override the train section with this variant, listed below.",
)
@settings
@common
def config_show(console: Console, files: tuple[str, ...], sets: tuple[str, ...], variant: str | None) -> None:
    """Print the resolved settings as YAML, with a comment on every field."""
    from .shared.config.docs import commented_yaml

    whole = resolve(files, sets, variant)
    console.result(settings_of.to_dict(whole), commented_yaml(whole).rstrip("\n"), as_is=True)


@config_group.command("schema")
@common
def config_schema(console: Console) -> None:
    """Print the JSON schema of a settings file, for editors and other tools."""
    from .shared.config.docs import described_schema

    Console(json=True).result(described_schema(pipeline_class()))


@config_group.command("validate")
@settings
@common
def config_validate(console: Console, files: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Check the settings, alone and with every variant."""
    resolve(files, sets)
    for variant in variants():
        resolve(files, sets, variant)
    console.result({"valid": True, "variants": list(variants())}, "valid")
