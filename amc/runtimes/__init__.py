"""What runs networks here: ONNX Runtime, PyTorch, OpenVINO, ExecuTorch, TensorRT, classes of yours.

A package that not everyone has is imported where its runtime is first used.
"""

from amc.runtimes.executorch import ExecuTorch
from amc.runtimes.onnxruntime import (
    PROVIDER,
    OnnxNetwork,
    OnnxRuntime,
    integer_layers,
    load_onnx,
    open_session,
    runtime_operators,
)
from amc.runtimes.openvino import OpenVino
from amc.runtimes.operators import lone_model
from amc.runtimes.pytorch import TorchRuntime
from amc.runtimes.runtime import MODULE, NO_WHOLES, ONNX, Runtime, Sampler
from amc.runtimes.tensorrt import TensorRt

BUILT_IN: dict[str, type[OnnxRuntime | TorchRuntime | OpenVino | ExecuTorch | TensorRt]] = {
    "torch": TorchRuntime,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "executorch": ExecuTorch,
    "tensorrt": TensorRt,
}
# These, as devices that come with amc.
DEVICES = (
    *("onnxruntime_cpu", "openvino_cpu", "executorch_xnnpack"),
    *("torch_cpu", "torch_cuda", "tensorrt"),
)
DEFAULT_DEVICE = DEVICES[0]
OF_FILES = OnnxRuntime()  # runs and times what is exported
ELSEWHERE = TorchRuntime()  # times networks whose device is not this machine

__all__ = [
    "BUILT_IN",
    "DEFAULT_DEVICE",
    "DEVICES",
    "ELSEWHERE",
    "MODULE",
    "NO_WHOLES",
    "OF_FILES",
    "ONNX",
    "PROVIDER",
    "ExecuTorch",
    "OnnxNetwork",
    "OnnxRuntime",
    "OpenVino",
    "Runtime",
    "Sampler",
    "TensorRt",
    "TorchRuntime",
    "integer_layers",
    "load_onnx",
    "lone_model",
    "open_session",
    "runtime_operators",
]
