"""The commands that meet other programs and new text: export, import, publish, cache import, cache export, ask."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import click

from .command_line import Group, common, settings
from .exchange.names import FORMAT_NAMES
from .resolve import resolve
from .shared.console import Console
from .shared.errors import UsageError


@click.command("export")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--to", type=click.Choice(FORMAT_NAMES), required=True, help="The format: the tool that will load it.")
@click.option("--threshold", is_flag=True, help="Write TopK as a fitted threshold, also where the format knows k.")
@click.option(
    "--layers", type=click.IntRange(min=1), help="circuit-tracer: layers of the model; fills those without a run."
)
@click.option("--report", type=click.Path(path_type=Path), help="neuronpedia: folder of the run's report.")
@click.option("--npz", is_flag=True, help="gemma-scope: the layout of version 1, params.npz.")
@click.option("--cache", type=click.Path(path_type=Path), help="Cache to fit and measure on; else the run's own.")
@click.option("--model", metavar="NAME", help="Name of the language model, if the cache has another.")
@click.option("--rows", type=click.IntRange(min=1), default=4096, show_default=True, help="Rows to measure on.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier export in OUT.")
@settings
@common
def export_command(
    console: Console,
    runs: tuple[str, ...],
    out: Path,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    cache: Path | None,
    **chosen: Any,
) -> None:
    """Write coders in another tool's format, on raw activations: normalisation is folded into the weights.

    RUN is a run's folder or its name, or a coder in any format that `pipeline import` reads; OUT is the folder to
    write. export.json beside the weights says what is exact, what is approximate, and the difference measured on
    held-out rows. Several runs, one per layer, make one set (circuit-tracer, sparsify).
    """
    whole = resolve(files, sets)
    console.info(f"export: {', '.join(runs)} to {chosen['to']}")
    from .exchange.export import Wanted, export
    from .exchange.formats import Options

    options = Options(
        layers=chosen["layers"],
        threshold=chosen["threshold"],
        version=1 if chosen["npz"] else 2,
        report=chosen["report"],
    )
    wanted = Wanted(
        to=chosen["to"],
        out=out,
        cache=_cache_named(cache, whole.harvest.cache_dir),
        model=chosen["model"],
        rows=chosen["rows"],
        overwrite=chosen["overwrite"],
        options=options,
    )
    result = export([_run_or_path(run, whole.train.runs) for run in runs], wanted, console)
    console.result(result.to_dict(), str(result))


@click.command("import")
@click.argument("path", metavar="PATH")
@click.option("--name", metavar="NAME", help="Name of the run; of several coders, NAME-layer_NN.")
@click.option(
    "--cache", type=click.Path(path_type=Path), help="Cache for its reports; the coder is checked against it."
)
@click.option("--layer", type=click.IntRange(min=0), help="Only this layer of a set of transcoders.")
@click.option("--source", metavar="SITE", help="The site it reads, where its metadata do not say.")
@click.option("--target", metavar="SITE", help="The site it writes, where its metadata do not say.")
@click.option("--model", metavar="NAME", help="The language model, where its metadata do not say.")
@click.option(
    "--input", "input_", type=click.Choice(["raw", "rms"]), help="The input as cached, or divided by its RMS."
)
@settings
@common
def import_command(
    console: Console,
    path: str,
    name: str | None,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    cache: Path | None,
    layer: int | None,
    input_: str | None,
    **places: str | None,
) -> None:
    """Make a run of a coder from another tool, so that reports, comparisons and --ce work on it.

    PATH is a folder or file of SAELens, sparsify, dictionary_learning, Gemma Scope or circuit-tracer, a plain export, a
    run, or hf://owner/name[/folder]. Its sites and input come from its metadata.
    """
    whole = resolve(files, sets)
    console.info(f"import: {path}")
    from .exchange.imports import Overrides, import_coders

    found = import_coders(
        path,
        whole.train.runs,
        name=name,
        cache=_cache_named(cache, whole.harvest.cache_dir),
        layer=layer,
        overrides=Overrides(input=cast(Any, input_), **places),
    )
    console.result({"runs": [one.to_dict() for one in found]}, "\n".join(map(str, found)))


@click.command("publish")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.argument("repo", metavar="REPO")
@click.option("--yes", is_flag=True, help="Upload to the Hugging Face hub; without it the folder is only written.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write; else published/NAME.")
@click.option("--report", type=click.Path(path_type=Path), help="Folder of a report whose figures the card shows.")
@click.option("--licence", metavar="ID", help="Licence of the base model, as the hub names it; else from its name.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--cache", type=click.Path(path_type=Path), help="Cache to fit and measure on; else the run's own.")
@click.option("--model", metavar="NAME", help="Name of the language model, if the cache has another.")
@click.option("--overwrite", is_flag=True, help="Replace an earlier folder of this command.")
@settings
@common
def publish_command(
    console: Console,
    runs: tuple[str, ...],
    repo: str,
    yes: bool,
    out: Path | None,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    cache: Path | None,
    **chosen: Any,
) -> None:
    """Write coders with a model card for the Hugging Face hub, and upload them with --yes.

    RUN is a run's folder or its name, or a coder in any format that `pipeline import` reads; REPO is owner/name on the
    hub. Each coder is written in three formats. README.md has its figures and controls, the base model's licence, and
    the code that loads it.
    """
    whole = resolve(files, sets)
    console.info(f"publish: {', '.join(runs)} as {repo}")
    from .exchange.publish import Publication, publish

    folder = out or Path("published") / repo.rpartition("/")[2]
    place = "" if out is None else f" --out {out}"
    result = publish(
        [_run_or_path(run, whole.train.runs) for run in runs],
        Publication(repo=repo, out=folder, upload=yes, cache=_cache_named(cache, whole.harvest.cache_dir), **chosen),
        f"pipeline publish {' '.join(runs)} {repo}{place} --overwrite --yes",
        console,
    )
    console.result(result.to_dict(), str(result))


def _cache_named(cache: Path | None, folder: Path) -> Path | None:
    """A cache given as a path or as a name in `folder`."""
    from .shared.overview.find import named

    return None if cache is None else named(cache, folder)


def _run_or_path(run: str, folder: Path) -> str:
    """A run given as a name in `folder`, as its path; anything else unchanged."""
    return run if "://" in run or Path(run).exists() or not (folder / run).is_dir() else str(folder / run)


@click.group("cache", cls=Group)
def cache_group() -> None:
    """Caches from other programs, and for them."""


@cache_group.command("import")
@click.argument("source", type=click.Path(path_type=Path), metavar="SOURCE")
@click.option("--name", required=True, metavar="NAME", help="Name of the cache, in harvest.cache_dir.")
@click.option("--site", "sites", multiple=True, metavar="COLUMN=SITE", help="Site of a column; may be repeated.")
@click.option("--ctx", type=click.IntRange(min=1), help="Rows of a sequence, where the source does not say.")
@click.option("--model", metavar="MODEL", help="Name or folder of the model, where the source does not say.")
@click.option("--tokenizer", type=click.Path(path_type=Path), metavar="PATH", help="tokenizer.json, or its folder.")
@click.option(
    "--storage",
    type=click.Choice(["auto", "bfloat16", "float32"]),
    default="auto",
    show_default=True,
    help="Number format; auto holds the source's numbers exactly.",
)
@settings
@common
def cache_import(
    console: Console,
    source: Path,
    name: str,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    sites: tuple[str, ...],
    storage: Any,
    **known: Any,
) -> None:
    """Make a cache of activations that another program wrote; training and reports work on it.

    SOURCE is a Hugging Face dataset on disk (SAELens's cached activations), or a folder or file of .safetensors, .npy
    or .pt. What it does not say (model, tokens, sequences, BOS, documents) is recorded as not known.
    """
    pairs = [text.partition("=") for text in sites]
    if wrong := [text for text, equals, _ in pairs if not equals]:
        raise UsageError(
            f"--site {wrong[0]}: expected COLUMN=SITE", f"COLUMN=SITE, for example {wrong[0]}=layer_08.resid_post"
        )
    path = resolve(files, sets).harvest.cache_dir / name
    console.info(f"import: {source}")
    from .transfer.incoming import ImportSettings, import_cache

    mapping = {column: site for column, _, site in pairs}
    result = import_cache(ImportSettings(source, path, mapping, storage=storage, **known), console)
    console.result(result.to_dict(), str(result))


@cache_group.command("export")
@click.argument("cache", type=click.Path(path_type=Path), metavar="CACHE")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--to", type=click.Choice(["safetensors", "arrow", "delphi"]), required=True, help="The format to write.")
@click.option("--site", "sites", multiple=True, metavar="SITE", help="Only this site; may be repeated.")
@click.option("--run", type=click.Path(path_type=Path), metavar="RUN", help="delphi: the run whose codes are written.")
@settings
@common
def cache_export(
    console: Console,
    cache: Path,
    out: Path,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    to: Any,
    sites: tuple[str, ...],
    run: Path | None,
) -> None:
    """Write sites of a cache, or a run's codes over it, for other programs.

    CACHE is a cache's folder or its name, OUT a new folder. safetensors: shards with all that is known of each row.
    arrow: a Hugging Face dataset, SAELens's cached activations. delphi: its latent cache, from a run's codes, and the
    run's explanations.
    """
    whole = resolve(files, sets)
    console.info(f"export: {cache} to {to}")
    from .shared.cache import open_cache
    from .shared.coders import load_coder
    from .shared.overview.find import named, run_paths
    from .transfer.delphi import export_delphi
    from .transfer.outgoing import export_sites

    opened = open_cache(named(cache, whole.harvest.cache_dir))
    if (to == "delphi") != (run is not None):
        raise UsageError("--to delphi requires --run, and only delphi takes one", "--to delphi --run RUN")
    if run is None:
        result = export_sites(opened, sites, out, to, console)
    elif sites:
        raise UsageError("--site: delphi gets the site that the run reads", "omit --site")
    else:
        from .shared.coders.io import read_coder_config
        from .shared.runs.explanations import explanations_of

        (folder,) = run_paths([str(run)], whole.train.runs)
        explained = explanations_of(folder, read_coder_config(folder / "final")["sha256"])
        labels = None if explained is None else explained.labels
        result = export_delphi(opened, load_coder(folder), out, console, labels)
    console.result(result.to_dict(), str(result))


@click.command("ask")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("text", metavar="TEXT")
@click.option("--top", type=click.IntRange(min=1), default=4, show_default=True, help="Latents of each token.")
@click.option("--model", metavar="DIR", help="A checkpoint of the model, in place of the one that the cache names.")
@click.option("--device", default="auto", show_default=True, help="Where the model runs: cpu, cuda, or auto.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Also write a page.")
@settings
@common
def ask_command(
    console: Console,
    run: Path,
    text: str,
    files: tuple[str, ...],
    sets: tuple[str, ...],
    top: int,
    model: str | None,
    device: str,
    html: Path | None,
) -> None:
    """Which latents fire on a new text, token by token.

    RUN is a run's folder or its name, TEXT the text, or - to read it from stdin. The run's own model reads it, after a
    check that it is the one that was harvested; labels come from the run's explanations, else from its newest report in
    analyze.out.
    """
    from .shared.overview.find import run_paths

    whole = resolve(files, sets)
    (folder,) = run_paths([str(run)], whole.train.runs)
    console.info(f"ask: {folder.name}")
    from .live.answer import table
    from .live.ask import ask
    from .live.page import write_page
    from .shared.coders import load_coder

    said = sys.stdin.read() if text == "-" else text
    answer = ask(folder, load_coder(folder), said, model=model, device=device, reports=whole.analyze.out)
    if html is not None:
        write_page(html, answer, top)
        console.info(f"page: {html}")
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    shown = table(answer, top, min(shutil.get_terminal_size().columns, 80), colour)
    console.result(answer.to_dict(top), shown, as_is=True)
