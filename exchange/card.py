"""The README.md of published coders: what they are, figures beside controls, the licence, how to load them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shared.config.yaml import dump_yaml
from ..shared.errors import DataError
from ..shared.untrusted import read_object

LICENCES = (
    (r"gemma", "gemma"),
    (r"llama-?3\.2", "llama3.2"),
    (r"llama-?3\.1", "llama3.1"),
    (r"llama-?3", "llama3"),
    (r"llama-?2", "llama2"),
    (r"pythia|gpt-?neo|gpt-?j|olmo|mistral|qwen|(^|/)demo$", "apache-2.0"),
    (r"gpt-?2|phi", "mit"),
)
"""What is in a base model's name → its licence on the hub: a coder is trained on its activations."""

LOADERS = {
    "safetensors": (
        "sparse_pipeline",
        'import sparse_pipeline as sp\n\ncoder = sp.load_coder("hf://{repo}/{folder}")',
    ),
    "saelens": (
        "SAELens",
        "from huggingface_hub import snapshot_download\nfrom sae_lens import SAE\n\n"
        'sae = SAE.load_from_disk(snapshot_download("{repo}") + "/{folder}")',
    ),
    "sparsify": (
        "sparsify",
        "from huggingface_hub import snapshot_download\nfrom sparsify import SparseCoder\n\n"
        'coder = SparseCoder.load_from_disk(snapshot_download("{repo}") + "/{folder}")',
    ),
    "dictionary-learning": (
        "dictionary_learning",
        "from dictionary_learning.utils import load_dictionary\nfrom huggingface_hub import snapshot_download\n\n"
        'dictionary, config = load_dictionary(snapshot_download("{repo}") + "/{folder}", device="cpu")',
    ),
    "gemma-scope": (
        "any loader of Gemma Scope 2",
        "from huggingface_hub import hf_hub_download\nfrom safetensors.torch import load_file\n\n"
        'params = load_file(hf_hub_download("{repo}", "{folder}/params.safetensors"))',
    ),
}
"""Format → (tool, code that loads it)."""

TRAINING = (
    ("fvu", "FVU"),
    ("fvu_with_bos", "FVU including position 0"),
    ("fvu_untrained", "FVU of the same coder untrained (control)"),
    ("fvu_dims", "mean FVU per dimension"),
    ("l0", "L0"),
    ("dead", "dead latents"),
    ("steps", "training steps"),
    ("tokens", "training tokens"),
)
"""Figures of a run's summary, and their labels."""


@dataclass(frozen=True)
class Published:
    """One coder of a card.

    Attributes:
        entry: its entry in export.json.
        formats: format → its folder in the repository. documents: format → its export.json.
        summary: figures that training measured. context, dataset: what it was trained on.
    """

    entry: Mapping[str, Any]
    formats: Mapping[str, str]
    documents: Mapping[str, Mapping[str, Any]]
    summary: Mapping[str, Any]
    context: int | None
    dataset: str | None


def licence_of(model: str | None) -> str | None:
    """The identifier of a published model's licence on the hub; None where the name tells none."""
    return next((found for pattern, found in LICENCES if re.search(pattern, (model or "").lower())), None)


def card(repo: str, coders: Sequence[Published], licence: str, report: Path | None) -> str:
    """The whole README.md.

    Args:
        licence: of the base model, as the hub names it.
        report: folder of a report on these runs; its figures are added. None: only what training measured.
    """
    model = coders[0].entry["model"]
    kinds = {"sparse-autoencoder" if one.entry["source"] == one.entry["target"] else "transcoder" for one in coders}
    front = {
        "license": licence,
        **({"base_model": model} if model and "/" in model else {}),
        "library_name": "saelens" if any("saelens" in one.formats for one in coders) else "safetensors",
        "tags": ["mechanistic-interpretability", *sorted(kinds)],
        **({"datasets": [coders[0].dataset]} if coders[0].dataset and "/" in str(coders[0].dataset) else {}),
    }
    parts = [
        f"---\n{dump_yaml(front)}---",
        f"# {repo.partition('/')[2]}",
        f"Sparse coders of {model or 'a language model'}. Weights are for raw activations: normalisation is folded in.",
    ]
    figures = {} if report is None else report_figures(report)
    for one in coders:
        parts += _coder(repo, one, figures)
    return "\n\n".join(parts) + "\n"


def _coder(repo: str, one: Published, figures: Mapping[str, str]) -> list[str]:
    entry = one.entry
    rms = ", divided by its root mean square without a gain" if entry["input"] == "rms" else ""
    trained = f" Trained on {one.dataset}, {one.context} tokens a sequence." if one.dataset else ""
    parts = [
        f"## {entry['name']}",
        f"{entry['architecture']}, {entry['latents']:,} latents. Reads `{entry['source']}`{rms}, writes "
        f"`{entry['target']}`.{trained}",
    ]
    rows = [(label, one.summary[key]) for key, label in TRAINING if one.summary.get(key) is not None]
    if rows:
        where = "held-out documents" if one.summary.get("evaluated_on") == "heldout" else "the cache"
        parts += [
            f"Measured at the end of training, on {where}, excluding position 0:",
            _table(("figure", "value"), rows),
        ]
    if entry["name"] in figures:
        parts += ["From the report, each figure beside the same coder before training:", figures[entry["name"]]]
    parts += ["### Load it"]
    for form, folder in one.formats.items():
        tool, code = LOADERS[form]
        document = one.documents[form]["coders"][0]
        how = "exact" if document["exact"] else f"approximate: {document['approximation']}"
        measured = document["measured"]
        said = f" Measured: {document['measured_text']}." if measured else ""
        parts += [f"**{tool}** ({how}).{said}", f"```python\n{code.format(repo=repo, folder=folder)}\n```"]
    return parts


def report_figures(folder: Path) -> dict[str, str]:
    """The table of figures of every run of a report, beside its untrained control.

    Raises:
        DataError: the folder holds no report.
    """
    try:
        runs = read_object(folder / "report.json", "pipeline analyze RUN")["runs"]
        trained = [run for run in runs if run["trained"]]
        controls = [run for run in runs if not run["trained"]]
        return {run["name"]: _figures(run, _control_of(run, controls)) for run in trained}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder} holds no report that can be read: {error!r}", "pipeline analyze RUN") from None


def _control_of(run: Mapping[str, Any], controls: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    named = next(
        (one for one in controls if f"({run['name']}" in one["name"] or f", {run['name']}" in one["name"]), None
    )
    return named or (controls[0] if len(controls) == 1 else None)


def _figures(run: Mapping[str, Any], control: Mapping[str, Any] | None) -> str:
    beside = {} if control is None else {
        key: figure for report in control["reports"].values() for key, figure in report["figures"].items()
    }  # fmt: skip
    rows = []
    for report in run["reports"].values():
        for key, figure in report["figures"].items():
            if figure.get("value") is not None:
                rows.append((figure["label"], figure["value"], beside.get(key, {}).get("value"), figure.get("null")))
    return _table(("figure", "value", "untrained (control)", "null"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(_cell(value) for value in row) + " |" for row in rows)])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).replace("|", "\\|")
