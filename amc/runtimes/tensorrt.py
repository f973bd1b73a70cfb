"""TensorRT on an NVIDIA GPU, in float32 or in half precision.

Operators are timed many at once, as branches of one engine, by TensorRT's own profile of its
layers. What an engine changes of formats on the way into and out of an operator is no part of it.
Engines are for one shape of images; PyTorch holds what goes in and comes out.

What amc rounds to 8 bits has a zero point, and TensorRT has none: here all is in floats.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from amc.errors import DeviceError, ExportError
from amc.graph.whole import Whole
from amc.runtimes.among import in_parts
from amc.runtimes.onnx_model import Array
from amc.runtimes.operators import is_lone, lone_model, operator_model, output_of
from amc.runtimes.request import Request
from amc.runtimes.runtime import NO_WHOLES, Runtime, Sampler
from amc.strategy import FLOAT
from amc.utils.extras import not_installed

_BRANCHES = 50  # of one engine: an engine takes seconds to build
_WARM_UP, _CALLS = 5, 15  # of an engine, in one sample
_PLACE = "cuda"
_LEAST_MS = 1e-5  # of what costs nothing: a price is more
_FLAGS = {"f32": (), "f16": ("FP16",)}
_AROUND = re.compile(r"^(Reformatting|\[?Constant)", re.IGNORECASE)


@dataclass(frozen=True)
class TensorRt(Runtime):
    """TensorRT on this machine's first GPU.

    Attributes:
        precision: What floats may be computed in: ``f32`` or ``f16``, where TensorRT finds it
            faster.
    """

    precision: str = "f32"

    name = "tensorrt"
    title = "TensorRT"
    supported_bits = (FLOAT,)
    fuses = ("relu", "relu6")
    is_isolated = True

    def __post_init__(self) -> None:
        if self.precision not in _FLAGS:
            raise DeviceError(
                f"device.precision must be one of {', '.join(_FLAGS)}, got {self.precision!r}."
            )

    @property
    def place(self) -> str:
        return _PLACE

    def machine(self) -> str:
        floats = "" if self.precision == "f32" else f", {self.precision}"
        version = _tensorrt().__version__
        return f"{torch.cuda.get_device_name()}, TensorRT {version}{floats}"

    def compile(self, network: onnx.ModelProto, threads: int) -> nn.Module:
        return _Network(self, network)

    @contextmanager
    def timing(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
    ) -> Iterator[Sampler]:
        def made(part: Sequence[Request]) -> Callable[[], list[float]]:
            if is_lone(part[0]):  # a call that amc does not follow, a layer of another kind
                model, inputs = lone_model(part[0], batch, wholes)
            else:
                branches = operator_model(part, batch)
                model, inputs = branches.proto, branches.inputs
            return _Operators(self.engine(model, inputs, DeviceError), inputs, part).sample

        yield in_parts(made, _BRANCHES, is_lone)

    def engine(
        self,
        model: onnx.ModelProto,
        inputs: Mapping[str, Array | Tensor],
        error: type[DeviceError] | type[ExportError] = ExportError,
    ) -> Any:
        """The engine of a model for inputs of these shapes."""
        trt, log = _tensorrt(), _log()
        builder = trt.Builder(log)
        network = builder.create_network(0)
        parser = trt.OnnxParser(network, log)
        if not parser.parse(model.SerializeToString()):
            said = "; ".join(str(parser.get_error(place)) for place in range(parser.num_errors))
            raise error(f"TensorRT cannot read the model: {said or 'it does not say why'}")
        how = builder.create_builder_config()
        how.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        for flag in _FLAGS[self.precision]:
            how.set_flag(getattr(trt.BuilderFlag, flag))
        shapes = builder.create_optimization_profile()
        for name, value in inputs.items():
            shapes.set_shape(name, *([tuple(value.shape)] * 3))
        how.add_optimization_profile(shapes)
        plan = builder.build_serialized_network(network, how)
        engine = None if plan is None else trt.Runtime(log).deserialize_cuda_engine(plan)
        if engine is None:
            raise error("TensorRT cannot build an engine of the model; what it printed says why.")
        return engine


@cache
def _tensorrt() -> Any:
    """TensorRT, if it is installed and there is a GPU."""
    try:
        import tensorrt
    except ImportError:
        raise not_installed("tensorrt") from None
    if not torch.cuda.is_available():
        raise DeviceError(
            "TensorRT needs an NVIDIA GPU, and PyTorch finds none on this machine. Use another "
            "device, or a table that was measured where there is one."
        )
    return tensorrt


@cache
def _log() -> Any:
    trt = _tensorrt()
    return trt.Logger(trt.Logger.ERROR)


class Execution:
    """An engine with its tensors on the GPU: run again and again."""

    def __init__(self, engine: Any, inputs: Mapping[str, Array | Tensor]) -> None:
        trt, self._engine = _tensorrt(), engine
        self.context = engine.create_execution_context()
        self.outputs: dict[str, Tensor] = {}
        self._inputs = {name: torch.as_tensor(value).to(_PLACE) for name, value in inputs.items()}
        for name, tensor in self._inputs.items():
            self.context.set_input_shape(name, tuple(tensor.shape))
            self.context.set_tensor_address(name, tensor.data_ptr())
        for place in range(engine.num_io_tensors):
            name = engine.get_tensor_name(place)
            if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
                shape = tuple(self.context.get_tensor_shape(name))
                self.outputs[name] = torch.empty(shape, device=_PLACE)
                self.context.set_tensor_address(name, self.outputs[name].data_ptr())

    def run(self, images: Tensor | None = None) -> None:
        """Queue a call, of other images than before if some are given, and return at once."""
        if images is not None:
            (given,) = self._inputs.values()
            given.copy_(images)
        stream = torch.cuda.current_stream()
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise DeviceError("TensorRT failed to run an engine; what it printed says why.")


class _Network(nn.Module):
    """A model, of which an engine is built for every shape of images that it is called with."""

    def __init__(self, runtime: TensorRt, model: onnx.ModelProto) -> None:
        super().__init__()
        self._runtime, self._model = runtime, model
        self._engines: dict[tuple[int, ...], Execution] = {}
        (given,) = model.graph.input
        self._name = given.name
        dimensions = given.type.tensor_type.shape.dim
        self._engine(torch.zeros([max(each.dim_value, 1) for each in dimensions]))

    def _engine(self, images: Tensor) -> Execution:
        shape = tuple(images.shape)
        if shape not in self._engines:
            given = {self._name: images}
            self._engines[shape] = Execution(self._runtime.engine(self._model, given), given)
        return self._engines[shape]

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        engine = self._engine(images)
        engine.run(images)
        found = {output.name: engine.outputs[output.name] for output in self._model.graph.output}
        found = {name: tensor.to(images.device, copy=True) for name, tensor in found.items()}
        return found if len(found) > 1 else next(iter(found.values()))


class _Operators:
    """Operators side by side in an engine, and its profile."""

    def __init__(self, engine: Any, inputs: Mapping[str, Array], part: Sequence[Request]) -> None:
        self._execution, self._part = Execution(engine, inputs), part
        taken: dict[str, list[float]] = defaultdict(list)

        class Profiler(_tensorrt().IProfiler):  # type: ignore[misc]
            """Told of every layer, once in each call."""

            def __init__(self) -> None:
                super().__init__()

            def report_layer_time(self, name: str, ms: float) -> None:
                taken[name].append(ms)

        self._taken = taken
        self._profiler = Profiler()  # TensorRT keeps no reference of its own
        self._execution.context.profiler = self._profiler

    def sample(self) -> list[float]:
        """Milliseconds of every operator: the sum of its layers' medians."""
        self._taken.clear()
        for _ in range(_WARM_UP + _CALLS):
            self._execution.run()
            torch.cuda.synchronize()
        medians = {name: median(ms[_WARM_UP:]) for name, ms in self._taken.items()}
        return [max(ms, _LEAST_MS) for ms in attributed(medians, self._part)]


def attributed(layers_ms: Mapping[str, float], part: Sequence[Request]) -> list[float]:
    """What each operator took, of what an engine's layers took.

    A layer is called after the nodes in it, as in ``y3.layer + y3``; one that changes a format
    (``Reformatting CopyNode for Output Tensor 0 to y3``) is of none.
    """
    own = {name: ms for name, ms in layers_ms.items() if not _AROUND.match(name)}
    if len(part) == 1:
        return [sum(own.values())]
    return [
        sum(ms for name, ms in own.items() if re.search(rf"\b{output_of(index)}(?!\d)", name))
        for index in range(len(part))
    ]
