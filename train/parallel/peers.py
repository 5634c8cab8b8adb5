"""The processes that train one run together, and everything they say to each other: torch.distributed, nothing else.

Every process runs the same program on the same batches, so each call here is made by all of them in the same order.
Documents travel as JSON: torch's own calls for objects would unpickle what arrives.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...shared.errors import LOST, LostContactError, UsageError
from ...shared.ranks import MEETING, Rank

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: longer than the first takes to write a checkpoint or a report."""

PIECE_BYTES = 64 << 20
"""Bytes that are sent to the first process at a time."""


class Peers:
    """This process among those that train together. Build with `meet`.

    Attributes:
        index, count: its number from 0 on, and how many there are. The first writes; the others write nothing.
    """

    def __init__(self, rank: Rank, device: torch.device) -> None:
        self.index, self.count, self._device = rank.index, rank.count, device

    def __deepcopy__(self, memo: object) -> Peers:
        return self

    @property
    def first(self) -> bool:
        return self.index == 0

    def part(self, n: int) -> slice:
        """This process's share of n things in a row; shares differ by at most one."""
        return slice(*self.bounds(n)[self.index : self.index + 2])

    def bounds(self, n: int) -> list[int]:
        """Where each process's share of n things begins, and n itself."""
        return [n * index // self.count for index in range(self.count + 1)]

    def sizes(self, n: int) -> list[int]:
        """How much of n things each process has."""
        bounds = self.bounds(n)
        return [stop - start for start, stop in itertools.pairwise(bounds)]

    def total(self, tensor: Tensor) -> Tensor:
        """Adds up a tensor of all processes, in place; bit-identical everywhere."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def smallest(self, tensor: Tensor) -> Tensor:
        """The minimum over all processes, in place."""
        return self._reduce(tensor, dist.ReduceOp.MIN)

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Each flag, if it is set in any process."""
        found = torch.tensor(list(map(int, flags)), device=self._device)
        return [bool(flag) for flag in self._reduce(found, dist.ReduceOp.MAX).tolist()]

    def totals(self, tensors: Sequence[Tensor]) -> None:
        """`total` of several tensors that are under way at the same time."""
        with self._contact():
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()

    def joined(self, tensor: Tensor, sizes: Sequence[int], dim: int = 0) -> Tensor:
        """The processes' tensors one behind the other.

        Args:
            tensor: alike everywhere, except along `dim`.
            sizes: its length there for each process.
        """
        own = tensor.movedim(dim, 0).contiguous()
        padded = own.new_zeros((max(sizes), *own.shape[1:]))
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in sizes]
        with self._contact():
            dist.all_gather(found, padded)
        return torch.cat([one[:size] for one, size in zip(found, sizes, strict=True)]).movedim(0, dim)

    def collected(self, tensor: Tensor, sizes: Sequence[int]) -> Tensor:
        """The processes' tensors one behind the other, on the CPU of the first; the others get their own back. Sent in
        pieces, so that no device holds more than its own and one of these.

        Args:
            sizes: length of each process's tensor.
        """
        rows = max(1, PIECE_BYTES // max(1, tensor[:1].numel() * tensor.element_size()))
        if not self.first:
            with self._contact():
                for start in range(0, len(tensor), rows):
                    dist.send(tensor.detach()[start : start + rows].contiguous(), 0)
            return tensor
        whole = torch.empty((sum(sizes), *tensor.shape[1:]), dtype=tensor.dtype)
        whole[: len(tensor)] = tensor.detach().cpu()
        at = len(tensor)
        for index, size in enumerate(sizes[1:], 1):
            for start in range(0, size, rows):
                piece = torch.empty(
                    (min(rows, size - start), *tensor.shape[1:]), dtype=tensor.dtype, device=self._device
                )
                with self._contact():
                    dist.recv(piece, index)
                whole[at + start : at + start + len(piece)] = piece.cpu()
            at += size
        return whole

    def numbers(self, number: int) -> list[int]:
        """A number of each process."""
        own = torch.tensor([number], device=self._device)
        return [int(one) for one in self.joined(own, [1] * self.count)]

    def documents(self, document: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A JSON document of each process."""
        text = torch.frombuffer(bytearray(json.dumps(document).encode()), dtype=torch.uint8).to(self._device)
        sizes = self.numbers(len(text))
        pieces = torch.split(self.joined(text, sizes).cpu(), sizes)
        return [json.loads(bytes(piece.tolist())) for piece in pieces]

    def wait(self) -> None:
        """Returns when every process is here."""
        self.numbers(0)

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Runs the body in one process after the other, from the first on."""
        for _ in range(self.index):
            self.wait()
        yield
        for _ in range(self.index, self.count - 1):
            self.wait()

    def refuse_differences(self, document: Mapping[str, Any], what: str, hint: str) -> None:
        """Raises UsageError in every process where a document differs from the first's; names the keys."""
        found = self.documents(document)
        for index, other in enumerate(found):
            if other != found[0]:
                keys = [key for key in found[0] if other.get(key) != found[0][key]]
                lines = "; ".join(f"{key}: {found[0][key]} and {other.get(key)}" for key in keys)
                raise UsageError(f"{what} differs between process 0 and process {index}: {lines}", hint)

    def _reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        with self._contact():
            dist.all_reduce(tensor, operation)
        return tensor

    @contextlib.contextmanager
    def _contact(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LostContactError(
                f"process {self.index} of {self.count} {LOST}, which has probably ended: {str(error).splitlines()[0]}",
                "the runs stay at their last checkpoint: the same command with --resume, and any number of processes",
            ) from error


@contextlib.contextmanager
def meet(rank: Rank, device: torch.device, environment: Mapping[str, str]) -> Iterator[Peers]:
    """Joins the processes of a run: NCCL where they train on CUDA devices, Gloo elsewhere.

    Args:
        environment: says where they meet: a file (MEETING, set by `pipeline train --ranks N`), or torchrun's
            MASTER_ADDR and MASTER_PORT.

    Raises:
        UsageError: the environment names no such place.
        LostContactError: the others did not come.
    """
    place = environment.get(MEETING)
    if place is None and not {"MASTER_ADDR", "MASTER_PORT"} <= set(environment):
        raise UsageError(
            f"train.parallel: {rank.count} processes train one coder, but MASTER_ADDR and MASTER_PORT do not say where "
            "they meet",
            "torchrun sets both, --ranks N starts the processes itself; or export the address and a free port of the "
            "machine of process 0",
        )
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    peers = Peers(rank, device)
    with peers._contact():
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            init_method="env://" if place is None else f"file://{place}",
            rank=rank.index,
            world_size=rank.count,
            timeout=PATIENCE,
            device_id=device if cuda else None,
        )
    try:
        yield peers
    finally:
        dist.destroy_process_group()
