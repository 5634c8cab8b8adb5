"""Reading activations at the sites of a model, and computing no more of the model than they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..shared.errors import UsageError
from .norms import Normalise, norm_parts
from .site_names import Site

_ISOLATION_ERROR = _SAME_ATTENTION = 0.05  # relative; rounding in bfloat16 stays far below it
_TIGHT_CAP = 1.0

Sink = Callable[[str, Tensor], None]


class _AllRead(Exception):  # noqa: N818 (not an error: it leaves a forward pass)
    """Every site has been read."""


class SiteReader:
    """Hooks on the modules of the sites; a context manager that registers and removes them.

    The hook that reads the last site raises an exception, which ends the forward pass. This works for every
    architecture and module path, computes nothing after that point, not even the rest of the layer, and leaves the
    model unchanged.

    Args:
        model: the module that the paths of the sites start from.
        body: the part of it to call, without the head, so that no logits are computed.
        sites: where to read.
        to_the_end: compute what follows the last site too.
    """

    def __init__(self, model: nn.Module, body: nn.Module, sites: Sequence[Site], *, to_the_end: bool = False) -> None:
        self._to_the_end = to_the_end
        self._model, self._body, self._sites = model, body, tuple(sites)
        self._handles: list[Any] = []
        self._missing: set[str] = set()
        self._shape: tuple[int, ...] = ()
        self._sink: Sink = lambda _name, _value: None

    def __enter__(self) -> SiteReader:
        for site in self._sites:
            module = self._model.get_submodule(site.module_path)
            if site.io == "nogain":
                normalise = norm_parts(module, site.module_path).normalise
                handle: Any = module.register_forward_pre_hook(self._norm_hook(site, normalise), with_kwargs=True)
            elif site.io == "in":
                handle = module.register_forward_pre_hook(self._input_hook(site), with_kwargs=True)
            else:
                handle = module.register_forward_hook(self._output_hook(site))
            self._handles.append(handle)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.inference_mode()
    def read(self, ids: Tensor, mask: Tensor | None, sink: Sink, positions: Tensor | None = None) -> None:
        """Runs the model on a batch and calls ``sink(name, tensor)`` with the activations of every site.

        The tensor is [batch, ctx, d], on the model's device and in its dtype. The sink must copy what it keeps before
        it returns: a model may add to its residual stream in place.

        Args:
            ids: int64 [batch, ctx].
            mask: [batch, ctx], 0 at padding; None if nothing is masked.
            positions: int64 [batch, ctx]; attention starts anew wherever they start again from 0 (`transformers` reads
                such positions as packed documents if there is no mask; :func:`check_isolated` checks it).

        Raises:
            UsageError: the forward pass does not reach a site, or the site has no vector for each token.
        """
        self._missing = {site.name for site in self._sites}
        self._shape, self._sink = tuple(ids.shape), sink
        try:
            self._body(input_ids=ids, attention_mask=mask, **self._arguments(positions))
        except _AllRead:
            return
        if not self._missing:
            return
        raise UsageError(f"site {', '.join(sorted(self._missing))}: the model's forward pass does not call this module")

    def _arguments(self, positions: Tensor | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if getattr(self._body.config, "use_cache", None) is not None:
            found["use_cache"] = False
        if positions is not None:
            found["position_ids"] = positions
        return found

    def _input_hook(self, site: Site) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hand_over(site, (*args, *kwargs.values()))

        return hook

    def _norm_hook(self, site: Site, normalise: Normalise) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = _first_tensor((*args, *kwargs.values()))
            self._hand_over(site, () if value is None else (normalise(value),))

        return hook

    def _output_hook(self, site: Site) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._hand_over(site, output if isinstance(output, (tuple, list)) else (output,))

        return hook

    def _hand_over(self, site: Site, values: Sequence[Any]) -> None:
        if not self._missing:  # past the last site, where layers that share a module call it again
            return
        value = _by_sequence(_first_tensor(values), self._shape)
        shape = None if value is None else tuple(value.shape)
        if value is None or shape is None or len(shape) != 3 or shape[:2] != self._shape:
            raise UsageError(
                f"site {site.name}: found {'no tensor' if shape is None else f'activations of shape {shape}'}, "
                f"expected one vector for each token, {(*self._shape, 'd')}",
                hint="choose a module whose input or output is [batch, tokens, d]",
            )
        if site.name not in self._missing:
            raise UsageError(f"site {site.name}: the forward pass calls {site.module_path} more than once")
        # The site counts as read only once the sink has copied it: if the sink fails, the error is the sink's own.
        self._sink(site.name, value)
        self._missing.discard(site.name)
        if not self._missing and not self._to_the_end:
            raise _AllRead


class CompiledReader(SiteReader):
    """A SiteReader with the model compiled into one graph, for batches of one shape.

    An exception cannot leave a graph. Instead the activations of the sites are the only results of the compiled
    function: everything else, such as the rest of the model, is dead code that the compiler removes.
    """

    def __init__(self, model: nn.Module, body: nn.Module, sites: Sequence[Site]) -> None:
        super().__init__(model, body, sites)
        self._found: dict[str, Tensor] = {}
        self._compiled = torch.compile(self._collect, fullgraph=True, dynamic=False)

    @torch.inference_mode()
    def read(self, ids: Tensor, mask: Tensor | None, sink: Sink, positions: Tensor | None = None) -> None:
        """As :meth:`SiteReader.read`; that must have read the sites once before.

        Raises:
            UsageError: the model cannot be compiled as one graph.
        """
        try:
            values = self._compiled(ids, mask, positions)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise UsageError(
                f"harvest.compile: this model does not compile as one graph: {str(error).splitlines()[0]}",
                hint="--set harvest.compile=off",
            ) from error
        for site, value in zip(self._sites, values, strict=True):
            sink(site.name, value)

    def _collect(self, ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> list[Tensor]:
        self._found, self._shape = {}, tuple(ids.shape)
        self._body(input_ids=ids, attention_mask=mask, **self._arguments(positions))
        return [self._found[site.name] for site in self._sites]

    def _hand_over(self, site: Site, values: Sequence[Any]) -> None:
        if len(self._found) == len(self._sites):  # past the last site, where layers that share a module call it again
            return
        value = _by_sequence(_first_tensor(values), self._shape)
        if value is not None:
            self._found[site.name] = value.clone()  # the model may add to it in place (Falcon)


def _first_tensor(values: Sequence[Any]) -> Tensor | None:
    return next((value for value in values if isinstance(value, Tensor)), None)


def _by_sequence(value: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """[batch · ctx, d] → [batch, ctx, d]: some modules read a batch as one row of tokens (OPT, experts)."""
    if value is not None and value.ndim == 2 and len(value) == shape[0] * shape[1]:
        return value.view(*shape, value.shape[-1])
    return value


def check_isolated(reader: SiteReader, bos: int, vocab: int, length: int, device: torch.device) -> None:
    """Checks that a document behind another one has the same activations as alone.

    Raises:
        UsageError: the model's attention crosses documents despite the positions.
    """
    half = max(length // 2, 2)
    pair = (torch.arange(2 * half) * 7919 + 11) % vocab  # arbitrary tokens
    pair[0] = pair[half] = bos
    positions = torch.arange(half).repeat(2)
    together: dict[str, Tensor] = {}
    alone: dict[str, Tensor] = {}
    try:
        reader.read(pair[None].to(device), None, _into(together), positions[None].to(device))
    except TypeError as error:
        raise UsageError(f"harvest.cross_document_attention: this model takes no positions ({error})") from None
    reader.read(pair[None, half:].to(device), None, _into(alone))
    for name, value in alone.items():
        off = float((together[name][:, half:] - value).norm() / value.norm().clamp_min(1e-30))
        if not off < _ISOLATION_ERROR:
            raise UsageError(
                f"harvest.cross_document_attention: at {name} a document behind another one differs by {off:.1%} "
                "from the same document alone; this model or attention path cannot keep documents apart",
                hint="--set harvest.packing=document, or harvest.attention=eager",
            )


def _into(values: dict[str, Tensor]) -> Sink:
    def sink(name: str, value: Tensor) -> None:
        values[name] = value.float().cpu().clone()

    return sink


def check_attention(
    reader: SiteReader, body: nn.Module, bos: int, vocab: int, length: int, device: torch.device
) -> None:
    """Checks the model's attention path against its plain one (eager): the same activations up to rounding.

    A soft cap of 50 hardly moves usual scores, so a path that drops it would pass: both run with a cap that moves all.

    Raises:
        UsageError: they differ; the path may lack soft-capping or a sliding window.
    """
    chosen = getattr(body.config, "_attn_implementation", "eager")
    if chosen == "eager":
        return
    ids = (torch.arange(length) * 7919 + 11) % vocab
    ids[0] = bos
    found: dict[str, dict[str, Tensor]] = {chosen: {}, "eager": {}}
    with _soft_caps(body, _TIGHT_CAP):
        for path, values in found.items():
            body.set_attn_implementation(path)  # type: ignore[operator]
            reader.read(ids[None].to(device), None, _into(values))
    body.set_attn_implementation(chosen)  # type: ignore[operator]
    for name, value in found["eager"].items():
        off = float((found[chosen][name] - value).norm() / value.norm().clamp_min(1e-30))
        if not off < _SAME_ATTENTION:
            raise UsageError(
                f"harvest.attention: at {name} {chosen} differs by {off:.1%} from eager, which computes what the model "
                "was trained with",
                hint="--set harvest.attention=eager",
            )


@contextmanager
def _soft_caps(body: nn.Module, cap: float) -> Iterator[None]:
    """Every attention module that caps its scores caps them at this value instead."""
    name = "attn_logit_softcapping"
    capped = [(module, old) for module in body.modules() if (old := getattr(module, name, None)) is not None]
    for module, _ in capped:
        setattr(module, name, cap)
    try:
        yield
    finally:
        for module, old in capped:
            setattr(module, name, old)


def site_widths(reader: SiteReader, ids: Tensor) -> dict[str, int]:
    """Name → width d of every site, from one small forward pass."""
    widths: dict[str, int] = {}

    def note(name: str, value: Tensor) -> None:
        widths[name] = int(value.shape[-1])

    reader.read(ids, None, note)
    return widths


@contextmanager
def count_flops() -> Iterator[Any]:
    """Yields a counter of the FLOP of matrix products (two for a multiply-add): ``.get_total_flops()``.

    It counts fused attention too, whose form for a CPU torch's own counter does not know.
    """
    from torch.utils.flop_counter import FlopCounterMode

    def attention(query: Sequence[int], key: Sequence[int], *_: Any, **__: Any) -> int:
        batch, heads, n_queries, width = query
        return 2 * 2 * batch * heads * n_queries * key[2] * width  # Q·Kᵀ, and the weights times V

    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        yield counter
