"""The tree-structured Parzen estimator, by Optuna."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from agents.baselines.ask_tell import AskTellSearcher
from agents.settings import count

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class TPESearcher(AskTellSearcher):
    """Actions that are likelier among the good trials than among the rest (Bergstra et al. 2011).

    Attributes:
        startup: Random trials before the estimator is used; the warm start counts.
        candidates: Points of which the one with the highest expected improvement is asked for.
    """

    name: ClassVar[str] = "tpe"

    startup: int = count(10)
    candidates: int = count(24)

    def sampler(self, seed: int) -> optuna.samplers.TPESampler:
        """Optuna's, with its defaults for all that is not an attribute."""
        from optuna.samplers import TPESampler

        return TPESampler(n_startup_trials=self.startup, n_ei_candidates=self.candidates, seed=seed)
