"""ExecuTorch with XNNPACK on this machine's CPU: what PyTorch's users ship to phones.

What amc exports becomes an ExecuTorch program (``.pte``), in float and in 8-bit integers as the
strategy says. Operators are timed many at once, side by side in one program, by XNNPACK's own
events; what is converted on the way in and out is no part of them.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from amc.errors import DeviceError, ExportError
from amc.graph.whole import Whole
from amc.quantplan.conversions import INT8
from amc.runtimes.among import in_parts
from amc.runtimes.etdump import HALF_TICK_MS, WARM_UP, lone_ms, own_events, read_events
from amc.runtimes.onnx_model import OperatorModel
from amc.runtimes.onnx_torch import OnnxModule
from amc.runtimes.operators import is_lone, lone_model, operator_model
from amc.runtimes.request import Request
from amc.runtimes.runtime import NO_WHOLES, Runtime, Sampler
from amc.strategy import FLOAT
from amc.utils.machine import cpu_model

_BRANCHES = 40  # of one program: to write it takes as long as a second for each of a few alone
_CALLS = 9  # of a program after its first ones, in one sample
METHOD = "forward"


@dataclass(frozen=True)
class ExecuTorch(Runtime):
    """ExecuTorch with XNNPACK on this machine's CPU."""

    name = "executorch"
    title = "ExecuTorch with XNNPACK"
    supported_bits = (FLOAT, INT8)
    fuses = ("relu", "relu6")
    converts = ("quantize", "dequantize")
    is_isolated = True

    def machine(self) -> str:
        _executorch()
        return f"{cpu_model()}, ExecuTorch {version('executorch')} (XNNPACK)"

    def compile(self, network: onnx.ModelProto, threads: int) -> nn.Module:
        return _Network(network, threads)

    @contextmanager
    def timing(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
    ) -> Iterator[Sampler]:
        def made(part: Sequence[Request]) -> Callable[[], list[float]]:
            operators = _Operators(*operator_program(part, batch, wholes), threads, part)
            if operators.can_tell:
                return operators.sample
            singles = [made([request]) for request in part]
            return lambda: [single()[0] for single in singles]

        yield in_parts(made, _BRANCHES, _is_alone)


def operator_program(
    part: Sequence[Request], batch: int, wholes: Mapping[str, Whole] = NO_WHOLES
) -> tuple[bytes, list[Tensor]]:
    """Operators side by side as a program, and what goes into it.

    Raises:
        DeviceError: ExecuTorch cannot write one of them.
    """
    if is_lone(part[0]):  # a call that amc does not follow, a layer of another kind
        model, inputs = lone_model(part[0], batch, wholes)
    else:
        branches = operator_model(part, batch, builders={"max_pool2d": _max_pool})
        model, inputs = branches.proto, branches.inputs
    tensors = [torch.from_numpy(inputs[value.name]) for value in model.graph.input]
    return program(model, tensors, DeviceError), tensors


def program(
    model: onnx.ModelProto,
    inputs: Sequence[Tensor],
    error: type[DeviceError] | type[ExportError] = ExportError,
) -> bytes:
    """An ONNX model as an ExecuTorch program for inputs of one shape: the content of a ``.pte``."""
    parts = _executorch()
    module = OnnxModule(model).eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(module, tuple(inputs))
            how = {"partitioner": [parts.partitioner()], "compile_config": parts.config}
            return bytes(parts.lower(exported, **how).to_executorch().buffer)
    except Exception as cause:  # of many kinds: assertions, key errors, its own
        said = str(cause).strip().splitlines() or [type(cause).__name__]
        raise error(f"ExecuTorch cannot write the network: {said[0]}") from cause


@cache
def _executorch() -> Any:
    """What amc needs of ExecuTorch, if it is installed, and one for this PyTorch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            from executorch import exir
            from executorch.backends.xnnpack.partition import xnnpack_partitioner
            from executorch.devtools import Inspector
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime as Programs
        except ImportError as error:
            raise DeviceError(
                f"ExecuTorch is not installed, or is for another PyTorch than {torch.__version__} "
                f"({error}): pip install 'amc-compress[executorch]', or another device."
            ) from None
    return SimpleNamespace(
        lower=exir.to_edge_transform_and_lower,
        partitioner=xnnpack_partitioner.XnnpackPartitioner,
        config=exir.EdgeCompileConfig(_check_ir_validity=False),
        runtime=Programs.get(),
        inspector=Inspector,
        library=portable_lib,
    )


def _set_threads(threads: int) -> None:
    """CPU threads of all programs that are loaded from now on."""
    library = _executorch().library
    if library._threadpool_get_thread_count() != threads:
        library._unsafe_reset_threadpool(threads)


class LoadedProgram(nn.Module):
    """A program, called with images of the shape that it is for; of several outputs a dict."""

    def __init__(self, content: bytes, outputs: Sequence[str], threads: int = 1) -> None:
        super().__init__()
        _set_threads(threads)
        self._outputs, self._program = list(outputs), _executorch().runtime.load_program(content)
        try:
            self._method = self._program.load_method(METHOD)
        except RuntimeError as cause:
            raise ExportError(f"ExecuTorch cannot load what it wrote: {cause}") from cause

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        given = self._method.execute([images.contiguous()])
        found = {n: value.clone() for n, value in zip(self._outputs, given, strict=True)}
        return found if len(found) > 1 else next(iter(found.values()))


class _Network(nn.Module):
    """A model, of which a program is written for every shape of images that it is called with."""

    def __init__(self, model: onnx.ModelProto, threads: int) -> None:
        super().__init__()
        self._model, self._threads = model, threads
        self._programs: dict[tuple[int, ...], LoadedProgram] = {}
        (given,) = model.graph.input
        self._program(tuple(max(d.dim_value, 1) for d in given.type.tensor_type.shape.dim))

    def _program(self, shape: tuple[int, ...]) -> LoadedProgram:
        if shape not in self._programs:
            content = program(self._model, [torch.zeros(shape)])
            outputs = [output.name for output in self._model.graph.output]
            self._programs[shape] = LoadedProgram(content, outputs, self._threads)
        return self._programs[shape]

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        return self._program(tuple(images.shape)).forward(images)


class _Operators:
    """Operators side by side in a program, and the events of its calls."""

    def __init__(
        self, content: bytes, inputs: Sequence[Tensor], threads: int, part: Sequence[Request]
    ) -> None:
        self._content, self._inputs = content, list(inputs)
        self._threads, self._part = threads, part

    @property
    def can_tell(self) -> bool:
        """Whether it is known which event is of which operator: there is one of each, in order."""
        return len(self._part) == 1 or len(own_events(self._events())) == len(self._part)

    def sample(self) -> list[float]:
        """Milliseconds of every operator."""
        events = self._events()
        if len(self._part) > 1:
            return [max(ms, HALF_TICK_MS) for _, ms in own_events(events)]
        return [lone_ms(self._part[0], events, ExecuTorch.converts)]

    def _events(self) -> list[tuple[str, float]]:
        """Name and milliseconds of each event within a call, in the order in which they come."""
        parts = _executorch()
        with tempfile.TemporaryDirectory() as folder:
            file, dump = Path(folder, "operators.pte"), Path(folder, "events")
            file.write_bytes(self._content)
            _set_threads(self._threads)
            loaded = parts.runtime.load_program(file, enable_etdump=True)
            method = loaded.load_method(METHOD)
            for _ in range(WARM_UP + _CALLS):
                method.execute(self._inputs)
            loaded.write_etdump_result_to_file(str(dump), f"{dump}.values")
            return events_of(dump)


def events_of(dump: Path) -> list[tuple[str, float]]:
    """Name and milliseconds of each event within a call, in order, of an ETDump of many calls.

    Raises:
        DeviceError: ExecuTorch is not installed here, or cannot read the file.
    """
    return read_events(dump, _executorch().inspector)


def _max_pool(model: OperatorModel, request: Request, target: str) -> str:
    """Without the integer convolution that other runtimes need before it."""
    signature, source = (
        request.signature,
        model.input([request.in_channels, *request.signature.in_size]),
    )
    if request.bits == INT8:
        source = model.rounded(source, f"{target}.in")
    how = {"kernel_shape": signature.kernel, "strides": signature.stride}
    pads = [*signature.padding, *signature.padding]
    dilations = signature.dilation
    return model.node("MaxPool", [source], target, pads=pads, dilations=dilations, **how)


def _is_alone(request: Request) -> bool:
    return is_lone(request) or request.signature.op in ExecuTorch.converts
