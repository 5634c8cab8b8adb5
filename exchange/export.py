"""`pipeline export`: runs in the format of another tool, with what that changes measured and written beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..shared.cache import Cache, open_cache
from ..shared.cache.files import write_json
from ..shared.coders.cross_layer import CrossLayer
from ..shared.coders.one_site import require_one_site
from ..shared.console import Console
from ..shared.errors import PipelineError, UsageError
from ..shared.provenance import provenance
from ..shared.runs.own_cache import recorded_cache
from ..shared.text_table import explained_table
from .convert import Converted, to_known
from .facts import Facts, check_against, facts_of_run, require_sites
from .folder import MARK, check_new, hashes, new_folder, sha256
from .formats import FORMATS, Format, Options, Part, circuit_tracer_clt
from .formats.base import Written
from .hub import is_hub_path
from .load import Loaded, load_coders
from .measure import Measured, Rows, measure, rows_for
from .plain import Above, KLargest, Plain, plain_of

VERSION = 1
"""Of export.json."""


@dataclass(frozen=True)
class Wanted:
    """What to export.

    Attributes:
        to: the format.
        out: the folder to write.
        cache: the cache to fit and measure on; None: the one that each run was trained on, if it still exists.
        model: overrides the name of the language model.
        rows: rows to fit on, and rows to measure on.
        overwrite: replace an earlier export in `out`.
    """

    to: str
    out: Path
    cache: Path | None = None
    model: str | None = None
    rows: int = 4096
    overwrite: bool = False
    options: Options = field(default_factory=Options)


@dataclass(frozen=True)
class ExportResult:
    """What was written: the document of export.json, and where."""

    out: Path
    document: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"out": str(self.out), **self.document}

    def __str__(self) -> str:
        coders = self.document["coders"]
        lines = [f"{self.out}: {self.document['format']}, {'exact' if self.document['exact'] else 'approximate'}"]
        for coder in coders:
            lines.append(f"  {coder['name']}: {coder['source']} → {coder['target']}, {coder['latents']:,} latents")
            lines += [f"    {coder['approximation']}"] if coder["approximation"] else []
            lines += [f"    {coder['measured_text']}"] if coder["measured"] is None else []
        measured = [one["measured"] for one in coders if one["measured"] is not None]
        if measured:
            lines.append(f"measured on {measured[0]['rows']:,} {measured[0]['which']}, of the run and of the export:")
            rows = [_measured_cells(one["name"], one["measured"]) for one in coders if one["measured"] is not None]
            lines.append(explained_table(rows, MEASURED, breaks=0))
        lines += [f"note: {note}" for note in self.document["notes"]]
        return "\n".join([*lines, f"load: {self.document['load']}"])


MEASURED = ("coder", "FVU", "export's FVU", "L0", "export's L0", "Δ code", "Δ output")


def _measured_cells(name: str, one: dict[str, Any]) -> list[str]:
    """A row under MEASURED."""
    fvu, l0 = (one["fvu_run"], one["fvu_export"]), (one["l0_run"], one["l0_export"])
    most = (one["max_code_difference"], one["max_reconstruction_difference"])
    return [name, *(f"{n:.4f}" for n in fvu), *(f"{n:.2f}" for n in l0), *(f"{n:.2g}" for n in most)]


@dataclass(frozen=True)
class _Ready:
    """One coder on its way out."""

    loaded: Loaded
    part: Part
    converted: Converted
    rows: Rows | None
    why_not: str

    def entry(self, measured: Measured | None) -> dict[str, Any]:
        """Its entry in export.json."""
        plain, facts, path = self.part.plain, self.part.facts, self.loaded.path
        weights = next((one for one in (path / "final", path) if (one / "coder.safetensors").is_file()), None)
        act = plain.activation
        shown: dict[str, Any] = {
            "kind": {KLargest: "topk", Above: "threshold"}.get(type(act), type(act).__name__.lower())
        }
        if isinstance(act, KLargest):
            shown["k"] = act.k
        if isinstance(act, Above):
            shown |= {"threshold_min": float(act.theta.min()), "threshold_max": float(act.theta.max())}
        return {
            "name": facts.name,
            "from": str(path),
            "sha256": sha256(weights / "coder.safetensors") if weights else None,
            "architecture": self.loaded.coder.config.architecture,
            "normalise": self.loaded.coder.config.normalise,
            "source": facts.source,
            "target": facts.target,
            "model": facts.model,
            "latents": plain.n_latents,
            "d_in": plain.d_in,
            "d_out": plain.d_out,
            "input": "rms" if plain.rms else "raw",
            "activation": shown,
            "exact": self.converted.fitted is None,
            "approximation": self.converted.fitted,
            "measured": None if measured is None else measured.to_dict(),
            "measured_text": self.why_not if measured is None else str(measured),
        }


def export(paths: Sequence[Path | str], wanted: Wanted, console: Console | None = None) -> ExportResult:
    """Write coders in another tool's format.

    Args:
        paths: runs, or coders in any format that is read.

    Raises:
        UsageError: the format cannot hold a coder, `out` exists, or a threshold must be fitted and there are no rows.
        DataError: a run or the cache is missing, damaged, or they do not fit.
    """
    console = console or Console(quiet=True)
    form = FORMATS[wanted.to]
    check_new(wanted.out, wanted.overwrite)
    if form.name == "circuit-tracer" and (whole := _cross_layer(paths)) is not None:
        return _export_cross_layer(*whole, form, wanted)
    if len(paths) > 1 and not form.many:
        raise UsageError(f"{form.name} holds one coder in a folder, found {len(paths)} runs", "export them one by one")
    ready = [one for path in paths for one in _prepare(path, form, wanted, console)]
    parts = [one.part for one in ready]
    with new_folder(wanted.out, wanted.overwrite) as folder:
        written = form.write(parts, folder, wanted.options)
        measured = [_measured(one, form, folder) for one in ready]
        written = replace(written, load=written.load.replace("FOLDER", str(wanted.out)))
        document = _document(form, written, [one.entry(m) for one, m in zip(ready, measured, strict=True)])
        write_json(folder / MARK, {**document, "files": hashes(folder)})
    return ExportResult(wanted.out, document)


def _cross_layer(paths: Sequence[Path | str]) -> tuple[Loaded, CrossLayer] | None:
    """The one cross-layer coder of these paths; None where they are something else."""
    if len(paths) != 1:
        return None
    found = load_coders(paths[0])
    coder = found[0].coder
    return (found[0], coder) if isinstance(coder, CrossLayer) and coder.n_sources > 1 else None


def _export_cross_layer(loaded: Loaded, coder: CrossLayer, form: Format, wanted: Wanted) -> ExportResult:
    cache, why_not = _cache_of(loaded, wanted)
    facts = _facts(loaded, cache, wanted.model)
    circuit_tracer_clt.refuse(coder, facts)
    rows, rms = None, coder.config.input_transform == "rms"
    if cache is not None and rms:
        why_not = "the division of each layer's input by its root mean square is left to circuit-tracer"
    elif cache is not None:
        share = float(loaded.final.get("training", {}).get("data", {}).get("heldout", 0.0))
        rows = rows_for(cache, (facts.source, facts.target), share, wanted.rows)
    part = Part(plain_of(coder), facts, loaded.path)
    ready = _Ready(loaded, part, Converted(part.plain), rows, why_not)
    with new_folder(wanted.out, wanted.overwrite) as folder:
        written = circuit_tracer_clt.write(part, coder, folder)
        back = circuit_tracer_clt.read(folder, coder.n_sources, rms)
        measured = None if rows is None else measure(coder, back, rows)
        written = replace(written, load=written.load.replace("FOLDER", str(wanted.out)))
        document = _document(form, written, [ready.entry(measured)])
        write_json(folder / MARK, {**document, "files": hashes(folder)})
    return ExportResult(wanted.out, document)


def _document(form: Format, written: Written, coders: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "format_version": VERSION,
        "format": form.name,
        "tool": form.tool,
        "exact": all(coder["exact"] for coder in coders),
        "coders": coders,
        "notes": list(written.notes),
        "load": written.load,
        "provenance": provenance(),
        **written.extra,
    }


def _prepare(path: Path | str, form: Format, wanted: Wanted, console: Console) -> list[_Ready]:
    """The coders of one path, converted to what the format knows."""
    found = load_coders(path)
    ready = []
    for loaded in found:
        require_one_site(loaded.coder, f"--to {form.name}")
        cache, why_not = _cache_of(loaded, wanted)
        facts = _facts(loaded, cache, wanted.model)
        require_sites(facts, path)
        if cache is not None:
            facts = check_against(facts, (loaded.coder.d_in, loaded.coder.d_out), cache, loaded.path)
        elif loaded.format == "run":
            console.warn(f"{loaded.path}: not measured, {why_not}")
        rows = None
        if cache is not None:
            share = float(loaded.final.get("training", {}).get("data", {}).get("heldout", 0.0))
            rows = rows_for(cache, (facts.source, facts.target), share, wanted.rows)
        plain = plain_of(loaded.coder)
        converted = to_known(plain, form.known(plain, wanted.options), None if rows is None else rows.fit)
        run = None if is_hub_path(path) else loaded.path
        ready.append(_Ready(loaded, Part(converted.plain, facts, run), converted, rows, why_not))
    return ready


def _facts(loaded: Loaded, cache: Cache | None, model: str | None) -> Facts:
    """What is known of a coder, from its cache if there is one."""
    if loaded.final:
        return facts_of_run(loaded.facts.name, loaded.final, cache, model)
    return loaded.facts if model is None else replace(loaded.facts, model=model)


def _cache_of(loaded: Loaded, wanted: Wanted) -> tuple[Cache | None, str]:
    """The cache to fit and measure on, or why there is none."""
    if wanted.cache is not None:
        return open_cache(wanted.cache), ""
    try:
        return recorded_cache(loaded.final.get("cache") or {}, loaded.path), ""
    except PipelineError as error:
        return None, f"{error.message} (--cache PATH)"


def _measured(one: _Ready, form: Format, folder: Path) -> Measured | None:
    """The written weights, read back, against the coder."""
    if one.rows is None or not form.readable:
        return None
    back: list[Plain] = [part.plain for part in form.read(form.locate(folder, one.part))]
    return measure(one.loaded.coder, back[0], one.rows)
