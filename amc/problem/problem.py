"""What is to be compressed, how far, and what for: stated once, and checked before long work."""

from __future__ import annotations

import logging
from typing import TypedDict

import torch
from torch import nn

from amc.cost.budget import Budget, BudgetLike
from amc.cost.device import Device
from amc.cost.model import (
    check_metric,
)
from amc.cost.profile import LocalSpec
from amc.cost.shipped import DeviceLike, as_device
from amc.data.dataset import DataSet, check_data
from amc.errors import ConfigError, DataError
from amc.networks import admit, check_network
from amc.networks.check import run_images
from amc.objectives import (
    AUTO,
    Automatic,
    Objective,
    ObjectiveLike,
    Outputs,
    build_objective,
)
from amc.objectives.outputs import each, joined, left_out, outputs_of, shapes_of
from amc.problem.space import SearchSpace
from amc.recovery.settings import RecoverySettings
from amc.utils.arguments import check_count, check_kind, check_module

log = logging.getLogger("amc")
MEASURED, BATCH = 128, 16  # images of which an objective may take the outputs' scale


def check_problem(
    device: DeviceLike, budget: BudgetLike, space: SearchSpace | None = None
) -> tuple[Device | LocalSpec | None, Budget]:
    """The device and the budget in their one form, checked before anything long begins.

    Raises:
        AmcError: A device or a budget that cannot be, or a device that has no cost in the budget's
            metric or none of the bits of the space.
    """
    check_kind("space", space, SearchSpace, optional=True)
    loaded, bound = as_device(device), Budget.of(budget)
    check_metric(bound.metric, loaded)
    (space or SearchSpace()).options(bound.metric, loaded)
    return loaded, bound


def matched(
    network: nn.Module, data: DataSet, objective: Objective | Automatic
) -> tuple[Objective, DataSet]:
    """The objective and the data as they are to an admitted network (`amc.networks.admit`).

    The data are without labels where those say nothing of its outputs.

    Raises:
        NetworkError: The network's outputs do not fit the objective.
        DataError: Labels of the test images do not fit, and the others' do.
    """
    labels = data.train_labels
    if isinstance(objective, Automatic):
        outputs = check_network(network, data.image_shape, None)
        objective = objective.chosen(outputs, labels)
        log.info(
            "objective=%s, as the network returns %s for two images, and the data have %s",
            *(objective.name, shapes_of(outputs), data.labels_in_words),
        )
    outputs = check_network(network, data.image_shape, objective)
    aside = left_out(run_images(network, data.image_shape))
    if aside:
        log.warning(
            "Outputs that are no numbers of floating point for each image are not compared: %s.",
            ", ".join(aside),
        )
    why = "" if labels is None else objective.mismatch(outputs, labels, data.num_classes)
    tested = data.test_labels
    if labels is not None and not why and tested is not None:
        wrong = objective.mismatch(outputs, tested, data.num_classes)
        if wrong:
            raise DataError(
                f"The labels of the test images do not fit the network, as those of the others do: "
                f"{wrong}."
            )
    if objective.measures_outputs:
        outputs = _outputs_on(network, data)
    return objective.fitted(outputs), data.without_labels(why) if why else data


def _outputs_on(network: nn.Module, data: DataSet) -> Outputs:
    """What a network gives for some calibration images, evenly spread."""
    split = data.calibration
    some = torch.linspace(0, len(split) - 1, min(MEASURED, len(split))).round().long()
    images = split.take(some).normalised(data.mean, data.std)
    with torch.no_grad():
        batches = [outputs_of(network(x.clone()), len(x)) for x in torch.split(images, BATCH)]
    return joined([each(batch, torch.Tensor.float) for batch in batches])


class Problem:
    """What is to be compressed, how far, and what for; checked before anything long begins.

    Attributes:
        network: A copy of the original network (`amc.networks.admit`), in evaluation mode.
        data: As they are to the network (`matched`).
        device: Loaded; a runtime on this machine is not measured yet.
        budget: The bound and its metric.
        objective: What the network is for, as it is to the network.
        space, recovery, search_images, bfloat16: As given.
    """

    def __init__(
        self,
        network: nn.Module,
        data: DataSet,
        device: DeviceLike = "onnxruntime_cpu",
        budget: BudgetLike = 0.5,
        *,
        objective: ObjectiveLike = AUTO,
        space: SearchSpace | None = None,
        recovery: RecoverySettings | None = None,
        search_images: int = 1000,
        bfloat16: bool | None = None,
    ) -> None:
        """
        Args:
            network: Trained; maps images of the data's shape to what the objective judges. Not
                modified.
            data: Train, calibration, search and test images. Their labels count where they fit the
                network's outputs.
            device: Name of a shipped device, its options as a mapping, a loaded device; None
                where the budget's metric needs none.
            budget: A `Budget`, its fields as a mapping, or a fraction of the original's latency.
            objective: What outputs and labels are, and how they are judged: a name such as
                "classification", ``package.module:Class``, or an `amc.Objective`; "auto": what
                the outputs and the labels look like.
            space: What a strategy may choose.
            recovery: How a smaller network is repaired.
            search_images: Images of the search split that each evaluation runs on.
            bfloat16: Whether candidates without quantized layers are evaluated in bfloat16 (what
                is kept is judged in float32); None: where the processor computes in it and the
                original's outputs stay what they are.

        Raises:
            NetworkError: The network is no module, cannot be admitted, or does not fit the
                objective.
            DataError: The data are no `DataSet`.
            AmcError: One of its other kinds, for whatever does not fit; see `amc.errors`.
        """
        check_module(network)
        check_data(data)
        check_kind("recovery", recovery, RecoverySettings, optional=True)
        check_count("search.images", search_images)
        if bfloat16 is not None and type(bfloat16) is not bool:
            raise ConfigError(f"search.bfloat16 must be true, false or null, got {bfloat16!r}.")
        self.device, self.budget = check_problem(device, budget, space)
        if isinstance(self.device, LocalSpec):
            self.device.runs_on.check()
        built = build_objective(objective)
        self.network = admit(network, data.image_shape)
        self.objective, self.data = matched(self.network, data, built)
        self.space, self.recovery = space or SearchSpace(), recovery or RecoverySettings()
        self.search_images, self.bfloat16 = search_images, bfloat16


class ProblemOptions(TypedDict, total=False):
    """What functions pass on to a `Problem` as it is."""

    objective: ObjectiveLike
    space: SearchSpace | None
    recovery: RecoverySettings | None
    search_images: int
    bfloat16: bool | None
