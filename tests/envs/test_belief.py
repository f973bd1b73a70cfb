"""Factors of estimated errors, beside posteriors worked out in other ways."""

import numpy as np
import pytest

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.networks import build_network
from amc.recovery.errors import LayerErrors
from amc.strategy import FLOAT, IDENTITY, Bits, Strategy
from envs.belief import FLOOR, LEAST, NOISE, ErrorBelief
from tests.envs.made_up import made_up_errors

SHAPE = (3, 32, 32)
PAIRS = (FLOAT, Bits(8, 8), Bits(4, 4))
WHOLE = -0.5  # reward of the original
INF = np.inf
ERRORS = LayerErrors(
    (
        np.array([INF, 6.0, 4.0, 2.0, 0.0]),  # conv1, by channels kept
        np.array([INF, 10.0, 8.0, 6.0, 4.0, 2.0, 0.0]),  # conv2
        np.zeros(6),  # linear: frozen
    ),
    np.zeros((4, 1)),
)
HALF_1, HALF_2 = Strategy({"conv1": 0.5}, {}), Strategy({"conv2": 4 / 6}, {})  # 4 nats each


@pytest.fixture(scope="module")
def resnet():
    return graph_of(build_network("resnet20", num_classes=10, image_shape=SHAPE).eval(), SHAPE)


def model_of(graph, metric="macs", fraction=0.5, pairs=(FLOAT,), low=0.1):
    choices = choices_for(graph, pairs, min_preserve_ratio=low)
    return CostModel(graph, choices, Budget(metric, fraction=fraction))


def belief_of(costs, errors=ERRORS, losses=()):
    """What is believed after strategies that lost so much."""
    belief = ErrorBelief(costs, errors, WHOLE)
    for strategy, lost in losses:
        belief.note(strategy, WHOLE - lost)
    return belief


def random_losses(costs, errors, seed=0, number=30, factors=None):
    """Strategies within no budget, and the sum of their errors; groups' errors by factors."""
    rng, losses = np.random.default_rng(seed), []
    for _ in range(number):
        kept = [int(rng.choice(counts)) for counts in costs.choices.kept]
        pairs = rng.integers(0, len(costs.choices.pairs), len(costs.graph.layers)).tolist()
        removal = np.array([errors.removal[g][kept[g]] for g in range(len(kept))])
        bits = errors.bits[np.arange(len(pairs)), pairs].sum()
        by = np.ones(len(kept)) if factors is None else factors
        losses.append((costs.decode(kept, pairs), float(removal @ by + bits)))
    return losses


def assert_prior(belief, factors):
    mean, covariance = belief.posterior()
    np.testing.assert_array_equal(mean, np.ones(factors))
    np.testing.assert_array_equal(covariance, np.eye(factors))


# -- the posterior -------------------------------------------------------------------------------


def test_nothing_noted_is_the_prior_of_a_factor_for_every_group_and_every_layers_bits(tiny_graph):
    assert_prior(belief_of(model_of(tiny_graph)), 2)  # one pair of bits: nothing to choose
    costs = model_of(tiny_graph, "bops", pairs=PAIRS)
    assert_prior(belief_of(costs, made_up_errors(costs)), 2 + 4)


def test_one_strategy_says_nothing_of_factors_beside_each_other(tiny_graph):
    """Its loss of 3 for an estimate of 4 is taken as the scale: precision rises, no mean moves."""
    mean, covariance = belief_of(model_of(tiny_graph), losses=[(HALF_1, 3.0)]).posterior()
    np.testing.assert_allclose(mean, [1, 1])
    noise = NOISE + FLOOR
    np.testing.assert_allclose(covariance, np.diag([noise**2 / (1 + noise**2), 1]), atol=1e-15)


def test_two_strategies_of_one_group_each_by_hand(tiny_graph):
    """Losses 8 and 4, median 6, of 4 nats each: observed factors 4/3 and 2/3, each alone."""
    belief = belief_of(model_of(tiny_graph), losses=[(HALF_1, 8.0), (HALF_2, 4.0)])
    mean, covariance = belief.posterior()
    for place, seen in enumerate((4 / 3, 2 / 3)):
        noise = (NOISE * seen + FLOOR) ** 2
        assert mean[place] == pytest.approx((noise + seen) / (noise + 1))
        assert covariance[place, place] == pytest.approx(noise / (noise + 1))
    assert covariance[0, 1] == pytest.approx(0, abs=1e-15)


def test_strategies_of_both_groups_tie_their_factors(tiny_graph):
    both = Strategy({"conv1": 0.5, "conv2": 4 / 6}, {})
    mean, covariance = belief_of(model_of(tiny_graph), losses=[(both, 3.0)]).posterior()
    np.testing.assert_allclose(mean, [1, 1])
    # The sum of halves is known to 0.15: 1 - (1/4) / (1/4 + 1/4 + noise^2), and its counterpart.
    share = 0.25 / (0.5 + (NOISE + FLOOR) ** 2)
    np.testing.assert_allclose(covariance, [[1 - share, -share], [-share, 1 - share]])


@pytest.mark.parametrize("seed", range(3))
def test_posterior_is_that_of_gaussian_conditioning(tiny_graph, seed):
    """Observations conditioned on each other (Rasmussen & Williams 2006, eq. 2.25 and 2.26)."""
    costs = model_of(tiny_graph, "bops", pairs=PAIRS)
    errors = made_up_errors(costs, seed)
    losses = random_losses(costs, errors, seed, 9)
    mean, covariance = belief_of(costs, errors, losses).posterior()
    parts, lost = [], np.array([loss for _, loss in losses])
    for strategy, _ in losses:
        kept, pairs = costs.encode(strategy)
        parts.append([*(errors.removal[g][kept[g]] for g in (0, 1)), *errors.bits[range(4), pairs]])
    parts = np.array(parts) / np.median(np.sum(parts, 1))
    lost = lost / np.median(lost)
    between = parts @ parts.T + np.diag((NOISE * lost + FLOOR) ** 2)
    gain = parts.T @ np.linalg.inv(between)
    np.testing.assert_allclose(mean, 1 + gain @ (lost - parts.sum(1)), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.eye(6) - gain @ parts, rtol=1e-6, atol=1e-8)


def test_many_strategies_outweigh_the_prior(tiny_graph):
    """Least squares, once each strategy was seen a thousand times."""
    costs = model_of(tiny_graph)
    losses = random_losses(costs, ERRORS, 1, 8, np.array([3.0, 0.5, 1.0]))
    parts = np.array(
        [
            [ERRORS.removal[g][kept[g]] for g in (0, 1)]
            for kept, _ in (costs.encode(strategy) for strategy, _ in losses)
        ]
    )
    lost = np.array([loss for _, loss in losses])
    units = np.median(parts.sum(1)) / np.median(lost)
    expected, *_ = np.linalg.lstsq(parts, lost * units)
    mean, covariance = belief_of(costs, losses=losses * 1000).posterior()
    np.testing.assert_allclose(mean, expected, rtol=1e-3)
    np.testing.assert_allclose(expected, np.array([3.0, 0.5]) * units)
    assert np.sqrt(np.diag(covariance)).max() < 0.01


@pytest.mark.parametrize("group", [0, 1])
def test_group_that_loses_twice_its_estimate_gets_twice_the_factor_of_the_others(tiny_graph, group):
    costs = model_of(tiny_graph)
    factors = np.ones(3)
    factors[group] = 2
    losses = random_losses(costs, ERRORS, 2, 200, factors)
    mean, _ = belief_of(costs, losses=losses).posterior()
    assert mean[group] == pytest.approx(2 * mean[1 - group], rel=0.02)


@pytest.mark.parametrize("unit", [1e-9, 1000.0])
def test_unit_of_the_rewards_does_not_matter(tiny_graph, unit):
    costs = model_of(tiny_graph, "bops", pairs=PAIRS)
    errors = made_up_errors(costs)
    losses = random_losses(costs, errors)
    belief, other = ErrorBelief(costs, errors, 0.0), ErrorBelief(costs, errors, 0.0)
    for strategy, lost in losses:
        belief.note(strategy, -lost)
        other.note(strategy, -unit * lost)
    for found, expected in zip(other.posterior(), belief.posterior(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lost", [-0.3, 0.0])
def test_strategies_no_worse_than_the_original_leave_the_prior(tiny_graph, lost):
    losses = [(HALF_1, lost), (HALF_2, 2 * lost), (HALF_1, 3 * lost)]
    assert_prior(belief_of(model_of(tiny_graph), losses=losses), 2)


def test_strategies_estimated_to_lose_nothing_leave_the_prior(tiny_graph):
    losses = [(IDENTITY, 0.1), (IDENTITY, 0.2), (HALF_1, 0.3)]
    assert_prior(belief_of(model_of(tiny_graph), losses=losses), 2)


# -- what is drawn -------------------------------------------------------------------------------


def factors_of(drawn, errors):
    """By which every error that is not 0 was multiplied, group by group and layer by layer."""
    found = []
    both = zip([*drawn.removal, *drawn.bits], [*errors.removal, *errors.bits], strict=True)
    for now, before in both:
        counts = np.isfinite(before) & (before > 0)
        found.append(now[counts] / before[counts])
    return found


def test_no_boldness_gives_the_mean(tiny_graph):
    costs = model_of(tiny_graph, "bops", pairs=PAIRS)
    errors = made_up_errors(costs)
    belief = belief_of(costs, errors, random_losses(costs, errors))
    mean, _ = belief.posterior()
    drawn = factors_of(belief.draw(np.random.default_rng(0), 0.0), errors)
    assert len(drawn) == 3 + 4  # three groups, of which the last is frozen, and four layers
    expected = [mean[0], mean[1], None, *mean[2:]]
    for found, factor in zip(drawn, expected, strict=True):
        np.testing.assert_allclose(found, np.ones(len(found)) * (factor or 1))


def test_factors_are_drawn_from_the_posterior(tiny_graph):
    costs = model_of(tiny_graph)
    belief = belief_of(costs, losses=[(HALF_1, 4.0), (HALF_2, 4.0), (HALF_1, 5.0)])
    mean, covariance = belief.posterior()
    rng = np.random.default_rng(0)
    drawn = np.array(
        [[f[0] for f in factors_of(belief.draw(rng, 0.5), ERRORS)[:2]] for _ in range(1000)]
    )
    spread = 0.5 * np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(drawn.mean(0), mean, atol=4 * spread.max() / np.sqrt(1000))
    np.testing.assert_allclose(drawn.std(0), spread, rtol=0.1)


def test_no_error_is_drawn_below_a_part_of_its_estimate(tiny_graph):
    """One in six factors of the prior would be below 0 at a boldness of 1, half of them at 1000."""
    costs = model_of(tiny_graph, "bops", pairs=PAIRS)
    errors = made_up_errors(costs)
    belief, rng = belief_of(costs, errors), np.random.default_rng(0)
    found = np.concatenate(
        [np.concatenate(factors_of(belief.draw(rng, 1000.0), errors)) for _ in range(20)]
    )
    assert found.min() == pytest.approx(LEAST)
    assert found.max() > 100


def test_mean_below_zero_is_raised_to_the_least_factor(tiny_graph):
    """The more of conv1 goes, the less is lost."""
    losses = [(Strategy({"conv1": n / 4, "conv2": 4 / 6}, {}), n) for n in (1.0, 2.0, 3.0)]
    belief = belief_of(model_of(tiny_graph), losses=losses)
    assert belief.posterior()[0][0] < 0
    drawn = factors_of(belief.draw(np.random.default_rng(0), 0.0), ERRORS)
    np.testing.assert_allclose(drawn[0], LEAST)


# -- what is proposed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "fraction", "pairs"),
    [("macs", 0.3, (FLOAT,)), ("bops", 0.05, PAIRS), ("size_bytes", 0.3, PAIRS[:2])],
)
def test_every_proposal_meets_the_budget(tiny_graph, metric, fraction, pairs):
    costs = model_of(tiny_graph, metric, fraction, pairs)
    errors = made_up_errors(costs)
    belief, rng = belief_of(costs, errors), np.random.default_rng(0)
    for strategy, lost in random_losses(costs, errors, 3, 6):
        for boldness in (0.0, 0.5, 3.0):
            proposal = belief.propose(rng, boldness)
            assert costs.cost_of(proposal) <= costs.bound
        belief.note(strategy, WHOLE - lost)


def test_same_seed_gives_the_same_proposal_whatever_was_proposed_before(resnet):
    """A search that goes on after a stop proposes what it would have proposed without."""
    costs = model_of(resnet)
    errors = made_up_errors(costs)
    losses = random_losses(costs, errors, number=10)
    fresh, used = belief_of(costs, errors, losses), belief_of(costs, errors)
    other = used.propose(np.random.default_rng(1), 3.0)
    for strategy, lost in losses:
        used.note(strategy, WHOLE - lost)
    first, again = (belief.propose(np.random.default_rng(0), 0.5) for belief in (fresh, used))
    assert first == again != other


@pytest.mark.parametrize(("worse", "group"), [(0, "conv1"), (1, "conv2")])
def test_group_that_loses_more_than_estimated_is_proposed_to_keep_more(tiny_graph, worse, group):
    """It is estimated at a tenth of what stands above, and loses ten times that."""
    costs = model_of(tiny_graph, fraction=0.6)
    factors = np.where(np.arange(3) == worse, 100, 1)
    errors = LayerErrors(
        tuple(c / f**0.5 for c, f in zip(ERRORS.removal, factors, strict=True)), ERRORS.bits
    )
    rng = np.random.default_rng(0)
    before = belief_of(costs, errors).propose(rng, 0.0)
    losses = random_losses(costs, errors, 4, 60, factors)
    after = belief_of(costs, errors, losses).propose(rng, 0.0)
    assert before.preserve_ratio[group] < after.preserve_ratio[group]


def test_nothing_to_choose_is_proposed_as_it_is(tiny_graph):
    costs = model_of(tiny_graph, "bops", 0.9, (Bits(8, 8),), low=1.0)
    proposal = belief_of(costs).propose(np.random.default_rng(0), 1.0)
    assert set(proposal.preserve_ratio.values()) == {1.0}
    assert set(proposal.bits.values()) == {Bits(8, 8)}
