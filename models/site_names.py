"""Names of sites: the places of a model where activations are read.

A site is named in one of two ways: ``layer_08.resid_mid`` (a layer and a kind, after TransformerLens) or a module path
with the side that is read, ``encoder.layer.3.output:out``. This module knows the spelling only; sites.py knows which
module of a model family each kind is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from ..shared.errors import UsageError

KINDS = (
    *("resid_pre", "attn_in", "attn_z", "attn_out"),
    *("resid_mid", "mlp_in", "mlp_in_nogain", "mlp_out", "resid_post"),
)
"""Kinds of a transformer layer in the order of a forward pass. ``attn_z`` is what the heads give before W_O, all heads
side by side; ``mlp_in`` is the normalised MLP input, ``mlp_in_nogain`` the same before the norm's gain and bias."""

IO = Literal["in", "out", "nogain"]
"""A module's input or output, or, of a norm, its output without gain and bias."""

_LAYER_SITE = re.compile(r"layer_(\d+)\.([a-z][a-z0-9_]*)")
_EVERY_LAYER = re.compile(r"layer_\*\.([a-z][a-z0-9_]*)")
_MODULE_SITE = re.compile(r"([A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*):(in|out|nogain)")


@dataclass(frozen=True)
class Site:
    """A place in a model: its name in a cache, and the module whose input or output is read."""

    name: str
    layer: int | None
    kind: str | None
    module_path: str
    io: IO


def format_site(layer: int, kind: str) -> str:
    """``format_site(8, "resid_mid") == "layer_08.resid_mid"``: at least two digits, so that names sort by layer."""
    if layer < 0:
        raise UsageError(f"layers count from 0, found {layer}")
    return f"layer_{layer:02d}.{kind}"


def parse_site(text: str) -> tuple[int | None, str | None]:
    """The layer and the kind of a site name; ``(None, None)`` for a module path.

    Raises:
        UsageError: the text is neither form. The kind itself is not checked here: a family may lack it.
    """
    if match := _LAYER_SITE.fullmatch(text):
        return int(match[1]), match[2]
    if _MODULE_SITE.fullmatch(text):
        return None, None
    raise UsageError(
        f"no site is called {text!r}: expected layer_NN.KIND (KIND one of {', '.join(KINDS)}) or MODULE.PATH:in, :out "
        "or :nogain",
        hint="pipeline harvest --dry-run   (lists the sites of a config)",
    )


def every_layer(text: str) -> str | None:
    """The kind of ``layer_*.KIND``, which stands for that kind at every layer of the model; None for any other name."""
    match = _EVERY_LAYER.fullmatch(text)
    return match[1] if match else None


def parse_module_site(text: str) -> tuple[str, IO]:
    """Splits ``encoder.layer.3.output:out`` into the module path and the side.

    Raises:
        UsageError: the text is not a module path with ``:in``, ``:out`` or ``:nogain``.
    """
    match = _MODULE_SITE.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a module path followed by :in, :out or :nogain")
    return match[1], cast(IO, match[2])
