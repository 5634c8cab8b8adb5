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

from ..shared.coders import Coder
from ..shared.errors import UsageError
from .norms import norm_parts

Replace = Callable[[Tensor, Tensor], Tensor]
"""(source activations [B, T, d_in], target activations [B, T, d_out]) → the new target activations."""

READ_BY_ONE = ("attn_in", "mlp_in")
"""Kinds of sites that one module reads and the residual stream does not carry on."""


def by_reconstruction(coder: Coder) -> Replace:
    """The target as a coder reconstructs it from the source."""

    def reconstruction(x: Tensor, y: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        return coder.decode(coder.encode(flat), flat).view(*y.shape[:-1], -1)

    return reconstruction


def by_zero(_: Tensor, y: Tensor) -> Tensor:
    """Zero in place of the target."""
    return y.new_zeros(y.shape)


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
    hooks = _Hooks(source, target, replace)
    with ExitStack() as stack:
        # The source's hook is registered first: at one module, hooks run in the order of registration, and `new` needs
        # what `keep` has seen. For source = target, `new` keeps it itself.
        if source.name != target.name:
            stack.callback(hooks.at_source(model).remove)
        stack.callback(hooks.at_target(model).remove)
        yield hooks.seen


class _Hooks:
    """The hooks of a splice; `seen` holds the source activations of the last forward pass."""

    def __init__(self, source: Place, target: Place, replace: Replace) -> None:
        self.source, self.target, self.replace = source, target, replace
        self.seen: dict[str, Tensor] = {}

    def keep(self, x: Tensor) -> None:
        self.seen["source"] = x.clone()  # a copy: the same tensor may be overwritten in place at the target

    def new(self, y: Tensor) -> Tensor:
        if self.source.name == self.target.name:
            self.keep(y)
        elif "source" not in self.seen:
            raise UsageError(
                f"the model computes {self.target.name}, the target, before {self.source.name}, the source"
            )
        return self.replace(self.seen["source"], y).to(y.dtype)

    def at_source(self, model: nn.Module) -> Any:
        """Registers what reads the source."""
        module = model.get_submodule(self.source.module_path)
        if self.source.io == "out":
            return module.register_forward_hook(lambda _m, _a, output: self.keep(_tensor(output)))
        norm = norm_parts(module, self.source.module_path) if self.source.io == "nogain" else None

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = _first(args, kwargs)
            self.keep(x if norm is None else norm.normalise(x))

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    def at_target(self, model: nn.Module) -> Any:
        """Registers what replaces the target."""
        module = model.get_submodule(self.target.module_path)
        if self.target.io == "in":
            return module.register_forward_pre_hook(self._input, with_kwargs=True)
        if self.target.io == "out":
            return module.register_forward_hook(self._output)
        norm = norm_parts(module, self.target.module_path)

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            return norm.scale(self.new(norm.normalise(_first(args, kwargs)))).to(output.dtype)

        return module.register_forward_hook(hook, with_kwargs=True)

    def _input(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        held = _first(args, kwargs)
        changed = self.new(held)
        if self.target.kind in READ_BY_ONE:
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})
        held.copy_(changed)  # in place, so that the residual stream that shares this tensor changes too
        return None

    def _output(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        changed = self.new(_tensor(output))
        return (changed, *output[1:]) if isinstance(output, tuple) else changed


def _tensor(value: Any) -> Tensor:
    tensor: Tensor = value[0] if isinstance(value, tuple) else value
    return tensor


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    value: Tensor = args[0] if args else kwargs["hidden_states"]
    return value
