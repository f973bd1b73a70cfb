"""amc: make a trained CNN run faster on a given device, within a budget.

    from amc import search
    result = search(network, data, "onnxruntime_cpu", 0.5)

What ``__all__`` lists is imported when it is first asked for: ``import amc`` alone is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from agents.policies import load_policy
    from agents.policy import Policy
    from agents.trust import TrustPolicy
    from amc.api import (
        apply_policy,
        compare,
        finetune,
        load_compressed,
        load_packed,
        profile,
        save_packed,
        search,
    )
    from amc.comparison.comparison import Comparison
    from amc.compress.quantization import Quantized
    from amc.cost.budget import Budget
    from amc.data import DataSet, build_data
    from amc.errors import AmcError
    from amc.export import export_onnx, read_precisions
    from amc.layers import LayerKind, register_layer
    from amc.layers.signature import Signature
    from amc.networks import SelectOutputs, build_network, load_checkpoint
    from amc.objectives import NamedScore, Objective, Segmentation, build_objective
    from amc.problem.local import calibration_images
    from amc.problem.problem import Problem
    from amc.problem.space import SearchSpace
    from amc.recovery.settings import RecoverySettings
    from amc.recovery.training import TrainingSettings
    from amc.runtimes import Runtime
    from amc.strategy import Strategy
    from amc.study.result import SearchResult
    from envs.reward import Outcome

__version__ = "0.1.0"

__all__ = [
    "AmcError",
    "Budget",
    "Comparison",
    "DataSet",
    "Decision",
    "LayerKind",
    "NamedScore",
    "Objective",
    "Outcome",
    "Policy",
    "Problem",
    "Quantized",
    "RecoverySettings",
    "Runtime",
    "SearchResult",
    "SearchSpace",
    "Segmentation",
    "SelectOutputs",
    "Signature",
    "Strategy",
    "TrainingSettings",
    "TrustPolicy",
    "apply_policy",
    "build_data",
    "build_network",
    "build_objective",
    "calibration_images",
    "compare",
    "export_onnx",
    "finetune",
    "load_checkpoint",
    "load_compressed",
    "load_packed",
    "load_policy",
    "profile",
    "read_precisions",
    "register_layer",
    "save_packed",
    "search",
]

# Where each of them lives.
_HOME = {
    "AmcError": "amc.errors",
    "Budget": "amc.cost.budget",
    "Comparison": "amc.comparison.comparison",
    "DataSet": "amc.data",
    "Decision": "amc.decisions",
    "LayerKind": "amc.layers",
    "NamedScore": "amc.objectives",
    "Objective": "amc.objectives",
    "Outcome": "envs.reward",
    "Quantized": "amc.compress.quantization",
    "Policy": "agents.policy",
    "Problem": "amc.problem.problem",
    "SearchResult": "amc.study.result",
    "RecoverySettings": "amc.recovery.settings",
    "Runtime": "amc.runtimes",
    "SearchSpace": "amc.problem.space",
    "Segmentation": "amc.objectives",
    "SelectOutputs": "amc.networks",
    "Signature": "amc.layers.signature",
    "Strategy": "amc.strategy",
    "TrainingSettings": "amc.recovery.training",
    "TrustPolicy": "agents.trust",
    "build_data": "amc.data",
    "build_network": "amc.networks",
    "build_objective": "amc.objectives",
    "calibration_images": "amc.problem.local",
    "export_onnx": "amc.export",
    "load_checkpoint": "amc.networks",
    "load_policy": "agents.policies",
    "read_precisions": "amc.export",
    "register_layer": "amc.layers",
}

gymnasium.register(id="amc/Compression-v0", entry_point="envs.make:make_env")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'amc' has no attribute {name!r}")
    from amc.utils.packages import check_packages

    check_packages()
    value = getattr(importlib.import_module(_HOME.get(name, "amc.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
