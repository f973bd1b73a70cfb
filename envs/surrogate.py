"""What rewards say of the estimated errors, and which strategy that makes worth an evaluation.

The knapsack trusts estimates that were made without an evaluation, one decision at a time. Every
evaluated strategy tells how far they are off, and they are off by one factor where few channels of
a group are removed and by another where many are. So a group's estimated error is cut into
`PIECES` by the channels kept: what is lost down to the first of `CUTS`, from there to the second,
and beyond. With e_k(s) the piece k of what strategy s is estimated to lose (of a group's removal,
or the whole of a layer's bits) and r_0 the original's reward,

    r_0 - r(s) = scale * (sum_k f_k e_k(s) + g(s)) + noise        f_k ~ N(1, WIDTH^2)

is linear in the factors f, of which those of one group are correlated by `LIKENESS`. What errors
do beyond adding up is g, a Gaussian process of mean 0 under which strategies that keep about the
same channels and bits are alike. All of it is one Gaussian process whose mean is the estimate
(Rasmussen & Williams 2006, sections 2.2 and 2.7), so its posterior has a closed form. A strategy is
proposed for the improvement that is expected of it (Jones, Schonlau & Welch 1998, eq. 15), sought
around the best strategies so far and around the knapsack's allocations under factors drawn from the
posterior.

What the mean is need not be settled beforehand: the errors as they were estimated, and as a policy
corrects them (`agents.trust`), are hypotheses, and that is believed under which the rewards so far
are most likely (section 2.2, eq. 2.30).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve
from scipy.special import ndtr

from amc.recovery.errors import LayerErrors
from amc.strategy import Strategy
from envs.hypothesis import PIECES, Hypothesis
from envs.knapsack import KnapsackSolver
from envs.neighbours import Choice, neighbour

FloatArray = npt.NDArray[np.float64]

DEPARTURE = 0.3  # standard deviation of g, in median losses
REACH = 0.09  # of g: root mean square over decisions of how far apart two strategies are
NOISE = 0.1  # of what a strategy loses, relative: what neither factors nor g explain
FLOOR = 0.05  # of the median loss: what small losses are off by all the same
LEAST = 0.02  # a factor below it would make a decision free
BOLDNESS = 0.5  # of the draws that a proposal starts from: less than 1, evaluations are few

DRAWS = 2  # knapsacks under drawn factors that a proposal starts from
BEST = 5  # strategies evaluated so far that it starts from
GENERATIONS, CHILDREN, PARENTS = 2, 24, 6  # of its search for the most expected improvement


class Surrogate:
    """What strategies lose, as learnt from those that were evaluated."""

    def __init__(self, hypotheses: Sequence[Hypothesis], whole: float) -> None:
        """
        Args:
            hypotheses: Of one walk; the first is believed before any evaluation.
            whole: Reward of the original network.
        """
        self._hypotheses, self._believed = list(hypotheses), hypotheses[0]
        self._costs, self._whole = hypotheses[0].costs, whole
        self._noted: list[Choice] = []
        self._losses: list[float] = []
        self._within: list[bool] = []  # the budget
        self._pending: list[Choice] = []  # being evaluated
        self._known: _Posterior | None = None  # of what is noted; None: not worked out since
        self._alike: FloatArray = np.empty((0, 0))  # covariance of g between what is noted

    @property
    def believed(self) -> Hypothesis:
        """Under which the rewards so far are most likely."""
        self._evaluated()
        return self._believed

    @property
    def factors_count(self) -> int:
        """How many factors there are: `PIECES` for each free group, one for each layer's bits."""
        return PIECES * len(self._believed.groups) + len(self._believed.layers)

    def note(self, strategy: Strategy, reward: float) -> None:
        """Take an evaluated strategy into account."""
        choice = self._choice(strategy)
        if choice in self._pending:
            self._pending.remove(choice)
        self._note(choice, self._whole - reward)

    def expect(self, strategy: Strategy) -> None:
        """Propose something else than a strategy until it is noted: it is being evaluated."""
        self._pending.append(self._choice(strategy))

    def _note(self, choice: Choice, loss: float) -> None:
        self._noted.append(choice)
        self._losses.append(loss)
        self._within.append(self._costs.cost(*choice) <= self._costs.bound)
        self._known = None

    def _choice(self, strategy: Strategy) -> Choice:
        kept, options = self._costs.encode(strategy)
        return tuple(kept.tolist()), tuple(options.tolist())

    # -- the posterior ------------------------------------------------------------------------

    def posterior(self) -> tuple[FloatArray, FloatArray]:
        """Mean of the factors, shape (factors,), and their covariance, (factors, factors)."""
        known = self._evaluated()
        if known is None:
            return np.ones(self.factors_count), self._believed.prior
        return known.factors

    def predict(self, choices: Sequence[Choice]) -> tuple[FloatArray, FloatArray]:
        """What strategies lose, in median losses: means and standard deviations, (choices,) each.

        Before anything is known, in typical estimates.
        """
        known, believed = self._evaluated(), self._believed
        parts, places = believed.parts(choices), self._places(choices)
        if known is None:
            typical = max(float(np.median(parts.sum(1))), 1e-12)
            parts = parts / typical
            variance = ((parts @ believed.prior) * parts).sum(1) + DEPARTURE**2
            return parts.sum(1), np.sqrt(variance)
        return known.losses(parts / known.typical, places)

    def _places(self, choices: Sequence[Choice]) -> FloatArray:
        """Where strategies are, shape (choices, decisions): ratios kept, and ranks of options."""
        sizes, groups, layers = (
            self._costs.graph.sizes(),
            self._believed.groups,
            self._believed.layers,
        )
        ratios = [[kept[group] / sizes[group] for group in groups] for kept, _ in choices]
        order = self._costs.choices.by_closeness
        rank = {option: place / max(1, len(order) - 1) for place, option in enumerate(order)}
        widths = [[rank[chosen[layer]] for layer in layers] for _, chosen in choices]
        return np.concatenate([np.array(ratios), np.array(widths)], axis=1)

    def _evaluated(self) -> _Posterior | None:
        """What the evaluated strategies say.

        None where there is nothing to tell errors by: most strategies lose nothing, or are
        estimated to.
        """
        if not self._noted or self._known is not None:
            return self._known
        lost, places = np.array(self._losses), self._places(self._noted)
        median = float(np.median(lost))
        if median <= 0:
            return None
        self._alike = grown(self._alike, places)
        for hypothesis in self._hypotheses:
            parts = hypothesis.parts(self._noted)
            typical = float(np.median(parts.sum(1)))
            if typical <= 0:
                continue
            known = _Posterior(
                hypothesis.prior,
                parts / typical,
                places,
                self._alike,
                lost / median,
                typical,
                median,
            )
            if self._known is None or known.evidence > self._known.evidence:
                self._known, self._believed = known, hypothesis
        return self._known

    # -- proposals ----------------------------------------------------------------------------

    def draw(self, rng: np.random.Generator, boldness: float) -> LayerErrors:
        """Errors as they may be.

        Args:
            boldness: Factor of the posterior's standard deviation; 0 gives its mean.
        """
        mean, covariance = self.posterior()
        factors = mean + boldness * (_root(covariance) @ rng.standard_normal(len(mean)))
        return self._believed.scaled(factors.clip(LEAST))

    def allocate(self, errors: LayerErrors) -> Choice:
        """The allocation of least error within the budget, were errors as given."""
        solver = KnapsackSolver(self._costs, errors)
        best, _ = solver.descend_to_bound(self._believed.usual_price)
        best = solver.spend_the_rest(best)
        return tuple(best.kept), tuple(best.options)

    def propose(self, rng: np.random.Generator) -> Strategy:
        """A strategy within the budget that is worth an evaluation."""
        with self._expecting():
            drawn = [self.allocate(self.draw(rng, BOLDNESS)) for _ in range(DRAWS)]
            known = self._evaluated()
            best = drawn[0] if known is None else self._most_expected(rng, drawn, known.lost)
        return self._costs.decode(*best)

    @contextmanager
    def _expecting(self) -> Iterator[None]:
        """Take for known, inside, that what is being evaluated loses what is expected of it.

        So what is proposed is another strategy (Ginsbourger, Le Riche & Carraro 2010, section 4.2:
        the kriging believer; here none is believed to be the best). That their means come true
        changes no mean, so all are believed at once.
        """
        known, believed, count = self._evaluated(), self._believed, len(self._noted)
        if known is None or not self._pending:
            yield
            return
        best = min(
            (loss for loss, within in zip(self._losses, self._within, strict=True) if within),
            default=0.0,
        )
        means, _ = self.predict(self._pending)
        for choice, mean in zip(self._pending, means, strict=True):
            self._note(choice, max(float(mean) * known.median, best))
        try:
            yield
        finally:
            for noted in (self._noted, self._losses, self._within):
                del noted[count:]
            self._alike = self._alike[:count, :count]
            self._known, self._believed = known, believed

    def _most_expected(
        self, rng: np.random.Generator, drawn: Sequence[Choice], lost: FloatArray
    ) -> Choice:
        """The choice of most expected improvement on the least loss within the budget so far.

        Of a search that aimed at a looser bound before, all that was evaluated may be beyond it.
        """
        ranked = sorted(range(len(self._noted)), key=self._losses.__getitem__)
        known = set(self._noted)
        within = [place for place in ranked if self._within[place]]
        least = float(lost[within[0]] if within else lost.max())
        best = (self._noted[place] for place in within[:BEST])
        parents = list(dict.fromkeys([*drawn, *best]))
        pool: dict[Choice, float] = {}
        tables = self._believed.solver.tables
        for _ in range(GENERATIONS):
            children = (
                neighbour(self._costs, tables, parents[rng.integers(len(parents))], rng)
                for _ in range(CHILDREN)
            )
            self._weigh(pool, [*drawn, *children], known, least)
            parents = sorted(pool, key=pool.__getitem__, reverse=True)[:PARENTS] or parents
        return max(pool, key=pool.__getitem__) if pool else drawn[0]

    def _weigh(
        self, pool: dict[Choice, float], choices: Sequence[Choice], known: set[Choice], least: float
    ) -> None:
        """Add to a pool what is new, by its expected improvement."""
        new = [choice for choice in dict.fromkeys(choices) if choice not in known | pool.keys()]
        if new:
            mean, deviation = self.predict(new)
            pool.update(
                zip(new, expected_improvement(mean, deviation, least).tolist(), strict=True)
            )


class _Posterior:
    """Evaluated strategies, in units in which half of them lose more than 1 and half less.

    Attributes:
        lost: Shape (strategies,).
        typical: What the median strategy was estimated to lose, in nats.
        median: What it lost, in the reward's unit.
    """

    def __init__(
        self,
        prior: FloatArray,
        parts: FloatArray,
        places: FloatArray,
        alike: FloatArray,
        lost: FloatArray,
        typical: float,
        median: float,
    ) -> None:
        self._prior, self._parts, self._places = prior, parts, places
        self.lost, self.typical, self.median = lost, typical, median
        noise = np.square(NOISE * lost.clip(0) + FLOOR)
        between = parts @ prior @ parts.T + alike
        self._solver: tuple[FloatArray, bool] = cho_factor(between + np.diag(noise), lower=True)

    @cached_property
    def evidence(self) -> float:
        """Logarithm of the density of what was lost, but for a constant (eq. 2.30)."""
        off = self.lost - self._parts.sum(1)
        fit = float(off @ cho_solve(self._solver, off))
        return -fit / 2 - float(np.log(np.diag(self._solver[0])).sum())

    @cached_property
    def factors(self) -> tuple[FloatArray, FloatArray]:
        """Mean and covariance of the factors."""
        across = self._prior @ self._parts.T
        mean = 1 + across @ cho_solve(self._solver, self.lost - self._parts.sum(1))
        covariance = self._prior - across @ cho_solve(self._solver, across.T)
        return mean, (covariance + covariance.T) / 2

    def losses(self, parts: FloatArray, places: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of what strategies lose."""
        across = parts @ self._prior @ self._parts.T + departures(places, self._places)
        mean = parts.sum(1) + across @ cho_solve(self._solver, self.lost - self._parts.sum(1))
        before = ((parts @ self._prior) * parts).sum(1) + DEPARTURE**2
        variance = before - (across * cho_solve(self._solver, across.T).T).sum(1)
        return mean, np.sqrt(variance.clip(1e-12))


def _root(covariance: FloatArray) -> FloatArray:
    """A matrix whose product with its transpose is the covariance."""
    try:
        return np.asarray(np.linalg.cholesky(covariance + 1e-12 * np.eye(len(covariance))))
    except np.linalg.LinAlgError:  # all but certain: some of its values are below 0 by rounding
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(values.clip(0)))


def departures(places: FloatArray, others: FloatArray) -> FloatArray:
    """Covariance of g between strategies, shape (places, others)."""
    apart = np.square(places[:, None] - others[None]).mean(2) if places.shape[1] else 0.0
    alike: FloatArray = np.exp(-apart / (2 * REACH**2)) * np.ones((len(places), len(others)))
    return DEPARTURE**2 * alike


def grown(alike: FloatArray, places: FloatArray) -> FloatArray:
    """`departures` between all places, when those between the first of them are known."""
    known = len(alike)
    further = departures(places[known:], places)
    return np.block([[alike, further[:, :known].T], [further]])


def expected_improvement(mean: FloatArray, deviation: FloatArray, least: float) -> FloatArray:
    """By how much losses N(mean, deviation^2) are expected to be below the least so far."""
    improvement = least - mean
    z = improvement / deviation
    density = np.exp(-(z**2) / 2.0) / math.sqrt(2 * math.pi)
    gain: FloatArray = improvement * ndtr(z) + deviation * density
    return gain
