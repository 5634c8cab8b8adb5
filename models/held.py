"""The sites of a coder in a model that a caller holds."""

from __future__ import annotations

from typing import cast

from torch import nn

from ..shared.coders import Coder
from ..shared.coders.one_site import require_one_site
from ..shared.errors import UsageError
from .families import FAMILIES
from .site_names import Site
from .sites import resolve_sites


def names_of(coder: Coder, source: str | None, target: str | None) -> tuple[str, str]:
    """The sites that a coder reads and writes: as given, else as its own settings say; an SAE has one.

    Raises:
        UsageError: neither says, or a transcoder has only one of them.
    """
    require_one_site(coder, "running a coder on a model")
    read = source or coder.source
    written = target or (coder.target if source is None or coder.is_transcoder else None)
    if read is not None and written is None and not coder.is_transcoder:
        written = read
    if read is None or written is None:
        missing = "source" if read is None else "target"
        raise UsageError(
            f"this coder's {missing} site is not known", f'give {missing}="layer_08.resid_mid" (the site\'s own name)'
        )
    return read, written


def sites_of(model: nn.Module, *names: str) -> list[Site]:
    """The sites of a `transformers` model, with or without its language-model head; paths start at :func:`rooted`.

    Raises:
        UsageError: the model has no such site.
    """
    base = rooted(model)
    return [site for name in names for site in resolve_sites((name,), base)]  # one at a time: an SAE's two are one


def rooted(model: nn.Module) -> nn.Module:
    """The module that the paths of sites start from: the model, or for one without a head a module that holds it."""
    config = getattr(model, "config", None)
    family = FAMILIES.get(str(getattr(config, "model_type", "")))
    prefix = "" if family is None else family.layers.partition(".")[0]
    if not prefix or hasattr(model, prefix):
        return model
    outer = nn.Module()
    outer.add_module(prefix, model)
    outer.config = config  # type: ignore[assignment]
    return outer


def body_of(model: nn.Module) -> nn.Module:
    """The part of a model that maps tokens to hidden states."""
    return cast(nn.Module, getattr(model, "base_model", model))
