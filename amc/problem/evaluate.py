"""How well a candidate does on a split held in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from amc.data.split import Split
from amc.errors import EvaluationError, NetworkError
from amc.objectives import DEFAULT, Objective, accepts
from amc.objectives.outputs import Outputs, each, finite_images, joined, outputs_of, shapes_of
from amc.utils.layout import laid_out

BATCH = 64  # activations of 64 small images stay in the cache of a core


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of a strategy found.

    Attributes:
        scores: Name -> score, of those of the objective that can be had (`amc.objectives`): of
            classification ``accuracy`` and ``loss`` where there are labels, and ``agreement``.
        costs: Metric -> cost of the strategy.
        seconds: Wall time of building and running the candidate.
    """

    scores: Mapping[str, float]
    costs: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def accuracy(self) -> float | None:
        """The score of that name; None without."""
        return self.scores.get("accuracy")

    @property
    def loss(self) -> float | None:
        """The score of that name; None without."""
        return self.scores.get("loss")

    @property
    def agreement(self) -> float:
        """The score of that name."""
        return self.scores["agreement"]


class Evaluator:
    """Runs networks on one split; its images stay in memory, normalised."""

    def __init__(
        self,
        split: Split,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        reference: nn.Module | None = None,
        *,
        objective: Objective = DEFAULT,
        layout: torch.memory_format = torch.contiguous_format,
        batch: int = BATCH,
    ) -> None:
        """
        Args:
            split: Images, and their targets if there are any.
            reference: The original network; what candidates' outputs are compared with.
            objective: What outputs are judged by.
            layout: How the images lie in memory (`amc.utils.layout.fast_layout`).
            batch: Images that a network is given at once.
        """
        self._batch, self._objective = batch, objective
        self._images = laid_out(split.normalised(mean, std), layout)
        self._targets = split.labels
        self._labels = split.all_labels
        start = time.perf_counter()
        self._network = reference
        self._reference = None if reference is None else self._outputs(reference)
        self._reference_s = time.perf_counter() - start

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> Evaluation:
        """Evaluate a network, which is left in evaluation mode.

        Args:
            dtype: Of the network's weights, and of the images that it is given.

        Raises:
            EvaluationError: Its outputs are not finite, or do not fit the objective.
        """
        start = time.perf_counter()
        outputs = self._outputs(network, dtype)
        return self._judged(network, outputs, start)

    @cached_property
    def original(self) -> Evaluation:
        """Of the reference, which is not run once more."""
        assert self._network is not None
        start = time.perf_counter() - self._reference_s
        return self._judged(self._network, self._reference, start)

    def _judged(self, network: nn.Module, outputs: Outputs, start: float) -> Evaluation:
        judged = self._objective.judge(outputs, self._targets, self._reference)
        scores = {name: float(score) for name, score in judged.items()}
        with torch.inference_mode():
            scores |= self._objective.measure(network, Split(self._images, self._labels))
        return Evaluation(scores, seconds=time.perf_counter() - start)

    def divergence(self, network: nn.Module, dtype: torch.dtype, most: int) -> float:
        """Of a network from the reference, mean over at most so many images, evenly spread.

        Raises:
            EvaluationError: As when called.
        """
        assert self._reference is not None
        step = -(-len(self) // most)
        outputs = self._outputs(network, dtype, step)
        reference = each(self._reference, lambda tensor: tensor[::step])
        return float(self._objective.divergence(outputs, reference).mean())

    def _outputs(
        self, network: nn.Module, dtype: torch.dtype = torch.float32, step: int = 1
    ) -> Outputs:
        """For every ``step``-th image."""
        network.eval()
        images = self._images[::step]
        targets = None if self._targets is None else self._targets[::step]
        found: list[Outputs] = []
        with torch.inference_mode():
            for start in range(0, len(images), self._batch):
                batch = images[start : start + self._batch]
                # A copy: networks may work in place, and these images are needed again.
                output = network(batch.to(dtype, copy=True))
                found.append(each(self._checked(output, len(batch)), Tensor.float))
        outputs = joined(found)
        finite = finite_images(outputs)
        if not bool(finite.all()):
            bad = int((~finite).sum())
            raise EvaluationError(
                f"The network returned NaN or infinite scores for {bad} of {len(finite)} images. "
                "Check its weights, and that the images are normalised as in its training "
                "(data.mean, data.std)."
            )
        why = "" if targets is None else self._objective.mismatch(outputs, targets)
        if why:
            raise EvaluationError(f"The labels do not fit the network: {why}.")
        return outputs

    def _checked(self, returned: object, images: int) -> Outputs:
        try:
            outputs = outputs_of(returned, images)
        except NetworkError as error:
            raise EvaluationError(str(error)) from None
        if accepts(self._objective, outputs, images):
            return outputs
        raise EvaluationError(
            f"The network returned {shapes_of(outputs)} for {images} images; expected "
            f"{self._objective.expected}."
        )
