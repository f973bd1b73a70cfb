"""ONNX files run by ONNX Runtime on the CPU."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from amc.errors import ExportError
from amc.export.precision import load_onnx
from amc.export.skeleton import INPUT, OUTPUT

# What ONNX Runtime makes of a QDQ layer that it computes in integers.
_INTEGER_LAYERS = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat"}
_ERRORS_ONLY = 3


class OnnxNetwork(nn.Module):
    """An ONNX file, or a model that is none yet, called like a network.

    Input (N, channels, height, width) float32 on the CPU, output (N, classes).
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

    def forward(self, images: Tensor) -> Tensor:
        (scores,) = self._session.run([OUTPUT], {INPUT: images.contiguous().numpy()})
        return torch.from_numpy(scores)


def runtime_operators(path: str | Path) -> Counter[str]:
    """Operator -> how often ONNX Runtime on this CPU runs it, after all that it fuses.

    Raises:
        As `OnnxNetwork`.
    """
    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
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
    optimized: Path | None = None,
    fused: bool = True,
) -> Any:
    """ONNX Runtime's session of a model on the CPU.

    Args:
        name: What errors call the model.
        optimized: Where to write what is really run.
        fused: As `OnnxNetwork`.

    Raises:
        ExportError: ONNX Runtime cannot run it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _ERRORS_ONLY
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its errors share no base of their own
        reason = str(error).strip().splitlines()[0]
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {name}: {reason}. "
            "Try another opset (opset=), or a newer ONNX Runtime."
        ) from error
