"""Autocast inside a forward: amc follows and exports what it computes in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class WithoutAutocast(TorchFunctionMode):
    """Within it, everything on the CPU computes in the type of its inputs.

    A trace holds operators, not the contexts that they ran in: the network that is compared with
    one must not run in such a context either.

    Attributes:
        met: Whether anything would have been computed under autocast.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of PyTorch's, autocast switched off."""
        if not torch.is_autocast_enabled("cpu"):
            return func(*args, **(kwargs or {}))
        self.met = True
        with torch.autocast("cpu", enabled=False):
            return func(*args, **(kwargs or {}))
