"""Each step's time by resource: the slowest binds, the others overlap with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..console import duration, si, size
from ..text_table import explained_table, facts, text_table
from .constants import Constants

STEP_BYTES = 26
"""Bytes that a step of Adam moves for each parameter, bfloat16 copies included (docs/performance.md)."""

PAIR_BYTES = 12
"""Bytes of an exact correlation, for each pair of latents, where the table of all pairs is held."""

LATENT_BYTES = 15_000
"""Bytes of an analysis for each latent of a coder: examples, samples, histograms, neighbours. From the shapes of the
usual reports' arrays, as the two below."""

COUNTED_BYTES, WINDOW_BYTES, BOUND = 19_000, 10_000, 1 << 30
"""Counts by position with their nulls, and activations around examples: for each latent, as long as they are below
BOUND for all latents; beyond it they are counted in blocks, or read from codes on disk."""

RESOURCES = {
    "forward pass": "the model, up to the last site",
    "host copies": "activations, from the device to the writer",
    "tokenising": "text to tokens",
    "massive rows": "at the end, one more pass over the cache",
    "pass over the rows": "codes of each coder, for all reports",
    "steps": "updates of the coders",
    "disk": "bytes written to it, or read from it",
}
"""What takes time, and what it does with it."""

HEADROOM = 0.9
"""Share of a device's memory that weights, moments and batches may take."""


@dataclass(frozen=True)
class Machine:
    """What the work runs on.

    Attributes:
        devices: how many of the device.
        machines: that many of them share the devices evenly, and each has a disk of its own.
    """

    device: Constants
    disk: Constants
    host: Constants
    devices: int = 1
    machines: int = 1

    @property
    def price(self) -> float:
        """Dollars an hour."""
        return self.devices * self.device["price"]

    def __str__(self) -> str:
        each = f", {self.machines} machines" if self.machines > 1 else ""
        return f"{self.devices} × {self.device.name}{each}; {self.disk.name}; ${self.price:.4g} an hour"


@dataclass(frozen=True)
class CacheWork:
    """A harvest. ``flops``: of the cut forward pass for one token; ``weights``: bytes of it on each device."""

    rows: int
    row_bytes: int
    bytes: int
    flops: float
    weights: int


@dataclass(frozen=True)
class CoderWork:
    """One coder.

    Attributes:
        bytes: weights, gradients, moments and a batch, in one process.
        reads: site → bytes of a row.
        processes: that train it together, one on each device; 1: it is placed on a device whole.
        sliced: each of them has a slice of the latents; otherwise of the rows.
    """

    name: str
    d_in: int
    latents: int
    parameters: int
    bytes: int
    batch: int
    steps: int
    reads: Mapping[str, int]
    processes: int = 1
    sliced: bool = False


@dataclass(frozen=True)
class Step:
    """One step of the way.

    Attributes:
        seconds: resource → what it takes alone; they overlap.
        after: seconds that follow and overlap with nothing.
        memory: (name, bytes needed, bytes available) of the tightest memory.
        levers: resource → what would take less of it.
    """

    name: str
    seconds: dict[str, float]
    memory: tuple[str, float, float]
    levers: dict[str, str]
    after: float = 0.0
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return self.memory[1] <= self.memory[2]

    @property
    def binds(self) -> str:
        """The resource that decides."""
        return max(self.seconds, key=self.seconds.__getitem__) if self.fits else self.memory[0]

    @property
    def total(self) -> float:
        """Seconds."""
        return max(self.seconds.values()) + self.after

    @property
    def unbind(self) -> str:
        """What would help, and how far: up to the next resource."""
        lever = self.levers[self.binds]
        if not self.fits:
            return f"{size(self.memory[1])} needed, {size(self.memory[2])} there: {lever}"
        rest = sorted(self.seconds.values())
        if len(rest) < 2 or rest[-2] <= 0:
            return lever
        second = next(name for name, value in self.seconds.items() if value == rest[-2])
        return f"{lever}; {rest[-1] / rest[-2]:.3g} times as much of it, and {second} binds"

    def to_dict(self, price: float) -> dict[str, Any]:
        name, needed, available = self.memory
        return {
            "step": self.name,
            "seconds": self.total if self.fits else None,
            "dollars": self.total / 3600 * price if self.fits else None,
            "seconds_by_resource": self.seconds,
            "seconds_after": self.after,
            "binds": self.binds,
            "unbind": self.unbind,
            "memory": {"of": name, "needed": needed, "available": available},
            "fits": self.fits,
        }


def harvest_step(work: CacheWork, machine: Machine) -> Step:
    """Forward pass, tokenising, copying and writing overlap; at the end every row is read once for the massive ones."""
    device, disk, host = machine.device, machine.disk, machine.host
    n = machine.devices
    seconds = {
        "forward pass": work.flops * work.rows / (n * device["forward_flops"]),
        "disk": work.bytes / (machine.machines * disk["write"]),
        "host copies": work.rows * work.row_bytes / (n * host["copy"]),
        "tokenising": work.rows / host["tokenise"],
    }
    levers = {
        "forward pass": "more devices, or earlier layers",
        "disk": "a faster disk, storage int8 or fp8 (half the bytes), or fewer sites",
        "host copies": "more devices (each has its own process), or storage of fewer bytes",
        "tokenising": "a dataset of token ids (harvest.format: tokens): every process tokenises all of the text",
        "device memory": "a smaller model, or devices with more memory",
    }
    after = work.bytes / disk["read"]
    memory = ("device memory", work.weights / HEADROOM, device["memory"])
    facts = {"rows": si(work.rows), "cache": size(work.bytes), "forward": f"{si(work.flops)} FLOP a token"}
    return Step("harvest", seconds, memory, levers, after, facts)


def train_step(coders: Sequence[CoderWork], machine: Machine) -> Step:
    """Whole coders placed on the devices, longest first, or each coder on all of them; each device's process reads the
    sites of its coders once."""
    device, disk = machine.device, machine.disk
    busy = [0.0] * machine.devices
    held = [0.0] * machine.devices
    reads: list[dict[str, int]] = [{} for _ in busy]
    for coder in sorted(coders, key=lambda one: -step_seconds(one, device) * one.steps):
        idlest = min(range(machine.devices), key=lambda index: (busy[index], index))
        for place in range(machine.devices) if coder.processes > 1 else (idlest,):
            busy[place] += step_seconds(coder, device) * coder.steps
            held[place] += coder.bytes
            for site, row_bytes in coder.reads.items():
                reads[place][site] = max(reads[place].get(site, 0), row_bytes * coder.batch * coder.steps)
    read = sum(sum(one.values()) for one in reads)
    seconds = {"steps": max(busy), "disk": read / (machine.machines * disk["read"])}
    most = max(coder.bytes for coder in coders)
    levers = {
        "steps": "more devices (as many as coders, or train.parallel), fewer latents or tokens, larger batches",
        "disk": "memory for the whole cache, a faster disk, or storage int8 or fp8",
        "device memory": "one coder is too large: more devices with train.parallel: latents, fewer latents, or devices "
        "with more memory"
        if most > HEADROOM * device["memory"]
        else "more devices, or fewer coders at a time",
    }
    memory = ("device memory", max(held) / HEADROOM, device["memory"])
    parameters = sum(coder.parameters for coder in coders)
    each = step_seconds(coders[0], device) * 1e3
    whole = coders[0].processes == 1
    part = "" if whole else f", each on all {machine.devices} devices"
    facts = {
        "coders": f"{len(coders)} of {coders[0].latents:,} latents, {si(parameters)} parameters together{part}",
        "updates": f"{coders[0].steps:,} of {coders[0].batch:,} rows, {each:.3g} ms each",
    }
    return Step("train", seconds, memory, levers, 0.0, facts)


def step_seconds(coder: CoderWork, device: Constants) -> float:
    """One training step: the dense encoder product, and Adam's pass over the parameters, each with its factor. What
    several processes send each other is not counted."""
    product = 2 * coder.batch * coder.d_in * coder.latents / device["matmul_flops"] / coder.processes
    moved = STEP_BYTES * coder.parameters / device["memory_rate"] / (coder.processes if coder.sliced else 1)
    return device["step_a"] * product + device["step_b"] * moved


def analyze_step(coders: Sequence[CoderWork], rows: int, triangle_gb: float | None, machine: Machine) -> Step:
    """One pass for each coder and its untrained control, one coder after another.

    Args:
        triangle_gb: largest table of all pairs that is held, in GB; None: pairs are not correlated.
    """
    host = machine.host
    seconds = {"pass over the rows": 2 * len(coders) * rows / host["analyze"]}
    most = max(coder.latents for coder in coders)
    triangle = PAIR_BYTES * most * (most + 1) // 2
    held = triangle if triangle_gb is not None and triangle <= triangle_gb * 1e9 else 0
    bounded = min(COUNTED_BYTES * most, BOUND) + min(WINDOW_BYTES * most, BOUND)
    needed = 2 * (LATENT_BYTES * most + bounded + held)
    levers = {
        "pass over the rows": "fewer rows (analyze.max_tokens), or one machine for each coder",
        "host memory": "analyze.controls: false (half), analyze.reports.correlation.triangle_gb: 0, or fewer latents",
    }
    facts = {"rows": si(rows), "coders": f"{len(coders)} and their untrained controls"}
    return Step("analyze", seconds, ("host memory", needed, host["memory"]), levers, 0.0, facts)


@dataclass(frozen=True)
class Costs:
    """All steps, and what they were computed from.

    Attributes:
        cache_bytes: what a bucket would keep.
        notes: what the plans of the steps could not look at.
    """

    steps: list[Step]
    machine: Machine
    cache_bytes: int
    notes: Sequence[str] = ()

    @property
    def assumed(self) -> list[str]:
        """The constants that are not measured."""
        parts = (self.machine.device, self.machine.disk, self.machine.host)
        return [line for part in parts for line in part.assumed]

    def to_dict(self) -> dict[str, Any]:
        """The ``--json`` document."""
        steps = [step.to_dict(self.machine.price) for step in self.steps]
        fits = all(step.fits for step in self.steps)
        seconds = sum(step.total for step in self.steps)
        return {
            "machine": str(self.machine),
            "steps": steps,
            "fits": fits,
            "seconds": seconds if fits else None,
            "dollars": seconds / 3600 * self.machine.price if fits else None,
            "cache_bytes": self.cache_bytes,
            "bucket_dollars_per_month": self.cache_bytes / 1e9 * self.machine.host["bucket"],
            "assumed": self.assumed,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        document = self.to_dict()
        rows = [
            [one["step"], *_price(one["seconds"], one["dollars"]), one["binds"], _held(one["memory"])]
            for one in document["steps"]
        ]
        rows.append(["together", *_price(document["seconds"], document["dollars"]), "", ""])
        header = ["step", "time", "dollars", "binds", "memory"]
        kept = document["bucket_dollars_per_month"]
        parts = [
            str(self.machine),
            explained_table(rows, header, left=(0, 3), breaks=3),
            *(_step_text(step) for step in self.steps),
            "",
            facts(
                [
                    ("disk", f"{size(self.cache_bytes)} for the cache; in a bucket ${_money(kept)} a month"),
                    *(("assumed", line) for line in self.assumed),
                    *(("note", note) for note in self.notes),
                ]
            ),
        ]
        return "\n".join(parts)


def _price(seconds: float | None, dollars: float | None) -> tuple[str, str]:
    return ("no room", "") if seconds is None or dollars is None else (duration(seconds), _money(dollars))


def _money(dollars: float) -> str:
    return f"{dollars:,.0f}" if dollars >= 100 else f"{dollars:.2f}" if dollars >= 0.005 else "<0.01"


def _held(memory: Mapping[str, Any]) -> str:
    return f"{size(memory['needed'])} of {size(memory['available'])}" if memory["needed"] else ""


def _step_text(step: Step) -> str:
    """A step in detail: its size, the time of each resource with its meaning, and what would take less."""
    rows = [[name, duration(value), RESOURCES[name]] for name, value in step.seconds.items()]
    rows += [["massive rows", duration(step.after), RESOURCES["massive rows"]]] if step.after else []
    size_of = facts([*step.facts.items(), ("to unbind", step.unbind)], "  ")
    times = text_table([[f"  {name}", *rest] for name, *rest in rows], left=(0, 2), breaks=2)
    return f"\n{step.name}\n{size_of}\n{times}"
