"""Reading activations at the sites of a model, and computing no more of it than they need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UsageError
from shared.sites import Site

Sink = Callable[[str, Tensor], None]


class _AllRead(Exception):  # noqa: N818 (not an error: the way out of a forward pass)
    """Every site has been read."""


class SiteReader:
    """Hooks on the modules of the sites; use as a context manager, which puts them on and takes them off.

    The forward pass is left by an exception raised in the hook that reads the last site. That needs no knowledge of the
    model: it works for every architecture and module path, computes nothing after that point, not even the rest of
    the layer, and leaves the model as it was.

    Args:
        model: the module that the sites' paths start from.
        body: the part of it to call (without the head, so that no logits are ever computed).
        sites: where to read.
    """

    def __init__(self, model: nn.Module, body: nn.Module, sites: Sequence[Site]) -> None:
        self._model, self._body, self._sites = model, body, tuple(sites)
        self._handles: list[Any] = []
        self._missing: set[str] = set()
        self._shape: tuple[int, ...] = ()
        self._sink: Sink = lambda _name, _value: None

    def __enter__(self) -> SiteReader:
        for site in self._sites:
            module = self._model.get_submodule(site.module_path)
            if site.io == "in":
                handle: Any = module.register_forward_pre_hook(self._input_hook(site), with_kwargs=True)
            else:
                handle = module.register_forward_hook(self._output_hook(site))
            self._handles.append(handle)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.inference_mode()
    def read(self, ids: Tensor, mask: Tensor | None, sink: Sink) -> None:
        """Runs the model on a batch and hands every site's activations to ``sink(name, tensor)``.

        The tensor is [batch, ctx, d], on the model's device and in its dtype. The sink must copy what it keeps before
        it returns, since a model may go on to add to its residual stream in place.

        Args:
            ids: int64 [batch, ctx].
            mask: [batch, ctx], 0 at padding; None where there is none.

        Raises:
            UsageError: a site is not met in a forward pass, or what passes there is not one vector for each token.
        """
        self._missing = {site.name for site in self._sites}
        self._shape, self._sink = tuple(ids.shape), sink
        try:
            self._body(input_ids=ids, attention_mask=mask, **self._no_kv_cache())
        except _AllRead:
            return
        raise UsageError(
            f"site {', '.join(sorted(self._missing))}: the model's forward pass never comes by this module"
        )

    def _no_kv_cache(self) -> dict[str, bool]:
        return {"use_cache": False} if getattr(self._body.config, "use_cache", None) is not None else {}

    def _input_hook(self, site: Site) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hand_over(site, (*args, *kwargs.values()))

        return hook

    def _output_hook(self, site: Site) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            self._hand_over(site, output if isinstance(output, (tuple, list)) else (output,))

        return hook

    def _hand_over(self, site: Site, values: Sequence[Any]) -> None:
        value = next((value for value in values if isinstance(value, Tensor)), None)
        shape = None if value is None else tuple(value.shape)
        if value is None or shape is None or len(shape) != 3 or shape[:2] != self._shape:
            raise UsageError(
                f"site {site.name}: found {'no tensor' if shape is None else f'activations of shape {shape}'} there, "
                f"expected one vector for each token, {(*self._shape, 'd')}",
                hint="choose a module whose input or output is [batch, tokens, d]",
            )
        if site.name not in self._missing:
            raise UsageError(f"site {site.name}: the forward pass comes by {site.module_path} more than once")
        self._sink(site.name, value)
        self._missing.discard(site.name)
        if not self._missing:
            raise _AllRead


def site_widths(reader: SiteReader, ids: Tensor) -> dict[str, int]:
    """d of every site, from one small forward pass."""
    widths: dict[str, int] = {}

    def note(name: str, value: Tensor) -> None:
        widths[name] = int(value.shape[-1])

    reader.read(ids, None, note)
    return widths


@contextmanager
def count_flops() -> Iterator[Any]:
    """Counts the multiply-adds of matrix products (two each); ``.get_total_flops()`` on what is yielded."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        yield counter


def rows_into(target: Tensor, start: int, activations: Tensor) -> None:
    """Copies [batch, ctx, d] into rows of a host buffer [rows, d] in its dtype; asynchronously if it is pinned."""
    flat = activations.reshape(-1, activations.shape[-1])
    target[start : start + len(flat)].copy_(flat, non_blocking=True)
