"""What runs networks on this machine: ONNX Runtime, PyTorch, and classes of yours."""

from amc.runtimes.onnxruntime import (
    PROVIDER,
    OnnxNetwork,
    OnnxRuntime,
    integer_layers,
    load_onnx,
    open_session,
    runtime_operators,
)
from amc.runtimes.operators import lone_model
from amc.runtimes.pytorch import TorchRuntime
from amc.runtimes.runtime import MODULE, NO_WHOLES, ONNX, Runtime, Sampler

BUILT_IN: dict[str, type[OnnxRuntime | TorchRuntime]] = {
    "torch": TorchRuntime,
    "onnxruntime": OnnxRuntime,
}
DEVICES = ("onnxruntime_cpu", "torch_cpu", "torch_cuda")  # these, as devices that come with amc
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
    "OnnxNetwork",
    "OnnxRuntime",
    "Runtime",
    "Sampler",
    "TorchRuntime",
    "integer_layers",
    "load_onnx",
    "lone_model",
    "open_session",
    "runtime_operators",
]
