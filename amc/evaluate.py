"""How well a candidate does on a split held in memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from amc.data.split import Split
from amc.errors import EvaluationError
from amc.layout import laid_out
from amc.scores import are_probabilities, as_logits

BATCH = 64  # activations of 64 small images stay in the cache of a core


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation of a strategy found; without labels, neither accuracy nor loss.

    Attributes:
        accuracy: Fraction of images classified rightly.
        loss: Mean cross-entropy with the labels, nats.
        agreement: Minus the mean KL divergence from the original network's class probabilities
            to the candidate's, nats; 0 is perfect agreement. Needs no labels.
        costs: Metric -> cost of the strategy.
        seconds: Wall time of building and running the candidate.
    """

    accuracy: float | None
    loss: float | None
    agreement: float
    costs: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0


class Evaluator:
    """Runs networks on one split; its images stay in memory, normalised.

    Attributes:
        gives_probabilities: Whether the original ends with a softmax; without one, False.
    """

    def __init__(
        self,
        split: Split,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        reference: nn.Module | None = None,
        *,
        layout: torch.memory_format = torch.contiguous_format,
        batch: int = BATCH,
    ) -> None:
        """
        Args:
            split: Images, and their labels if there are any.
            reference: The original network; its outputs are what agreement is measured by.
            layout: How the images lie in memory (`amc.layout.fast_layout`).
            batch: Images that a network is given at once.
        """
        self._batch = batch
        self._images = laid_out(split.normalised(mean, std), layout)
        self._labels = split.labels
        self._reference, self.gives_probabilities = None, False
        if reference is not None:
            outputs = self._logits(reference)
            self.gives_probabilities = are_probabilities(outputs)
            self._reference = functional.log_softmax(as_logits(outputs), 1)

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> Evaluation:
        """Evaluate a network, which is left in evaluation mode.

        Args:
            dtype: Of the network's weights, and of the images that it is given.

        Raises:
            EvaluationError: Its outputs are not finite, or not one score per class.
        """
        start = time.perf_counter()
        logits = self._logits(network, dtype)
        log_probabilities = functional.log_softmax(as_logits(logits), 1)
        agreement = 0.0
        if self._reference is not None:
            divergence = functional.kl_div(
                log_probabilities, self._reference, reduction="batchmean", log_target=True
            )
            agreement = -float(divergence)
        accuracy = loss = None
        if self._labels is not None:
            accuracy = float((logits.argmax(1) == self._labels).double().mean())
            loss = float(functional.nll_loss(log_probabilities, self._labels))
        return Evaluation(
            accuracy=accuracy,
            loss=loss,
            agreement=agreement,
            seconds=time.perf_counter() - start,
        )

    def _logits(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
        network.eval()
        outputs: list[Tensor] = []
        with torch.inference_mode():
            for start in range(0, len(self._images), self._batch):
                batch = self._images[start : start + self._batch]
                # A copy: networks may work in place, and these images are needed again.
                scores = network(batch.to(dtype, copy=True))
                outputs.append(_scores(scores, len(batch)).float())
        logits = torch.cat(outputs)
        if not bool(torch.isfinite(logits).all()):
            bad = int((~torch.isfinite(logits)).any(1).sum())
            raise EvaluationError(
                f"The network returned NaN or infinite scores for {bad} of {len(logits)} images. "
                "Check its weights, and that the images are normalised as in its training "
                "(data.mean, data.std)."
            )
        if self._labels is not None and int(self._labels.max()) >= logits.shape[1]:
            raise EvaluationError(
                f"The data has class {int(self._labels.max())}, but the network scores only "
                f"{logits.shape[1]} classes (counted from 0)."
            )
        return logits


def _scores(output: object, images: int) -> Tensor:
    if isinstance(output, Tensor) and output.dim() == 2 and len(output) == images:
        return output
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise EvaluationError(
        f"The network returned {shape} for {images} images; expected a tensor with one row of "
        "class scores for each image."
    )
