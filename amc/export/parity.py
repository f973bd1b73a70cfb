"""Whether what was written is the network: what runs files beside PyTorch on the same images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from amc.compress.quantization import Quantized
from amc.errors import EvaluationError, ExportError
from amc.export.skeleton import is_written_here
from amc.layers import kind_of
from amc.objectives import DEFAULT, Objective, Outputs
from amc.objectives.maps import Maps
from amc.objectives.outputs import by_name, each, finite_images, joined, named_tensors, outputs_of
from amc.runtimes import OF_FILES
from amc.strategy import FLOAT_BITS
from amc.utils.progress import progress_bar

_BATCH = 64
_COMPARED = 32  # images that a file is compared with its network on, before it is written
_MARGIN = 5.0  # times what rounding at random changes: that in a file is another, of a like size
_FLOOR = 1e-4  # of the largest score: as good as equal, whatever explains it


@dataclass(frozen=True)
class Parity:
    """How near an ONNX file is to the PyTorch network.

    Attributes:
        images: Number of images compared.
        same: Fraction of the decisions (of classification: an image's class) that both take alike.
        torch_scores, onnx_scores: The objective's scores of each, given labels; empty without.
        max_difference: Largest absolute difference of a score. A value half-way between two
            integers of a grid may be rounded either way, so it is small, not zero.
        max_score: Largest absolute score of the PyTorch network, for comparison.
    """

    images: int
    same: float
    torch_scores: Mapping[str, float]
    onnx_scores: Mapping[str, float]
    max_difference: float
    max_score: float


def check_parity(
    path: str | Path,
    network: nn.Module,
    images: Tensor,
    labels: Tensor | None,
    objective: Objective | None = None,
    *,
    threads: int = 1,
) -> Parity:
    """Run an ONNX file and the network that it was made from on the same images.

    Args:
        path: As `amc.export.export_onnx` wrote it.
        network: On the CPU; it is left in evaluation mode.
        images: Normalised, (n, channels, height, width).
        labels: (n, ...), if there are any.
        objective: What outputs are judged by; None: class scores (n, classes) as such, and other
            outputs as raw maps.

    Raises:
        EvaluationError: One of them gives scores that are not finite.
        ExportError: The runtime cannot run the file.
    """
    runtime = OF_FILES.load(path, threads=threads)
    return parity_of(
        network, runtime, images, labels, objective, where=str(path), title=OF_FILES.title
    )


def parity_of(
    network: nn.Module,
    other: Callable[[Tensor], object],
    images: Tensor,
    labels: Tensor | None,
    objective: Objective | None = None,
    *,
    where: str,
    title: str,
) -> Parity:
    """Run a network and what was made of it on the same images: as `check_parity`.

    Args:
        other: What was made of it; its scores are the `Parity.onnx_scores`.
        where, title: What an error calls the file, and what runs it.

    Raises:
        EvaluationError: One of them gives scores that are not finite.
    """
    network.eval()
    expected, given = [], []
    with torch.inference_mode(), progress_bar("comparing", -(-len(images) // _BATCH)) as bar:
        for start in range(0, len(images), _BATCH):
            batch = images[start : start + _BATCH]
            expected.append(outputs_of(network(batch.clone()), len(batch)))
            given.append(_like(expected[-1], other(batch), len(batch)))
            bar.advance()
    ours, theirs = joined(expected), joined(given)
    for name, scores in (("PyTorch", ours), (title, theirs)):
        if not bool(finite_images(scores).all()):
            raise EvaluationError(
                f"{where}: {name} gives NaN or infinite scores. Check the network's weights."
            )

    if objective is None:
        objective = DEFAULT if isinstance(ours, Tensor) and ours.dim() == 2 else Maps()
    torch_scores, onnx_scores = (
        {name: float(score) for name, score in objective.judge(outputs, labels, None).items()}
        for outputs in (ours, theirs)
    )
    same = objective.decisions(ours) == objective.decisions(theirs)
    # Of several outputs the one that differs most, beside its own size.
    sizes = [
        (float((one - other).abs().max()), float(one.abs().max()))
        for one, other in zip(by_name(ours).values(), by_name(theirs).values(), strict=True)
    ]
    difference, largest = max(sizes, key=lambda pair: pair[0] / max(pair[1], 1e-12))
    return Parity(
        images=len(images),
        same=float(same.double().mean()),
        torch_scores=torch_scores,
        onnx_scores=onnx_scores,
        max_difference=difference,
        max_score=largest,
    )


def _like(expected: Outputs, given: object, images: int) -> Outputs:
    """What a file gives, by the names that the network has for it."""
    found = outputs_of(given, images)
    return dict(zip(expected, found.values(), strict=True)) if isinstance(found, dict) else found


@dataclass(frozen=True)
class Rounding:
    """How much a file may round otherwise than PyTorch does.

    Attributes:
        values: By how much of its largest value a layer's input or output may be moved.
        counts: By how many counts (input step times weight step) a quantized layer's output may.
        fused: Whether it is asked of what the runtime makes of the file, or of what the file says.
        causes: What else may have happened where that explains no difference: for the user.
    """

    values: float
    counts: float
    fused: bool
    causes: str


AS_WRITTEN = Rounding(
    values=1e-5,  # sums in another order, and values half-way between two steps of a grid
    counts=0.0,
    fused=False,
    causes="Likely cause: Python code that goes by the contents or the number of its images (a "
    "file does what was done for two black ones).",
)
IN_INTEGERS = Rounding(
    values=1 / 255,  # a grid of 8 bits on what lies between layers, its sign included
    counts=0.5,  # biases in whole counts
    fused=True,
    causes="Computed in floats, the file does agree. Likely causes: calibration images unlike "
    f"those that it is compared on, or a processor on which {OF_FILES.title}'s 8-bit products "
    "overflow (x86 without VNNI). images=None, for the command integer_additions=false, rounds "
    "less.",
)


class Comparison:
    """A network's scores on a few images, and models of it compared with them.

    What rounding explains is measured: the root mean square change of the network's own scores
    when the inputs and outputs of its layers are moved at random, by as much as rounding may. Grids
    of few bits make whole steps of small movements; in such a network they do so here too. Models
    of real networks differed by 0.01 of that in floats, and by up to 1.1 of it in few bits.
    """

    def __init__(
        self,
        name: str | Path,
        network: nn.Module,
        image_shape: tuple[int, int, int],
        images: Tensor | None,
    ) -> None:
        """
        Args:
            name: What errors call the file.
            network: As `amc.networks.admit` gives it. Not modified.
            images: Normalised, (n, channels, height, width); None: noise is compared on, and what
                is not finite then is not compared.

        Raises:
            EvaluationError: The network's scores on the images are not finite.
            ExportError: It gives other scores at every call.
        """
        self._name, self._network = name, copy.deepcopy(network).cpu().eval()
        self._images = _noise(image_shape) if images is None else _some_of(images)
        with torch.inference_mode():
            self._expected, again = (_scores(self._network, self._images) for _ in range(2))
        if images is not None and not bool(finite_images(self._expected).all()):
            raise EvaluationError(
                f"{name} was not written: PyTorch gives NaN or infinite scores. Check the "
                "network's weights."
            )
        expected = by_name(self._expected)
        if not all(
            torch.allclose(scores, expected[name], _FLOOR, equal_nan=True)
            for name, scores in by_name(again).items()
        ):
            raise ExportError(
                f"{name} was not written: {type(network).__name__} gives other scores each time "
                "that it is called on the same images. Take random numbers (dropout with "
                "training=True) and what it remembers between calls out of its forward."
            )

    def check(self, model: onnx.ModelProto, rounding: Rounding) -> None:
        """Check that a model gives the network's scores, but for what rounding explains.

        Raises:
            ExportError: It does not, or the runtime cannot run it.
        """
        runtime = OF_FILES.load(model, name=self._name, fused=rounding.fused)
        self.check_running(runtime, OF_FILES.title, rounding)

    def check_running(self, running: nn.Module, title: str, rounding: Rounding) -> None:
        """Check that what runs a file gives the network's scores, as `check`.

        Args:
            title: Of the runtime.

        Raises:
            ExportError: It does not.
        """
        found, expected = named_tensors(running(self._images)), by_name(self._expected)
        with torch.inference_mode(), _moved(self._network, rounding):
            moved = by_name(_scores(self._network, self._images))
        for (name, scores), given in zip(expected.items(), found.values(), strict=True):
            self._compare(scores, given, moved[name], rounding, title)

    def _compare(
        self, expected: Tensor, found: Tensor, moved: Tensor, rounding: Rounding, title: str
    ) -> None:
        """Check one output."""
        if found.shape != expected.shape:
            raise ExportError(
                f"{self._name} was not written: for {len(expected)} images {title} gives "
                f"scores of shape {tuple(found.shape)}, PyTorch {tuple(expected.shape)}. "
                f"{rounding.causes}"
            )
        finite = (expected.isfinite() & moved.isfinite()).flatten(1).all(1)
        if not bool(finite.any()):
            return  # nothing can be compared
        expected, moved, found = (scores[finite] for scores in (expected, moved, found))
        difference, explained = _size(found - expected), _size(moved - expected)
        largest = float(expected.abs().max())
        if difference <= _MARGIN * explained + _FLOOR * largest:
            return
        raise ExportError(
            f"{self._name} was not written: {title} does not compute from it what PyTorch "
            f"does. Scores differ by up to {float((found - expected).abs().max()):.3g}, in the "
            f"root mean square by {difference:.3g}, of which rounding explains {explained:.3g}; "
            f"they are up to {largest:.3g}. {rounding.causes}"
        )


def _noise(image_shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(_COMPARED, *image_shape, generator=torch.Generator().manual_seed(0))


def _some_of(images: Tensor) -> Tensor:
    """From all over: data sets come sorted by class."""
    return images[torch.linspace(0, len(images) - 1, min(_COMPARED, len(images))).long()]


def _scores(network: nn.Module, images: Tensor) -> Outputs:
    returned = network(images.clone())  # a network may work in place
    return each(outputs_of(returned, len(images)), Tensor.float)


def _size(values: Tensor) -> float:
    """Their root mean square."""
    return float(values.double().square().mean().sqrt())


@contextmanager
def _moved(network: nn.Module, rounding: Rounding) -> Iterator[None]:
    """Layers see and give values that are moved at random, by up to what rounding may move."""
    generator = torch.Generator().manual_seed(0)

    def noise(shape: Sequence[int]) -> Tensor:
        return torch.rand(tuple(shape), generator=generator).mul_(2).sub_(1)

    def moved(x: Tensor) -> Tensor:
        return x + noise(x.shape) * (rounding.values * x.abs().max())

    def move_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (moved(inputs[0]), *inputs[1:])

    def move_output(layer: nn.Module, _: tuple[Tensor, ...], y: Tensor) -> Tensor:
        y = moved(y)
        if not isinstance(layer, Quantized) or FLOAT_BITS in layer.bits:
            return y
        count = layer.input_scale * layer.weight_scale
        bias: Tensor = noise(count.shape) * (rounding.counts * count)
        return y + kind_of(layer).spread(bias, y.dim())

    layers = [module for module in network.modules() if is_written_here(module)]
    hooks = [layer.register_forward_pre_hook(move_input) for layer in layers]
    hooks += [layer.register_forward_hook(move_output) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
