"""Covariance matrix adaptation, by Optuna and cmaes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from agents.baselines.ask_tell import AskTellSearcher
from agents.settings import setting
from amc.utils.documents import is_count

if TYPE_CHECKING:
    import optuna


def _is_population(value: Any) -> bool:
    return value is None or (is_count(value) and value >= 2)


@dataclass(frozen=True)
class CMAESSearcher(AskTellSearcher):
    """A normal distribution that moves towards the better half of what is drawn from it.

    CMA-ES (Hansen 2016). The warm start counts as drawn: the distribution starts at random, and
    moves towards the uniform strategies where they are the better ones.

    Attributes:
        population: Trials per update of the distribution; None: 4 + 3 ln(numbers asked for)
            (Hansen 2016, table 1).
        separable: Adapt the variances only, which a search of a few hundred trials can learn
            (sep-CMA-ES, Ros and Hansen 2008).
    """

    name: ClassVar[str] = "cma_es"
    libraries: ClassVar[tuple[str, ...]] = ("optuna", "cmaes")

    population: int | None = setting(None, _is_population, "a whole number of at least 2, or null")
    separable: bool = setting(True, lambda value: isinstance(value, bool), "true or false")

    def sampler(self, seed: int) -> optuna.samplers.CmaEsSampler:
        """Optuna's, with its defaults for all that is not an attribute."""
        from optuna.samplers import CmaEsSampler

        return CmaEsSampler(popsize=self.population, use_separable_cma=self.separable, seed=seed)
