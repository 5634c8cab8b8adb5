"""What the kernels of the fused step compile to, without a GPU: registers, spills, shared memory, width of their loads.

    python benchmarks/kernel_resources.py                       # Gemma-2-2B's shape, for sm_90 (H100, H200)
    python benchmarks/kernel_resources.py --width 384 --latents 3072 --k 16 --capability 80

Triton compiles without the device; the launches are those of one real step, which is why a small batch of
the named shape is set up on the CPU (about 30 bytes per parameter). Nothing is executed, so nothing is timed: a kernel
that spills registers or loads narrowly is found here before a device is at hand.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sparse_pipeline.shared.coders import build_coder
from sparse_pipeline.shared.coders.matryoshka import MatryoshkaConfig
from sparse_pipeline.shared.coders.topk import TopKConfig
from sparse_pipeline.train.kernels.fused_step import FusedStep

TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}
LAUNCH_OPTIONS = ("num_warps", "num_stages")


class Compiler:
    """Stands in for the launch of a kernel: compiles it for what it would have been called with."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)
        self.compiled: dict[tuple[Any, ...], tuple[str, int, Any]] = {}

    def launch(self, kernel: Any, *args: Any, grid: Any = None, warmup: bool = False, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in LAUNCH_OPTIONS if name in kwargs}
        values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        attributes: dict[tuple[int], Any] = {}
        for i, parameter in enumerate(kernel.params):
            value = values[parameter.name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[parameter.name] = "constexpr"
                constants[parameter.name] = value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = "*" + TYPES[value.dtype]
                attributes[(i,)] = [["tt.divisibility", 16]]  # as torch's allocator aligns on a device
            else:
                signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
                if isinstance(value, int) and value % 16 == 0:
                    attributes[(i,)] = [["tt.divisibility", 16]]
        key = (kernel.__name__, *signature.items(), *map(str, constants.items()), *options.items())
        if key not in self.compiled:
            source = ASTSource(kernel, signature, constants, attributes)
            binary = triton.compile(source, target=self.target, options=options)
            self.compiled[key] = (kernel.__name__, options.get("num_warps", 4), binary)


def resources(binary: Any) -> tuple[int, int, int, int, int]:
    """(registers per thread, bytes spilled per thread, bytes of shared memory, 16-byte global loads, all of them)."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(binary.asm["cubin"])
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None
    loads = re.findall(r"(?:ld\.global|cp\.async\.c[ag]\.shared\.global)\S*", binary.asm["ptx"])
    wide = [load for load in loads if re.search(r"v4\.b32|v2\.b64|v8\.b16|cp\.async", load)]
    return int(found[1]), int(found[2]), binary.metadata.shared, len(wide), len(loads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2304)
    parser.add_argument("--latents", type=int, default=18432)
    parser.add_argument("--k", type=int, default=48)
    parser.add_argument("--capability", type=int, default=90, help="compute capability, e.g. 80, 90, 100")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    args = parser.parse_args()
    compiler = Compiler(args.capability)
    triton.JITFunction.run = lambda kernel, *a, **k: compiler.launch(kernel, *a, **k)
    shape = {"latents": args.latents, "k": args.k}
    for config in (TopKConfig(**shape), MatryoshkaConfig(**shape)):
        coder = build_coder(config, args.width, args.width, tied=False)
        step = FusedStep(coder, torch.optim.Adam(coder.parameters()), grad_clip=1.0, dtype=getattr(torch, args.dtype))
        rows = torch.zeros(4 * 128 // args.k * 16, args.width)
        step.step_raw(rows.bfloat16(), rows.bfloat16(), 1e-4)
    print(f"sm_{args.capability}, Triton {triton.__version__}, width {args.width}, {args.latents} latents, k {args.k}")
    print(f"{'kernel':<22} warps  registers  spilled  shared  16-byte/all loads")
    for name, warps, binary in compiler.compiled.values():
        registers, spilled, shared, wide, loads = resources(binary)
        print(f"{name:<22} {warps:>5} {registers:>10} {spilled:>8} {shared:>7}  {wide}/{loads}")


if __name__ == "__main__":
    main()
