"""Kernels run on the CUDA device where there is one, and in Triton's interpreter elsewhere (`tests/conftest.py`)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
NEED_TRITON = ("decode", "fused_step", "inputs", "lists", "select", "training", "update")
collect_ignore = [] if find_spec("triton") else [f"test_{name}.py" for name in NEED_TRITON]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # How Triton 3.6's interpreter reads a scalar; numpy 2.4 made it an error, which the fixture below finds out.
    quiet = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(quiet)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run. Skips where they cannot: no Triton, or one whose interpreter does not know this numpy."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed (the extra `kernels`)")
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if where.type == "cpu":
        from tests.interpreter import replace_language_once
        from tests.train.kernels.probe import interpreter_problem

        replace_language_once()
        problem = interpreter_problem()
        if problem is not None:
            pytest.skip(f"Triton's interpreter does not work here: {problem}")
    return where
