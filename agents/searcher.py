"""What searches for a strategy: the protocol, and the table of all that implement it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from agents.baselines.cma_es import CMAESSearcher
from agents.baselines.evolution import EvolutionSearch
from agents.baselines.gp import GPSearcher
from agents.baselines.knapsack import KnapsackSearch
from agents.baselines.netadapt import NetAdaptSearch
from agents.baselines.ppo import PPOSearcher
from agents.baselines.random_search import RandomSearch
from agents.baselines.tpe import TPESearcher
from agents.baselines.uniform import UniformSearch
from agents.ddpg import DDPGSearcher
from agents.sac import SACSearcher
from agents.settings import build, check_names
from agents.td3 import TD3Searcher
from agents.trial import OnTrial, SearchResult, Trial
from amc.errors import ConfigError
from amc.utils.packages import import_named

if TYPE_CHECKING:
    from agents.state import Checkpoints
    from envs.compression import CompressionEnv

__all__ = ["SEARCHERS", "OnTrial", "SearchResult", "Searcher", "Trial", "build_searcher"]


class Searcher(Protocol):
    """Finds strategies for an environment within a number of evaluations."""

    @property
    def name(self) -> str:
        """The name that a configuration calls it by."""

    def search(
        self, env: CompressionEnv, evaluations: int, seed: int, on_trial: OnTrial
    ) -> SearchResult:
        """Evaluate strategies, reporting each to ``on_trial``; the same seed, the same trials.

        Args:
            evaluations: How many; fewer only if ``on_trial`` returns False, or if there are no
                more to evaluate (uniform, netadapt).

        Raises:
            ConfigError: ``evaluations`` is below 1 or ``seed`` is negative.
        """


@runtime_checkable
class Resumable(Searcher, Protocol):
    """A searcher that goes on from a state of its own.

    Any other is walked through again from the start, with recorded evaluations: where learning
    takes no time, that does as well.
    """

    def search_on(
        self,
        env: CompressionEnv,
        evaluations: int,
        seed: int,
        on_trial: OnTrial,
        checkpoints: Checkpoints,
    ) -> SearchResult:
        """As `search`, but go on where the checkpoints end; every trial is reported again."""


SEARCHERS: dict[str, Callable[..., Searcher]] = {
    "ddpg": DDPGSearcher,
    "td3": TD3Searcher,
    "sac": SACSearcher,
    "ppo": PPOSearcher,
    "evolution": EvolutionSearch,
    "netadapt": NetAdaptSearch,
    "program": KnapsackSearch,
    "tpe": TPESearcher,
    "gp": GPSearcher,
    "cma_es": CMAESSearcher,
    "random": RandomSearch,
    "uniform": UniformSearch,
}


def searcher_class(name: str) -> Callable[..., Searcher]:
    """What makes the searcher of a name, or of ``package.module:Class``.

    Raises:
        ConfigError: There is none (the message names near matches).
    """
    if ":" in name:
        return cast(Callable[..., Searcher], import_named(name, "Agent", "Class", ConfigError))
    check_names("agent", [name], list(SEARCHERS))
    return SEARCHERS[name]


def build_searcher(name: str, **settings: Any) -> Searcher:
    """Make a searcher by its name or ``package.module:Class``.

    Raises:
        ConfigError: The name or a setting is unknown (the message names near matches), a value is
            out of range, or the class makes no searcher.
    """
    return check_searcher(build(name, searcher_class(name), settings), name)


def check_searcher(made: Searcher, name: str) -> Searcher:
    """A searcher, if it is one.

    Raises:
        ConfigError: It lacks a name, or its search takes other arguments.
    """
    takes = [*inspect.signature(made.search).parameters] if hasattr(made, "search") else []
    if not isinstance(getattr(made, "name", None), str) or takes[:4] != _SEARCH_TAKES:
        lacks = "its search takes " + ", ".join(takes) if takes else "it has none"
        lacks = lacks if isinstance(getattr(made, "name", None), str) else "it has no name"
        raise ConfigError(
            f"Agent {name!r} made {made!r}, which is no searcher: it needs a name, and a method "
            f"search({', '.join(_SEARCH_TAKES)}); {lacks}."
        )
    return made


_SEARCH_TAKES = ["env", "evaluations", "seed", "on_trial"]
