"""The front door: the commands of `pipeline`.

Nothing heavy is imported before a command needs it, so `pipeline --help` answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from .shared.config import settings as settings_of
from .shared.config.registry import did_you_mean
from .shared.console import Console
from .shared.errors import ConfigError, DataError, PipelineError, UsageError

if TYPE_CHECKING:
    from .analyze.config import AnalyzeConfig
    from .analyze.run import AnalyzeResult
    from .harvest.config import HarvestConfig
    from .train.config import TrainConfig
    from .train.loop import RunSummary
    from .train.sweep import Cell, SweepConfig

    class PipelineConfig:
        """The three sections of a settings file."""

        harvest: HarvestConfig
        train: TrainConfig
        analyze: AnalyzeConfig

    class SweepFile(PipelineConfig):
        """A sweep file: the same, and what is varied."""

        sweep: SweepConfig


C = TypeVar("C")
F = TypeVar("F", bound=Callable[..., Any])
SETTINGS_FILE = Path("pipeline.yaml")
DEMO_ROWS = 131_072  # half of the demo's cache: the report in half the time
DEMO_VARIANTS = ("matryoshka", "topk", "frozen-random-decoder")


# --- settings -------------------------------------------------------------------------------------------------------


@functools.cache
def pipeline_class() -> type[PipelineConfig]:
    """The class of a whole settings file; its default is the embedded default."""
    from .analyze.config import AnalyzeConfig
    from .harvest.config import HarvestConfig
    from .train.config import TrainConfig

    sections = {"harvest": HarvestConfig, "train": TrainConfig, "analyze": AnalyzeConfig}
    fields = [(name, cls, dataclasses.field(default_factory=cls)) for name, cls in sections.items()]
    made: type[Any] = dataclasses.make_dataclass("PipelineConfig", fields, frozen=True)
    return made


@functools.cache
def sweep_class() -> type[SweepFile]:
    """The class of a sweep file."""
    from .train.sweep import SweepConfig

    base: Any = pipeline_class()
    fields = [("sweep", SweepConfig, dataclasses.field(kw_only=True))]
    made: type[Any] = dataclasses.make_dataclass("SweepFile", fields, bases=(base,), frozen=True)
    return made


def variants() -> dict[str, Path]:
    """The named combinations that `--variant` accepts."""
    folder = Path(__file__).parent / "train" / "variants"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def _read(source: str) -> dict[str, Any]:
    """What `-c SOURCE` says: a settings file, a preset, or what is frozen into the folder of a cache or a run."""
    if Path(source).is_dir():
        from .shared.overview.find import frozen_settings

        return frozen_settings(Path(source))
    return settings_of.load_yaml(settings_of.find_settings(source))


def resolve(
    files: Sequence[str] = (), sets: Sequence[str] = (), variant: str | None = None, here: bool = True
) -> PipelineConfig:
    """Defaults < settings files < variant < `--set`, validated as one.

    Args:
        here: without files, read ./pipeline.yaml if it exists.
    """
    cls = pipeline_class()
    settings = settings_of.to_dict(cls())
    sources = list(files) or ([str(SETTINGS_FILE)] if here and SETTINGS_FILE.is_file() else [])
    for source in sources:
        settings = settings_of.merge(settings, _read(source), cls)
    if variant is not None:
        settings = settings_of.merge(settings, {"train": _overlay(variant)}, cls)
    settings = settings_of.apply_set(settings, sets, cls)
    with _came_from([*sources, *([f"--variant {variant}"] if variant else []), *(f"--set {text}" for text in sets)]):
        return settings_of.validate(cls, settings)


def _overlay(variant: str) -> dict[str, Any]:
    """What a variant lays over the train section."""
    known = variants()
    if variant not in known:
        hint = f"-c {variant}" if variant.endswith((".yaml", ".yml")) else f"one of: {', '.join(known)}"
        raise UsageError(f"--variant {variant}: unknown variant{did_you_mean(variant, known)}", hint)
    return {"variant": variant, **settings_of.load_yaml(known[variant])}


@contextlib.contextmanager
def _came_from(read: Sequence[str]) -> Iterator[None]:
    """Say of settings that do not validate where they came from."""
    try:
        yield
    except ConfigError as error:
        places = f"settings came from {', '.join(read) or 'the embedded default'}"
        raise ConfigError(error.problems, f"pipeline config show explains every setting   ({places})") from None


def resolve_sweep(
    file: str, files: Sequence[str] = (), sets: Sequence[str] = (), size: str | None = None
) -> tuple[SweepFile, list[Cell]]:
    """A sweep file and its runs: defaults < base < FILE < its size < settings files < variants and grid < `--set`."""
    from .train.sweep import SweepConfig, check_sets, expand

    if not Path(file).is_file():
        raise UsageError(f"{file}: there is no such sweep file", "give a YAML file; docs/sweeps.md shows one")
    cls, own = sweep_class(), settings_of.load_yaml(Path(file))
    with _came_from([file]):
        sweep = settings_of.validate(SweepConfig, own.get("sweep") or {}, "sweep")
    layers = [own]
    if size is not None:
        if size not in sweep.sizes:
            raise UsageError(
                f"--size {size}: {file} has no such size", f"sweep.sizes: {', '.join(sweep.sizes) or 'none'}"
            )
        layers += [{"sweep": {"size": size}}, sweep.sizes[size]]
    sources = ([str(SETTINGS_FILE)] if SETTINGS_FILE.is_file() else []) if sweep.base is None else list(sweep.base)
    settings = settings_of.to_dict(pipeline_class()())
    for layer in [*map(_read, sources), *layers, *map(_read, files)]:
        settings = settings_of.merge(settings, layer, cls)
    training = [text for text in sets if text.partition("=")[0].strip().partition(".")[0] == "train"]
    with _came_from([*sources, file, *files, *(f"--set {text}" for text in sets)]):
        whole = settings_of.validate(cls, settings_of.apply_set(settings, sets, cls))
        check_sets(whole.sweep, [text.partition("=")[0].strip().removeprefix("train.") for text in training])
        section = settings_of.to_dict(whole.train)
        section["cache"] = str(_cache_to_train_on(whole))

        def finish(one: dict[str, Any]) -> dict[str, Any]:
            """`--set` lies over variants and grid too."""
            return cast("dict[str, Any]", settings_of.apply_set({"train": one}, training, cls)["train"])

        return whole, expand(whole.sweep, section, _overlay, finish)


def train_configs(
    files: Sequence[str], sets: Sequence[str], names: Sequence[str], name: str | None, here: bool = True
) -> list[TrainConfig]:
    """One training config per `--variant`, or one for the train section as it is; cache and run name are settled."""
    if len(set(names)) < len(names):
        raise UsageError(f"--variant is given twice: {', '.join(names)}", "name each variant once")
    configs = []
    for variant in names or (None,):
        whole = resolve(files, sets, variant, here)
        changes: dict[str, Any] = {"cache": _cache_to_train_on(whole)}
        if name is not None:
            changes["name"] = name if len(names) < 2 else f"{name}-{variant}"
        configs.append(dataclasses.replace(whole.train, **changes))
    return configs


def _cache_to_train_on(whole: PipelineConfig) -> Path:
    """The cache that train.cache names, else the one that `pipeline harvest` writes with the same settings."""
    from .harvest.config import cache_path
    from .shared.overview.find import named

    cache = whole.train.cache
    return cache_path(whole.harvest) if cache is None else named(cache, whole.harvest.cache_dir)


# --- the commands ---------------------------------------------------------------------------------------------------


class _Group(click.Group):
    """Commands in the order they are written, and a guess at what a mistyped one meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            known = ", ".join(self.commands)
            close = did_you_mean(name, self.commands)
            raise UsageError(f"unknown command {name!r}{close} (known: {known})", f"{ctx.command_path} --help")
        return super().resolve_command(ctx, args)


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=_Group, context_settings=CONTEXT)
@click.version_option(None, "-V", "--version", package_name="sparse-coder-pipeline", prog_name="pipeline")
def cli() -> None:
    """Harvest a language model's activations once, train sparse coders on them many times, report what they learned.

    \b
    pipeline demo                          all three steps on the embedded model, in about a minute
    pipeline harvest                       model -> cache/
    pipeline train --variant matryoshka    cache -> runs/
    pipeline analyze                       cache + runs -> report

    Settings: -c FILE or -c PRESET, else ./pipeline.yaml, else the embedded default; then --set KEY=VALUE.

    Exit codes: 0 done, 1 failed, 2 usage or settings, 3 cache or run missing, incomplete, corrupt or of other settings,
    130 interrupted.
    """


def _common(function: F) -> F:
    """The options of every command; the command receives a console in their place."""

    @functools.wraps(function)
    def run(as_json: bool, debug: bool, **options: Any) -> Any:
        return function(Console(json=as_json), **options)

    run = click.option("--debug", is_flag=True, help="Show the traceback of an error.")(run)
    return cast(F, click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")(run))


def _settings(function: F) -> F:
    """The options that choose settings."""
    sets = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="One setting; may be repeated.")
    files = click.option(
        "-c", "--config", "files", multiple=True, metavar="FILE", help="Settings file or preset; may be repeated."
    )
    return files(sets(function))


_dry_run = click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
_path = click.argument("path", type=click.Path(path_type=Path), metavar="PATH")


@cli.command("harvest")
@_dry_run
@_settings
@_common
def harvest_command(console: Console, files: tuple[str, ...], sets: tuple[str, ...], dry_run: bool) -> None:
    """Run the model once and write its activations to a cache, or resume one.

    Settings: the harvest section. What is already in the cache is kept; a cache of other settings is refused.
    """
    config = resolve(files, sets).harvest
    from .harvest.run import harvest as harvested
    from .harvest.run import plan

    if dry_run:
        planned = plan(config)
        console.result(planned.to_dict(), str(planned))
    else:
        result = harvested(config, console)
        console.result(result.to_dict(), str(result))


@cli.command("train")
@click.option("--variant", "names", multiple=True, metavar="NAME", help="A named combination; may be repeated.")
@click.option("--name", metavar="NAME", help="Name of the run; with several variants NAME-VARIANT.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint, to the same bits.")
@_dry_run
@_settings
@_common
def train_command(
    console: Console,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    names: tuple[str, ...],
    name: str | None,
    resume: bool,
    dry_run: bool,
) -> None:
    """Train sparse coders from a cache; several variants train side by side on one read of the data.

    Settings: the train section, with the variant laid over it. Unless train.cache names a cache, the one that `pipeline
    harvest` writes with the same settings.
    """
    configs = train_configs(files, sets, names, name)
    from .train.loop import plan
    from .train.loop import train as trained

    if dry_run:
        planned = plan(configs)
        console.result(planned.to_dict(), str(planned))
    else:
        summaries = trained(configs, console, resume=resume)
        console.result({"runs": [one.to_dict() for one in summaries]}, "\n".join(map(str, summaries)))


@cli.command("analyze")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--only", multiple=True, metavar="REPORT", help="Only this report; may be repeated.")
@click.option("--ce", is_flag=True, help="Also the model's loss with the coder spliced in (runs the model).")
@_settings
@_common
def analyze_command(
    console: Console,
    runs: tuple[str, ...],
    files: tuple[str, ...],
    sets: tuple[str, ...],
    only: tuple[str, ...],
    ce: bool,
) -> None:
    """Report what the coders learned; several runs are compared.

    RUN is a run's folder or its name; without one, every finished run there is. Settings: the analyze section.
    """
    whole = resolve(files, sets)
    only = (*(only or whole.analyze.reports), "cross_entropy") if ce else only
    from .analyze.config import only_reports
    from .analyze.run import analyze as analyzed
    from .shared.overview.find import named, run_paths

    config = only_reports(whole.analyze, only)
    if config.cache is not None:
        config = dataclasses.replace(config, cache=named(config.cache, whole.harvest.cache_dir))
    result = analyzed(run_paths(runs, whole.train.runs), config, console)
    console.result(result.to_dict(), str(result))


@cli.command("sweep")
@click.argument("file", metavar="FILE")
@click.option("--size", metavar="NAME", help="Another size of the same sweep: one of its sweep.sizes.")
@click.option("--only", multiple=True, metavar="SETTING", help="Train only this setting; may be repeated.")
@_dry_run
@_settings
@_common
def sweep_command(
    console: Console,
    file: str,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    size: str | None,
    only: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Train every setting that FILE lists, side by side where memory allows, and compare them.

    FILE has a section `sweep` beside the usual ones; -c and --set lie over it. Finished runs are not trained again, the
    others go on where they stopped. The comparison covers every run that is finished: comparison.csv, .md and .json,
    and plots of all curves and of the final figures.
    """
    whole, cells = resolve_sweep(file, files, sets, size)
    from .train.sweep import plan_sweep, portable_command, train_sweep

    if whole.sweep.harvest and whole.train.cache is None and not dry_run:
        from .harvest.run import harvest as harvested

        console.info(str(harvested(whole.harvest, console)))
    planned = plan_sweep(whole.sweep, cells, only)
    if dry_run:
        console.result(planned.to_dict(), str(planned))
        return
    train_sweep(planned, console)
    from .analyze.sweep import Heading, Member, compare_runs
    from .shared.provenance import machine

    sweep, command = whole.sweep, portable_command(file, files, sets, size)
    title, baseline = sweep.title or sweep.name, sweep.baseline or cells[0].setting
    heading = Heading(sweep.label, title, sweep.about, baseline, command, machine(), whole.analyze.documents)
    members = [Member(cell.setting, cell.seed, cell.config.path) for cell in cells]
    result = compare_runs(heading, members, whole.analyze, sweep.folder, sweep.plots, console)
    console.result(result.to_dict(), str(result))


@cli.group("prompts", cls=_Group)
def prompts_group() -> None:
    """Write prompt sets that `pipeline harvest` takes (harvest.packing: prompts)."""


@prompts_group.command("first-letter")
@click.argument("tokenizer", type=click.Path(path_type=Path), metavar="TOKENIZER")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--words", type=click.IntRange(min=1), help="At most so many words of the vocabulary, evenly drawn.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the words, their order and the examples.")
@_common
def prompts_first_letter(console: Console, tokenizer: Path, out: Path, words: int | None, seed: int) -> None:
    """The first-letter task, for `pipeline analyze --only absorption`: one prompt for each word of a vocabulary.

    TOKENIZER is a cache, a model's folder, or a tokenizer.json. OUT is the file to write, JSON lines.
    """
    from .analyze.probes.first_letter import described, first_letter_prompts, write_prompts

    if out.exists():
        raise UsageError(f"{out} exists already", "name another file, or remove it")
    prompts = first_letter_prompts(tokenizer, max_words=words, seed=seed)
    write_prompts(out, prompts)
    console.result(*described(out, prompts, tokenizer))


@cli.command("demo")
@_settings
@_common
def demo_command(console: Console, files: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Harvest, train and analyze on the embedded model and text: no download, no account, no GPU.

    What an earlier demo finished, cache or run, is used again. Settings are those of the preset `demo`, then the ones
    given here; ./pipeline.yaml is not read.
    """
    files = (str(settings_of.PRESETS / "demo.yaml"), *files)
    whole = resolve(files, sets, here=False)
    configs = train_configs(files, sets, DEMO_VARIANTS, "demo", here=False)
    from .analyze.run import analyze as analyzed
    from .harvest.run import harvest as harvested
    from .train.loop import train as trained

    console.info("1/3 harvest: run the model once, keep its activations")
    cache = harvested(whole.harvest, console)
    console.info(str(cache))
    console.info(f"2/3 train: {', '.join(DEMO_VARIANTS)}, side by side on one read of the cache")
    for config in configs:
        if (config.path / "final" / "config.json").is_file():
            console.info(f"{config.path}: finished by an earlier demo, used again")
    runs = trained(configs, console, resume=True)
    rows = whole.analyze.max_tokens or DEMO_ROWS
    console.info(f"3/3 analyze: what did they learn? At most {rows:,} rows are read, spread evenly over the cache")
    before = whole.analyze.baseline or next((one.name for one in runs if one.variant == "topk"), None)
    named = dataclasses.replace(whole.analyze, name=whole.analyze.name or "demo", max_tokens=rows, baseline=before)
    report = analyzed([Path(one.path) for one in runs], named, console)
    document = {"harvest": cache.to_dict(), "runs": [one.to_dict() for one in runs], "analysis": report.to_dict()}
    console.result({**document, "report": str(report.report)}, _demo_text(runs, report))


def _demo_text(runs: Sequence[RunSummary], report: AnalyzeResult) -> str:
    """The result in one table: FVU of what was trained beside the two controls, and where to read on."""
    rows = [(one.variant or one.name, one.fvu, one.l0) for one in runs]
    rows.append((f"{runs[0].variant}, untrained", runs[0].fvu_untrained, None))
    lines = ["", "share of the MLP output's variance that is left unexplained (FVU, held-out documents, without BOS):"]
    for name, fvu, l0 in rows:
        active = f"   {l0:.1f} latents active per token" if l0 is not None else ""
        lines.append(f"  {name:<24}{'' if fvu is None else f'{fvu:.4f}':>8}{active}")
    return "\n".join([*lines, "", f"report: {report.report}"])


@cli.command("status")
@_settings
@_common
def status_command(console: Console, files: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """List the caches and runs, what is incomplete, and what to run next."""
    from .shared.overview.status import status

    whole = resolve(files, sets)
    found = status(whole.harvest.cache_dir, whole.train.runs, _cache_to_train_on(whole))
    console.result(found.to_dict(), str(found))


def _existing(path: Path, files: tuple[str, ...], sets: tuple[str, ...]) -> Path:
    """PATH as it is, or as the name of a run or a cache in the folders that the settings name."""
    from .shared.overview.find import kind_of, named

    if kind_of(path) and not (files or sets):
        return path
    whole = resolve(files, sets)
    found = named(path, whole.train.runs, whole.harvest.cache_dir)
    if found.exists():
        return found
    raise DataError(f"{path}: no such folder, and no cache or run of that name", "pipeline status")


@cli.command("inspect")
@_path
@_settings
@_common
def inspect_command(console: Console, path: Path, files: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Say what is in a cache or a run: PATH is its folder or its name."""
    from .shared.overview.describe import describe, describe_text

    document = describe(_existing(path, files, sets))
    console.result(document, describe_text(document))


@cli.command("verify")
@_path
@_settings
@_common
def verify_command(console: Console, path: Path, files: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Check every checksum and count of a cache, or every tensor of a run: PATH is its folder or its name."""
    from .shared.cache.verify import verify_cache
    from .shared.overview.find import kind_of
    from .shared.runs.verify import verify_run

    path = _existing(path, files, sets)
    report = verify_run(path, console) if kind_of(path) == "run" else verify_cache(path, console)
    console.result(report.to_dict(), str(report))
    if not report.ok:
        if report.hint:
            console.info(f"next: {report.hint}")
        raise SystemExit(DataError.exit_code)


@cli.group("config", cls=_Group)
def config_group() -> None:
    """Show, describe or check settings."""


@config_group.command("show")
@click.option("--variant", metavar="NAME", help="Lay this variant over the train section.")
@_settings
@_common
def config_show(console: Console, files: tuple[str, ...], sets: tuple[str, ...], variant: str | None) -> None:
    """Print the resolved settings as YAML, every field commented."""
    from .shared.config.docs import commented_yaml

    whole = resolve(files, sets, variant)
    console.result(settings_of.to_dict(whole), commented_yaml(whole).rstrip("\n"))


@config_group.command("schema")
@_common
def config_schema(console: Console) -> None:
    """Print the JSON schema of a settings file, for editors and other tools."""
    from .shared.config.docs import described_schema

    Console(json=True).result(described_schema(pipeline_class()))


@config_group.command("validate")
@_settings
@_common
def config_validate(console: Console, files: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Check settings, alone and with every variant laid over them."""
    resolve(files, sets)
    for variant in variants():
        resolve(files, sets, variant)
    console.result({"valid": True, "variants": list(variants())}, "valid")


# --- errors and exit codes ------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    # GNU OpenMP lets an idle thread spin for about a millisecond, which costs nothing on an idle machine and nearly
    # everything on a shared one. Measured on two cores, `pipeline demo`: idle, 62 s by default and 68 s with this;
    # beside other work, 353 s and 95 s. It is read when torch is loaded, so it must be said before.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def _interrupt(number: int, frame: object) -> None:
    """What a scheduler's SIGTERM means is what Ctrl-C means: stop at the next safe point."""
    raise KeyboardInterrupt


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; an error goes to stderr, with `--json` to stdout as well."""
    arguments = list(arguments)
    try:
        with cli.make_context("pipeline", list(arguments)) as context:
            cli.invoke(context)
    except (KeyboardInterrupt, click.Abort):
        return _failed(arguments, "interrupted", _after_interrupt(arguments), 130)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.ClickException as error:
        place = getattr(error, "ctx", None)
        path = place.command_path if place else "pipeline"
        return _failed(arguments, _plain_text(error), f"{path} --help", UsageError.exit_code)
    except PipelineError as error:
        return _failed(arguments, error.message, error.hint, error.exit_code, getattr(error, "problems", None))
    except BrokenPipeError:  # the reader of our output went away: nobody is left to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Exception as error:
        return _failed(arguments, f"{type(error).__name__}: {error}", _after_failure(error, arguments), 1)
    return 0


def _failed(arguments: list[str], message: str, hint: str | None, code: int, problems: list[str] | None = None) -> int:
    if "--debug" in arguments:
        traceback.print_exc()
    for line in problems or [message]:
        print(f"error: {line}", file=sys.stderr)
    if hint:
        print(f"next: {hint}", file=sys.stderr)
    if "--json" in arguments:
        details = {"problems": problems} if problems else {}
        Console(json=True).result({"error": {"message": message, "hint": hint, "exit_code": code, **details}})
    return code


def _plain_text(error: click.ClickException) -> str:
    """Click's message without its capital and its full stop, as ours are."""
    text = error.format_message().rstrip(".")
    return text[:1].lower() + text[1:]


def _after_interrupt(arguments: list[str]) -> str | None:
    """How to go on: the same command, for training with --resume."""
    if arguments[:1] not in (["harvest"], ["train"], ["sweep"], ["demo"]):
        return None
    extra = ["--resume"] if arguments[0] == "train" and "--resume" not in arguments else []
    return shlex.join(["pipeline", *arguments, *extra])


def _after_failure(error: Exception, arguments: list[str]) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, then run the same command again"
    return shlex.join(["pipeline", *arguments, "--debug"]) + "   (shows where)"


if __name__ == "__main__":
    main()
