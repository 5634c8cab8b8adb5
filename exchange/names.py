"""The names of the formats that `pipeline export --to` takes, without what it takes to write them."""

from __future__ import annotations

FORMAT_NAMES = (
    "saelens",
    "circuit-tracer",
    "sparsify",
    "dictionary-learning",
    "gemma-scope",
    "neuronpedia",
    "saebench",
    "delphi",
    "safetensors",
)
