"""How a coder's two sides are normalised: by one scalar, by dimension, or whitened.

Every form is affine, u = (x − m) W, with W symmetric and E‖u‖² = d over the rows that its statistics are of:

- scalar: W = I/s with s² the mean variance over dimensions. A dimension keeps its share of the variance.
- per_dimension: W = diag(1/σ). Every dimension counts alike, however large it is.
- whiten: W = c·Σ_shrunk^(−1/2), Σ_shrunk = Σ + λ·(tr Σ/d)·I, c the scalar that makes E‖u‖² = d (arXiv 2511.13981 trains
  sparse autoencoders on whitened activations). Directions that hardly vary are not blown up beyond what λ allows.

The inverse of W maps the decoder's rows back, so each form folds into the weights exactly (Coder.fold).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SiteMoments:
    """First and second moments of a site that a normalisation is made from.

    Attributes:
        mean: [d] float64.
        var: [d] float64 variance per dimension.
        covariance: [d, d] float64; only whitening needs it.
    """

    mean: Tensor
    var: Tensor
    covariance: Tensor | None = None

    @property
    def width(self) -> int:
        """d."""
        return len(self.mean)

    def split(self, widths: tuple[int, ...]) -> list[SiteMoments]:
        """Those of the parts of a joint site, without the covariances between parts."""
        means, variances = torch.split(self.mean, list(widths)), torch.split(self.var, list(widths))
        blocks: list[Tensor | None] = [None] * len(widths)
        if self.covariance is not None:
            rows = torch.split(self.covariance, list(widths))
            blocks = [torch.split(row, list(widths), dim=1)[place] for place, row in enumerate(rows)]
        return [SiteMoments(m, v, c) for m, v, c in zip(means, variances, blocks, strict=True)]


def scalar_scale(var: Tensor) -> Tensor:
    """The s with E‖(x − m)/s‖² = d, [] float64; 1 where nothing varies."""
    mean_var = var.double().mean()
    return mean_var.sqrt() if float(mean_var) > 0 else torch.ones((), dtype=torch.float64)


def dimension_scale(var: Tensor) -> Tensor:
    """σ of each dimension, [d] float64; a dimension that does not vary keeps its unit."""
    std = var.double().clamp_min(0).sqrt()
    return torch.where(std > 0, std, torch.ones_like(std))


def whitening(covariance: Tensor, shrinkage: float) -> tuple[Tensor, Tensor]:
    """(W, W⁻¹), each [d, d] float64 and symmetric.

    Args:
        covariance: [d, d].
        shrinkage: λ > 0, in mean eigenvalues.

    Raises:
        ValueError: nothing varies, so there is nothing to whiten.
    """
    covariance = covariance.double()
    eigenvalues, vectors = torch.linalg.eigh((covariance + covariance.T) / 2)
    eigenvalues = eigenvalues.clamp_min(0)
    mean = eigenvalues.mean()
    if not float(mean) > 0:
        raise ValueError("the covariance is zero")
    shrunk = eigenvalues + shrinkage * mean
    # E‖u‖² = Σ λ_i/(λ_i + shrinkage) is below d by what shrinking takes
    c = (len(eigenvalues) / (eigenvalues / shrunk).sum()).sqrt()
    root = shrunk.sqrt()
    return vectors * (c / root) @ vectors.T, vectors * (root / c) @ vectors.T
