"""OpenVINO, in float and in 8-bit integers: this machine's CPU, or another device that it knows.

Operators are timed many at once, as branches of one model, by OpenVINO's own profile of its nodes.
Each stands between two convolutions, as in a network: in the layout that these have, and with what
OpenVINO computes inside of a convolution (an addition, an activation) computed there, for nothing.

The profile says the mean of all calls since the model was loaded, the slow first ones among them,
in whole microseconds. So every sample loads the compiled model anew, and is what the mean of the
calls after the first few must have been.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from amc.errors import DeviceError, ExportError
from amc.graph.whole import Whole
from amc.quantplan.conversions import INT8
from amc.runtimes.among import among_convolutions, in_parts
from amc.runtimes.onnx_model import Array
from amc.runtimes.operators import is_lone, lone_model, output_of
from amc.runtimes.request import Request
from amc.runtimes.runtime import NO_WHOLES, Runtime, Sampler
from amc.strategy import FLOAT
from amc.utils.extras import not_installed

_BRANCHES = 50  # of one model: few enough for all that they give to stay in a cache
_WARM_UP, _CALLS = 4, 12  # of a model that was loaded, in one sample
_TICK_MS = 1e-3  # of the profile
_LEAST_MS = 1e-5  # of what costs nothing: a price is more
_PRECISIONS = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}  # as options say, as devices do
# Around a lone operator, and not in a network's middle; between layers "quantize" is timed.
_AROUND = ("Reorder", "Input", "Output", "Const")
# In names: of what is in the model; of changes of layout on the way into and out of it.
_NAMED = re.compile(r"^(x\d|y\d|before[^_]*$|before\d+_\d_[^_]*$|behind)|_y\d|_(abcd|acdb)_")


@dataclass(frozen=True)
class OpenVino(Runtime):
    """OpenVINO on one of its devices.

    Attributes:
        device: As OpenVINO calls it: ``CPU``, ``GPU``, ``GPU.1``, ``NPU``.
        precision: What floats are computed in: ``f32``, ``bf16`` or ``f16``.
    """

    device: str = "CPU"
    precision: str = "f32"

    name = "openvino"
    title = "OpenVINO"
    supported_bits = (FLOAT, INT8)
    fuses = ("leaky_relu", "relu", "relu6", "sigmoid", "tanh", "hardswish", "silu", "gelu")
    converts = ("quantize", "rescale")
    is_isolated = True

    def __post_init__(self) -> None:
        if self.precision not in _PRECISIONS:
            raise DeviceError(
                f"device.precision must be one of {', '.join(_PRECISIONS)}, got {self.precision!r}."
            )

    def machine(self) -> str:
        core = self._core()
        processor = core.get_property(self.device, "FULL_DEVICE_NAME")
        floats = "" if self.precision == "f32" else f", {self.precision}"
        return f"{processor}, OpenVINO {_openvino().__version__}{floats}"

    def compile(self, network: onnx.ModelProto, threads: int) -> nn.Module:
        return _Compiled(self, network, threads)

    @contextmanager
    def timing(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
    ) -> Iterator[Sampler]:
        def made(part: Sequence[Request]) -> Callable[[], list[float]]:
            if is_lone(part[0]):  # a call that amc does not follow, a layer of another kind
                model, inputs = lone_model(part[0], batch, wholes)
            else:
                model, inputs = among_convolutions(part, batch)
            return _Branches(self, model, inputs, threads, part).sample

        yield in_parts(made, _BRANCHES, _is_alone)

    def load(
        self,
        model: onnx.ModelProto,
        how: Mapping[str, Any],
        shape: Sequence[int] = (),
        error: type[DeviceError] | type[ExportError] = DeviceError,
    ) -> Any:
        """A model, compiled; its one input of a shape, where the model does not say it."""
        core = self._core()
        try:
            read = core.read_model(io.BytesIO(model.SerializeToString()))
            if shape:
                read.reshape(list(shape))
            return core.compile_model(read, self.device, how)
        except RuntimeError as cause:
            said = str(cause).strip().splitlines()[-1]
            raise error(f"OpenVINO cannot run it on {self.device}: {said}") from cause

    def settings(self, threads: int, profiled: bool = False) -> dict[str, Any]:
        """How OpenVINO is to run a model."""
        how: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self.precision, "PERF_COUNT": profiled}
        return how | ({"INFERENCE_NUM_THREADS": threads} if self.device == "CPU" else {})

    def _core(self) -> Any:
        """OpenVINO, if it has the device, and that the precision."""
        core = _core()
        if self.device not in (known := core.available_devices):
            raise DeviceError(
                f"OpenVINO finds no device {self.device} on this machine; it finds "
                f"{', '.join(known)}. Choose one of them: device.device=."
            )
        able = core.get_property(self.device, "OPTIMIZATION_CAPABILITIES")
        if self.precision != "f32" and _PRECISIONS[self.precision] not in able:
            raise DeviceError(
                f"OpenVINO's {self.device} does not compute in {self.precision} here (it has "
                f"{', '.join(able)}). Take device.precision=f32."
            )
        return core


def _openvino() -> Any:
    try:
        import openvino
    except ImportError:
        raise not_installed("openvino") from None
    return openvino


@cache
def _core() -> Any:
    return _openvino().Core()


class _Compiled(nn.Module):
    """A compiled network, called with images; of several outputs a dict by name.

    It is compiled for the shape that it is called with: with any number of images it is slower.
    """

    def __init__(self, runtime: OpenVino, network: onnx.ModelProto, threads: int) -> None:
        super().__init__()
        self._load = partial(runtime.load, network, runtime.settings(threads), error=ExportError)
        self._requests: dict[tuple[int, ...], Any] = {}
        (given,) = network.graph.input
        self._request(tuple(max(d.dim_value, 1) for d in given.type.tensor_type.shape.dim))

    def _request(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._requests:
            self._requests[shape] = self._load(shape).create_infer_request()
        return self._requests[shape]

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        given = [images.contiguous().numpy()]
        outputs = self._request(tuple(images.shape)).infer(given, share_inputs=True).items()
        found = {key.get_any_name(): torch.from_numpy(value.copy()) for key, value in outputs}
        return found if len(found) > 1 else next(iter(found.values()))


class _Branches:
    """Operators side by side in a compiled model."""

    def __init__(
        self,
        runtime: OpenVino,
        model: onnx.ModelProto,
        inputs: Mapping[str, Array],
        threads: int,
        part: Sequence[Request],
    ) -> None:
        how = runtime.settings(threads, profiled=True)
        compiled = runtime.load(model, how)
        graph = compiled.get_runtime_model()
        self._nodes, self._still = _nodes_of(graph, part), _without_kernels(graph)
        blob = compiled.export_model()
        self._anew = partial(_core().import_model, blob, runtime.device, how)
        self._inputs = dict(inputs)

    def sample(self) -> list[float]:
        """Milliseconds of every operator: the sum of its nodes'."""
        request = self._anew().create_infer_request()
        first = self._profile(request, _WARM_UP)
        mean = self._profile(request, _CALLS)
        # A node that does something is a call, however short; of others 0 is the truth.
        taken = {
            name: later_mean(first[name], ms)
            for name, ms in mean.items()
            if ms or name not in self._still
        }
        sums = [sum(taken.get(n, 0.0) * sign for n, sign in nodes.items()) for nodes in self._nodes]
        return [max(ms, _LEAST_MS) for ms in sums]

    def _profile(self, request: Any, calls: int) -> dict[str, float]:
        """Node -> milliseconds, after some calls more."""
        for _ in range(calls):
            request.infer(self._inputs, share_inputs=True)
        profile = request.get_profiling_info()
        return {node.node_name: node.real_time.total_seconds() * 1e3 for node in profile}


def later_mean(first_ms: float, mean_ms: float) -> float:
    """The mean of the calls after the first, from means that are cut off to whole ticks.

    Each call is cut off to whole ticks, and so is the mean of all so far: half a tick is what each
    lacks. Of 4 calls with a mean of 9 and 16 with a mean of 3 (in ticks), the later 12 took
    (16 * 3.5 - 4 * 9.5) / 12 + 0.5 = 2.
    """
    calls, half = _WARM_UP + _CALLS, _TICK_MS / 2
    total = calls * (mean_ms + half) - _WARM_UP * (first_ms + half)
    return max(total / _CALLS + half, half)


def _is_alone(request: Request) -> bool:
    """Whether it is timed in a model of its own: what it is has no name there."""
    return is_lone(request) or request.signature.op in OpenVino.converts


def _without_kernels(graph: Any) -> set[str]:
    """Names of the nodes that compute nothing: outputs, reshapings in place."""
    kinds = {n.get_friendly_name(): n.get_rt_info()["primitiveType"] for n in graph.get_ops()}
    return {name for name, kind in kinds.items() if kind.astype(str).startswith("unknown")}


def _nodes_of(graph: Any, part: Sequence[Request]) -> list[dict[str, int]]:
    """Names of the nodes that each request is for, in the graph that is run; 1, or -1 for those
    whose time is no part of it.
    """
    info = {n.get_friendly_name(): n.get_rt_info() for n in graph.get_ordered_ops()}
    if is_lone(part[0]):
        kinds = {name: rt["layerType"].astype(str) for name, rt in info.items()}
        return [{name: 1 for name, kind in kinds.items() if kind not in _AROUND}]
    made_of = {n: rt["originalLayersNames"].astype(str).split(",") for n, rt in info.items()}
    if _is_alone(part[0]):
        known = {name for name in made_of if any(map(_NAMED.search, [name, *made_of[name]]))}
        return [dict.fromkeys(made_of.keys() - known, 1)]
    found: list[dict[str, int]] = []
    for index in range(len(part)):
        mine = re.compile(rf"{output_of(index)}\b(?!.*\.(in\d*|before)\b)")
        names = [name for name, parts in made_of.items() if any(map(mine.match, parts))]
        own = {name: 1 for name in names if not name.startswith("before")}
        if own.keys() & (inside := {f"{output_of(index)}.value.before.out.layer/WithoutBiases"}):
            # Computed inside of a convolution, which is there once more without it.
            own |= {name.replace(".out", ".alone.out"): -1 for name in inside}
        found.append(own)
    return found
