"""What a runtime is: it runs networks here, and says what of them in which bits.

A device that is this machine is a runtime and the table of what it took. A class of yours is as
good as those of amc: docs/extending.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import Any

from torch import nn

from amc.graph.whole import Whole
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits

ONNX, MODULE = "onnx", "module"  # what a runtime compiles

Sampler = Callable[[Sequence[Request]], Iterable[float]]
"""Gives milliseconds of one batch, one sample of each request that it is given."""

NO_WHOLES: Mapping[str, Whole] = MappingProxyType({})


class Runtime(ABC):
    """What runs networks on this machine.

    Attributes:
        name: In tables and their files, one word.
        title: In reports.
        compiles: `ONNX`: the model that amc exports, ``onnx.ModelProto``; `MODULE`: the network
            itself, in evaluation mode, with its normalisations folded.
        supported_bits: Weight/activation pairs that it computes in, the most precise one first.
        fuses: Operators that it computes inside of the layer before them (`amc.cost.device`).
        converts: Conversions between layers that it times
            (`amc.quantplan.conversions.CONVERSIONS`).
        is_sum: Whether a network takes as long as the sum of its operators, timed one by one.
            Where it does not, some networks are timed whole, and the sum is corrected.
        is_estimate: Whether its milliseconds are computed, for a device that is not here: one
            sample is all that there is to know, and networks are timed elsewhere.
        is_isolated: Whether operators are timed in a process of their own, for code that may end
            the process: then the operator that does is lost, and no other
            (`amc.runtimes.isolated`).
    """

    name: str
    title: str
    compiles: str = ONNX
    supported_bits: tuple[Bits, ...] = (FLOAT,)
    fuses: tuple[str, ...] = ()
    converts: tuple[str, ...] = ()
    is_sum: bool = False
    is_estimate: bool = False
    is_isolated: bool = False

    @abstractmethod
    def machine(self) -> str:
        """The processor and the runtime's version: prices depend on both."""

    def check(self) -> None:
        """Find out whether it can run here, before anything long begins.

        Raises:
            DeviceError: A package or a device is missing.
        """
        self.machine()

    @abstractmethod
    def compile(self, network: Any, threads: int) -> nn.Module:
        """A network as it runs: called with images (batch, ...), it gives outputs.

        Args:
            network: As `compiles` says.
            threads: CPU threads of every call.
        """

    @abstractmethod
    def timing(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
    ) -> AbstractContextManager[Sampler]:
        """Gives what times operators, for as long as the context lasts.

        Args:
            batch: Images of a call.
            wholes: The calls of a network that are timed as they stand, by ``op``.

        Raises:
            DeviceError: The runtime cannot run an operator, or not in these bits.
        """

    @property
    def place(self) -> str:
        """Where the images are that a compiled network is called with, as PyTorch calls it."""
        return "cpu"

    @property
    def computes_integers(self) -> bool:
        """Whether fewer bits than float's make a difference to the time."""
        return any(not bits.is_float for bits in self.supported_bits)
