"""Neuronpedia's bulk import: `{model}/{layer}-{set}/` with release, model, sourceset and source as JSON lines, and
features and activations in gzipped batches. The rows are those of its database tables; every line of a file has the
same keys.

Activations, histograms, output tokens and co-firing come from the run's report (`--report`), whose `latents.jsonl.gz`
holds them; the vectors from the weights; explanations from the run (`pipeline explain`). What a report does not have
stays empty: logit histograms, correlated neurons.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from ...shared.cache.files import write_file
from ...shared.coders.io import read_coder_config
from ...shared.errors import DataError, UsageError
from ...shared.runs.explanations import Explanations, explanations_of
from ...shared.untrusted import Expanding, byte_lines, parse_json, read_object
from ..hooks import layer_of, tl_hook
from ..plain import Plain
from .base import ALL, Format, Options, Part, Written

CREATOR = "clkht01d40000jv08hvalcvly"
"""The account that Neuronpedia's own converter writes as the creator; its importer replaces it."""

BATCH = 256
"""Features in one file."""

SILENT = "Silent on the same token"
"""The group of examples that did not activate: not among Neuronpedia's."""

UNSEEN = {"↵": "\n", "⇥": "\t", "␣": " "}
"""White space as a report shows it in tables."""


class Neuronpedia(Format):
    """Neuronpedia."""

    name: ClassVar[str] = "neuronpedia"
    tool: ClassVar[str] = "Neuronpedia's bulk import"
    readable: ClassVar[bool] = False

    def known(self, plain: Plain, options: Options) -> tuple[type, ...]:
        if options.report is None:
            raise UsageError(
                "Neuronpedia shows activations, output tokens and correlated latents, which a run alone does not have",
                "pipeline analyze RUN   (then --report reports/NAME)",
            )
        return ALL

    def write(self, parts: Sequence[Part], folder: Path, options: Options) -> Written:
        (part,) = parts
        assert options.report is not None
        facts = part.facts
        layer = layer_of(facts.target)
        if layer is None or facts.model is None:
            raise UsageError(
                f"{facts.name}: Neuronpedia needs a layer and a model, found {facts.target}, {facts.model}"
            )
        report, latents = _report(options.report, facts.name)
        model = facts.model.rpartition("/")[2].lower()
        chosen = f"{facts.name}-{facts.target.rpartition('.')[2]}".lower().replace("_", "-")
        source = f"{layer}-{chosen}"
        out = folder / model / source
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        for name, row in _tables(model, chosen, source, part, report, now).items():
            _write_lines(out / f"{name}.jsonl", [row])
        count = 0
        for number, batch in enumerate(_batches(latents)):
            features = [_feature(one, model, source, part, now) for one in batch]
            activations = [row for one in batch for row in _activations(one, model, source, now)]
            _write_lines(out / "features" / f"batch-{number}.jsonl.gz", features)
            _write_lines(out / "activations" / f"batch-{number}.jsonl.gz", activations)
            count += len(features)
        if count != part.plain.n_latents:
            raise DataError(f"{latents} has {count:,} latents, the coder {part.plain.n_latents:,}", "analyze it again")
        explained = None if part.run is None else explanations_of(part.run, _coder_sha256(part.run))
        if explained is not None:
            rows = list(_explanations(explained, model, source))
            for number in range(0, len(rows), BATCH):
                file = out / "explanations" / f"batch-{number // BATCH}.jsonl.gz"
                _write_lines(file, rows[number : number + BATCH])
        notes = (
            "activations beside the peak are those of the report, in steps of a hundredth of the latent's maximum",
            "logit histograms, correlated neurons and the cosines of activations are not in a report: left empty",
            f"creatorId is {CREATOR}, which Neuronpedia's converter writes too: put your account there",
        )
        return Written(notes, f"upload FOLDER/{model}/{source} with Neuronpedia's importer", {"source": source})


def _report(folder: Path, name: str) -> tuple[Mapping[str, Any], Path]:
    """(report.json, the run's latents.jsonl.gz). Raises DataError where the report does not have the run."""
    try:
        document = read_object(folder / "report.json", f"pipeline analyze {name}")
        found = next((run for run in document["runs"] if run["trained"] and run["name"] == name), None)
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no report that can be read: {error!r}", f"pipeline analyze {name}") from None
    if found is None:
        held = ", ".join(run["name"] for run in document["runs"] if run["trained"])
        raise DataError(f"{folder} is a report of {held}, not of {name}", f"pipeline analyze {name}")
    latents = folder / found["folder"] / "latents.jsonl.gz"
    if not latents.is_file() or "top_activations" not in found["reports"]:
        raise DataError(f"{folder} has no activations of {name} (report top_activations)", f"pipeline analyze {name}")
    return document, latents


def _batches(path: Path) -> Iterator[list[dict[str, Any]]]:
    with io.BufferedReader(Expanding(gzip.open(path), path)) as file:
        lines = (_latent(line, path) for line in byte_lines(file))
        try:
            while batch := list(islice(lines, BATCH)):
                yield batch
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path} is damaged: {error}", "pipeline analyze   (writes it again)") from None


def _latent(line: bytes | None, path: Path) -> dict[str, Any]:
    found: Any = None
    with suppress(ValueError):
        found = parse_json(line or b"")
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged: a line that is no object", "pipeline analyze   (writes it again)")
    return found


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()
    write_file(path, [gzip.compress(data, mtime=0) if path.suffix == ".gz" else data])


def _tables(
    model: str, chosen: str, source: str, part: Part, report: Mapping[str, Any], now: str
) -> dict[str, dict[str, Any]]:
    """The one row of each of the four tables."""
    facts, cache = part.facts, report["caches"][0]
    about = f"{facts.name}: {part.plain.n_latents:,} latents, {facts.source} → {facts.target}"
    creator = {"creatorId": CREATOR, "createdAt": now}
    return {
        "release": {
            "name": chosen, "description": about, "descriptionShort": about, "creatorName": facts.name,
            "creatorNameShort": facts.name, "creatorEmail": None, "urls": [], "visibility": "PRIVATE", "isNewUi": False,
            "featured": False, "defaultSourceSetName": chosen, "defaultSourceId": source, "defaultUmapSourceIds": [],
            **creator,
        },
        "model": {
            "id": model, "instruct": model.endswith("-it"), "displayNameShort": model, "displayName": model,
            "tlensId": None, "dimension": part.plain.d_out, "visibility": "PUBLIC", "defaultSourceSetName": chosen,
            "defaultSourceId": source, "inferenceEnabled": False, "layers": 0, "neuronsPerLayer": 0, "owner": "",
            "updatedAt": now, "website": None, **creator,
        },
        "sourceset": {
            "modelId": model, "name": chosen, "hasDashboards": True, "visibility": "PRIVATE", "description": about,
            "type": "transcoder" if not part.plain.tied else "sae", "creatorName": facts.name, "urls": [],
            "creatorEmail": None, "releaseName": chosen, "defaultOfModelId": None, "defaultRange": 1,
            "defaultShowBreaks": True, "showDfa": False, "showCorrelated": True, "showHeadAttribution": False,
            "showUmap": False, **creator,
        },
        "source": {
            "id": source, "modelId": model, "setName": chosen, "hasDashboards": True, "inferenceEnabled": False,
            "inferenceHosts": [], "saelensConfig": None, "saelensRelease": None, "saelensSaeId": None, "hfRepoId": None,
            "hfFolderId": None, "visibility": "PRIVATE", "defaultOfModelId": None, "hasUmap": False,
            "hasUmapLogSparsity": False, "hasUmapClusters": False,
            "num_prompts": cache["rows_analysed"] // cache["ctx"], "num_tokens_in_prompt": cache["ctx"],
            "dataset": cache["dataset"], "notes": None, **creator,
        },
    }  # fmt: skip


def _feature(one: Mapping[str, Any], model: str, source: str, part: Part, now: str) -> dict[str, Any]:
    """A row of the table Neuron."""
    columns, vector = one["columns"], part.plain.w_dec[one["latent"]]
    near = _rows(one, "global", "Nearest decoder rows")
    together = _rows(one, "correlation", "Fires together with")
    logits = _rows(one, "top_activations", "Output tokens")
    histogram = _panel(one, "top_activations", "Activations where it fires") or {"x": [], "series": [{"y": []}]}
    aligned = vector.abs().topk(min(3, len(vector))).indices
    return {
        "modelId": model, "layer": source, "index": str(one["latent"]), "creatorId": CREATOR, "createdAt": now,
        "maxActApprox": columns.get("max") or 0.0, "hasVector": True, "vector": _rounded(vector, 6),
        "vectorLabel": None,
        "vectorDefaultSteerStrength": 10.0, "hookName": tl_hook(part.facts.target),
        "topkCosSimIndices": [row[0] for row in near], "topkCosSimValues": [row[1] for row in near],
        "neuron_alignment_indices": aligned.tolist(), "neuron_alignment_values": _rounded(vector[aligned]),
        "neuron_alignment_l1": _rounded(vector[aligned].abs() / vector.abs().sum().clamp_min(1e-30)),
        "correlated_neurons_indices": [], "correlated_neurons_pearson": [], "correlated_neurons_l1": [],
        "correlated_features_indices": [row[0] for row in together],
        "correlated_features_pearson": [row[1] for row in together], "correlated_features_l1": [],
        "neg_str": [_token(row[2]) for row in logits], "neg_values": [row[3] for row in logits],
        "pos_str": [_token(row[0]) for row in logits], "pos_values": [row[1] for row in logits],
        "frac_nonzero": columns.get("density") or 0.0,
        "freq_hist_data_bar_heights": histogram["series"][0]["y"], "freq_hist_data_bar_values": histogram["x"],
        "logits_hist_data_bar_heights": [], "logits_hist_data_bar_values": [], "decoder_weights_dist": [],
        "sourceSetName": source.partition("-")[2],
    }  # fmt: skip


def _activations(one: Mapping[str, Any], model: str, source: str, now: str) -> Iterator[dict[str, Any]]:
    """Rows of the table Activation: the strongest examples, and those of each quarter of the activations."""
    found = next((panel for panel in one["panels"].get("top_activations", ()) if panel["type"] == "examples"), None)
    number = 0
    for group in found["groups"] if found else ():
        if group["title"] == SILENT or not group["items"]:
            continue
        peaks = [item["value"] for item in group["items"]]
        top = group["title"].startswith("Top")
        low, high, share = (-1.0, max(peaks), -1.0) if top else (min(peaks), max(peaks), 0.25)
        for item in group["items"]:
            values = [float(value) for value in item["activations"]]
            values[item["peak"]] = float(item["value"])  # the others are in steps of a hundredth of the maximum
            digest = hashlib.sha256(f"{model}/{source}/{one['latent']}/{number}".encode()).hexdigest()
            number += 1
            yield {
                "id": f"c{digest[:24]}", "tokens": item["tokens"], "index": str(one["latent"]), "layer": source,
                "modelId": model, "maxValue": max(values), "maxValueTokenIndex": values.index(max(values)),
                "minValue": min(values), "values": values, "creatorId": CREATOR, "dataSource": None,
                "dataIndex": str(item["sequence"]), "dfaValues": [], "dfaTargetIndex": None, "dfaMaxValue": None,
                "createdAt": now, "lossValues": [], "logitContributions": None, "binMin": low, "binMax": high,
                "binContains": share, "qualifyingTokenIndex": item["peak"], "zIndices": None, "zValues": None,
            }  # fmt: skip


def _coder_sha256(run: Path) -> str:
    return str(read_coder_config(run / "final")["sha256"])


def _explanations(explained: Explanations, model: str, source: str) -> Iterator[dict[str, Any]]:
    """Rows of the table Explanation."""
    for latent, label in sorted(explained.labels.items()):
        digest = hashlib.sha256(f"{model}/{source}/{latent}/{explained.judge}".encode()).hexdigest()
        yield {
            "id": f"c{digest[:24]}", "modelId": model, "layer": source, "index": str(latent), "description": label,
            "typeName": "contrastive", "explanationModelName": explained.judge, "authorId": CREATOR,
        }  # fmt: skip


def _panel(one: Mapping[str, Any], report: str, title: str) -> Mapping[str, Any] | None:
    return next((panel for panel in one["panels"].get(report, ()) if panel.get("title") == title), None)


def _rows(one: Mapping[str, Any], report: str, title: str) -> list[Any]:
    found = _panel(one, report, title)
    return list(found["rows"]) if found else []


def _rounded(values: Tensor, digits: int = 3) -> list[float]:
    return [round(float(value), digits) for value in values]


def _token(label: str) -> str:
    """A token as text, from its label in a table."""
    return "".join(UNSEEN.get(letter, letter) for letter in label)
