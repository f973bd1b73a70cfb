"""TensorRT as a device, against a stand-in at the border of its Python interface.

The stand-in runs what it is given in ONNX Runtime, at the addresses that it is given, and tells a
profiler of every node. No machine that had TensorRT has run this.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from amc.cost.profile import LocalSpec
from amc.cost.shipped import as_device
from amc.errors import DeviceError, ExportError
from amc.export import convert
from amc.graph.types import Signature
from amc.runtimes import TensorRt
from amc.runtimes import tensorrt as room
from amc.runtimes.request import Request
from amc.strategy import FLOAT
from tests.conftest import TINY_SHAPE

CONV = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(4, 4), out_size=(4, 4))


class Context:
    """Of an engine: tensors by their addresses."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        content, place = model.SerializeToString(), ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(content, providers=place)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.at: dict[str, int] = {}
        self.profiler: Any = None

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.at[name] = address

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        zeros = {n: np.zeros(shape, np.float32) for n, shape in self.shapes.items()}
        (found,) = self.session.run([name], zeros)
        return tuple(found.shape)

    def memory(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        pointer = ctypes.cast(self.at[name], ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape)

    def execute_async_v3(self, stream: int) -> bool:
        given = {name: self.memory(name, shape) for name, shape in self.shapes.items()}
        names = [output.name for output in self.model.graph.output]
        for name, found in zip(names, self.session.run(names, given), strict=True):
            self.memory(name, found.shape)[...] = found
        if self.profiler is not None:
            for place, node in enumerate(self.model.graph.node):
                self.profiler.report_layer_time(node.name, 0.25 * (place + 1))
                self.profiler.report_layer_time(f"Reformatting CopyNode for {node.name}", 99.0)
        return True


def stand_in(*, reads: bool = True, builds: bool = True) -> SimpleNamespace:
    """The module ``tensorrt``, as far as amc asks."""
    asked = SimpleNamespace(flags=[], shapes={})

    class Network:
        model: onnx.ModelProto

    class Parser:
        num_errors = 1

        def __init__(self, network: Network, log: object) -> None:
            self.network = network

        def parse(self, content: bytes) -> bool:
            self.network.model = onnx.load_model_from_string(content)
            return reads

        def get_error(self, place: int) -> str:
            return "node of type Odd: no importer"

    class Engine:
        def __init__(self, content: bytes) -> None:
            self.model = onnx.load_model_from_string(content)
            graph = self.model.graph
            self.names = [value.name for value in (*graph.input, *graph.output)]
            self.num_io_tensors = len(self.names)

        def get_tensor_name(self, place: int) -> str:
            return self.names[place]

        def get_tensor_mode(self, name: str) -> str:
            return "in" if name in {value.name for value in self.model.graph.input} else "out"

        def create_execution_context(self) -> Context:
            return Context(self.model)

    class Builder:
        def __init__(self, log: object) -> None: ...

        def create_network(self, flags: int) -> Network:
            return Network()

        def create_builder_config(self) -> SimpleNamespace:
            return SimpleNamespace(
                set_flag=asked.flags.append, add_optimization_profile=lambda shapes: None
            )

        def create_optimization_profile(self) -> SimpleNamespace:
            return SimpleNamespace(
                set_shape=lambda name, *shapes: asked.shapes.update({name: shapes})
            )

        def build_serialized_network(self, network: Network, how: object) -> bytes | None:
            return network.model.SerializeToString() if builds else None

    class Runtime:
        def __init__(self, log: object) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Engine:
            return Engine(plan)

    class Logger:
        ERROR = 2

        def __init__(self, level: int) -> None: ...

    return SimpleNamespace(
        __version__="10.9.0",
        Logger=Logger,
        Builder=Builder,
        OnnxParser=Parser,
        Runtime=Runtime,
        IProfiler=object,
        ProfilingVerbosity=SimpleNamespace(DETAILED=2),
        BuilderFlag=SimpleNamespace(FP16="fp16"),
        TensorIOMode=SimpleNamespace(OUTPUT="out"),
        asked=asked,
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a stand-in where TensorRT and a GPU would be."""

    def put(**how: bool) -> SimpleNamespace:
        made = stand_in(**how)
        monkeypatch.setitem(sys.modules, "tensorrt", made)
        return made

    room._tensorrt.cache_clear()
    room._log.cache_clear()
    monkeypatch.setattr(room, "_PLACE", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=1))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    yield put
    room._tensorrt.cache_clear()
    room._log.cache_clear()


def test_engine_gives_what_the_network_gives_for_any_number_of_images(
    installed: Any, tiny_net: nn.Module
) -> None:
    asked = installed().asked
    runs = TensorRt(precision="f16").compile(convert(tiny_net, TINY_SHAPE).model, 1)
    for count in (2, 3, 2):
        images = torch.rand(count, *TINY_SHAPE)
        with torch.inference_mode():
            assert torch.allclose(runs(images), tiny_net.eval()(images), atol=1e-5)
    assert set(asked.flags) == {"fp16"}
    assert next(iter(asked.shapes.values())) == ((3, *TINY_SHAPE),) * 3  # the last that was built


def test_operators_take_what_the_profile_says_of_their_own_layers(installed: Any) -> None:
    installed()
    relu = Signature("relu", in_size=(4, 4), out_size=(4, 4))
    requests = [Request(CONV, 3, 8, FLOAT), Request(relu, 8, 8, FLOAT)]
    with TensorRt().timing(1, 1) as sample:
        conv, relu_ms = sample(requests)
    with TensorRt().timing(1, 1) as sample:
        (alone,) = sample(requests[1:])
    # Nodes in order: a convolution and the rectifier behind it, then a rectifier.
    assert (conv, relu_ms) == (0.25 + 0.5, 0.75)
    assert alone == 0.25


def test_layers_are_told_apart_by_whole_numbers() -> None:
    part = [Request(CONV, 3, 8, FLOAT)] * 12
    layers = {"y1.layer + y1": 1.0, "y10.layer": 2.0, "Reformatting CopyNode for y1": 9.0}
    found = room.attributed(layers, part)
    assert (found[1], found[10], sum(found)) == (1.0, 2.0, 3.0)


def test_machine_names_the_gpu_the_version_and_the_precision(installed: Any) -> None:
    installed()
    assert TensorRt().machine() == "A GPU, TensorRT 10.9.0"
    assert TensorRt(precision="f16").machine() == "A GPU, TensorRT 10.9.0, f16"
    device = as_device("tensorrt")
    assert isinstance(device, LocalSpec)
    assert device.batch == 64


def test_what_tensorrt_refuses_is_one_error(installed: Any, tiny_net: nn.Module) -> None:
    model = convert(tiny_net, TINY_SHAPE).model
    installed(reads=False)
    with pytest.raises(ExportError, match="cannot read the model: node of type Odd: no importer"):
        TensorRt().compile(model, 1)
    room._tensorrt.cache_clear()
    installed(builds=False)
    with pytest.raises(ExportError, match="cannot build an engine"):
        TensorRt().compile(model, 1)


def test_missing_package_gpu_or_precision_is_named(
    installed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DeviceError, match="TensorRT is not installed: pip install 'tensorrt'"):
        TensorRt().machine()
    installed()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU, and PyTorch finds none"):
        TensorRt().check()
    with pytest.raises(DeviceError, match=r"device.precision must be one of f32, f16, got 'int4'"):
        TensorRt(precision="int4")
