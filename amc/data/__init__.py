"""Data sets: digits, MNIST, CIFAR-10, image folders, masks, and data of the user's.

What ``__all__`` lists is imported when it is first asked for: options are checked without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from amc.data.build import build_data
    from amc.data.dataset import DataSet
    from amc.data.options import DataOptions
    from amc.data.split import Split

__all__ = ["DataOptions", "DataSet", "Split", "build_data"]

# Where each of them lives.
_HOME = {
    "DataOptions": "amc.data.options",
    "DataSet": "amc.data.dataset",
    "Split": "amc.data.split",
    "build_data": "amc.data.build",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'amc.data' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
