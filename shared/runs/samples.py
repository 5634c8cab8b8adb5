"""The activation samples that training writes into a run's `samples/`.

`samples.json` holds the samples, `statistics.json` figures over all kept samples, `statistics.md` the same figures as
tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache.files import read_json, sync_folder, write_file
from ..errors import DataError, repair_command

FOLDER = "samples"
SAMPLES = "samples.json"
STATISTICS = "statistics.json"
TABLE = "statistics.md"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Sample:
    """One activation of one latent, in its context.

    Attributes:
        value: the activation at the time of sampling, during training.
        token: id of the token at the peak.
        position: in the sequence, 0 for every BOS. pos_in_doc: in the document. doc_id: the document. row: the row.
        step: the update before which it was sampled.
        context: token ids around the peak, of one sequence and one document. peak: where among them the peak is.
        ordinary: the row is neither at position 0 nor massive.
        text: the context as text, the peak in «».
    """

    value: float
    token: int
    position: int
    pos_in_doc: int
    doc_id: int
    row: int
    step: int
    context: tuple[int, ...]
    peak: int
    ordinary: bool
    text: str


@dataclass(frozen=True)
class LatentSamples:
    """The saved samples of one latent.

    Attributes:
        kept: samples that training kept; `mean` is their mean activation. Only some of them may be saved.
        max: the largest activation on an ordinary row; 0 where no sample is of one.
        specialised: what its samples share (token, document or domain, or both), or general, or rare.
        samples: the saved ones, strongest first.
    """

    latent: int
    kept: int
    max: float
    mean: float
    specialised: str
    samples: tuple[Sample, ...]

    @property
    def strongest(self) -> Sample:
        """The strongest sample on an ordinary row; where none is saved, the strongest of all."""
        return next((sample for sample in self.samples if sample.ordinary), self.samples[0])


@dataclass(frozen=True)
class SampleSet:
    """The saved samples of a run.

    Attributes:
        step: updates done at the time of writing. collections: batches sampled until then.
        settings: the `train.samples` settings.
        latents: strongest first, by their largest activation on ordinary rows.
    """

    step: int
    collections: int
    settings: Mapping[str, Any]
    latents: tuple[LatentSamples, ...]

    def __getitem__(self, latent: int) -> LatentSamples:
        """The samples of a latent. Raises KeyError if it has none."""
        for found in self.latents:
            if found.latent == latent:
                return found
        raise KeyError(latent)


def save_samples(run: Path, samples: SampleSet) -> Path:
    """Write samples/samples.json below a run's folder, completely or not at all, one line per latent."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    head = {
        "format_version": FORMAT_VERSION,
        "step": samples.step,
        "collections": samples.collections,
        "settings": dict(samples.settings),
    }
    lines = ",\n".join(
        _line({**vars(latent), "samples": [vars(s) for s in latent.samples]}) for latent in samples.latents
    )
    text = f'{_line(head)[:-1]}, "latents": [\n{lines}\n]}}\n'
    write_file(folder / SAMPLES, [text.encode()])
    sync_folder(folder)
    return folder / SAMPLES


def load_samples(run: Path | str) -> SampleSet:
    """The saved samples of a run, exactly as they were written.

    Args:
        run: the run's folder.

    Raises:
        DataError: the run has no samples, or the file is damaged.
    """
    path = Path(run) / FOLDER / SAMPLES
    if not path.exists():
        raise DataError(
            f"{run} has no samples ({path.name} is missing)",
            "pipeline train --set 'train.samples={}'   (collects them)",
        )
    found = read_json(path)
    try:
        if found["format_version"] > FORMAT_VERSION:
            raise DataError(f"{path} has format version {found['format_version']}, this program reads {FORMAT_VERSION}")
        latents = tuple(_latent(entry) for entry in found["latents"])
        return SampleSet(found["step"], found["collections"], found["settings"], latents)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a samples file: {error}", repair_command(path)) from None


def samples_summary(run: Path | str) -> dict[str, Any] | None:
    """statistics.json of a run's samples, and the path of its `table`; None without samples."""
    folder = Path(run) / FOLDER
    if not (folder / STATISTICS).is_file():
        return None
    found = read_json(folder / STATISTICS)
    if not isinstance(found, dict):
        raise DataError(f"{folder / STATISTICS} is not of this format", repair_command(folder))
    return {**found, "table": str(folder / TABLE)}


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _latent(entry: Mapping[str, Any]) -> LatentSamples:
    samples = tuple(Sample(**{**sample, "context": tuple(sample["context"])}) for sample in entry["samples"])
    return LatentSamples(**{**entry, "samples": samples})
