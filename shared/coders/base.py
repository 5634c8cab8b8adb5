"""The base of every sparse coder: parameters, normalisation, decoding, and AuxK for dead latents."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from .codes import Codes
from .configs.base import ENCODER_NORM, CoderConfig, Normalise, StepContext
from .normalisation import SiteMoments, dimension_scale, scalar_scale, whitening
from .ops import dense_pre, gather_pre, sparse_decode

RMS_EPS = 1e-6
"""Added to the mean square under the root of `input_transform: rms`, as Gemma-2's own RMS norm does."""

TRAINING_BUFFERS = frozenset({"since_fired", "threshold_steps", "log_pressure", "l0_error"})
"""State that only training reads: in checkpoints, but not in a finished coder."""


Widths = int | tuple[int, ...]
"""Width of a site; of a joint site, the widths of its parts."""

WHITENING = ("input_whiten", "target_whiten", "target_colour")
"""Buffers that only a whitened coder has."""


@dataclass(frozen=True)
class Folded:
    """A coder's weights in raw activation space, float64: w_enc [F, d_in], b_enc [F], w_dec [F, d_out], b_dec [d_out],
    w_skip [d_out, d_in] or None."""

    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    w_skip: Tensor | None


class Coder(nn.Module, ABC):
    """A sparse autoencoder (output site = input site) or transcoder; row i of every matrix belongs to latent i.

    `encode` and `decode` speak raw activations; `encode_normalised`, `decode_normalised` and `losses` the normalised
    ones u = (x − input_mean)/input_scale and t = (y − target_mean)/target_scale, in which E‖u‖² = d_in and
    E‖t‖² = d_out over the cache's rows, excluding position 0.

    Args:
        config: the architecture's settings.
        d_in, d_out: widths of the source and target sites; of joint sites, the widths of their parts.
        tied: an SAE: the decoder starts as the encoder's transpose. Otherwise a transcoder.
        generator: source of the initial weights (CPU); the same seed gives the same weights on every device.
    """

    config_class: ClassVar[type[CoderConfig]]
    selection: Literal["row", "batch"] | None = None
    """"row" or "batch" for coders whose codes are the ReLU of the k largest pre-activations of each row, or of the k·B
    largest of a batch, and whose loss is that of their prefixes: the fused step (train/kernels) can train these. It
    passes the smallest selected code to a "batch" coder through `update_threshold(smallest: Tensor)`. None: any other
    coder."""

    def __init__(
        self, config: CoderConfig, d_in: Widths, d_out: Widths, *, tied: bool, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.source_widths, self.target_widths = _parts(d_in), _parts(d_out)
        d_in, d_out = sum(self.source_widths), sum(self.target_widths)
        if tied and self.source_widths != self.target_widths:
            raise ValueError(f"an SAE reads and writes one width, not {d_in} and {d_out}")
        if config.subtract_decoder_bias and not tied:
            raise ValueError("subtract_decoder_bias: a transcoder's input and output are different spaces")
        self.config = config
        self.d_in, self.d_out, self.tied = d_in, d_out, tied
        self.make_weights(generator)
        self.register_buffer("input_mean", torch.zeros(d_in))
        by_dimension = self.normalise_of_input == "per_dimension" or self.n_sources > 1
        self.register_buffer("input_scale", torch.ones(d_in if by_dimension else ()))
        self.register_buffer("target_mean", torch.zeros(d_out))
        by_dimension = config.normalise == "per_dimension" or self.n_targets > 1
        self.register_buffer("target_scale", torch.ones(d_out if by_dimension else ()))
        # W of the input; W of the target and its inverse: only a whitened coder has them
        self.register_buffer("input_whiten", torch.eye(d_in) if self.normalise_of_input == "whiten" else None)
        self.register_buffer("target_whiten", torch.eye(d_out) if config.normalise == "whiten" else None)
        self.register_buffer("target_colour", torch.eye(d_out) if config.normalise == "whiten" else None)
        self.register_buffer("since_fired", torch.zeros(config.latents, dtype=torch.int64))
        self.context = StepContext()
        self.dead_after: int | None = None
        """Tokens without firing after which a latent counts as dead; None: never (AuxK stays off)."""
        self.selection_dtype: torch.dtype | None = None
        """Where an architecture selects latents: the dtype of that one matrix product; None: the parameters' own."""
        self.source: str | None = None
        """Site of a language model that it reads, such as `layer_08.resid_mid`; None where nothing says which."""
        self.target: str | None = None
        """Site that it reconstructs: the source itself for an SAE."""

    def make_weights(self, generator: torch.Generator | None) -> None:
        """Make the parameters: w_enc [F, d_in], b_enc [F], w_dec [F, d_out], b_dec [d_out], w_skip [d_out, d_in]."""
        directions = unit_rows(self.first_rows(generator))
        n_latents = len(directions)
        self.w_enc = nn.Parameter(directions * ENCODER_NORM)
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        # An SAE's decoder is its encoder transposed. A transcoder's starts at zero, so that its first update, and with
        # it the direction of a unit row, comes from the data.
        self.w_dec = nn.Parameter(directions.clone() if self.tied else torch.zeros(n_latents, self.d_out))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        self.w_skip = nn.Parameter(torch.zeros(self.d_out, self.d_in)) if self.config.skip else None

    def first_rows(self, generator: torch.Generator | None) -> Tensor:
        """Random directions that the encoder's rows begin with [F, d_in], of any length."""
        return torch.randn(self.config.latents, self.d_in, generator=generator)

    def dense_encoder(self) -> Tensor:
        """The encoder as one matrix [F, d_in]."""
        return self.w_enc

    def dense_skip(self) -> Tensor | None:
        """The skip connection as one matrix [d_out, d_in]; None without one."""
        return self.w_skip

    @property
    def reads(self) -> Tensor | None:
        """Which source site each latent reads [F]; None: every latent reads all sites."""
        return None

    w_enc: nn.Parameter
    b_enc: nn.Parameter
    w_dec: nn.Parameter
    b_dec: nn.Parameter
    w_skip: nn.Parameter | None
    input_mean: Tensor
    input_scale: Tensor
    target_mean: Tensor
    target_scale: Tensor
    input_whiten: Tensor | None
    target_whiten: Tensor | None
    target_colour: Tensor | None
    since_fired: Tensor

    @torch.no_grad()
    def randomise_decoder(self, generator: torch.Generator | None = None) -> None:
        """Give the decoder random unit rows, for the control with a frozen decoder."""
        rows = unit_rows(torch.randn(self.n_latents, self.d_out, generator=generator))
        self.w_dec.copy_(rows)

    @property
    def is_transcoder(self) -> bool:
        """Whether the output site differs from the input site."""
        return not self.tied

    @property
    def kind(self) -> str:
        """What a reader calls it: SAE, transcoder, crosscoder (several sites), transcoder of several sites."""
        if self.n_sources == self.n_targets == 1:
            return "SAE" if self.tied else "transcoder"
        return "crosscoder" if self.tied else "transcoder of several sites"

    @property
    def n_latents(self) -> int:
        return self.config.latents

    @property
    def n_sources(self) -> int:
        """How many sites it reads side by side: more than one for a crosscoder."""
        return len(self.source_widths)

    @property
    def n_targets(self) -> int:
        """How many sites it reconstructs."""
        return len(self.target_widths)

    def site_norms(self) -> Tensor:
        """Length of each latent's decoder row in each target site, in the normalised space: [F, L]."""
        pieces = torch.split(self.w_dec, list(self.target_widths), dim=1)
        return torch.stack([torch.linalg.vector_norm(piece, dim=1) for piece in pieces], dim=1)

    def row_norms(self) -> Tensor:
        """Σ_l ‖w_i^l‖ over the target sites l [F], which weighs sparsity (Lindsey et al. 2024); of one site ‖w_i‖."""
        return self.site_norms().sum(dim=1) if self.n_targets > 1 else torch.linalg.vector_norm(self.w_dec, dim=1)

    @torch.no_grad()
    def selection_weights(self) -> Tensor | None:
        """What pre-activations are multiplied by before latents are selected: Σ_l ‖w_i^l‖ [F] where several sites are
        reconstructed (Minder et al. 2025, arXiv 2504.02922), 1 for a row that is still zero; None for one site."""
        if self.n_targets == 1:
            return None
        norms = self.row_norms()
        return torch.where(norms > 0, norms, 1.0)

    @property
    def prefixes(self) -> tuple[int, ...] | None:
        """Cumulative group sizes of a nested dictionary, the last one F; None if the dictionary is not nested."""
        return None

    @property
    def learning_rates(self) -> dict[str, float]:
        """Parameters with a learning rate of their own, as a multiple of the others'."""
        return {}

    # Normalisation

    @property
    def normalise_of_input(self) -> Normalise:
        """How the input is normalised: as the settings say, but with `input_transform: rms` it has E‖u‖² = d already,
        and its mean is not known, so it stays as it is."""
        return "scalar" if self.config.input_transform == "rms" else self.config.normalise

    @torch.no_grad()
    def set_normalisation(self, source: SiteMoments, target: SiteMoments) -> None:
        """Take the moments of the source and target sites as the normalisation of both sides."""
        if self.config.input_transform == "raw":
            self.input_mean.copy_(source.mean)
            scale, whiten, _ = self._normaliser(source, self.source_widths)
            self.input_scale.copy_(scale)
            if self.input_whiten is not None and whiten is not None:
                self.input_whiten.copy_(whiten)
        self.target_mean.copy_(target.mean)
        scale, whiten, colour = self._normaliser(target, self.target_widths)
        self.target_scale.copy_(scale)
        if self.target_whiten is not None and whiten is not None:
            self.target_whiten.copy_(whiten)
        if self.target_colour is not None and colour is not None:
            self.target_colour.copy_(colour)

    def _normaliser(self, moments: SiteMoments, widths: tuple[int, ...]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(divisor, W, W⁻¹) of one side; W only where it is whitened, and then the divisor is 1. Each part of a joint
        site is normalised as it would be alone."""
        if len(widths) > 1:
            found = [self._normaliser(one, (one.width,)) for one in moments.split(widths)]
            scales, whitens, colours = zip(*found, strict=True)
            scale = torch.cat([one.expand(width) for one, width in zip(scales, widths, strict=True)])
            if self.config.normalise != "whiten":
                return scale, None, None
            return scale, *(torch.block_diag(*blocks) for blocks in (whitens, colours))  # type: ignore[no-untyped-call]
        if self.config.normalise == "scalar":
            return scalar_scale(moments.var), None, None
        if self.config.normalise == "per_dimension":
            return dimension_scale(moments.var), None, None
        if moments.covariance is None:
            raise ValueError("normalise: whiten needs the covariance")
        return torch.ones(()), *whitening(moments.covariance, self.config.whiten_shrinkage)

    @torch.no_grad()
    def copy_normalisation(self, other: Coder) -> None:
        """Take the normalisation of a coder with the same settings and widths."""
        for name in ("input_mean", "input_scale", "target_mean", "target_scale", *WHITENING):
            own, theirs = getattr(self, name), getattr(other, name)
            if own is not None:
                own.copy_(theirs)

    def normalise_input(self, x: Tensor) -> Tensor:
        """u [B, d_in] from raw activations [B, d_in] of any float dtype."""
        x = x.to(self.b_enc.dtype)
        if self.config.input_transform == "rms":
            x = torch.cat([_over_rms(part) for part in torch.split(x, list(self.source_widths), dim=-1)], dim=-1)
        u = (x - self.input_mean) / self.input_scale
        return u if self.input_whiten is None else u @ self.input_whiten

    def normalise_target(self, y: Tensor) -> Tensor:
        """t [B, d_out] from raw activations [B, d_out]."""
        t = (y.to(self.b_dec.dtype) - self.target_mean) / self.target_scale
        return t if self.target_whiten is None else t @ self.target_whiten

    def denormalise_target(self, t: Tensor) -> Tensor:
        """Raw activations [B, d_out] from t [B, d_out]: the inverse of `normalise_target`."""
        return self.raw_directions(t) + self.target_mean

    def raw_directions(self, rows: Tensor) -> Tensor:
        """Directions of the normalised target space, such as decoder rows [n, d_out], in raw activation space.

        In the dtype of `rows`.
        """
        raw = rows if self.target_colour is None else rows @ self.target_colour.to(rows.dtype)
        return raw * self.target_scale.to(rows.dtype)

    @torch.no_grad()
    def fold(self) -> Folded:
        """The same coder in raw activation space, its normalisation folded into the weights, in float64.

        x W_encᵀ + b_enc are the pre-activations, z W_dec + b_dec (+ x W_skipᵀ) the reconstruction. With
        `input_transform: rms`, x is the input divided by its root mean square.
        """
        double = torch.float64
        w_enc, mean, scale = (v.to(double) for v in (self.dense_encoder(), self.input_mean, self.input_scale))
        into = torch.eye(self.d_in, dtype=double, device=mean.device) / scale.unsqueeze(-1)
        if self.input_whiten is not None:
            into = into @ self.input_whiten.to(double)
        encoder = w_enc @ into.T

        def raw(rows: Tensor) -> Tensor:
            return self.raw_directions(rows.to(double))

        b_dec = raw(self.b_dec.unsqueeze(0)).squeeze(0) + self.target_mean.to(double)
        b_enc = self.b_enc.to(double) - encoder @ mean
        if self.config.subtract_decoder_bias:
            b_enc = b_enc - w_enc @ self.b_dec.to(double)
        w_skip = self.dense_skip()
        if w_skip is not None:
            w_skip = (into @ raw(w_skip.T)).T
            b_dec = b_dec - mean @ w_skip.T
        return Folded(encoder, b_enc, raw(self.w_dec), b_dec, w_skip)

    # Encoding and decoding

    def encode(self, x: Tensor) -> Codes:
        """Codes of raw activations [B, d_in], any float dtype; they are normalised here.

        The activations of other shapes, such as [batch, tokens, d_in], are flattened first: `x.flatten(0, -2)`.
        """
        return self.encode_normalised(self.normalise_input(x))

    def decode(self, codes: Codes, x: Tensor | None = None) -> Tensor:
        """ŷ [B, d_out] in raw target space; a skip connection also needs the raw input x [B, d_in]."""
        u = None if x is None or self.w_skip is None else self.normalise_input(x)
        return self.denormalise_target(self.decode_normalised(codes, u))

    @abstractmethod
    def encode_normalised(self, u: Tensor) -> Codes:
        """Codes of normalised inputs [B, d_in]."""

    def centred(self, u: Tensor) -> Tensor:
        """What the encoder's rows are multiplied with: u [B, d_in], less b_dec with `subtract_decoder_bias`."""
        return u - self.b_dec if self.config.subtract_decoder_bias else u

    def decode_normalised(self, codes: Codes, u: Tensor | None = None) -> Tensor:
        """t̂ [B, d_out]; a skip connection also needs u [B, d_in]."""
        return codes.decode(self.w_dec) + self.offset(u)

    def offset(self, u: Tensor | None) -> Tensor:
        """The part of the reconstruction besides the latents' sum: b_dec [d_out], or b_dec + u W_skipᵀ [B, d_out]."""
        if self.w_skip is None:
            return self.b_dec
        if u is None:
            raise ValueError("this coder has a skip connection: decode needs the input too")
        return self.b_dec + u @ self.w_skip.T

    # Training

    def begin_step(self, context: StepContext) -> None:
        """Prepare for a step: schedules, and random choices from (seed, step) alone, so that a resumed run draws the
        same."""
        self.context = context

    @abstractmethod
    def losses(self, u: Tensor, t: Tensor, codes: Codes) -> dict[str, Tensor]:
        """The architecture's own loss terms by name, weighted.

        "reconstruction" is the mean squared error per row, over d_out: about 1 for the mean as prediction.
        """

    @property
    def dead(self) -> Tensor:
        """Latents that have not fired for `dead_after` tokens: [F] bool."""
        if self.dead_after is None:
            return torch.zeros_like(self.since_fired, dtype=torch.bool)
        return self.since_fired >= self.dead_after

    @property
    def n_dead(self) -> int:
        """How many latents are dead."""
        return int(self.dead.sum())

    def aux_loss(self, u: Tensor, error: Tensor) -> Tensor | None:
        """AuxK (arXiv 2406.04093, A.2): the most active dead latents of each row explain its error.

        α·min(n_dead/k_aux, 1)·Σ‖e − ê‖² / Σ‖e − ē‖², where ê is decoded from the k_aux largest dead pre-activations,
        without bias. The gradient reaches the encoder rows of those latents, not only their decoder rows.

        Args:
            u: [B, d_in].
            error: e = t − t̂ [B, d_out], detached.

        Returns:
            A scalar, or None while no latent is dead.
        """
        k_aux = self.d_out // 2 if self.config.aux_k is None else self.config.aux_k
        if k_aux == 0 or self.config.aux_coef == 0 or self.dead_after is None:
            return None
        dead = self.dead.nonzero().squeeze(1)
        n_dead = self.n_of(dead)
        if n_dead == 0:
            return None
        active, latents = self.dead_codes(u, dead, min(k_aux, n_dead))
        missed = (error - self.decode_only(active, latents)).square().sum()
        variance = self.spread(error)
        weight = self.config.aux_coef * min(n_dead / k_aux, 1.0)
        return weight * missed / variance.clamp_min(torch.finfo(variance.dtype).tiny)

    def n_of(self, ids: Tensor) -> int:
        """How many these latents are."""
        return ids.numel()

    def spread(self, error: Tensor) -> Tensor:
        """Σ‖e − ē‖² of a batch's errors [B, d_out]."""
        return (error - error.mean(dim=0)).square().sum()

    def dead_codes(self, u: Tensor, dead: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """(codes [B, k], latents [B, k]) of the k most active of some latents on each row, with gradients.

        Args:
            u: [B, d_in].
            dead: ids [n] of the latents.
        """
        u = self.centred(u)
        with torch.no_grad():
            pre = dense_pre(u, self.w_enc[dead], self.b_enc[dead])
            values, index = pre.topk(k, dim=1, sorted=False)
            latents = dead[index]
        return torch.relu(gather_pre(u, self.w_enc, self.b_enc, latents, values=values)), latents

    def decode_only(self, values: Tensor, latents: Tensor) -> Tensor:
        """Σ_i z_i w_i of codes [B, K], without bias: [B, d_out]."""
        return sparse_decode(values, latents, self.w_dec)

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Before the optimizer's step: remove the component of each unit decoder row's gradient along the row."""
        if self.config.decoder_norm == "unit" and self.w_dec.grad is not None:
            along = torch.linalg.vecdot(self.w_dec.grad, self.w_dec)
            self.w_dec.grad.addcmul_(along.unsqueeze(1), self.w_dec, value=-1)

    @torch.no_grad()
    def project_parameters(self) -> None:
        """After the optimizer's step: rescale decoder rows to unit length (a zero row stays zero)."""
        if self.config.decoder_norm == "unit" and self.w_dec.requires_grad:
            norms = torch.linalg.vector_norm(self.w_dec, dim=1, keepdim=True)
            self.w_dec.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny))

    @torch.no_grad()
    def after_step(self, codes: Codes) -> None:
        """Update the state that depends on a step's codes: here, how long each latent has been silent."""
        self.since_fired.add_(codes.n_rows).masked_fill_(codes.fired(), 0)


def _parts(width: Widths) -> tuple[int, ...]:
    return (width,) if isinstance(width, int) else tuple(width)


def _over_rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + RMS_EPS)


def unit_rows(matrix: Tensor) -> Tensor:
    """The rows rescaled to length 1; a zero row stays zero."""
    return nn.functional.normalize(matrix, dim=1)
