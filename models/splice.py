"""A forward pass with one site's activations replaced.

The replacement happens where the harvest reads the site. A module's output is exchanged. A module's input is
overwritten in place, so that a residual stream that bypasses the module (`residual = x; x = norm(x)`) carries the
replacement too: both names refer to one tensor. The inputs of attention and MLP (`attn_in`, `mlp_in`) are exchanged for
that module alone: without a norm before it (OLMo-2), its input is the residual stream itself, which must stay as it is.
A norm's output without gain (`mlp_in_nogain`) is exchanged before the norm scales it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

from ..shared.errors import UsageError
from .norms import NormParts, norm_parts

Replace = Callable[[Tensor, Tensor], Tensor]
"""(source activations [B, T, d_in], target activations [B, T, d_out]) → the new target activations."""

READ_BY_ONE = ("attn_in", "mlp_in")
"""Kinds of sites that one module reads and the residual stream does not carry on."""


class Place(Protocol):
    """What is needed of a site: a `Site` of a model, or a `SiteSpec` of a cache."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str | None: ...
    @property
    def module_path(self) -> str: ...
    @property
    def io(self) -> str: ...


@contextmanager
def spliced(model: nn.Module, source: Place, target: Place, replace: Replace) -> Iterator[dict[str, Tensor]]:
    """A context in which every forward pass has replace(source, target) at the target site.

    Yields a dictionary whose "source" holds the source activations of the last forward pass. The hooks act on every
    caller of the model and are removed when the context ends, also after an exception.

    Raises:
        UsageError: the module of a site is not known, or the model computes the target before the source.
    """
    for place in (source, target):
        if not place.module_path:
            raise UsageError(f"the module of site {place.name} is not known", "import the cache again with --model")
    seen: dict[str, Tensor] = {}

    def keep(x: Tensor) -> None:
        seen["source"] = x.clone()  # a copy: the same tensor may be overwritten in place at the target

    def new(y: Tensor) -> Tensor:
        if source.name == target.name:
            keep(y)
        elif "source" not in seen:
            raise UsageError(f"the model computes {target.name}, the target, before {source.name}, the source")
        return replace(seen["source"], y).to(y.dtype)

    def pre_source(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(_first(args, kwargs))

    def post_source(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        keep(_tensor(output))

    def pre_target(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        held = _first(args, kwargs)
        changed = new(held)
        if target.kind in READ_BY_ONE:
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})
        held.copy_(changed)  # in place, so that the residual stream that shares this tensor changes too
        return None

    def post_target(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        changed = new(_tensor(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def norm_source(norm: NormParts) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(norm.normalise(_first(args, kwargs)))

        return hook

    def norm_target(norm: NormParts) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            return norm.scale(new(norm.normalise(_first(args, kwargs)))).to(output.dtype)

        return hook

    with ExitStack() as stack:
        # The source's hook is registered first: at one module, hooks run in the order of registration, and `new` needs
        # what `keep` has seen. For source = target, `new` keeps it itself.
        if source.name != target.name:
            module = model.get_submodule(source.module_path)
            if source.io == "nogain":
                hook = norm_source(norm_parts(module, source.module_path))
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            elif source.io == "in":
                stack.callback(module.register_forward_pre_hook(pre_source, with_kwargs=True).remove)
            else:
                stack.callback(module.register_forward_hook(post_source).remove)
        module = model.get_submodule(target.module_path)
        if target.io == "nogain":
            hook = norm_target(norm_parts(module, target.module_path))
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        elif target.io == "in":
            stack.callback(module.register_forward_pre_hook(pre_target, with_kwargs=True).remove)
        else:
            stack.callback(module.register_forward_hook(post_target).remove)
        yield seen


def _tensor(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    value: Tensor = args[0] if args else kwargs["hidden_states"]
    return value
