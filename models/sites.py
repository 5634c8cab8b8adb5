"""The module and the side of every named site of a loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..shared.config.registry import did_you_mean
from ..shared.errors import UsageError
from .bodies import body_of, is_encoder_decoder, text_model
from .families import FAMILIES, family_of
from .site_names import KINDS, Site, every_layer, format_site, parse_module_site, parse_site

if TYPE_CHECKING:
    from torch import nn


def resolve_sites(names: tuple[str, ...], model: nn.Module) -> list[Site]:
    """The module and the side of every named site, in the order of the names; `layer_*.KIND` names one at every layer.

    Raises:
        UsageError: a name is malformed, or the layer, kind or module was not found; lists the ones that exist.
    """
    modules = dict(model.named_modules())
    given = [one for name in names for one in _at_every_layer(name, modules, model)]
    return [_resolve(name, modules, model) for name in dict.fromkeys(given)]


def _at_every_layer(name: str, modules: Mapping[str, Any], model: nn.Module) -> list[str]:
    kind = every_layer(name)
    if kind is None:
        return [name]
    found, family = text_model(model), family_of(model.config)
    if found is None or family is None:
        return [format_site(0, kind)]  # which gives the error that lists the model's modules
    layers = modules[f"{found[0]}.{family.list_name}".removeprefix(".")]
    return [format_site(layer, kind) for layer in range(len(layers))]


def _resolve(name: str, modules: Mapping[str, Any], model: nn.Module) -> Site:
    layer, kind = parse_site(name)
    if layer is None or kind is None:
        path, io = parse_module_site(name)
        if path not in modules:
            raise UsageError(
                f"site {name}: the model has no module {path!r}{did_you_mean(path, modules)}",
                hint=f"its modules: {_outline(modules)}",
            )
        _refuse_decoder(name, path, modules, model)
        return Site(name, None, None, path, io)
    config: Any = model.config
    text_type = config.get_text_config().model_type
    found, family = text_model(model), family_of(config)
    if found is None or family is None:
        raise UsageError(
            f"site {name}: no table of sites for models of type {text_type!r} (known: "
            f"{', '.join(sorted(FAMILIES))}); give module paths instead, such as some.module:out",
            hint=f"its modules: {_outline(modules)}",
        )
    kinds = family.kinds_of(config)
    if kind not in kinds:
        exist = [known for known in KINDS if known in kinds]
        why = family.why_not(kind, config) if kind in KINDS else None
        reason = f": {why}" if why else did_you_mean(kind, exist)
        raise UsageError(
            f"site {name}: models of type {text_type} have no {kind!r}{reason}",
            hint=f"the kinds that exist: {', '.join(exist)}",
        )
    layers = f"{found[0]}.{family.list_name}".removeprefix(".")
    n_layers = len(modules[layers])
    if layer >= n_layers:
        last = format_site(n_layers - 1, kind)
        raise UsageError(f"site {name}: the model has {n_layers} layers", hint=f"the last one is {last}")
    below, _, _ = kinds[kind].partition(":")
    path, io = parse_module_site(f"{layers}.{layer}{'.' if below else ''}{kinds[kind]}")
    if path not in modules:
        raise UsageError(
            f"site {name}: layer {layer} of this model has no module {below!r}; layers of other kinds do",
            hint=f"its modules: {_outline({key: 0 for key in modules if key.startswith(f'{layers}.{layer}.')})}",
        )
    return Site(format_site(layer, kind), layer, kind, path, io)


def _refuse_decoder(name: str, path: str, modules: Mapping[str, Any], model: nn.Module) -> None:
    """Refuses a site that a forward pass of the encoder does not reach."""
    if not is_encoder_decoder(model):
        return
    encoder = body_of(model)
    inside = next(path for path, module in modules.items() if module is encoder)
    if path != inside and not path.startswith(f"{inside}."):
        raise UsageError(
            f"site {name}: this is an encoder–decoder model, and its decoder requires a second text "
            "(decoder_input_ids), which a harvest does not have; only the encoder is run",
            hint=f"choose a site below {inside}: {_outline({p: 0 for p in modules if p.startswith(f'{inside}.')})}",
        )


def _outline(modules: Mapping[str, Any]) -> str:
    """The module paths with N for the numbers of repeated blocks, so that a deep model fits on a screen."""
    seen = dict.fromkeys(".".join("N" if part.isdigit() else part for part in path.split(".")) for path in modules)
    paths = [path for path in seen if path]
    return ", ".join(paths[:60]) + (f" and {len(paths) - 60} more" if len(paths) > 60 else "")
