"""Where a training is, in memory and on the disk, and how it went."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc.errors import ArtifactError, NetworkError
from amc.objectives import Objective, identity_of
from amc.recovery.batch_norm import recalibrate
from amc.recovery.bound import RECHOSEN, BoundWeights
from amc.recovery.constraints import Constraints, quantized_layers
from amc.recovery.training_batches import Batches
from amc.recovery.training_settings import TrainingSettings
from amc.utils.documents import NUMBER, OBJECT, WHOLE, Fault, Kind, list_of, or_null, shown
from amc.utils.files import fingerprint, write_tensors
from amc.utils.group import ALONE, Group
from amc.utils.sealed import Sealed

STATE_FILE = "training.safetensors"
BEST_FILE = "best.safetensors"


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a training; scores are the objective's primary one.

    Attributes:
        epoch: 1 for the first.
        loss: Mean over the epoch's steps.
        train_score: On the augmented images, while they were trained on; None without targets.
        score: What ``evaluate`` said after the epoch; None without it.
        learning_rate: At the epoch's last step.
    """

    epoch: int
    loss: float
    train_score: float | None
    score: float | None
    learning_rate: float


_EPOCH: dict[str, Kind] = {
    "epoch": WHOLE,
    **dict.fromkeys(("loss", "learning_rate"), NUMBER),
    **dict.fromkeys(("train_score", "score"), or_null(NUMBER)),
}
_IS_EPOCH: Kind = (
    lambda value: (
        isinstance(value, dict)
        and value.keys() == _EPOCH.keys()
        and all(accepts(value[name]) for name, (accepts, _) in _EPOCH.items())
    ),
    f"{', '.join(_EPOCH)} of an epoch",
)
STATE = Sealed(
    "amc-training",
    4,  # 2: a checksum; 3: scores of any objective; 4: averages, steps of grids
    "the state of a training",
    {
        "identity": OBJECT,
        "history": list_of(_IS_EPOCH),
        "best_epoch": WHOLE,
        "best_score": or_null(NUMBER),
        "scaler": OBJECT,
    },
    "Remove it to start over.",
)


@dataclass(frozen=True)
class TrainingResult:
    """A trained network and how it went.

    Attributes:
        network: The one that was passed in, in eval mode, with the best weights.
        best_epoch: The epoch they are from; 0 means that none was better than the start.
        best_score: Theirs; None when nothing evaluated it.
        history: One record per epoch, those before a resume included.
        complete: False when it was stopped before its last epoch.
    """

    network: nn.Module
    best_epoch: int
    best_score: float | None
    history: tuple[EpochRecord, ...]
    complete: bool


class Run:
    """Network, optimizer and what was best so far; in memory and on the disk."""

    def __init__(
        self,
        network: nn.Module,
        settings: TrainingSettings,
        constraints: Constraints | None,
        steps: int,
        folder: Path | None,
        identity: dict[str, Any],
        group: Group = ALONE,
    ) -> None:
        """
        Args:
            steps: Of an epoch.
            group: Processes that train together: the first of them writes.
        """
        self.group = group
        self.network, self.settings = network, settings
        self._constraints, self._share = constraints, 1.0
        self._quantized = quantized_layers(network)
        self._average: dict[str, Tensor] = {}
        self._step, self._steps = 0, steps
        self._candidate: dict[str, Tensor] = {}
        self.history: list[EpochRecord] = []
        self.half = _half_precision(device_of(network), settings)
        self._folder, self._identity = folder, identity
        self._best: dict[str, Tensor] = {}
        self._best_epoch = 0
        self._best_score: float | None = None
        self._scaler = torch.amp.GradScaler(enabled=self.half == torch.float16)
        self._trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
        self._optimizer = _sgd(self._trained, settings)
        self._bound = (
            None if constraints is None else BoundWeights(network, constraints, self._optimizer)
        )

    def step(self, loss: Tensor, learning_rate: float) -> None:
        """One step of the optimizer down the gradient of ``loss``."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.group.average([p.grad for p in self._trained.values() if p.grad is not None])
        if self._bound is not None:
            self._bound.before_step()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._bound is not None:
            self._bound.after_step()
        for layer in self._quantized:
            layer.hold_steps()
        self._step += 1
        if self._average:
            self._follow()

    def share_statistics(self) -> None:
        """Have BN statistics, taken by each process of its part of the batches, in common."""
        names = {name for name, held in self.network.named_buffers() if held.is_floating_point()}
        self.group.average([held for name, held in self.network.named_buffers() if name in names])
        self.group.average([held for name, held in self._average.items() if name in names])

    def begin_epoch(self, share: float) -> None:
        """Ask anew what must be kept: so that a resumed epoch begins as this one does."""
        if self.settings.average and not self._average:
            self._average = _floats(self.network)
        self._constrain(share)

    def approach(self, share: float) -> None:
        """Go further on the way to what was decided (`amc.Decision.constrain`)."""
        is_due = self._bound is not None and self._bound.behind and self._step % RECHOSEN == 0
        if share != self._share or is_due:
            self._constrain(share)

    def _constrain(self, share: float) -> None:
        self._share = share
        if self._bound is not None:
            way = round(self.settings.straight_through * self._steps * self.settings.epochs)
            self._bound.update(share, straight_through=self._step < way)

    def _follow(self) -> None:
        """Move the averages a little towards the weights as they are now."""
        decay = min(self.settings.average, (1 + self._step) / (10 + self._step))
        for name, now in _floats(self.network).items():
            self._average[name].lerp_(now, 1 - decay)

    @contextmanager
    def settled(self, batches: Batches) -> Iterator[None]:
        """The network as it would be used after this epoch, which `finish_epoch` may keep."""
        if self._constraints is not None:
            self._constraints.end_epoch()
        before = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict({**before, **self._average})
        if self._constraints is not None:
            self._constraints.settle()
        for layer in self._quantized:
            layer.settle()
        if self.settings.batch_norm_images:
            recalibrate(self.network, batches.plain(self.settings.batch_norm_images))
        try:
            yield
            self._candidate = _copied(self.network)
        finally:
            self.network.load_state_dict(before)

    def finish_epoch(self, record: EpochRecord) -> None:
        """Remember the epoch, its weights if they are the best, and write both down."""
        self.history.append(record)
        to_beat = self._best_score
        is_best = to_beat is None or record.score is None or record.score >= to_beat
        if is_best:
            self._best, self._best_epoch = self._candidate, record.epoch
            self._best_score = record.score
        if self._folder is not None and self.group.is_first:
            self._write_state(self._folder)
            if is_best:
                write_tensors(self._folder / BEST_FILE, self._best)

    def resume_or_start(
        self, evaluate: Callable[[nn.Module], float] | None, batches: Batches
    ) -> None:
        """Take up the folder's state; without one, the start is what has to be beaten."""
        if self._folder is not None and (self._folder / STATE_FILE).exists():
            self._read_state(self._folder)
            if self.group.is_first:  # a kill may have come between
                write_tensors(self._folder / BEST_FILE, self._best)
            return
        self.network.eval()
        if self.settings.gradual and self._constraints is not None:
            with self.settled(batches):  # what is gone a way to is not there yet
                score = self.score(evaluate)
            self._best, self._best_score = self._candidate, score
            return
        self._best_score = self.score(evaluate)
        self._best = _copied(self.network)

    def score(self, evaluate: Callable[[nn.Module], float] | None) -> float | None:
        """What the network is worth as it is, by the first process."""
        if evaluate is None:
            return None
        return self.group.of_first(lambda: float(evaluate(self.network)))

    def result(self) -> TrainingResult:
        """Put the best weights into the network and say how it went."""
        self.network.load_state_dict(self._best or self.network.state_dict())
        return TrainingResult(
            network=self.network.eval(),
            best_epoch=self._best_epoch,
            best_score=self._best_score,
            history=tuple(self.history),
            complete=len(self.history) == self.settings.epochs,
        )

    def _write_state(self, folder: Path) -> None:
        tensors = {f"weights/{n}": t.clone() for n, t in self.network.state_dict().items()}
        tensors |= {f"best/{n}": t for n, t in self._best.items()}
        tensors |= {f"average/{n}": t for n, t in self._average.items()}
        if self._bound is not None:
            tensors |= {f"behind/{n}": t for n, t in self._bound.behind.items()}
        for name, parameter in self._trained.items():
            buffer = self._optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:  # absent without momentum, and where no gradient came
                tensors[f"momentum/{name}"] = buffer
        document = {
            "identity": self._identity,
            "history": [asdict(record) for record in self.history],
            "best_epoch": self._best_epoch,
            "best_score": self._best_score,
            "scaler": self._scaler.state_dict(),
        }
        STATE.write(folder / STATE_FILE, tensors, document)

    def _read_state(self, folder: Path) -> None:
        path = folder / STATE_FILE
        tensors, document = STATE.read(path)
        _check_identity(document["identity"], self._identity, path)
        wrong = partial(STATE.misfit, path)
        now = self.network.state_dict()
        weights, best = (_like(now, _under(part, tensors), wrong) for part in ("weights/", "best/"))
        momentum = _under("momentum/", tensors)
        moved = {n: p for n, p in self._trained.items() if n in momentum}
        for name, buffer in _like(moved, momentum, wrong).items():
            parameter = self._trained[name]
            self._optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter).copy_(
                buffer
            )
        if self.settings.average:
            average = _like(_floats(self.network), _under("average/", tensors), wrong)
            self._average = {name: average[name].to(now[name].device) for name in average}
        self.network.load_state_dict(weights)
        self._best = best
        behind = _under("behind/", tensors)
        if self._bound is not None:
            self._bound.resume(_like({n: t for n, t in now.items() if n in behind}, behind, wrong))
        self.history = [EpochRecord(**record) for record in document["history"]]
        self._step = len(self.history) * self._steps
        self._best_epoch = document["best_epoch"]
        self._best_score = document["best_score"]
        if document["scaler"]:
            self._scaler.load_state_dict(document["scaler"])


def _like(
    wanted: Mapping[str, Tensor], found: dict[str, Tensor], wrong: Fault
) -> dict[str, Tensor]:
    """The tensors that were found, which must be named and shaped like those wanted."""
    odd = [
        name
        for name in sorted({*wanted, *found})
        if name not in wanted or name not in found or found[name].shape != wanted[name].shape
    ]
    if odd:
        raise wrong(f"does not fit the network: {shown(odd)} is missing, or not as large there")
    return found


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _floats(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all that can be averaged."""
    return {name: t for name, t in _copied(network).items() if t.is_floating_point()}


def _sgd(trained: dict[str, nn.Parameter], settings: TrainingSettings) -> torch.optim.SGD:
    if not trained:
        raise NetworkError("No parameter of the network requires a gradient: nothing to train.")
    parameters = list(trained.values())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups,
        lr=settings.learning_rate or 0.0,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
    )


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def identity_of_training(
    network: nn.Module,
    batches: Batches,
    objective: Objective,
    settings: TrainingSettings,
    teacher: nn.Module | None,
    group: Group = ALONE,
) -> dict[str, Any]:
    """Everything that decides how a training goes, by a name that an error can use."""
    state = network.state_dict()
    taught_by = fingerprint(*teacher.state_dict().values()) if teacher is not None else None
    return {
        **{field.name: getattr(settings, field.name) for field in fields(settings)},
        "processes": group.size,
        "augment": list(settings.augment),
        "distill": dict(settings.distill),
        "trained parameters": [n for n, p in network.named_parameters() if p.requires_grad],
        "data": batches.fingerprint(),
        "objective": identity_of(objective),
        "teacher": taught_by,
        "starting weights": fingerprint(*state.values()),
        **{f"shape of {name}": list(tensor.shape) for name, tensor in state.items()},
    }


def _check_identity(stored: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    stored = {"processes": 1, **stored}  # of states made before there could be more
    changed = [
        f"{shown(name)[1:-1]} was {shown(stored.get(name))}, now {shown(wanted.get(name))}"
        for name in dict.fromkeys([*stored, *wanted])
        if stored.get(name) != wanted.get(name)
    ]
    if changed:
        more = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ArtifactError(
            f"{path} is the state of another training: {'; '.join(changed[:5])}{more}. "
            "Use the settings that it was started with, or another folder."
        )


def device_of(network: nn.Module) -> torch.device:
    """Where a network is."""
    for parameter in network.parameters():
        return parameter.device
    raise NetworkError("The network has no parameters: nothing to train.")


def _half_precision(device: torch.device, settings: TrainingSettings) -> torch.dtype | None:
    """bfloat16 where the GPU has it, else float16 with a scaled loss; None without CUDA."""
    if device.type != "cuda" or not settings.mixed_precision:
        return None
    native = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if native else torch.float16
