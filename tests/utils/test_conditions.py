from __future__ import annotations

import numpy as np
import torch

from amc.utils.conditions import code_digests, machine_and_libraries


def test_library_that_is_not_installed_counts_as_none() -> None:
    found = machine_and_libraries(["numpy", "amc-has-no-such-library"])
    assert list(found) == ["torch", "threads", "cpu", "numpy", "amc-has-no-such-library"]
    assert found["torch"] == torch.__version__
    assert found["numpy"] == np.__version__
    assert found["amc-has-no-such-library"] == "none"


def test_code_is_that_of_all_three_packages() -> None:
    assert {"agents/ddpg.py", "amc/cost/model.py", "envs/knapsack.py"} <= set(code_digests())
