"""circuit-tracer's cross-layer transcoders: `config.yaml`, and two files for each of n layers.

`W_enc_{i}.safetensors` has W_enc_i [F, d], b_enc_i [F], threshold_i [F] and b_dec_i [d]; `W_dec_{i}.safetensors` has
W_dec_i [F, n − i, d], by which the latents of layer i write layers i … n − 1. A latent fires above its threshold. There
is no place for skip matrices: the release 0.5.0 reads none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...shared.cache.files import write_file
from ...shared.coders.cross_layer import CrossLayer
from ...shared.config.yaml import dump_yaml
from ...shared.errors import UsageError
from ...shared.joint_names import parts_of
from ..facts import Facts
from ..hooks import layer_of, tl_hook
from ..plain import Above, Plain
from .base import Part, Written, read_tensors, write_tensors


def refuse(coder: CrossLayer, facts: Facts) -> None:
    """Refuses what the format cannot hold. Raises UsageError."""
    sources, targets = parts_of(facts.source), parts_of(facts.target)
    if coder.tied:
        raise UsageError(
            "circuit-tracer replaces MLPs by transcoders; this is a crosscoder", "pipeline analyze   (reads it)"
        )
    if coder.w_skip is not None:
        raise UsageError("circuit-tracer's files of cross-layer transcoders hold no skip matrices", "coder.skip: false")
    if coder.source_widths[0] != coder.target_widths[0]:
        raise UsageError(f"circuit-tracer has one width, found {coder.source_widths[0]} and {coder.target_widths[0]}")
    layers = [(layer_of(a), layer_of(b)) for a, b in zip(sources, targets, strict=True)]
    if layers != [(n, n) for n in range(len(layers))]:
        raise UsageError(
            f"circuit-tracer requires every layer of the model from 0 on, in order; found {', '.join(sources)}",
            "train with train.source: [layer_00.resid_mid, layer_01.resid_mid, …] and the same layers as target",
        )
    for one, rms in ((sources, coder.config.input_transform == "rms"), (targets, False)):
        if len({_hook(site, rms) for site in one}) > 1:
            raise UsageError(f"circuit-tracer has one hook for all layers, found {', '.join(one)}")


def write(part: Part, coder: CrossLayer, folder: Path) -> Written:
    """Write the coder into an empty folder."""
    plain, n, per = part.plain, coder.n_sources, coder.per_layer
    assert isinstance(plain.activation, Above)
    d = coder.source_widths[0]
    for layer in range(n):
        own, site = slice(layer * per, (layer + 1) * per), slice(layer * d, (layer + 1) * d)
        write_tensors(
            folder / f"W_enc_{layer}.safetensors",
            {
                f"W_enc_{layer}": plain.w_enc[own, site],
                f"b_enc_{layer}": plain.b_enc[own],
                f"b_dec_{layer}": plain.b_dec[site],
                f"threshold_{layer}": plain.activation.theta[own],
            },
        )
        written = plain.w_dec[own, layer * d :].reshape(per, n - layer, d)
        write_tensors(folder / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": written})
    source, target = (
        _hook(parts_of(site)[0], rms) for site, rms in ((part.facts.source, plain.rms), (part.facts.target, False))
    )
    config: dict[str, Any] = {
        "model_name": part.facts.model,
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": source,
        "feature_output_hook": target,
        "scan": part.facts.name,
    }
    write_file(folder / "config.yaml", [dump_yaml(config).encode()])
    notes = ("circuit-tracer zeroes the latents at position 0, of Gemma-3 IT models at the first four positions",)
    load = f'load_clt("FOLDER", feature_input_hook={source!r}, feature_output_hook={target!r}, dtype=torch.float32)'
    return Written(notes, load, {"layers": n})


def read(folder: Path, n: int, rms: bool) -> Plain:
    """The weights in a folder as one coder over the joint sites: to measure what was written."""
    enc = [
        read_tensors(folder / f"W_enc_{i}.safetensors", [f"{name}_{i}" for name in ("W_enc", "b_enc", "b_dec")])
        for i in range(n)
    ]
    dec = [read_tensors(folder / f"W_dec_{i}.safetensors", [f"W_dec_{i}"])[f"W_dec_{i}"].flatten(1) for i in range(n)]
    width = dec[0].shape[1]
    return Plain(
        torch.block_diag(*(one[f"W_enc_{i}"] for i, one in enumerate(enc))),  # type: ignore[no-untyped-call]
        torch.cat([one[f"b_enc_{i}"] for i, one in enumerate(enc)]),
        torch.cat([torch.nn.functional.pad(rows, (width - rows.shape[1], 0)) for rows in dec]),
        torch.cat([one[f"b_dec_{i}"] for i, one in enumerate(enc)]),
        None,
        Above(torch.cat([one[f"threshold_{i}"] for i, one in enumerate(enc)])),
        rms=rms,
        tied=False,
    )


def _hook(site: str, rms: bool) -> str:
    """The hook below `blocks.L.`."""
    return tl_hook(site, rms).split(".", 2)[2]
