"""The parts of a loaded model: the text model that a family's sites lie in, and what must be called to reach a site."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import nn

from .families import family_of
from .site_names import Site


def text_model(model: nn.Module) -> tuple[str, nn.Module] | None:
    """The path and the module of the text model: the one that holds the layers of the family; None without a table.

    It is the model itself without its head, or, in a multimodal checkpoint, the language model that is nested in it.
    """
    config = model.config
    family = family_of(config)
    if family is None:
        return None
    kind = config.get_text_config().model_type  # type: ignore[operator, union-attr]
    for path, module in model.named_modules():
        own = getattr(getattr(module, "config", None), "get_text_config", None)
        if (
            own is not None
            and own().model_type == kind
            and isinstance(getattr(module, family.list_name, None), nn.ModuleList)
        ):
            return path, module
    return None


def body_of(model: nn.Module) -> nn.Module:
    """What a harvest calls: it reaches every site, computes no logits, and only it goes to the device.

    The text model where the family is known: called alone it computes what the whole model computes for text. Else the
    model without its head; of an encoder–decoder model, the encoder.
    """
    found = text_model(model)
    if found is not None:
        return found[1]
    body: nn.Module = model.get_encoder() if is_encoder_decoder(model) else model.base_model  # type: ignore[operator, assignment]
    return body


def is_encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(model.config, "is_encoder_decoder", False))


def drop_later_layers(model: nn.Module, sites: Iterable[Site]) -> None:
    """Removes the layers above the last one with a site, so that they take no memory on the device.

    Keeps every layer if the family has no table of sites, or if a site is given by module path: then only the end
    of the forward pass in capture.py keeps the later ones from being computed.
    """
    layers = [site.layer for site in sites]
    found, family = text_model(model), family_of(model.config)
    if found is not None and family is not None and None not in layers:
        blocks = cast(nn.ModuleList, getattr(found[1], family.list_name))
        del blocks[max(layer for layer in layers if layer is not None) + 1 :]
