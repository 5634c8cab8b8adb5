"""SAEBench: the SAELens folder, and `saebench_saes.py`, whose `selected_saes()` its evaluations take.

SAEBench expects decoder rows of length 1. The weights keep the run's codes; the loader scales rows and codes as
SAEBench does for published SAEs, which TopK with rows of unequal length does not allow.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from ...shared.cache.files import write_file
from ..plain import KLargest, Plain
from .base import Options, Part, Written, only_sae
from .saelens import SaeLens

LOADER = "saebench_saes.py"

_PROGRAM = '''"""The SAE of this folder, for the evaluations of SAEBench:

    import sae_bench.evals.sparse_probing.main as sparse_probing
    from saebench_saes import selected_saes

    config = sparse_probing.SparseProbingEvalConfig(model_name={model!r}, llm_batch_size=32, llm_dtype="float32")
    sparse_probing.run_eval(config, selected_saes("cpu"), "cpu", "eval_results/sparse_probing")
"""

from pathlib import Path

from sae_lens import SAE


def selected_saes(device="cpu"):
    """[(name, SAE)], decoder rows scaled to length 1 where that leaves the selection of latents as it is."""
    sae = SAE.load_from_disk(Path(__file__).parent, device=device)
    if {fold}:
        sae.fold_W_dec_norm()
    return [({name!r}, sae)]
'''


class SaeBench(SaeLens):
    """SAEBench."""

    name: ClassVar[str] = "saebench"
    tool: ClassVar[str] = "SAEBench"

    def known(self, plain: Plain, options: Options) -> tuple[type, ...]:
        only_sae(plain, self.tool)
        return super().known(plain, options)

    def write(self, parts: Sequence[Part], folder: Path, options: Options) -> Written:
        written = super().write(parts, folder, options)
        (part,) = parts
        topk = isinstance(part.plain.activation, KLargest)
        program = _PROGRAM.format(model=_short(part.facts.model), name=part.facts.name, fold=not topk)
        write_file(folder / LOADER, [program.encode()])
        notes = list(written.notes)
        norms = part.plain.w_dec.norm(dim=1)
        if topk and not torch.allclose(norms, torch.ones_like(norms), atol=1e-5):
            notes.append("TopK selects by the code, so its decoder rows keep their lengths: SAEBench warns of that")
        return Written(tuple(notes), f"selected_saes()  # FOLDER/{LOADER}", written.extra)


def _short(model: str | None) -> str | None:
    """TransformerLens's name of a model: without its owner."""
    return None if model is None else model.rpartition("/")[2]
