"""Directions of the decoder and the encoder in the normalised space, with the null of random directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...subject.geometry import Geometry, random_geometry
from ...subject.subject import Subject

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Decoder:
    """Cosines of F latents.

    Attributes:
        geometry: cosines of all pairs of decoder rows.
        random: largest cosine of each of some random directions with F − 1 others: the null of `max_cos`.
        alignment: [F] cosine of each latent's encoder row and decoder row; None for a transcoder, whose rows lie in
            different spaces.
        norms: [F] lengths of decoder rows in the normalised space.
    """

    geometry: Geometry
    random: Floats
    alignment: NDArray[np.float64] | None
    norms: Floats

    @classmethod
    def of(cls, subject: Subject) -> Decoder:
        """Of a subject's coder."""
        n, d = subject.w_dec.shape
        norms: Floats = np.linalg.norm(subject.w_dec, axis=1)
        return cls(subject.geometry, random_geometry(n, d, subject.seed), _alignment(subject), norms)

    @property
    def mean_max_cosine(self) -> float | None:
        """Mean of the largest cosine with another row; None for one latent or a decoder of zeros (no direction)."""
        return float(self.geometry.max_cos.mean()) if len(self.norms) > 1 and self.norms.any() else None

    @property
    def mean_max_cosine_random(self) -> float | None:
        """The same of random directions; None for one latent."""
        return float(self.random.mean()) if len(self.norms) > 1 else None


def _alignment(subject: Subject) -> NDArray[np.float64] | None:
    if subject.coder.is_transcoder:
        return None
    a, b = subject.w_enc.astype(np.float64), subject.w_dec.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cos: NDArray[np.float64] = (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    return cos
