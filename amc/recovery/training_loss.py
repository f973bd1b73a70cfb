"""What a training minimises: the objective's loss by the targets, and the loss by a teacher."""

from __future__ import annotations

from torch import Tensor, nn

from amc.errors import NetworkError
from amc.objectives import NamedScore, Objective, accepts, primary_score
from amc.objectives.outputs import Outputs, each, outputs_of, shapes_of
from amc.recovery.distillation import Distillation
from amc.recovery.training_settings import TrainingSettings


class Loss:
    """Runs a network, and says how wrong it is."""

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        settings: TrainingSettings,
        teacher: nn.Module | None,
        targets: Tensor | None,
        image_shape: tuple[int, int, int],
    ) -> None:
        """
        Args:
            targets: All that there are.

        Raises:
            ConfigError: As `Distillation`.
        """
        self._network = network
        self._objective, self._settings, self._targets = objective, settings, targets
        self._distilled = None
        if teacher is not None and settings.distillation_weight > 0:
            self._distilled = Distillation(
                network, teacher, settings.distill, image_shape, settings.temperature
            )
        self._is_fitted = False

    @property
    def network(self) -> nn.Module:
        """What is run in the network's place, with its modules."""
        return self._network if self._distilled is None else self._distilled.network

    def __call__(self, inputs: Tensor, targets: Tensor | None) -> tuple[Tensor, Outputs]:
        """The loss, and the network's outputs.

        Raises:
            NetworkError: Outputs do not fit the objective, the targets or the teacher's.
        """
        by_teacher = None
        if self._distilled is None:
            outputs = outputs_of(self._network(inputs), len(inputs))
        else:
            outputs, by_teacher = self._distilled(inputs)
        if not accepts(self._objective, outputs, len(inputs)):
            raise NetworkError(
                f"The network returned {shapes_of(outputs)} for {len(inputs)} images; expected "
                f"{self._objective.expected}."
            )
        outputs = each(outputs, Tensor.float)
        if not self._is_fitted:
            self._fit(each(outputs, Tensor.detach))
        taught = None if by_teacher is None else by_teacher(outputs, self._objective)
        if targets is None:
            assert taught is not None
            return taught, outputs
        smoothing = self._settings.label_smoothing
        labelled = self._objective.target_loss(outputs, targets, smoothing)
        if taught is None:
            return labelled, outputs
        weight = self._settings.distillation_weight
        return weight * taught + (1 - weight) * labelled, outputs

    def score(self, outputs: Outputs, targets: Tensor) -> Tensor:
        """What epochs are compared by, of one step."""
        found = self._objective.judge(each(outputs, Tensor.float), targets, None)
        return found[self.named.name]

    @property
    def named(self) -> NamedScore:
        """The score that epochs are compared by, where there are labels."""
        return primary_score(self._objective, labelled=True)

    def _fit(self, outputs: Outputs) -> None:
        # Once, for student and teacher alike: asking at every step would make a GPU wait.
        why = "" if self._targets is None else self._objective.mismatch(outputs, self._targets)
        if why:
            raise NetworkError(f"The labels do not fit the network: {why}.")
        self._objective, self._is_fitted = self._objective.fitted(outputs), True
