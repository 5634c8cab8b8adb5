"""One fused training step: select, decode, both gradients, clip, Adam, projection; without autograd and without a
gradient in memory.

    pre = u W_encᵀ + b            cuBLAS, in the compute dtype
    select.py                     the selected entries, no sort
    decode.py                     nested errors, their suffix sums, dL/dz
    lists.py                      per-latent lists
    update.py                     gradient rows, clipping, Adam, unit rows, shadows

Parameters and Adam's moments are the coder's and the optimizer's own float32 tensors, moved in place: a checkpoint is
the same with this step as without, and either can resume the other's run. In bfloat16 the products and gathers
read shadows, bfloat16 copies that the update itself keeps; the reference path reads bfloat16 only to select.

All buffers are allocated once per batch size. On a CUDA device the launches are captured in a graph after a few steps.

Three things keep a captured graph right: every kernel reads what changes from step to step (learning rate, bias
corrections, prefixes, which latents are dead) from memory that is written before it; nothing it launches depends on a
number that the host would have to read; and whatever replaces a tensor that it points to (another batch size, a loaded
checkpoint) or changes what is launched (more dead latents) discards it (`_prepare`, `_bind`, `_replay`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...shared.coders import Coder, Codes
from ...shared.coders.base import RMS_EPS
from . import decode, lists, select, update
from .ahead import Ring
from .auxk import AuxGradients, aux_gradients, product
from .inputs import normalise_rows
from .room import Dead, Room, dead_ids
from .update import ExtraRows, Matrix

_EAGER_STEPS = 3
"""Steps of the kind that is captured before it is: each of its kernels has been compiled and loaded by then, which a
capture does not allow."""

Penalise = Callable[[Codes], Tensor | None]
"""From codes whose values require gradients to the weighted sum of all penalties; None: no penalty this time."""


@dataclass(frozen=True)
class FusedResult:
    """What a step computed. Tensors on the device, overwritten by the next step.

    Attributes:
        reconstruction: mean squared error of all prefixes over B·d_out; the loss without other terms.
        aux: AuxK's weighted loss; 0 while nothing is dead, None while nothing can be.
        n_dead: [] int64 how many latents are dead; 0 where `aux` is None.
        grad_norm: global norm before clipping; NaN unless it was requested or needed.
        squares: [B, G] ‖t̂_g − t‖² of each prefix.
        l0: [B] int32 active latents.
        fired: [F] int32 on how many rows each latent fired.
    """

    reconstruction: Tensor
    aux: Tensor | None
    n_dead: Tensor
    grad_norm: Tensor
    squares: Tensor
    l0: Tensor
    fired: Tensor


@dataclass
class _Buffers:
    """Memory of a step for one batch size.

    `graph` holds the launches of a step without penalties and with `room` for dead latents, of which `plain_steps` were
    launched one by one.
    """

    u: Tensor
    t: Tensor
    pre: Tensor
    skip: Tensor | None
    codes: select.Selection
    lists: lists.LatentLists
    suffix: Tensor
    squares: Tensor
    reach: Tensor
    grad_value: Tensor
    list_grad: Tensor
    input_norm: Tensor
    partial_enc: Tensor
    partial_dec: Tensor
    grad_b_dec: Tensor
    grad_skip: Tensor | None
    loss: Tensor
    bound: Tensor
    norms: Tensor
    others: Tensor
    extra: Tensor
    aux: Tensor
    n_dead: Tensor
    room: int = 0
    plain_steps: int = 0
    graph: Any = None


class FusedStep:
    """The training step of one coder.

    Args:
        coder: one with a `selection` (TopK, BatchTopK, Matryoshka), float32 parameters that all require gradients.
        optimizer: the Adam that owns the moments; its learning rate is passed to each step instead.
        grad_clip: largest global norm of the gradient; None: no clipping.
        dtype: of matrix products and gathers, torch.bfloat16 or torch.float32.
        graphs: capture the launches in a CUDA graph.

    Raises:
        ValueError: `refusal` names a reason.
    """

    def __init__(
        self,
        coder: Coder,
        optimizer: torch.optim.Adam,
        *,
        grad_clip: float | None,
        dtype: torch.dtype = torch.bfloat16,
        graphs: bool = True,
    ) -> None:
        reason = refusal(coder, optimizer)
        if reason is not None:
            raise ValueError(f"the fused step cannot train this coder: {reason}")
        self.coder, self.optimizer, self.dtype = coder, optimizer, dtype
        self.grad_clip = float("inf") if grad_clip is None else grad_clip
        self.device = coder.w_enc.device
        self.graphs = graphs and self.device.type == "cuda"
        self.k: int = coder.config.k  # type: ignore[attr-defined]
        self._prefixes = coder.prefixes or (coder.n_latents,)
        self.prefixes = torch.tensor(self._prefixes, dtype=torch.int32, device=self.device)
        self.whole = torch.tensor([coder.n_latents], dtype=torch.int32, device=self.device)
        self.state = torch.zeros(update.STATE_SIZE, device=self.device)
        self.hyper = torch.zeros(update.HYPER_SIZE, device=self.device)
        self._buffers: _Buffers | None = None
        self._clips = grad_clip is not None
        self.room = Room(coder)
        self._ring = Ring(update.HYPER_SIZE, torch.float32, self.device)
        self._prefix_ring = Ring(len(self._prefixes), torch.int32, self.device)
        self._bound_to: tuple[int, ...] = ()
        self._versions: tuple[int, ...] = ()
        self.reset()

    # One step

    def step(
        self, u: Tensor, t: Tensor, lr: float, *, penalise: Penalise | None = None, want_norm: bool = False
    ) -> FusedResult:
        """Update the coder on normalised inputs u [B, d_in] and targets t [B, d_out].

        Args:
            lr: learning rate of this update.
            penalise: adds penalties to the loss; the step then runs without a graph.
            want_norm: compute the gradient's norm even where clipping does not need it.
        """
        b = self._prepare(u.shape[0])
        b.u.copy_(u)
        b.t.copy_(t)
        torch.linalg.vector_norm(b.u, dim=1, dtype=torch.float32, out=b.input_norm)
        return self._step(b, lr, penalise, want_norm)

    def step_raw(
        self, x: Tensor, y: Tensor, lr: float, *, penalise: Penalise | None = None, want_norm: bool = False
    ) -> FusedResult:
        """As `step`, from raw activations x [B, d_in] and y [B, d_out]: normalises them on the way."""
        c = self.coder
        if c.config.normalise == "whiten":  # a matrix product, which the kernel does not do
            u, t = c.normalise_input(x), c.normalise_target(y)
            return self.step(u, t, lr, penalise=penalise, want_norm=want_norm)
        b = self._prepare(x.shape[0])
        rms = RMS_EPS if c.config.input_transform == "rms" else None
        with self._on_device():
            normalise_rows(
                x.contiguous(), mean=c.input_mean, scale=c.input_scale, out=b.u, rms_eps=rms, norm=b.input_norm
            )
            normalise_rows(y.contiguous(), mean=c.target_mean, scale=c.target_scale, out=b.t)
        return self._step(b, lr, penalise, want_norm)

    def codes(self) -> Codes:
        """The codes of the last step's rows (a copy; for BatchTopK the host waits to learn the widest row)."""
        return _as_codes(self.buffers.codes)

    @property
    def buffers(self) -> _Buffers:
        """The memory of the last step."""
        assert self._buffers is not None
        return self._buffers

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """The last step's normalised inputs and targets, as the kernels read them."""
        return self.buffers.u, self.buffers.t

    @property
    def finite(self) -> bool:
        """Whether every gradient since the last `reset` was finite; the host waits for the device. Once one was not,
        steps no longer move anything."""
        return bool(self.state[update.FINITE.value] > 0)

    def reset(self) -> None:
        """Let steps move the coder again after a gradient that was not finite."""
        self.state[update.FINITE.value] = 1.0

    def save_state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps beside parameters and moments."""
        return self.room.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `save_state` returned, after parameters, moments and counters were loaded."""
        self._bind()
        self.room.load_state(state)

    # How it is done

    @torch.no_grad()
    def _step(self, b: _Buffers, lr: float, penalise: Penalise | None, want_norm: bool) -> FusedResult:
        with self._on_device():
            return self._step_on_device(b, lr, penalise, want_norm)

    def _on_device(self) -> AbstractContextManager[object]:
        """Triton launches on the current device."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()

    def _step_on_device(self, b: _Buffers, lr: float, penalise: Penalise | None, want_norm: bool) -> FusedResult:
        self._updates += 1
        beta1, beta2 = self.optimizer.defaults["betas"]
        n = self._updates
        numbers = (
            lr / (1 - beta1**n), (1 - beta2**n) ** -0.5, beta1, beta2, 1 - beta1, 1 - beta2,
            self.optimizer.defaults["eps"], self.grad_clip, float(want_norm),
        )  # fmt: skip
        self._ring.send(numbers, self.hyper)
        if self.coder.prefixes not in (None, self._prefixes):  # redrawn; their number is fixed
            self._prefixes = self.coder.prefixes or ()
            self._prefix_ring.send(self._prefixes, self.prefixes)
        c = self.coder
        with_aux = _k_aux(c) > 0 and c.config.aux_coef != 0 and c.dead_after is not None
        room = self.room.of(n, b.u.shape[0]) if with_aux else 0
        if penalise is None and self.graphs and (self._clips or not want_norm):
            self._replay(b, room)
        else:
            self._launch(b, room, self._clips or want_norm, penalise)
        self._versions = self._read_versions()
        return FusedResult(
            reconstruction=b.loss,
            aux=b.aux if room else None,
            n_dead=b.n_dead,
            grad_norm=self.state[update.NORM.value],
            squares=b.squares,
            l0=b.codes.count,
            fired=b.lists.fired,
        )

    def _launch(self, b: _Buffers, room: int, norm: bool, penalise: Penalise | None = None) -> None:
        """Everything that a step launches. Without penalties nothing here waits for the device.

        Args:
            room: for dead latents; 0: there can be none.
            norm: the gradient's norm may be needed; otherwise the kernels that sum it are not launched.
        """
        self._select(b)
        extra_value: Tensor | None = None
        gradients: dict[str, Tensor] = {}
        if penalise is not None:
            extra_value, gradients = self._penalty_gradients(b, penalise)
        self._decode(b, extra_value)
        dead, aux = None, None
        if room:
            assert self.coder.dead_after is not None
            dead = dead_ids(self.coder.since_fired, self.coder.dead_after, room)
            aux = aux_gradients(
                u=b.u,
                pre=b.pre,
                error=b.suffix[-1],  # the last suffix sum is the error of the whole dictionary
                decoder=self.w_dec.compute,
                dead=dead.ids,
                n_dead=dead.n,
                k_aux=_k_aux(self.coder),
                coefficient=self.coder.config.aux_coef,
            )
            b.aux.copy_(aux.loss)
            b.n_dead.copy_(dead.n)
        self._update(b, self._extra_rows(gradients, dead, aux), gradients, norm)

    def _replay(self, b: _Buffers, room: int) -> None:
        if b.room != room:
            b.room, b.graph, b.plain_steps = room, None, 0
        if b.graph is None and b.plain_steps >= _EAGER_STEPS and self.graphs:
            b.graph = self._capture(b)
        if b.graph is None:
            self._launch(b, room, self._clips)
            b.plain_steps += 1
        else:
            b.graph.replay()

    def _capture(self, b: _Buffers) -> Any:
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        try:
            # thread_local: the thread that loads the next window allocates and copies meanwhile
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._launch(b, b.room, self._clips)
        except RuntimeError as error:
            torch.cuda.set_stream(stream)  # torch.cuda.graph stays on its own where ending the capture fails
            self.graphs = False
            warnings.warn(f"the training step runs without a CUDA graph: capturing it failed ({error})", stacklevel=2)
            return None
        return graph

    def _select(self, b: _Buffers) -> None:
        torch.addmm(self.b_enc.compute, b.u, self.w_enc.compute.T, out=b.pre)
        select.select(b.pre, b.codes)

    def _decode(self, b: _Buffers, extra: Tensor | None) -> None:
        if b.skip is not None:
            assert self.w_skip is not None
            torch.mm(b.u, self.w_skip.compute.T, out=b.skip)
        decode.nested_decode(
            b.codes, w_dec=self.w_dec.compute, b_dec=self.b_dec.weight, target=b.t, prefixes=self.prefixes,
            skip=b.skip, extra=extra, suffix=b.suffix, grad_value=b.grad_value, squares=b.squares, reach=b.reach,
        )  # fmt: skip
        torch.mean(b.squares, dim=(0, 1), out=b.loss)
        b.loss.div_(b.t.shape[1])

    def _update(self, b: _Buffers, extra: ExtraRows | None, gradients: dict[str, Tensor], norm: bool) -> None:
        scale = 2.0 / b.suffix.numel()
        lists.build_lists(b.codes, b.lists)
        self._dense_gradients(b, scale, gradients)
        update.bound_rows(
            b.lists, grad_value=b.grad_value, list_grad=b.list_grad, input_norm=b.input_norm, reach=b.reach,
            prefixes=self.prefixes, bound=b.bound, scale=scale,
        )  # fmt: skip
        b.extra.zero_()
        for rows in () if extra is None else (extra.encoder, extra.bias, extra.decoder):
            if rows is not None:
                b.extra.add_(rows.square().sum())
        update.decide(bound=b.bound, others=b.others, extra=b.extra, state=self.state, hyper=self.hyper)
        inputs = b.u.unsqueeze(0)
        update.sum_segments(b.lists, weight=b.list_grad, table=inputs, prefixes=self.whole, partial=b.partial_enc)
        update.sum_segments(b.lists, weight=b.lists.code, table=b.suffix, prefixes=self.prefixes, partial=b.partial_dec)
        unit = self.coder.config.decoder_norm == "unit"
        # Norms first, then the update: no row may move before the clipping factor is known. Where `decide` found that
        # nothing is clipped, the first pass ends at once.
        for moving in (False, True) if norm else (True,):
            update.rows(
                b.lists, self.w_enc, weight=b.list_grad, table=inputs, prefixes=self.whole, partial=b.partial_enc,
                state=self.state, hyper=self.hyper, scale=1.0, unit=False, update=moving,
                norms=b.norms[0], bias=self.b_enc, extra=extra.encoder if extra else None,
                extra_bias=extra.bias if extra else None, slots=extra.slot if extra else None,
            )  # fmt: skip
            update.rows(
                b.lists, self.w_dec, weight=b.lists.code, table=b.suffix, prefixes=self.prefixes,
                partial=b.partial_dec, state=self.state, hyper=self.hyper, scale=scale, unit=unit, update=moving,
                norms=b.norms[1], extra=extra.decoder if extra else None, slots=extra.slot if extra else None,
            )  # fmt: skip
            if not moving:
                update.factor(norms=b.norms, others=b.others, state=self.state, hyper=self.hyper)
        update.dense_adam(b.grad_b_dec, self.b_dec, state=self.state, hyper=self.hyper)
        if b.grad_skip is not None:
            assert self.w_skip is not None
            update.dense_adam(b.grad_skip, self.w_skip, state=self.state, hyper=self.hyper)
        self._after(b)

    def _dense_gradients(self, b: _Buffers, scale: float, gradients: dict[str, Tensor]) -> None:
        """Gradients of the decoder bias and the skip connection, and their squared norm."""
        torch.sum(b.suffix[0], dim=0, dtype=torch.float32, out=b.grad_b_dec)
        dense = [b.grad_b_dec.mul_(scale)]
        if "b_dec" in gradients:
            b.grad_b_dec.add_(gradients["b_dec"])
        if b.grad_skip is not None:
            b.grad_skip.copy_(product(b.suffix[0].T, b.u)).mul_(scale)
            if "w_skip" in gradients:
                b.grad_skip.add_(gradients["w_skip"])
            dense.append(b.grad_skip)
        b.others.zero_()
        for gradient in dense:
            b.others.add_(gradient.square().sum())

    def _after(self, b: _Buffers) -> None:
        """Counters that follow a step: Adam's, and how long each latent has been silent."""
        torch._foreach_add_(self._adam_steps, 1)
        self.coder.since_fired.add_(b.u.shape[0]).masked_fill_(b.lists.fired > 0, 0)
        if b.codes.over_batch:
            self.coder.update_threshold(b.codes.smallest_value())  # type: ignore[operator]

    # Penalties and AuxK

    def _penalty_gradients(self, b: _Buffers, penalise: Penalise) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Gradients of the penalties: to the codes by entry [B·k], and to the parameters by name."""
        plain = _as_codes(b.codes)
        values = plain.values.requires_grad_()
        with torch.enable_grad():
            total = penalise(Codes(values, plain.latents, plain.n_latents))
            if total is None or not total.requires_grad:
                return None, {}
            parameters = dict(self.coder.named_parameters())
            leaves = [values, *parameters.values()]
            found: tuple[Tensor | None, ...] = torch.autograd.grad(total, leaves, allow_unused=True)
        by_name = {n: g for n, g in zip(parameters, found[1:], strict=True) if g is not None}
        return None if found[0] is None else _by_entry(found[0], b.codes), by_name

    def _extra_rows(
        self, gradients: dict[str, Tensor], dead: Dead | None, aux: AuxGradients | None
    ) -> ExtraRows | None:
        """Penalties' and AuxK's gradients of the rows, added where both are on."""
        c = self.coder
        encoder, bias, decoder = (gradients.get(name) for name in ("w_enc", "b_enc", "w_dec"))
        if encoder is None and bias is None and decoder is None:
            if aux is None or dead is None:
                return None
            return ExtraRows(dead.slot, aux.encoder, aux.bias, aux.decoder)
        slot = torch.arange(c.n_latents, dtype=torch.int32, device=self.device)
        if encoder is not None or bias is not None or aux is not None:
            encoder = torch.zeros_like(c.w_enc) if encoder is None else encoder
            bias = torch.zeros_like(c.b_enc) if bias is None else bias
        if aux is not None and dead is not None:
            assert encoder is not None
            assert bias is not None
            decoder = torch.zeros_like(c.w_dec) if decoder is None else decoder
            # padded ids add 0 to a row
            encoder = encoder.index_add(0, dead.ids, aux.encoder)
            bias = bias.index_add(0, dead.ids, aux.bias)
            decoder = decoder.index_add(0, dead.ids, aux.decoder)
        return ExtraRows(slot, *(None if g is None else g.contiguous() for g in (encoder, bias, decoder)))

    # Memory

    def _prepare(self, n_rows: int) -> _Buffers:
        """Buffers for a batch size; and new shadows if anyone but this step has moved the parameters.

        The kernels write through raw pointers, which autograd's version counters do not see: a counter that differs
        from the last step's means that other code wrote (an optimizer, load_state_dict).
        """
        if self._bound_to != self._read_bound() or self._versions != self._read_versions():
            self._bind()
        if self._buffers is None or self._buffers.u.shape[0] != n_rows:
            self._buffers = None  # frees the old ones first
            self._buffers = self._allocate(n_rows)
        return self._buffers

    def _read_versions(self) -> tuple[int, ...]:
        return (*(p._version for p in self.coder.parameters()), self.coder.since_fired._version)

    def _read_bound(self) -> tuple[int, ...]:
        moments = (self.optimizer.state.get(p, {}).get("exp_avg") for p in self.coder.parameters())
        return tuple(0 if m is None else m.data_ptr() for m in moments)

    @torch.no_grad()
    def _bind(self) -> None:
        """Take the optimizer's moments (created where they are missing, as Adam creates them) and renew the shadows."""
        c = self.coder
        self.w_enc, self.b_enc = self._matrix(c.w_enc, True), self._matrix(c.b_enc, True)
        self.w_dec, self.b_dec = self._matrix(c.w_dec, True), self._matrix(c.b_dec, False)
        self.w_skip = None if c.w_skip is None else self._matrix(c.w_skip, True)
        self._adam_steps = [self.optimizer.state[p]["step"] for p in c.parameters()]
        self._updates = int(self._adam_steps[0])
        self.room.forget()
        if self._buffers is not None:
            self._buffers.graph = None  # it holds the old pointers
        self._bound_to, self._versions = self._read_bound(), self._read_versions()

    def _matrix(self, parameter: nn.Parameter, shadowed: bool) -> Matrix:
        state = self.optimizer.state[parameter]
        if not state:
            # A float32 scalar on the parameter's device: what Adam(fused=True) keeps.
            state["step"] = torch.zeros((), dtype=torch.float32, device=self.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        shadow = parameter.detach().to(self.dtype) if shadowed and self.dtype != parameter.dtype else None
        return Matrix(parameter.detach(), state["exp_avg"], state["exp_avg_sq"], shadow)

    def _allocate(self, n_rows: int) -> _Buffers:
        c, device, dtype = self.coder, self.device, self.dtype
        n_groups = self.prefixes.numel()
        codes = select.allocate(
            n_rows, n_latents=c.n_latents, k=self.k, dtype=dtype, device=device, over_batch=c.selection == "batch"
        )
        by_latent = lists.allocate(codes)
        segments = max(1, by_latent.max_segments)

        def floats(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        def compute(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        has_skip = c.w_skip is not None
        return _Buffers(
            u=compute(n_rows, c.d_in),
            t=floats(n_rows, c.d_out),
            pre=compute(n_rows, c.n_latents),
            skip=compute(n_rows, c.d_out) if has_skip else None,
            codes=codes,
            lists=by_latent,
            suffix=compute(n_groups, n_rows, c.d_out),
            squares=floats(n_rows, n_groups),
            reach=floats(n_groups, n_rows),
            grad_value=floats(n_rows * self.k),
            list_grad=floats(n_rows * self.k),
            input_norm=floats(n_rows),
            partial_enc=floats(segments, c.d_in),
            partial_dec=floats(segments, c.d_out),
            grad_b_dec=floats(c.d_out),
            grad_skip=floats(c.d_out, c.d_in) if has_skip else None,
            loss=floats(),
            bound=floats(c.n_latents),
            norms=floats(2, c.n_latents),
            others=floats(1),
            extra=floats(1),
            aux=floats(),
            n_dead=torch.zeros((), dtype=torch.int64, device=device),
        )


def refusal(coder: Coder, optimizer: torch.optim.Optimizer | None = None) -> str | None:
    """Why this coder cannot be trained by the fused step, or None."""
    if coder.selection is None:
        return f"{coder.config.architecture} does not select its latents by the k largest pre-activations"
    if getattr(coder.config, "k_start", None) is not None:
        return "k changes during the run (k_start)"
    if coder.config.subtract_decoder_bias:
        return "subtract_decoder_bias"
    if coder.n_sources > 1 or coder.n_targets > 1:
        return "a coder of several sites"
    frozen = [name for name, parameter in coder.named_parameters() if not parameter.requires_grad]
    if frozen:
        return f"frozen parameters ({', '.join(frozen)})"
    if any(parameter.dtype != torch.float32 for parameter in coder.parameters()):
        return "parameters are not float32"
    if len(coder.prefixes or ()) > decode.MAX_GROUPS:
        return f"{len(coder.prefixes or ())} groups, at most {decode.MAX_GROUPS}"
    if optimizer is not None:
        if type(optimizer) is not torch.optim.Adam:
            return f"the optimizer is {type(optimizer).__name__}, not Adam"
        unsupported = [name for name in ("weight_decay", "amsgrad", "maximize") if optimizer.defaults[name]]
        if unsupported:
            return f"Adam with {', '.join(unsupported)}"
    return None


def _k_aux(coder: Coder) -> int:
    return coder.d_out // 2 if coder.config.aux_k is None else coder.config.aux_k


def _as_codes(s: select.Selection) -> Codes:
    """A copy of the entries as Codes, rows padded with inactive slots."""
    if not s.over_batch:
        shape = (s.n_rows, s.k)
        return Codes(s.value.view(shape).clone(), s.latent.view(shape).long(), s.n_latents)
    entry, active = _slots(s)
    return Codes(
        torch.where(active, s.value[entry], 0.0), torch.where(active, s.latent[entry], 0).long(), s.n_latents
    )  # fmt: skip


def _slots(s: select.Selection) -> tuple[Tensor, Tensor]:
    """BatchTopK: (entry [B, widest row], whether the slot holds one)."""
    slot = torch.arange(max(1, int(s.count.max())), device=s.start.device)
    active = slot < s.count.unsqueeze(1)
    return torch.where(active, s.start.unsqueeze(1) + slot, 0), active


def _by_entry(grad: Tensor, s: select.Selection) -> Tensor:
    """Gradients of the values of `_as_codes` by entry [B·k]."""
    grad = grad.float()
    if not s.over_batch:
        return grad.reshape(-1).contiguous()
    entry, active = _slots(s)
    flat = torch.zeros_like(s.value)
    flat[entry[active]] = grad[active]
    return flat
