"""One training loop: a base network from targets, or a compressed network from its original.

With a teacher the loss is the one of knowledge distillation (Hinton et al. 2015, section 2), ``w``
of the objective's loss by the teacher's outputs and ``1 - w`` of its loss by the targets. Without
targets the first part is all.

The loop can be killed at any moment. After every epoch all that the next one depends on goes
into a single file, and everything random in an epoch is drawn from (seed, epoch) alone, so
that a resumed training ends in the same bits as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import ConfigError, DataError, EvaluationError
from amc.objectives import DEFAULT, Objective, primary_score
from amc.objectives.outputs import each
from amc.recovery.constraints import Constraints, quantized_layers, share_at
from amc.recovery.training_batches import Batches, is_map, stream_of
from amc.recovery.training_loss import Loss
from amc.recovery.training_settings import AUGMENTATIONS, BASE_TRAINING, TrainingSettings
from amc.recovery.training_state import (
    BEST_FILE,
    STATE_FILE,
    EpochRecord,
    Run,
    TrainingResult,
    device_of,
    identity_of_training,
)
from amc.utils.group import ALONE, Group
from amc.utils.layout import fast_layout, lay_out
from amc.utils.progress import Bar, progress_bar

__all__ = [
    "AUGMENTATIONS",
    "BASE_TRAINING",
    "BEST_FILE",
    "STATE_FILE",
    "EpochRecord",
    "TrainingResult",
    "TrainingSettings",
    "learning_rate_at",
    "train",
]


def train(
    network: nn.Module,
    images: Tensor,
    targets: Tensor | None,
    *,
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
    settings: TrainingSettings,
    objective: Objective = DEFAULT,
    teacher: nn.Module | None = None,
    constraints: Constraints | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    checkpoint_folder: Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    description: str = "training",
    progress: bool = True,
    group: Group = ALONE,
) -> TrainingResult:
    """Train a network in place and give it its best weights back.

    SGD with Nesterov momentum; the learning rate rises linearly, then falls as a cosine to 0.
    Of epochs of the same score the last one is the best; without ``evaluate`` simply the last.
    Runs on the device that the network is on; only parameters that require a gradient change (and
    BN statistics, and steps of grids). An epoch is judged and kept as the network would be used:
    its weights averaged where they are, on their grids, under all that was decided.

    Args:
        images: (N, C, H, W), uint8 in 0..255 or float in 0..1.
        targets: As the objective takes them, (N, ...). None: there are none, and the teacher
            alone is learned from.
        mean, std: Of the channels of images in 0..1, shape (C,).
        teacher: The original network, or another, or an `Ensemble` of them, on the same device; put
            into eval mode, never changed.
        constraints: What must stay as it was decided.
        objective: What the losses are of.
        evaluate: A score on data that is not trained on.
        checkpoint_folder: Where the state is kept. A call with the same folder and the same
            arguments goes on after the last full epoch.
        on_epoch: Told of every epoch that this call has trained.
        should_stop: Asked before every step. Stopping, and Ctrl-C, loses the current epoch only.
        group: Processes that all call this alike: each takes a part of every batch, gradients are
            averaged, BN takes its statistics part by part, and the first evaluates and writes.

    Raises:
        ConfigError: ``distillation_weight`` is above 0 without a teacher, or 0 without targets;
            or there is no learning rate; or a batch cannot be shared out evenly in the group.
        DataError: Images and targets do not belong together.
        NetworkError: Outputs do not fit the objective or the targets, or the teacher's are of
            another shape.
        ArtifactError: The folder's state is unreadable or of a training with other arguments.
        EvaluationError: The loss is not finite.
        StorageError: The state cannot be written.
    """
    _check_arguments(images, targets, settings, teacher)
    batches = Batches(images, targets, mean, std, settings, device_of(network), group)
    with _steps_learned(network, settings):
        loss = Loss(network, objective, settings, teacher, targets, batches.image_shape)
        identity: dict[str, Any] = {}
        if checkpoint_folder is not None:
            identity = identity_of_training(network, batches, objective, settings, teacher, group)
        run = Run(network, settings, constraints, batches.steps, checkpoint_folder, identity, group)
        with (
            _layout_for_speed(loss.network, teacher, batches),
            progress_bar(
                description, settings.epochs * batches.steps, enabled=progress and group.is_first
            ) as bar,
        ):
            try:
                run.resume_or_start(evaluate, batches)
                bar.advance(len(run.history) * batches.steps)
                for epoch in range(len(run.history) + 1, settings.epochs + 1):
                    record = _train_epoch(run, batches, loss, epoch, evaluate, should_stop, bar)
                    if record is None:
                        break
                    run.finish_epoch(record)
                    bar.advance(0, note=_note(record, objective, labelled=targets is not None))
                    if on_epoch is not None:
                        on_epoch(record)
            except KeyboardInterrupt:
                pass  # as good as should_stop: what was reached is in the result and on the disk
            return run.result()


def learning_rate_at(step: int, steps: int, settings: TrainingSettings) -> float:
    """Linear warm-up to the peak, then a cosine to 0; ``step`` counts from 0 to ``steps``.

    The warm-up's last step is at the peak: of 4 warm-up steps the first is at a quarter.
    """
    warmup, peak = round(settings.warmup_fraction * steps), settings.learning_rate
    assert peak is not None  # `_check_arguments`
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def _train_epoch(
    run: Run,
    batches: Batches,
    loss: Loss,
    epoch: int,
    evaluate: Callable[[nn.Module], float] | None,
    should_stop: Callable[[], bool] | None,
    bar: Bar,
) -> EpochRecord | None:
    """One epoch and its evaluation; None when it was stopped."""
    network, device = loss.network, batches.device
    losses = torch.zeros(batches.steps, device=device)
    judged = torch.zeros(batches.steps, dtype=torch.float64, device=device)
    first_step, all_steps = (epoch - 1) * batches.steps, run.settings.epochs * batches.steps
    learning_rate = 0.0
    # A number of the user's own is not asked for at every step.
    is_judged = batches.targets is not None and bool(loss.named.needs_targets)
    network.train()
    run.begin_epoch(share_at(first_step, all_steps, run.settings.gradual))
    with _repeatable(stream_of(run.settings.seed, epoch, run.group.rank), device):
        for step, (inputs, targets) in enumerate(batches.of_epoch(epoch)):
            if should_stop is not None and run.group.any(should_stop()):
                return None
            learning_rate = learning_rate_at(first_step + step, all_steps, run.settings)
            run.approach(share_at(first_step + step, all_steps, run.settings.gradual))
            with torch.autocast(device.type, run.half, enabled=run.half is not None):
                value, outputs = loss(inputs, targets)
            run.step(value, learning_rate)
            losses[step] = value.detach()
            if targets is not None and is_judged:
                judged[step] = loss.score(each(outputs, Tensor.detach), targets)
            bar.advance(note=f"epoch {epoch}/{run.settings.epochs}")
    run.group.average([losses, judged])
    _check_finite(losses, epoch, learning_rate)
    run.share_statistics()
    network.eval()
    with run.settled(batches):
        score = run.score(evaluate)
    return EpochRecord(
        epoch=epoch,
        loss=float(losses.mean()),
        train_score=float(judged.mean()) if is_judged else None,
        score=score,
        learning_rate=learning_rate,
    )


def _check_finite(losses: Tensor, epoch: int, learning_rate: float) -> None:
    # Once per epoch: asking after every step would make a GPU wait for the CPU.
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise EvaluationError(
            f"The training loss became {float(losses[step])} in epoch {epoch}, step {step + 1} of "
            f"{len(losses)}. Lower the learning rate (it is {learning_rate:.3g} at the epoch's "
            "end), or check that the network's weights are finite."
        )


def _note(record: EpochRecord, objective: Objective, *, labelled: bool) -> str:
    score = record.train_score if record.score is None else record.score
    if score is None:
        return f"loss {record.loss:.3f}"
    named = primary_score(objective, labelled=labelled)
    return f"loss {record.loss:.3f}, {named.name} {named.text(score)}"


def _check_arguments(
    images: Tensor, targets: Tensor | None, settings: TrainingSettings, teacher: nn.Module | None
) -> None:
    if settings.learning_rate is None:
        raise ConfigError("A training needs a learning_rate; amc.finetune alone finds one.")
    fitting = targets is None or targets.shape[:1] == images.shape[:1]
    if images.ndim != 4 or not fitting or len(images) == 0:
        raise DataError(
            "Training needs images (N, C, H, W) and labels (N, ...) with N above 0, got "
            f"{tuple(images.shape)} and {None if targets is None else tuple(targets.shape)}."
        )
    if targets is None and (teacher is None or settings.distillation_weight == 0):
        raise ConfigError(
            "Without labels a network learns from the original alone: give it, and set "
            f"distillation_weight above 0, got {settings.distillation_weight}."
        )
    if targets is not None and is_map(targets) and set(settings.augment) - {"flip"}:
        raise ConfigError(
            "Where each pixel has a label of its own, augment may hold flip alone, which mirrors "
            f"both; got {list(settings.augment)}. Set augment=[flip], or [] for nothing."
        )
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise DataError(f"Training images must be uint8 or float, got {images.dtype}.")
    if settings.distillation_weight > 0 and teacher is None:
        raise ConfigError(
            f"distillation_weight={settings.distillation_weight} needs a teacher. Give the "
            "original network, or set distillation_weight to 0 to learn from labels only."
        )


@contextmanager
def _steps_learned(network: nn.Module, settings: TrainingSettings) -> Iterator[None]:
    """Steps of grids as parameters; numbers of their layers again at the end."""
    layers = quantized_layers(network) if settings.learned_steps else []
    for layer in layers:
        layer.learn_steps()
    try:
        yield
    finally:
        for layer in layers:
            layer.fix_steps()


@contextmanager
def _layout_for_speed(
    network: nn.Module, teacher: nn.Module | None, batches: Batches
) -> Iterator[None]:
    """Channels last while training: 1.3 to 1.6 times faster on a CPU, and made for tensor cores.

    Where the network or its teacher cannot take images so, they stay in the usual layout.
    """
    try:
        lay_out(network, torch.channels_last)
        batches.layout = _common_layout(network, teacher, batches.image_shape)
        lay_out(network, batches.layout)
        yield
    finally:
        lay_out(network, torch.contiguous_format)


def _common_layout(
    network: nn.Module, teacher: nn.Module | None, image_shape: tuple[int, int, int]
) -> torch.memory_format:
    """Channels last if both take it, while training and while evaluated."""
    layouts = {
        fast_layout(network.eval(), image_shape),
        fast_layout(network, image_shape, training=True),
        torch.channels_last if teacher is None else fast_layout(teacher, image_shape),
    }
    return torch.channels_last if layouts == {torch.channels_last} else torch.contiguous_format


@contextmanager
def _repeatable(stream: int, device: torch.device) -> Iterator[None]:
    """Dropout drawn from ``stream`` alone, and only repeatable CUDA kernels; undone at the end."""
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.manual_seed(stream)
        yield
