"""The tools themselves as oracles: `make interop` installs them; where one is missing, its tests are skipped.

Their own warnings are not ours, and none of them may look at a network.
"""

from __future__ import annotations

import pytest
import torch

from tests.exchange import planted as p


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "interop" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore"))


@pytest.fixture(scope="session")
def x() -> torch.Tensor:
    return p.rows()
