"""A runtime of one's own: OpenVINO, which compiles the ONNX that amc writes (docs/extending.md).

    pip install amc-compress[openvino]
    amc profile device=custom device.name=docs.examples.openvino_runtime:OpenVino network=resnet20

Operators are timed as branches of one model, by OpenVINO's own profile of its nodes.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import openvino
import torch
from torch import Tensor, nn

import amc
from amc.graph.whole import Whole
from amc.runtimes import NO_WHOLES, Sampler
from amc.runtimes.operators import is_lone, lone_model, operator_model
from amc.runtimes.request import Request
from amc.strategy import Bits

_BRANCHES = 100  # of one model
_CALLS = 5  # of it for one sample: the shortest counts
_LEAST_MS = 5e-4  # the profile is in whole microseconds
_AROUND = {"Reorder", "Result", "Parameter"}  # of a lone operator, not in a network's middle


class OpenVino(amc.Runtime):
    """OpenVINO on this machine's CPU."""

    name, title = "openvino", "OpenVINO"
    supported_bits = (Bits(32, 32), Bits(8, 8))
    fuses = ("leaky_relu", "relu", "relu6", "sigmoid", "tanh", "hardswish", "silu", "gelu")

    def __init__(self) -> None:
        self._core = openvino.Core()

    def machine(self) -> str:
        processor = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        return f"{processor}, OpenVINO {openvino.__version__}"

    def compile(self, network: onnx.ModelProto, threads: int) -> nn.Module:
        return _Compiled(self._requested(network, threads))

    @contextmanager
    def timing(
        self, batch: int, threads: int, wholes: Mapping[str, Whole] = NO_WHOLES
    ) -> Iterator[Sampler]:
        place: dict[Request, tuple[_Branches, int]] = {}

        def sample(requests: Sequence[Request]) -> list[float]:
            new = [request for request in requests if request not in place]
            plain = [request for request in new if not is_lone(request)]
            parts = [plain[i : i + _BRANCHES] for i in range(0, len(plain), _BRANCHES)]
            for part in [*parts, *([request] for request in new if is_lone(request))]:
                branches = self._branches(part, batch, threads, wholes)
                place.update({request: (branches, index) for index, request in enumerate(part)})
            for branches in dict.fromkeys(place[request][0] for request in requests):
                branches.run()
            return [branches.ms(index) for branches, index in map(place.__getitem__, requests)]

        yield sample

    def _branches(
        self, part: Sequence[Request], batch: int, threads: int, wholes: Mapping[str, Whole]
    ) -> _Branches:
        if is_lone(part[0]):  # a call that amc does not follow, a layer that is no operator
            model, inputs = lone_model(part[0], batch, wholes)
            return _Branches(self._requested(model, threads, PERF_COUNT=True), inputs, lone=True)
        branches = operator_model(part, batch)
        return _Branches(self._requested(branches.proto, threads, PERF_COUNT=True), branches.inputs)

    def _requested(self, model: onnx.ModelProto, threads: int, **how: Any) -> Any:
        """A compiled model, ready to be called."""
        read = self._core.read_model(io.BytesIO(model.SerializeToString()))
        how |= {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        return self._core.compile_model(read, "CPU", how).create_infer_request()


class _Compiled(nn.Module):
    def __init__(self, request: Any) -> None:
        super().__init__()
        self._request = request

    def forward(self, images: Tensor) -> Tensor:
        self._request.infer([images.contiguous().numpy()])
        return torch.from_numpy(self._request.get_output_tensor(0).data.copy())


class _Branches:
    """Operators side by side, and how long each took when they were run last."""

    def __init__(self, request: Any, inputs: dict[str, Any], lone: bool = False) -> None:
        self._request, self._inputs, self._lone = request, inputs, lone
        self._taken_ms: dict[str, float] = {}

    def run(self) -> None:
        calls = [self._call() for _ in range(_CALLS)]
        self._taken_ms = {name: min(call[name] for call in calls) for name in calls[0]}

    def _call(self) -> dict[str, float]:
        """Output -> milliseconds of the nodes that give it, whose names begin with its."""
        self._request.infer(self._inputs)
        taken: dict[str, float] = defaultdict(float)
        for node in self._request.get_profiling_info():
            if node.node_type not in _AROUND and ".in" not in node.node_name:  # rounds its input
                name = "y0" if self._lone else re.split(r"[./]", node.node_name)[0]
                taken[name] += node.real_time.total_seconds() * 1e3
        return taken

    def ms(self, index: int) -> float:
        return max(self._taken_ms.get(f"y{index}", 0.0), _LEAST_MS)
