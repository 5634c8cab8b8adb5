"""The activation samples that training leaves in a run's `samples/`: what they are, and how they are read and written.

`samples.json` holds the samples themselves, `statistics.json` figures over all that were kept, `statistics.md` the same
as tables to look at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache.files import read_json, sync_folder, write_file
from ..errors import DataError

FOLDER = "samples"
SAMPLES = "samples.json"
STATISTICS = "statistics.json"
TABLE = "statistics.md"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Sample:
    """One activation of one latent, in its context.

    Attributes:
        value: the activation when it was seen, during training.
        token: id of the token at the peak.
        position: in the sequence, 0 at every BOS. pos_in_doc: in the document. doc_id: the document. row: in the cache.
        step: the update before which it was seen.
        context: token ids around the peak, of one sequence and one document. peak: where among them the peak is.
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
    text: str


@dataclass(frozen=True)
class LatentSamples:
    """What was saved of one latent.

    Attributes:
        kept: samples that training kept of it; `mean` is their mean activation. More may have been kept than saved.
        specialised: on what its samples agree (token, document or domain, both), or general, or rare.
        samples: the saved ones, strongest first.
    """

    latent: int
    kept: int
    mean: float
    specialised: str
    samples: tuple[Sample, ...]

    @property
    def max(self) -> float:
        """The largest activation."""
        return self.samples[0].value


@dataclass(frozen=True)
class SampleSet:
    """The saved samples of a run.

    Attributes:
        step: updates done when it was written. collections: batches that were looked at until then.
        settings: those of `train.samples` in use.
        latents: the strongest latent first.
    """

    step: int
    collections: int
    settings: Mapping[str, Any]
    latents: tuple[LatentSamples, ...]

    def __getitem__(self, latent: int) -> LatentSamples:
        """What was saved of a latent. Raises KeyError where nothing was."""
        for found in self.latents:
            if found.latent == latent:
                return found
        raise KeyError(latent)


def save_samples(run: Path, samples: SampleSet) -> Path:
    """Write samples/samples.json below a run's folder, whole or not at all, one line for each latent."""
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
        DataError: it has none, or the file is not what it should be.
    """
    path = Path(run) / FOLDER / SAMPLES
    try:
        found = json.loads(path.read_bytes())
        if found["format_version"] > FORMAT_VERSION:
            raise DataError(f"{path} has format version {found['format_version']}, this program reads {FORMAT_VERSION}")
        latents = tuple(_latent(entry) for entry in found["latents"])
        return SampleSet(found["step"], found["collections"], found["settings"], latents)
    except FileNotFoundError:
        raise DataError(
            f"{run} has no samples ({path.name} is missing)", "pipeline train --set train.samples={} collects them"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no file of samples: {error}", "pipeline train --resume writes it again") from None


def samples_summary(run: Path | str) -> dict[str, Any] | None:
    """statistics.json of a run's samples, and where its `table` lies; None where there are none."""
    folder = Path(run) / FOLDER
    if not (folder / STATISTICS).is_file():
        return None
    found: dict[str, Any] = read_json(folder / STATISTICS)
    return {**found, "table": str(folder / TABLE)}


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _latent(entry: Mapping[str, Any]) -> LatentSamples:
    samples = tuple(Sample(**{**sample, "context": tuple(sample["context"])}) for sample in entry["samples"])
    return LatentSamples(**{**entry, "samples": samples})
