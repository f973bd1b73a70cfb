"""Whether what was written is the network: ONNX Runtime beside PyTorch on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.errors import EvaluationError
from amc.export.runtime import OnnxNetwork
from amc.progress import progress_bar

_BATCH = 64


@dataclass(frozen=True)
class Parity:
    """How near an ONNX file is to the PyTorch network.

    Attributes:
        images: Number of images compared.
        agreement: Fraction of them that both give the same class.
        torch_accuracy, onnx_accuracy: Fraction classified rightly by each; None without labels.
        max_difference: Largest absolute difference of a score. A value half-way between two
            integers of a grid may be rounded either way, so it is small, not zero.
        max_score: Largest absolute score of the PyTorch network, for comparison.
    """

    images: int
    agreement: float
    torch_accuracy: float | None
    onnx_accuracy: float | None
    max_difference: float
    max_score: float


def check_parity(
    path: str | Path, network: nn.Module, images: Tensor, labels: Tensor | None, *, threads: int = 1
) -> Parity:
    """Run an ONNX file and the network that it was made from on the same images.

    Args:
        path: As `amc.export.export_onnx` wrote it.
        network: On the CPU; it is left in evaluation mode.
        images: Normalised, (n, channels, height, width).
        labels: (n,), if there are any.

    Raises:
        EvaluationError: One of them gives scores that are not finite.
        ExportError: ONNX Runtime cannot run the file.
    """
    runtime = OnnxNetwork(path, threads=threads)
    network.eval()
    expected, given = [], []
    with torch.inference_mode(), progress_bar("comparing", -(-len(images) // _BATCH)) as bar:
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            expected.append(network(batch.clone()))
            given.append(runtime(batch))
            bar.advance()
    ours, theirs = torch.cat(expected), torch.cat(given)
    for name, scores in (("PyTorch", ours), ("ONNX Runtime", theirs)):
        if not bool(torch.isfinite(scores).all()):
            raise EvaluationError(
                f"{path}: {name} gives NaN or infinite scores. Check the network's weights."
            )

    def fraction(right: Tensor) -> float:
        return float(right.double().mean())

    return Parity(
        images=len(images),
        agreement=fraction(ours.argmax(1) == theirs.argmax(1)),
        torch_accuracy=None if labels is None else fraction(ours.argmax(1) == labels),
        onnx_accuracy=None if labels is None else fraction(theirs.argmax(1) == labels),
        max_difference=float((ours - theirs).abs().max()),
        max_score=float(ours.abs().max()),
    )
