"""How the processes of one run share out a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ...shared.cache.batch import Batch
from ...shared.coders import Coder, Codes
from .peers import Peers


class Sharing(ABC):
    """One run's step, shared out: what this process computes, and how the parts become the whole.

    Attributes:
        peers: the processes.
    """

    def __init__(self, peers: Peers) -> None:
        self.peers = peers

    @abstractmethod
    @contextmanager
    def step(self, rows: Batch) -> Iterator[Batch]:
        """Around the coder's part of a step: the rows of the batch that this process computes."""

    @abstractmethod
    def losses(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch's loss terms, detached, from this process's."""

    @abstractmethod
    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Makes the gradients those of the whole batch, in place."""

    @abstractmethod
    def norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The norm of the whole coder's gradient."""

    @abstractmethod
    def codes(self, own: Codes) -> Codes:
        """The codes of the whole batch over all latents, detached."""

    @abstractmethod
    def collected(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors as one process would hold them, in the first process; the others get what they have.

        Written by the first process, it is the checkpoint of any number of processes, and all that is built on its
        seals (verify, repair, resume) holds for it. torch.distributed.checkpoint would spare the first process's
        memory; but its default storage keeps the metadata in a pickle, which is never loaded here, and its files are
        none that those seals vouch for.
        """

    @abstractmethod
    def parts(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The opposite: this process's part of a checkpoint's tensors."""

    @abstractmethod
    def whole_coder(self) -> Coder:
        """The coder as one process would hold it, in the first process."""
