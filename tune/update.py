"""Which parameters of a coder a tuning moves, and the thin matrices of low-rank updates."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from ..shared.coders import Coder
from ..shared.errors import UsageError
from .config import TuneConfig

OF_THE_DECODER = ("w_dec", "b_dec", "w_skip")
MATRICES = ("w_enc", "w_dec")
"""What lora moves."""


class LowRank:
    """W = W₀ + A B of one matrix: A [F, r] starts at zero, B [r, d] normal with variance 1/d.

    The coder holds W itself, an ordinary parameter, so what it holds is at any time the merged coder. With unit rows W
    is that sum with its rows rescaled to length 1.

    Args:
        matrix: [F, d] the coder's own parameter, at W₀.
        unit: rescale rows.
        generator: of B, on the CPU.
    """

    def __init__(self, matrix: nn.Parameter, rank: int, *, unit: bool, generator: torch.Generator) -> None:
        self.matrix, self.unit = matrix, unit
        self.start = matrix.detach().clone()
        width = matrix.shape[1]
        b = torch.randn(rank, width, generator=generator) / width**0.5
        self.a = nn.Parameter(self.start.new_zeros(len(self.start), rank))
        self.b = nn.Parameter(b.to(self.start))

    @torch.no_grad()
    def take_gradient(self) -> None:
        """Pass the gradient of W on to A and B by the chain rule, and clear it."""
        gradient = self.matrix.grad
        assert gradient is not None
        if self.unit:
            along = torch.linalg.vecdot(gradient, self.matrix).unsqueeze(1)
            gradient = (gradient - along * self.matrix) / self._lengths()
        self.a.grad, self.b.grad = gradient @ self.b.T, self.a.T @ gradient
        self.matrix.grad = None

    @torch.no_grad()
    def merge(self) -> None:
        """Set W to W₀ + A B."""
        total = self.start + self.a @ self.b
        self.matrix.copy_(total / self._lengths() if self.unit else total)

    def _lengths(self) -> Tensor:
        """Lengths of the rows of W₀ + A B: [F, 1]; infinite where W₀ has a row of zeros, which therefore stays zero."""
        before, now = (
            torch.linalg.vector_norm(m, dim=1, keepdim=True) for m in (self.start, self.start + self.a @ self.b)
        )
        return torch.where(before > 0, now, torch.inf)


class Update:
    """What moves of a coder, by name, and the step from its gradients.

    Args:
        coder: on its device; parameters that stay as they are lose their gradient.
        frozen: parameters that the run itself kept fixed (train.freeze).

    Raises:
        UsageError: nothing would move.
    """

    def __init__(self, coder: Coder, config: TuneConfig, frozen: Collection[str] = ()) -> None:
        self.coder, self.config = coder, config
        chosen = moving(coder, config, frozen)
        for name, parameter in coder.named_parameters():
            parameter.requires_grad_(name in chosen)
        self.low_rank: dict[str, LowRank] = {}
        parameters = dict(coder.named_parameters())
        self.trained = {name: parameters[name] for name in chosen}
        if config.update == "lora":
            generator = torch.Generator().manual_seed(config.seed)
            unit = coder.config.decoder_norm == "unit"
            for name in chosen:
                self.low_rank[name] = LowRank(
                    parameters[name], config.rank_in_use, unit=unit and name == "w_dec", generator=generator
                )
            self.trained = {f"{n}.{side}": getattr(low, side) for n, low in self.low_rank.items() for side in "ab"}
        groups = [
            {"params": [parameter], "lr_factor": coder.learning_rates.get(name, 1.0)}
            for name, parameter in self.trained.items()
        ]
        self.optimizer = torch.optim.Adam(groups, lr=0.0)

    @property
    def codes_stay(self) -> bool:
        """Whether the codes are those of the coder as it was: only the decoder moves."""
        return self.config.update == "decoder"

    def prepare_gradients(self) -> Tensor:
        """From the gradients of the coder's parameters to those that the optimizer takes; their norm, before it is
        clipped. Gradients of unit rows lose what would change the length."""
        for low in self.low_rank.values():
            low.take_gradient()
        if not self.low_rank:
            self.coder.project_gradients()
        moved = [parameter for parameter in self.trained.values() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([one.grad for one in moved if one.grad is not None])
        if self.config.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(moved, self.config.grad_clip, norm)
        return norm

    def apply(self, lr: float) -> None:
        """One step of Adam; clears the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for low in self.low_rank.values():
            low.merge()
        if not self.low_rank:
            self.coder.project_parameters()

    def state(self) -> dict[str, Tensor]:
        """The thin matrices and Adam's moments, for a checkpoint."""
        found = {f"lora.{name}": value.detach() for name, value in self.trained.items() if self.low_rank}
        names, moments = list(self.trained), self.optimizer.state_dict()["state"]
        for index, kept in moments.items():
            found |= {f"adam.{names[index]}.{key}": torch.as_tensor(value) for key, value in kept.items()}
        return found

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state` returned; the coder's own parameters are restored by their owner."""
        names = list(self.trained)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "lora":
                self.trained[rest].copy_(value)
            else:
                parameter, _, key = rest.rpartition(".")
                moments.setdefault(names.index(parameter), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def moving(coder: Coder, config: TuneConfig, frozen: Collection[str] = ()) -> list[str]:
    """Names of the coder's parameters that move, in their order.

    Raises:
        UsageError: none would.
    """
    names = [name for name, _ in coder.named_parameters() if name not in frozen]
    if config.update == "encoder":
        names = [name for name in names if name not in OF_THE_DECODER]
    elif config.update == "decoder":
        # subtracted from the encoder's input, it is a part of the encoder too
        shared = ("b_dec",) if coder.config.subtract_decoder_bias else ()
        names = [name for name in names if name in OF_THE_DECODER and name not in shared]
    elif config.update == "lora":
        names = [name for name in names if name in MATRICES]
    if not names:
        raise UsageError(
            f"tune.update: {config.update} would move nothing: the run's train.freeze keeps {', '.join(frozen)}",
            "--set tune.update=encoder" if config.update != "encoder" else "--set tune.update=decoder",
        )
    return names
