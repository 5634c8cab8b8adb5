"""Start a cross-layer coder from coders of its layers, or from another cross-layer coder.

Layer by layer, in their order: the latents of a layer are the first ones of its own coder (in a Matryoshka dictionary
the most general), except those marked off. A latent is marked off if its encoder reads what a latent chosen in an
earlier layer writes already: the earlier one can write the later layer itself, so both would be copies. The measure is
the largest cosine, in raw space, of its encoder row with a chosen decoder row; as many are marked off as the layer's
coder has latents too many. Where none has too many, the cross-layer coder begins with the reconstructions of its
layers' coders. The rows by which a latent writes later layers begin at zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UsageError
from ..memory import rows_within
from .base import WHITENING, Coder
from .configs.batchtopk import BatchTopKConfig
from .configs.topk import TopKConfig
from .cross_layer import CrossLayer
from .registry import build_coder
from .topk import TopK
from .warm_start import refuse, renormalised, same_normalisation, transfer

BLOCK = 2048
"""Encoder rows compared with all chosen decoder rows at a time."""


def refuse_layers(into: CrossLayer, sources: Sequence[Coder], where: Sequence[str]) -> None:
    """Refuse coders that cannot be the beginning. Raises UsageError.

    Args:
        sources: one coder for each layer, or one cross-layer coder of the same sizes.
        where: what each is called in the error.
    """
    hint = "train.init: a list of one run for each site of train.source in its order, or one cross-layer run"
    if len(sources) == 1 and isinstance(sources[0], CrossLayer):
        ours, theirs = ((one.n_sources, one.n_latents, one.config.skip) for one in (into, sources[0]))
        if ours != theirs:
            raise UsageError(f"train.init: {where[0]} has (sites, latents, skip) {theirs}, expected {ours}", hint)
        pairs: list[tuple[Coder, Coder, str]] = [(into, sources[0], where[0])]
    elif len(sources) != into.n_sources:
        raise UsageError(f"train.init: found {len(sources)} runs for {into.n_sources} sites", hint)
    else:
        pairs = []
        for layer, (source, name) in enumerate(zip(sources, where, strict=True)):
            if not isinstance(source, TopK):
                raise UsageError(
                    f"train.init: {name} is a {source.config.architecture} coder; the latents of a cross-layer coder "
                    "are selected by their size", "give TopK, BatchTopK or Matryoshka runs",
                )  # fmt: skip
            pairs.append((_of_layer(into, layer, source), source, name))
    for new, source, name in pairs:
        refuse(new, source, name)


@torch.no_grad()
def start_layers(into: CrossLayer, sources: Sequence[Coder]) -> list[Tensor]:
    """Overwrite the weights of `into`; latents that no source has keep their initial values.

    Args:
        into: on the CPU, in float32, with its normalisation set.
        sources: checked by `refuse_layers`.

    Returns:
        Of each layer the latents of its coder that were chosen [≤ F/L], ascending.
    """
    if len(sources) == 1 and isinstance(sources[0], CrossLayer):
        _copy(into, sources[0])
        return [torch.arange(into.per_layer)] * into.n_sources
    starts = []
    for layer, source in enumerate(sources):
        one = _of_layer(into, layer, source)
        _take_normalisation(one, into, layer)
        transfer(one, source)
        starts.append(one)
    chosen = choose(
        [one.fold().w_enc.float() for one in starts], [one.fold().w_dec.float() for one in starts], into.per_layer
    )
    for layer, (one, ids) in enumerate(zip(starts, chosen, strict=True)):
        _place(into, layer, one, ids)
    into.project_parameters()
    return chosen


@torch.no_grad()
def choose(encoders: Sequence[Tensor], decoders: Sequence[Tensor], n: int) -> list[Tensor]:
    """The latents of each layer to keep, ascending: at most n.

    Args:
        encoders, decoders: of each layer [F_l, d_in] and [F_l, d_out], in raw space. Where d_in and d_out differ, rows
            cannot be compared, and the first n are kept.
    """
    chosen: list[Tensor] = []
    written: list[Tensor] = []
    for encoder, decoder in zip(encoders, decoders, strict=True):
        ids = torch.arange(len(encoder))
        if len(encoder) > n and written and encoder.shape[1] == decoder.shape[1]:
            rows = torch.nn.functional.normalize(torch.cat(written), dim=1)
            unit = torch.nn.functional.normalize(encoder, dim=1)
            step = rows_within(4 * len(rows), BLOCK)
            nearest = torch.cat([(part @ rows.T).amax(dim=1) for part in torch.split(unit, step)])
            # a stable order: of equally similar latents the later ones are marked off
            ids = torch.argsort(nearest, stable=True)[:n].sort().values
        ids = ids[:n]
        chosen.append(ids)
        written.append(decoder[ids])
    return chosen


def _of_layer(into: CrossLayer, layer: int, source: Coder) -> Coder:
    """A coder of one layer with as many latents as `source` and the settings of `into`."""
    c = into.config
    k = min(c.k, source.n_latents)
    cls = BatchTopKConfig if c.selects_over == "batch" else TopKConfig
    config = cls(
        latents=source.n_latents, k=k, decoder_norm=c.decoder_norm, skip=c.skip, input_transform=c.input_transform,
        normalise=c.normalise, whiten_shrinkage=c.whiten_shrinkage,
    )  # fmt: skip
    return build_coder(config, into.source_widths[layer], into.target_widths[layer], tied=into.tied)


def _take_normalisation(one: Coder, into: CrossLayer, layer: int) -> None:
    """Give a layer's coder the normalisation that `into` has for that layer."""
    for side, widths in (("input", into.source_widths), ("target", into.target_widths)):
        place = slice(sum(widths[:layer]), sum(widths[: layer + 1]))
        getattr(one, f"{side}_mean").copy_(getattr(into, f"{side}_mean")[place])
        scale, own = getattr(into, f"{side}_scale"), getattr(one, f"{side}_scale")
        own.copy_(scale if scale.dim() == 0 else scale[place] if own.dim() else scale[place.start])
    for name in WHITENING:
        own, whole = getattr(one, name), getattr(into, name)
        if own is not None and whole is not None:
            widths = into.source_widths if name == "input_whiten" else into.target_widths
            place = slice(sum(widths[:layer]), sum(widths[: layer + 1]))
            own.copy_(whole[place, place])


def _place(into: CrossLayer, layer: int, one: Coder, ids: Tensor) -> None:
    """Latents `ids` of a layer's coder become the first latents of that layer."""
    first = layer * into.per_layer
    own, d_out = slice(first, first + len(ids)), into.target_widths[layer]
    into.w_enc[own] = one.w_enc[ids]
    into.b_enc[own] = one.b_enc[ids]
    for later in range(layer, into.n_targets):
        into.decoders[later][own] = one.w_dec[ids] if later == layer else 0
    into.b_dec[layer * d_out : (layer + 1) * d_out] = one.b_dec
    if into.w_skip is not None and one.w_skip is not None:
        into.w_skip[layer] = one.w_skip
    if into.config.selects_over == "batch":
        into.threshold[layer] = dict(one.named_buffers())["threshold"]


def _copy(into: CrossLayer, source: CrossLayer) -> None:
    """Every weight of another cross-layer coder, as it acts in the normalised space of `into`."""
    if same_normalisation(into, source):
        own = dict(into.named_parameters())
        for name, parameter in source.named_parameters():
            own[name].copy_(parameter)
    else:
        values, n, per = renormalised(into, source), into.n_sources, into.per_layer
        d_in, d_out = into.source_widths[0], into.target_widths[0]
        into.b_enc.copy_(values["b_enc"])
        into.b_dec.copy_(values["b_dec"])
        for layer in range(n):
            own_rows, columns = slice(layer * per, (layer + 1) * per), slice(layer * d_out, (layer + 1) * d_out)
            inputs = slice(layer * d_in, (layer + 1) * d_in)
            into.w_enc[own_rows] = values["w_enc"][own_rows, inputs].float()
            into.decoders[layer].copy_(values["w_dec"][: (layer + 1) * per, columns])
            if into.w_skip is not None:
                into.w_skip[layer] = values["w_skip"][columns, inputs].float()
        if into.config.decoder_norm == "unit":
            norms = torch.linalg.vector_norm(into.w_dec, dim=1)
            norms = torch.where(norms > 0, norms, torch.ones_like(norms))
            into.w_enc.mul_(norms.unsqueeze(1))
            into.b_enc.mul_(norms)
            into.project_parameters()
    if into.config.selects_over == source.config.selects_over == "batch":
        into.threshold.copy_(source.threshold)
