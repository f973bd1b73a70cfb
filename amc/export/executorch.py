"""Writing a compressed network as an ExecuTorch program, for phones and boards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.export.file import DEFAULT_OPSET, convert
from amc.export.parity import AS_WRITTEN, IN_INTEGERS, Comparison
from amc.networks import admit
from amc.networks.autocast import WithoutAutocast
from amc.runtimes.executorch import ExecuTorch, LoadedProgram, program
from amc.utils.files import write_atomically

_ROUNDED = replace(
    IN_INTEGERS, causes="Likely cause: calibration images unlike those that it is compared on."
)


@dataclass(frozen=True)
class ProgramReport:
    """What an ExecuTorch program is.

    Attributes:
        path: The file.
        file_bytes: Its size.
        runtime: What wrote it, with its version.
    """

    path: Path
    file_bytes: int
    runtime: str


def export_executorch(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    path: str | Path,
    *,
    images: Tensor | None = None,
    compare_on: Tensor | None = None,
    opset: int = DEFAULT_OPSET,
) -> ProgramReport:
    """Write a network, compressed or not, as an ExecuTorch program (``.pte``) for XNNPACK.

    It is made of what `amc.export.export_onnx` writes, on the same grids. A layer in 8 bits whose
    output is not rounded (the last one; one before a layer in float that is not an addition) is
    computed in floats, with the values of its grids. The program takes one image at a time.

    Before anything stands at the path, the program is run beside the network, as ONNX files are.

    Args:
        As `amc.export.export_onnx`.

    Raises:
        As `amc.export.export_onnx`; DeviceError: ExecuTorch is not installed.
    """
    path = Path(path)
    network = admit(network, image_shape)
    converted = convert(network, image_shape, images=images, opset=opset)
    content = program(converted.model, [torch.zeros(1, *image_shape)])
    running = _OneByOne(
        LoadedProgram(content, [output.name for output in converted.model.graph.output])
    )
    in_floats = all(layer.bits.is_float for layer in converted.layers.values())
    with WithoutAutocast():
        comparison = Comparison(
            path, network, image_shape, images if compare_on is None else compare_on
        )
        comparison.check_running(running, ExecuTorch.title, AS_WRITTEN if in_floats else _ROUNDED)
    write_atomically(path, lambda temporary: _write(temporary, content))
    return ProgramReport(path, len(content), ExecuTorch().machine().partition(", ")[2])


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


class _OneByOne(nn.Module):
    """A program of one image, called with many."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self._program = program

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        given = [self._program(image) for image in torch.split(images, 1)]
        if isinstance(given[0], dict):
            return {name: torch.cat([one[name] for one in given]) for name in given[0]}
        return torch.cat(given)
