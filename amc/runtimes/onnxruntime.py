"""ONNX Runtime on this machine's CPU, in float and in 8-bit integers.

Operators are timed many at once, as branches of one model, and the runtime's own profiler says how
long each of them took. Nothing but the operator is counted: not the call from Python, not the
change of layout on the way into and out of a lone convolution, which a network does not have in its
middle. And a branch is met as a layer is in a network, with its weights out of the nearest cache.
"""

from __future__ import annotations

import platform
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from torch import Tensor, nn

from amc.errors import AmcError, ArtifactError, DeviceError, ExportError
from amc.graph.whole import Whole
from amc.quantplan.conversions import CONVERSIONS, INT8
from amc.runtimes.onnx_model import Array, OperatorModel
from amc.runtimes.operators import is_lone, lone_model, operator_model, output_of
from amc.runtimes.request import Request
from amc.runtimes.runtime import NO_WHOLES, Runtime, Sampler
from amc.strategy import FLOAT
from amc.utils.files import storage_error
from amc.utils.machine import cpu_model

PROVIDER = "CPUExecutionProvider"
_ERRORS_ONLY = 3
_BRANCHES = 200  # in one model: its session is made in a fraction of a second
_WARM_UP, _RUNS = 2, 8  # of the model, in one round
_HALF_TICK_MS = 5e-4  # the profiler counts whole microseconds; about what a call of nothing takes
_PROBES = 16  # nodes that do next to nothing
# Around a lone operator, and not in a network's middle.
_AROUND = {"ReorderInput", "ReorderOutput", "Transpose", "QuantizeLinear", "DequantizeLinear"}
# What is timed between layers, which do not count -> the nodes that do it.
_BETWEEN = {
    "unblock": {"ReorderOutput"},
    "narrow": {"ReorderInput", "ReorderOutput"},
    "block": {"ReorderInput"},
    "quantize": {"QuantizeLinear"},
    "dequantize": {"DequantizeLinear"},
    "transpose": {"Transpose"},
    "max_pool2d": {"MaxPool", "NhwcMaxPool"},
}
# What the runtime makes of a layer between roundings that it computes in integers.
_INTEGER_LAYERS = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}
_OPTIMIZED = "optimized.onnx"
# A node's own time in the profiler's file, and the node's name.
_KERNEL = re.compile(r'"dur"\s*:\s*(\d+)\s*,[^{}]*?"name"\s*:\s*"([^"]*)_kernel_time"')


@dataclass(frozen=True)
class OnnxRuntime(Runtime):
    """ONNX Runtime on this machine's CPU."""

    name = "onnxruntime"
    title = "ONNX Runtime"
    supported_bits = (FLOAT, INT8)
    fuses = ("leaky_relu", "relu", "relu6", "sigmoid", "tanh")  # in float and in integers alike
    converts = tuple(name for name in CONVERSIONS if name != "rescale")

    version: ClassVar[str] = onnxruntime.__version__

    def machine(self) -> str:
        return f"{cpu_model()}, ONNX Runtime {onnxruntime.__version__}, {platform.system()}"

    def compile(self, network: onnx.ModelProto, threads: int) -> OnnxNetwork:
        return self.load(network, threads=threads)

    def load(self, file: str | Path | onnx.ModelProto, **how: Any) -> OnnxNetwork:
        """A file, called like a network; with what else `OnnxNetwork` takes."""
        return OnnxNetwork(file, **how)

    @contextmanager
    def timing(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
    ) -> Iterator[Sampler]:
        yield OnnxTimer(batch, threads, wholes).sample_all


# -- files -----------------------------------------------------------------------------------------


class OnnxNetwork(nn.Module):
    """An ONNX file, or a model that is none yet, called like a network.

    Input (N, channels, height, width) float32 on the CPU; of several outputs a dict by name.
    """

    def __init__(
        self,
        file: str | Path | onnx.ModelProto,
        *,
        threads: int = 1,
        name: str | Path | None = None,
        fused: bool = True,
    ) -> None:
        """
        Args:
            file: As `amc.export.export_onnx` wrote it, or what it would write.
            threads: CPU threads of every call.
            name: What errors call it; None: its path.
            fused: Whether ONNX Runtime may make integer operators of what the file says in floats
                between quantizations, which rounds a little more.

        Raises:
            ArtifactError: The file is missing or no ONNX file.
            ExportError: ONNX Runtime cannot run it.
        """
        super().__init__()
        model = file if isinstance(file, onnx.ModelProto) else load_onnx(Path(file))
        called = name or ("the network" if isinstance(file, onnx.ModelProto) else file)
        self._session = open_session(model, called, threads=threads, fused=fused)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        given = self._session.run(None, {self._input: images.contiguous().numpy()})
        found = dict(zip(self._outputs, map(torch.from_numpy, given), strict=True))
        return found if len(found) > 1 else found[self._outputs[0]]


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file (data only: loading it runs no code).

    Raises:
        ArtifactError: It is missing or no ONNX file.
    """
    try:
        return onnx.load(path)
    except FileNotFoundError:
        raise ArtifactError(f"ONNX file not found: {path}.") from None
    except DecodeError as error:
        raise ArtifactError(f"{path} is not an ONNX file: {error}.") from error
    except OSError as error:
        raise storage_error(path, error) from error


def runtime_operators(path: str | Path) -> Counter[str]:
    """Operator -> how often ONNX Runtime on this CPU runs it, after all that it fuses.

    Raises:
        As `OnnxNetwork`.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / _OPTIMIZED
        open_session(load_onnx(Path(path)), path, optimized=optimized)
        return Counter(node.op_type for node in onnx.load(optimized).graph.node)


def integer_layers(path: str | Path) -> int:
    """Number of layers that ONNX Runtime on this CPU computes in integers.

    The other quantized layers are dequantized and run in float: right, but not faster.

    Raises:
        As `OnnxNetwork`.
    """
    operators = runtime_operators(path)
    return sum(operators[name] for name in _INTEGER_LAYERS)


def open_session(
    model: onnx.ModelProto,
    name: str | Path,
    *,
    threads: int = 1,
    fused: bool = True,
    optimized: Path | None = None,
    profile: Path | None = None,
    error: type[AmcError] = ExportError,
) -> Any:
    """ONNX Runtime's session of a model on the CPU.

    Args:
        name: What errors call the model.
        fused: As `OnnxNetwork`.
        optimized: Where to write what is really run.
        profile: What the name of its profiler's file begins with; None: it is not profiled.

    Raises:
        AmcError: ONNX Runtime cannot run it: an ``error``.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _ERRORS_ONLY
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=[PROVIDER]
        )
    except Exception as cause:  # its errors share no base of their own
        reason = str(cause).strip().splitlines()[0]
        raise error(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {name}: {reason}. "
            "Try another opset (opset=), or a newer ONNX Runtime."
        ) from cause


# -- operators -------------------------------------------------------------------------------------


class OnnxTimer:
    """Times operators of one batch in ONNX Runtime, many at once.

    Attributes:
        batch: Samples in each call.
        threads: CPU threads of the runtime.
    """

    def __init__(self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES) -> None:
        """
        Args:
            wholes: The calls that are timed as they stand, by the ``op`` of their signature.
        """
        self.batch, self.threads, self._wholes = batch, threads, wholes
        # Models of wholes and of layers that are no operators.
        self._written: dict[Hashable, tuple[onnx.ModelProto, dict[str, Array]]] = {}

    def sample_all(self, requests: Sequence[Request]) -> Iterator[float]:
        """Milliseconds of one batch for every request, in their order.

        Raises:
            DeviceError: The runtime cannot run an operator, or not in these bits.
        """
        branches = self._sample_branches([one for one in requests if not is_lone(one)])
        for request in requests:
            yield self._sample_lone(request) if is_lone(request) else next(branches)

    def _sample_branches(self, requests: Sequence[Request]) -> Iterator[float]:
        for start in range(0, len(requests), _BRANCHES):
            part = requests[start : start + _BRANCHES]
            yield from self._sample(operator_model(part, self.batch), part)

    def _sample_lone(self, request: Request) -> float:
        key = request.signature, request.in_channels, request.out_channels  # the same in all bits
        if key not in self._written:
            self._written[key] = lone_model(request, self.batch, self._wholes)
        with tempfile.TemporaryDirectory() as folder:
            taken = self._run(*self._written[key], Path(folder))
        return max(sum(taken.values()), _HALF_TICK_MS)

    def _sample(self, model: OperatorModel, requests: Sequence[Request]) -> list[float]:
        probes = _add_probes(model)
        with tempfile.TemporaryDirectory() as folder:
            taken = self._run(model.proto, model.inputs, Path(folder))
            branches = _branches(onnx.load(Path(folder) / _OPTIMIZED), requests)
        idle = float(np.median([taken[name] for name in probes])) - _HALF_TICK_MS
        own = {name: max(ms - idle, _HALF_TICK_MS) for name, ms in taken.items()}
        return [max(sum(own[name] for name in names), _HALF_TICK_MS) for names in branches]

    def _run(
        self, model: onnx.ModelProto, inputs: Mapping[str, Array], folder: Path
    ) -> dict[str, float]:
        """Node name -> milliseconds of its kernel; the optimized model stays in the folder."""
        session = open_session(
            model,
            "an operator",
            threads=self.threads,
            optimized=folder / _OPTIMIZED,
            profile=folder / "profile",
            error=DeviceError,
        )
        for _ in range(_WARM_UP + _RUNS):
            session.run(None, inputs)
        return _kernel_ms(Path(session.end_profiling()).read_text(encoding="utf-8"))


def _add_probes(model: OperatorModel) -> list[str]:
    """Add nodes that do next to nothing, one after the other; gives their names."""
    names = [f"probe{place}" for place in range(_PROBES)]
    for source, name in pairwise([model.input([1]), *names]):
        model.node("Sigmoid", [source], name)
    model.outputs.append(names[-1])
    return names


def _kernel_ms(profile: str) -> dict[str, float]:
    """Node name -> milliseconds of its kernel: the mean of the quicker half of its calls.

    A pause of the process makes some calls slow, none fast; a mean of whole microseconds knows
    parts of one, which a median does not.

    Args:
        profile: A list of events in JSON. To parse all that it says of them takes a fifth of a
            measurement.
    """
    ticks: dict[str, list[int]] = defaultdict(list)
    for duration, name in _KERNEL.findall(profile):
        ticks[name].append(int(duration))
    return {
        name: float(np.mean(sorted(durations[_WARM_UP:])[: (_RUNS + 1) // 2])) * 1e-3
        + _HALF_TICK_MS
        for name, durations in ticks.items()
    }


def _branches(optimized: onnx.ModelProto, requests: Sequence[Request]) -> list[list[str]]:
    """Names of the nodes that each request is for, of all that compute its output."""
    graph = optimized.graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name for tensor in graph.initializer}
    convolved = {name for n in graph.node if n.op_type == "QLinearConv" for name in n.input}
    found = []
    for index, request in enumerate(requests):
        names, left = set[str](), [output_of(index)]
        while left:
            node = made_by.get(left.pop())
            if node is None:
                continue
            left += node.input
            if request.signature.op in _BETWEEN:
                counts = _does(node, request.signature.op, output_of(index), convolved)
            else:  # of what is around, only that weights are dequantized whenever they are read
                counts = node.op_type not in _AROUND or node.input[0] in constants
            if counts:
                names.add(node.name)
        found.append(sorted(names))
    return found


def _does(node: onnx.NodeProto, op: str, output: str, convolved: Collection[str]) -> bool:
    """Whether a node is what is timed, not one of those that only bring it about."""
    if node.op_type not in _BETWEEN[op]:
        return False
    if op == "narrow":
        return output not in node.output
    return op != "transpose" or node.output[0] in convolved
