"""The formats by name, and which one a folder is of."""

from __future__ import annotations

from pathlib import Path

from .base import Format, Options, Part
from .circuit_tracer import CircuitTracer
from .delphi import Delphi
from .dictionary_learning import DictionaryLearning
from .gemma_scope import GemmaScope
from .neuronpedia import Neuronpedia
from .saebench import SaeBench
from .saelens import SaeLens
from .safetensors import Safetensors
from .sparsify import Sparsify

FORMATS: dict[str, Format] = {
    one.name: one
    for one in (
        SaeLens(),
        CircuitTracer(),
        Sparsify(),
        DictionaryLearning(),
        GemmaScope(),
        Neuronpedia(),
        SaeBench(),
        Delphi(),
        Safetensors(),
    )
}
"""Name → format, in the order of the docs. Recognised in this order."""


def recognise(path: Path) -> Format | None:
    """The format of a folder or file; None where no format is."""
    return next((one for one in FORMATS.values() if one.readable and one.recognises(path)), None)


__all__ = ["FORMATS", "Format", "Options", "Part", "recognise"]
