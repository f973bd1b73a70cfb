"""Training with the objective's loss: fine-tuning what a search gave, and base networks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.compress.network import CompressedNetwork, give_whole_weights
from amc.compress.verify import graph_of
from amc.data.dataset import DataSet, check_data
from amc.errors import ConfigError, NetworkError
from amc.networks import admit, load_checkpoint, unwrapped
from amc.networks.check import run_images
from amc.objectives import (
    AUTO,
    DEFAULT,
    Objective,
    ObjectiveLike,
    build_objective,
    primary_score,
)
from amc.problem.evaluate import Evaluator
from amc.problem.problem import matched
from amc.recovery.constraints import Constraints
from amc.recovery.distillation import Ensemble
from amc.recovery.training import (
    BASE_TRAINING,
    EpochRecord,
    TrainingResult,
    TrainingSettings,
    train,
)
from amc.recovery.training_rate import with_rate
from amc.study import artifact
from amc.utils.arguments import check_folder, check_kind, check_module
from amc.utils.files import fingerprint, locked, write_tensors
from amc.utils.group import Group, joined
from amc.utils.interrupt import said_on_interrupt, stop_on_interrupt
from amc.utils.machine import cache_folder

log = logging.getLogger("amc")


def finetune(
    compressed: nn.Module,
    original: nn.Module,
    data: DataSet,
    *,
    settings: TrainingSettings,
    objective: ObjectiveLike = AUTO,
    teachers: Sequence[nn.Module] | None = None,
    folder: str | Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainingResult:
    """Train a compressed network on the labels, if there are any, and the original's outputs.

    Knowledge distillation (Hinton et al. 2015), quantization kept in the loop, and what else was
    decided of the weights (`amc.Decision.constrain`). The best epoch on the search split is kept,
    by the objective's first score of labels or, without labels, its first other; with a folder, a
    killed run goes on where it was, and `load_compressed` reads what came of it.

    A program that PyTorch's ``torchrun`` starts in several processes calls this in each of them:
    they train together, each on a part of every batch, and all get the result.

    Args:
        compressed: As `search` or `load_compressed` gives it; trained in place.
        original: What it was made from. Not modified, nor moved.
        teachers: What is learned from, the mean of their outputs; not modified, nor moved. None:
            from the original.
        settings: `TrainingSettings`, of which ``epochs`` has no usual value.
        objective: As in `search`.
        folder: Where each epoch's state is kept and, at the end, the network, if ``compressed``
            is one that amc made; None keeps nothing.
        on_epoch: Called after every epoch.

    Returns:
        The result; its network is ``compressed`` (without `torch.compile`), on the CPU.

    Raises:
        AmcError: An argument is of another kind, the folder holds a training with other
            settings, or the networks and the data do not fit each other.
    """
    check_module(compressed, "compressed")
    check_module(original, "original")
    check_data(data)
    check_kind("settings", settings, TrainingSettings)
    check_folder(folder)
    with joined() as group:
        return _finetuned(
            compressed, original, data, settings, objective, teachers, folder, on_epoch, group
        )


def _finetuned(
    compressed: nn.Module,
    original: nn.Module,
    data: DataSet,
    settings: TrainingSettings,
    objective: ObjectiveLike,
    teachers: Sequence[nn.Module] | None,
    folder: str | Path | None,
    on_epoch: Callable[[EpochRecord], None] | None,
    group: Group,
) -> TrainingResult:
    """What this process of a group does of `finetune`."""
    place = group.device
    teacher = admit(original, data.image_shape)
    fitted, data = matched(teacher, data, build_objective(objective))
    if not data.is_labelled:
        log.info("no labels (%s): the original alone is learned from", data.why_unlabelled)
    mean, std = _normalisation(data)
    compressed = unwrapped(compressed)
    score = _score(teacher, data, fitted, place)
    made = CompressedNetwork.of(compressed)
    if made is not None and settings.gradual:
        give_whole_weights(graph_of(teacher, data.image_shape, admitted=True), made)
    if teachers is not None:
        teacher = _ensemble(teachers, data.image_shape)
    teacher = teacher.to(place)
    run_images(compressed, data.image_shape)
    student = compressed.to(place)
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    try:
        with stop_on_interrupt() as stop:

            def trial(copied: nn.Module, some: Tensor, asked: TrainingSettings) -> TrainingResult:
                split = data.train.take(some)
                return train(
                    copied,
                    split.images,
                    split.labels,
                    mean=mean,
                    std=std,
                    settings=asked,
                    objective=fitted,
                    teacher=teacher,
                    constraints=_constraints(copied),
                    should_stop=stop.is_set,
                    description=f"trying learning_rate={asked.learning_rate:g}",
                    group=group,
                )

            trained = train(
                student,
                data.train.images,
                data.train.labels,
                mean=mean,
                std=std,
                settings=with_rate(settings, student, len(data.train), trial),
                objective=fitted,
                teacher=teacher,
                constraints=_constraints(student),
                evaluate=score,
                checkpoint_folder=None if folder is None else Path(folder),
                on_epoch=on_epoch,
                should_stop=stop.is_set,
                description="fine-tuning",
                group=group,
            )
    finally:
        compressed.cpu()
    if folder is not None and made is not None and group.is_first:
        artifact.write_compressed(Path(folder), made)
    return trained


def _constraints(network: nn.Module) -> Constraints | None:
    made = CompressedNetwork.of(network)
    return None if made is None else Constraints(made.module, made.strategy)


def _ensemble(teachers: Sequence[nn.Module], image_shape: tuple[int, int, int]) -> nn.Module:
    if not isinstance(teachers, Sequence) or not teachers:
        raise ConfigError(f"teachers must be a list of one network or more, got {teachers!r}.")
    for teacher in teachers:
        check_module(teacher, "teachers")
    admitted = [admit(teacher, image_shape) for teacher in teachers]
    return admitted[0] if len(admitted) == 1 else Ensemble(admitted)


def _score(
    teacher: nn.Module, data: DataSet, objective: Objective, place: torch.device
) -> Callable[[nn.Module], float]:
    """What epochs are told apart by: the first score on the search split."""
    reference = None if data.is_labelled else teacher
    evaluator = Evaluator(data.search, data.mean, data.std, reference, objective=objective)
    named = primary_score(objective, labelled=data.is_labelled)

    def score(network: nn.Module) -> float:
        found = evaluator(network.cpu())
        network.to(place)
        return found.scores[named.name]

    return score


def train_base(network: nn.Module, data: DataSet, name: str) -> nn.Module:
    """Train a small data set's network from scratch, once; afterwards it comes from the cache.

    Of several processes one trains it, and the others wait for that.

    Raises:
        NetworkError: What the cache holds is damaged.
        StorageError: The cache cannot be written.
    """
    start = [part for item in network.state_dict().items() for part in item]
    key = fingerprint(name, data.fingerprint(), repr(BASE_TRAINING), *start)
    path = cache_folder() / "networks" / f"{name}-{data.name}-{key}.safetensors"
    if not path.is_file():
        with locked(path, f"another process trains the base network {name} on {data.name}"):
            if not path.is_file():  # it did
                log.info(
                    "training the base network %s on %s (once; kept in %s)", name, data.name, path
                )
                _train_base(network, data, name)
                write_tensors(path, network.state_dict())
                return network.eval()
    try:
        load_checkpoint(network, path)
    except NetworkError as error:
        raise NetworkError(f"{error} Remove {path}: the network is trained anew.") from error
    return network.eval()


def _train_base(network: nn.Module, data: DataSet, name: str) -> None:
    evaluator = Evaluator(data.search, data.mean, data.std)
    named = primary_score(DEFAULT, labelled=True)
    mean, std = _normalisation(data)
    with said_on_interrupt("nothing is kept of an unfinished base training"):
        train(
            network,
            data.train.images,
            data.train.labels,
            mean=mean,
            std=std,
            settings=BASE_TRAINING,
            evaluate=lambda net: evaluator(net).scores[named.name],
            description=f"training {name}",
        )


def _normalisation(data: DataSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for `train`, which normalises all that it is given: float images are already."""
    if data.train.images.is_floating_point():
        return (0.0,) * len(data.mean), (1.0,) * len(data.std)
    return data.mean, data.std
