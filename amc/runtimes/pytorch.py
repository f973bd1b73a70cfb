"""PyTorch on this machine, in float or in half precision: on the CPU or on a GPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor, nn

from amc.errors import DeviceError
from amc.graph.whole import Whole
from amc.runtimes.precision import DTYPES, InPrecision, Replayed
from amc.runtimes.request import Request
from amc.runtimes.runtime import MODULE, NO_WHOLES, Runtime, Sampler
from amc.runtimes.torch_operators import TWO_INPUTS, builder_of, factors_of
from amc.runtimes.whole import input_shape
from amc.utils.machine import cpu_model

_SEED = 0
_ALIGNMENT = 16  # floats: 64 bytes, a cache line
_FIRST_CALLS = 3  # when an operator is met for the first time: its kernels are chosen
_BURST_S = 2e-3  # one sample comes from a burst of calls about this long


@dataclass(frozen=True)
class TorchRuntime(Runtime):
    """PyTorch on this machine.

    Attributes:
        device: "cpu" or "cuda".
        precision: What floats are computed in: ``f32``, ``bf16`` or ``f16``.
        graphs: Whether calls on a GPU are recorded once and replayed (CUDA graphs), as servers
            do: then no time goes into launching kernels one by one.
    """

    device: str = "cpu"
    precision: str = "f32"
    graphs: bool = False

    name = "torch"
    title = "PyTorch"
    compiles = MODULE
    is_sum = True

    def __post_init__(self) -> None:
        if self.device not in _CLOCKS:
            raise DeviceError(f"device.device must be {' or '.join(_CLOCKS)}, got {self.device!r}.")
        if self.precision not in DTYPES:
            raise DeviceError(
                f"device.precision must be one of {', '.join(DTYPES)}, got {self.precision!r}."
            )
        if not isinstance(self.graphs, bool) or (self.graphs and self.device != "cuda"):
            raise DeviceError(
                f"device.graphs must be true or false, true on a GPU alone (device=torch_cuda), "
                f"got {self.graphs!r} on {self.device}."
            )

    @property
    def place(self) -> str:
        return self.device

    def machine(self) -> str:
        on_cuda = self.device == "cuda" and torch.cuda.is_available()
        processor = torch.cuda.get_device_name() if on_cuda else cpu_model()
        floats = "" if self.precision == "f32" else f", {self.precision}"
        return f"{processor}, PyTorch {torch.__version__}{floats}{', graphs' * self.graphs}"

    def check(self) -> None:
        _check_device(self.device)

    def compile(self, network: nn.Module, threads: int) -> nn.Module:
        network = network.to(self.device)
        if self.precision != "f32":
            network = InPrecision(network, DTYPES[self.precision])
        return Replayed(network) if self.graphs else network

    @contextmanager
    def timing(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
    ) -> Iterator[Sampler]:
        timer = TorchTimer(batch, threads, self.device, wholes, self.precision, self.graphs)
        with timer.running() as sample:
            yield lambda requests: map(sample, requests)


class TorchTimer:
    """Times operators in evaluation mode, without gradients, on one batch of float inputs.

    The tensors of all operators are cut from one pool of numbers in [0.5, 1): going from
    operator to operator allocates and draws nothing, and no value is denormal.

    Attributes:
        batch: Samples in each call.
        threads: CPU threads that PyTorch uses.
        device: "cpu", or "cuda" (timed by events on the device).
    """

    def __init__(
        self,
        batch: int,
        threads: int,
        device: str = "cpu",
        wholes: Mapping[str, Whole] = NO_WHOLES,
        precision: str = "f32",
        graphs: bool = False,
    ) -> None:
        """Prepare a timer.

        Args:
            wholes: The calls that are timed as they stand, by the ``op`` of their signature; they
                stay in float.
            precision, graphs: As `TorchRuntime`.

        Raises:
            DeviceError: PyTorch has no such device here.
        """
        _check_device(device)
        self.batch, self.threads, self.device, self._wholes = batch, threads, device, wholes
        self._dtype, self._graphs = DTYPES[precision], graphs
        self._pool = torch.empty(0, device=device)
        self._calls: dict[Request, int] = {}  # in one burst

    @contextmanager
    def running(self) -> Iterator[Callable[[Request], float]]:
        """Gives `sample`, with PyTorch's threads set until the context is left."""
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                yield self.sample
        finally:
            torch.set_num_threads(threads)

    def sample(self, request: Request) -> float:
        """Milliseconds of one batch, from one burst of calls after an untimed one.

        On a CPU it is the burst's median call, which a pause of the process does not move; on
        a GPU, whose calls overlap, its mean.

        Raises:
            DeviceError: PyTorch cannot run the operator, or its bits are not 32/32.
        """
        op = request.signature.op
        builder = None if op in self._wholes else builder_of(request)
        try:
            if builder is None:
                whole = self._wholes[op].on(self.device)
                return self._burst(whole, whole.inputs(self.batch, self.device), request) * 1e3
            operator, inputs = self._with_tensors(builder(request), request)
            return self._burst(operator, inputs, request) * 1e3
        except (RuntimeError, ValueError) as error:
            raise DeviceError(f"PyTorch cannot run {request}: {error}") from error

    def _burst(self, operator: nn.Module, inputs: list[Tensor], request: Request) -> float:
        clock = _CLOCKS[self.device]
        if self._graphs:
            operator = Replayed(operator)
        clock(operator, inputs, 1)
        if request not in self._calls:
            seconds = min(clock(operator, inputs, 1) for _ in range(_FIRST_CALLS))
            self._calls[request] = math.ceil(_BURST_S / min(max(seconds, 1e-7), _BURST_S))
        return clock(operator, inputs, self._calls[request])

    def _with_tensors(
        self, operator: nn.Module, request: Request
    ) -> tuple[nn.Module, list[Tensor]]:
        """Give an operator without storage its tensors, and inputs, from the pool."""
        state = {n: t.shape for n, t in operator.state_dict().items() if t.is_floating_point()}
        s = request.signature
        shape = (self.batch, *input_shape(s, request.in_channels))
        shapes = [shape] * (2 if s.op in TWO_INPUTS else 1)
        if s.op == "softmax":
            shapes = [(self.batch, math.prod(s.in_size), request.in_channels)]
        if s.is_product:
            shapes = factors_of(self.batch, request)
        tensors = self._cut([*state.values(), *shapes])
        operator.requires_grad_(False).load_state_dict(
            dict(zip(state, tensors, strict=False)), strict=False, assign=True
        )
        return operator.eval(), tensors[len(state) :]

    def _cut(self, shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Distinct parts of the pool in these shapes."""
        sizes = [math.prod(shape) for shape in shapes]
        padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        if sum(padded) > self._pool.numel():
            numel = max(sum(padded), 2 * self._pool.numel())
            self._pool = torch.empty(0, device=self.device)  # free the old one first
            generator = torch.Generator(self.device).manual_seed(_SEED)
            drawn = torch.rand(numel, generator=generator, device=self.device) / 2 + 0.5
            self._pool = drawn.to(self._dtype)
        parts = torch.split(self._pool[: sum(padded)], padded)
        cuts = zip(parts, sizes, shapes, strict=True)
        return [part[:size].view(shape) for part, size, shape in cuts]


def _check_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "PyTorch finds no CUDA device on this machine. Use device=torch_cpu, or a table "
            "that was measured where there is one."
        )


def _cpu_clock(operator: nn.Module, inputs: list[Tensor], calls: int) -> float:
    """Seconds of one call."""
    ticks = [time.perf_counter()]
    for _ in range(calls):
        operator(*inputs)
        ticks.append(time.perf_counter())
    return median(end - start for start, end in pairwise(ticks))


def _cuda_clock(operator: nn.Module, inputs: list[Tensor], calls: int) -> float:
    """Seconds of one call."""
    start, end = (torch.Event("cuda", enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        operator(*inputs)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / calls


_CLOCKS: dict[str, Callable[[nn.Module, list[Tensor], int], float]] = {
    "cpu": _cpu_clock,
    "cuda": _cuda_clock,
}
