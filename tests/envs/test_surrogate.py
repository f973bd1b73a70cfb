"""Factors of estimated errors, beside posteriors worked out in other ways."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.model import CostModel, choices_for
from amc.networks import build_network
from amc.recovery.errors import LayerErrors
from amc.strategy import FLOAT, IDENTITY, Bits, Strategy
from envs.hypothesis import CUTS, LIKENESS, PIECES, WIDTH, Hypothesis, pieces
from envs.knapsack import knapsack_strategy
from envs.surrogate import (
    DEPARTURE,
    FLOOR,
    LEAST,
    NOISE,
    REACH,
    Surrogate,
    _root,
    departures,
    expected_improvement,
    grown,
)
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
    belief = Surrogate([Hypothesis(costs, errors)], WHOLE)
    for strategy, lost in losses:
        belief.note(strategy, WHOLE - lost)
    return belief


def random_losses(costs, errors, seed=0, number=30, factors=None):
    """Strategies within no budget, and the sum of their errors; groups' errors by factors."""
    rng, losses = np.random.default_rng(seed), []
    for _ in range(number):
        kept = [int(rng.choice(counts)) for counts in costs.choices.kept]
        pairs = rng.integers(0, len(costs.choices.options), len(costs.graph.layers)).tolist()
        removal = np.array([errors.removal[g][kept[g]] for g in range(len(kept))])
        bits = errors.options[np.arange(len(pairs)), pairs].sum()
        by = np.ones(len(kept)) if factors is None else factors
        losses.append((costs.decode(kept, pairs), float(removal @ by + bits)))
    return losses


PRIOR = WIDTH**2 * (LIKENESS + (1 - LIKENESS) * np.eye(PIECES))  # of one group's factors


def prior(groups, layers=0):
    """Covariance of all factors before anything is told."""
    covariance = WIDTH**2 * np.eye(PIECES * groups + layers)
    for group in range(groups):
        place = slice(PIECES * group, PIECES * (group + 1))
        covariance[place, place] = PRIOR
    return covariance


def assert_prior(belief, groups, layers=0):
    mean, covariance = belief.posterior()
    np.testing.assert_array_equal(mean, np.ones(PIECES * groups + layers))
    np.testing.assert_allclose(covariance, prior(groups, layers))


def parts_of(costs, errors, losses):
    """Pieces of the strategies' estimated errors, and of the bits', by loops over channels."""
    rows = []
    for strategy, _ in losses:
        kept, pairs = (part.tolist() for part in costs.encode(strategy))
        row = []
        for group in (0, 1):
            curve, steps = errors.removal[group], range(len(errors.removal[group]) - 1)
            falls = [0.0] * PIECES
            for n in steps:  # what the step from n + 1 channels to n adds
                if n >= kept[group]:
                    size = len(steps)
                    piece = sum(n < math.ceil(cut * size) for cut in CUTS)
                    falls[piece] += curve[n] - curve[n + 1]
            row += falls
        if len(costs.choices.options) > 1:
            row += [errors.options[layer][pair] for layer, pair in enumerate(pairs)]
        rows.append(row)
    return np.array(rows)


def alike(costs, losses):
    """Covariance of what errors do beyond adding up, strategy by strategy."""
    pairs = sorted(costs.choices.options)
    places = []
    for strategy, _ in losses:
        kept, chosen = (part.tolist() for part in costs.encode(strategy))
        place = [kept[0] / 4, kept[1] / 6]
        if len(pairs) > 1:
            ranks = [pairs.index(costs.choices.options[pair]) for pair in chosen]
            place += [rank / (len(pairs) - 1) for rank in ranks]
        places.append(place)
    found = np.empty((len(places), len(places)))
    for i, j in itertools.product(range(len(places)), repeat=2):
        apart = np.mean([(a - b) ** 2 for a, b in zip(places[i], places[j], strict=True)])
        found[i, j] = DEPARTURE**2 * np.exp(-apart / (2 * REACH**2))
    return found


# -- pieces --------------------------------------------------------------------------------------


def test_pieces_of_a_curve_by_hand():
    """Of 10 channels the first piece ends at 7, the second at 4."""
    curve = np.array([INF, 90.0, 70, 50, 30, 20, 14, 9, 5, 2, 0])
    first, second, third = pieces(curve)
    np.testing.assert_array_equal(first, [9, 9, 9, 9, 9, 9, 9, 9, 5, 2, 0])
    np.testing.assert_array_equal(second, [21, 21, 21, 21, 21, 11, 5, 0, 0, 0, 0])
    np.testing.assert_array_equal(third, [INF, 60, 40, 20, 0, 0, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("channels", range(1, 12))
def test_pieces_add_up_to_the_curve_whatever_its_length(channels):
    curve = np.array([INF, *np.random.default_rng(channels).exponential(size=channels)])
    curve[-1] = 0
    curve = np.maximum.accumulate(curve[::-1])[::-1]
    found = pieces(curve)
    assert found.shape == (PIECES, channels + 1)
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(0), curve)


# -- the posterior -------------------------------------------------------------------------------


def test_nothing_noted_is_the_prior_of_factors_for_every_group_and_every_layers_bits(tiny_graph):
    assert_prior(belief_of(model_of(tiny_graph)), 2)  # one pair of bits: nothing to choose
    costs = model_of(tiny_graph, "bops", pairs=PAIRS)
    assert_prior(belief_of(costs, made_up_errors(costs)), 2, 4)


def test_one_strategy_says_nothing_of_factors_beside_each_other(tiny_graph):
    """Its loss of 3 for an estimate of 4 is taken as the scale: precision rises, no mean moves.

    Half of conv1's error lies in its first piece and half in its second.
    """
    mean, covariance = belief_of(model_of(tiny_graph), losses=[(HALF_1, 3.0)]).posterior()
    np.testing.assert_allclose(mean, np.ones(6))
    part = np.array([0.5, 0.5, 0])
    told = part @ PRIOR @ part + (NOISE + FLOOR) ** 2 + DEPARTURE**2
    np.testing.assert_allclose(
        covariance[:3, :3], PRIOR - np.outer(PRIOR @ part, part @ PRIOR) / told
    )
    np.testing.assert_allclose(covariance[3:, 3:], PRIOR)
    np.testing.assert_allclose(covariance[:3, 3:], 0, atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pairs", [(FLOAT,), PAIRS])
def test_posterior_is_that_of_weighted_least_squares_with_a_prior(tiny_graph, seed, pairs):
    """In the other form of it: precisions add (Bishop 2006, eq. 3.50 and 3.51)."""
    costs = model_of(tiny_graph, "bops", pairs=pairs)
    errors = made_up_errors(costs, seed)
    losses = random_losses(costs, errors, seed, 9)
    mean, covariance = belief_of(costs, errors, losses).posterior()
    parts, lost = parts_of(costs, errors, losses), np.array([loss for _, loss in losses])
    parts, lost = parts / np.median(np.sum(parts, 1)), lost / np.median(lost)
    weights = np.linalg.inv(np.diag((NOISE * lost + FLOOR) ** 2) + alike(costs, losses))
    before = np.linalg.inv(prior(2, 4 * (len(pairs) > 1)))
    expected = np.linalg.inv(before + parts.T @ weights @ parts)
    right = before @ np.ones(len(before)) + parts.T @ weights @ lost
    np.testing.assert_allclose(covariance, expected, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(mean, expected @ right, rtol=1e-6)


@pytest.mark.parametrize("group", [0, 1])
def test_group_that_loses_twice_its_estimate_gets_twice_the_factor_of_the_others(tiny_graph, group):
    costs = model_of(tiny_graph)
    factors = np.ones(3)
    factors[group] = 2
    losses = random_losses(costs, ERRORS, 2, 200, factors)
    mean, _ = belief_of(costs, losses=losses).posterior()
    of_groups = mean.reshape(2, PIECES).mean(1)
    assert of_groups[group] == pytest.approx(2 * of_groups[1 - group], rel=0.1)


def test_error_of_few_channels_is_told_from_that_of_many(tiny_graph):
    """What conv2 loses in its first channels is as estimated; beyond, four times that."""
    costs = model_of(tiny_graph)
    worse = ERRORS.removal[1] + 3 * np.clip(ERRORS.removal[1] - ERRORS.removal[1][3], 0, None)
    truth = LayerErrors((ERRORS.removal[0], worse, ERRORS.removal[2]), ERRORS.options)
    belief = belief_of(costs, losses=random_losses(costs, truth, 2, 200))
    first, second, beyond = belief.posterior()[0][3:]
    assert beyond == pytest.approx(4 * first, rel=0.2)
    assert second == pytest.approx(first, rel=0.2)


# -- what is predicted ---------------------------------------------------------------------------


def test_prediction_is_that_of_gaussian_process_regression(tiny_graph):
    """Rasmussen & Williams 2006, eq. 2.22 to 2.24, all strategies in one covariance."""
    costs = model_of(tiny_graph, "bops", pairs=PAIRS)
    errors = made_up_errors(costs)
    losses = random_losses(costs, errors, 5, 14)
    told = losses[:9]
    mean, deviation = belief_of(costs, errors, told).predict(
        [tuple(tuple(part.tolist()) for part in costs.encode(strategy)) for strategy, _ in losses]
    )
    parts, lost = parts_of(costs, errors, losses), np.array([loss for _, loss in told])
    parts, lost = parts / np.median(parts[:9].sum(1)), lost / np.median(lost)
    whole = parts @ prior(2, 4) @ parts.T + alike(costs, losses)
    noise = np.diag((NOISE * lost + FLOOR) ** 2)
    gain = whole[:, :9] @ np.linalg.inv(whole[:9, :9] + noise)
    np.testing.assert_allclose(mean, parts.sum(1) + gain @ (lost - parts[:9].sum(1)), rtol=1e-6)
    expected = np.sqrt(np.diag(whole - gain @ whole[:9]))
    np.testing.assert_allclose(deviation, expected, rtol=1e-6)


def test_strategy_is_predicted_to_lose_what_it_lost(tiny_graph):
    """And another one no less surely than before anything was told."""
    costs = model_of(tiny_graph)
    belief = belief_of(costs, losses=[(HALF_1, 8.0), (HALF_2, 4.0)])
    choices = [
        tuple(tuple(part.tolist()) for part in costs.encode(strategy))
        for strategy in (HALF_1, HALF_2, Strategy({"conv1": 0.25, "conv2": 0.5}, {}))
    ]
    mean, deviation = belief.predict(choices)
    assert mean[0] == pytest.approx(8 / 6, rel=0.05)  # in median losses, of 6
    assert mean[1] == pytest.approx(4 / 6, rel=0.05)
    assert deviation[:2].max() < 0.2 < deviation[2]


def test_nothing_told_predicts_the_estimates(tiny_graph):
    costs = model_of(tiny_graph)
    mean, deviation = belief_of(costs).predict([((2, 6, 5), (0,) * 4), ((4, 4, 5), (0,) * 4)])
    np.testing.assert_allclose(mean, [1, 1])  # 4 nats each
    part = np.array([0.5, 0.5, 0])
    np.testing.assert_allclose(deviation[0], np.sqrt(part @ PRIOR @ part + DEPARTURE**2))


def test_expected_improvement_is_the_mean_of_what_is_gained():
    """Beside draws: 400,000 losses from each of three distributions."""
    mean, deviation = np.array([0.9, 1.0, 1.4]), np.array([0.05, 0.3, 0.2])
    drawn = np.random.default_rng(0).normal(mean, deviation, (400_000, 3))
    gained = np.clip(1.1 - drawn, 0, None).mean(0)
    found = expected_improvement(mean, deviation, 1.1)
    np.testing.assert_allclose(found, gained, rtol=0.02)


@pytest.mark.parametrize("unit", [1e-9, 1000.0])
def test_unit_of_the_rewards_does_not_matter(tiny_graph, unit):
    costs = model_of(tiny_graph, "bops", pairs=PAIRS)
    errors = made_up_errors(costs)
    losses = random_losses(costs, errors)
    belief, other = (Surrogate([Hypothesis(costs, errors)], 0.0) for _ in range(2))
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
    both = zip([*drawn.removal, *drawn.options], [*errors.removal, *errors.options], strict=True)
    for now, before in both:
        counts = np.isfinite(before) & (before > 0)
        found.append(now[counts] / before[counts])
    return found


def test_no_boldness_gives_the_mean(tiny_graph):
    costs = model_of(tiny_graph, "bops", pairs=PAIRS)
    errors = made_up_errors(costs)
    belief = belief_of(costs, errors, random_losses(costs, errors))
    mean, _ = belief.posterior()
    drawn = belief.draw(np.random.default_rng(0), 0.0)
    factors = mean.clip(LEAST)
    for group in (0, 1):
        curve = errors.removal[group]
        expected = factors[PIECES * group : PIECES * (group + 1)] @ pieces(curve)[:, 1:]
        np.testing.assert_allclose(drawn.removal[group][1:], expected)
        assert drawn.removal[group][0] == curve[0]
    np.testing.assert_array_equal(drawn.removal[2], errors.removal[2])  # frozen
    np.testing.assert_allclose(drawn.options, factors[2 * PIECES :, None] * errors.options)


def test_factors_are_drawn_from_the_posterior(tiny_graph):
    """The error of one channel less has the first piece alone: of 4 channels, and of 6."""
    costs = model_of(tiny_graph)
    losses = [(HALF_1, 4.0), (HALF_2, 4.0), (HALF_1, 5.0)] * 3
    belief = belief_of(costs, losses=losses)
    mean, covariance = belief.posterior()
    rng = np.random.default_rng(0)
    drawn = [belief.draw(rng, 0.5).removal for _ in range(2000)]
    found = np.array([[removal[0][3] / 2, removal[1][5] / 2] for removal in drawn])
    spread = 0.5 * np.sqrt(np.diag(covariance)[[0, PIECES]])
    assert (mean[[0, PIECES]] - 2 * spread > 0).all()  # else most draws are raised to the least
    np.testing.assert_allclose(np.median(found, 0), mean[[0, PIECES]], atol=0.05)
    quartiles = np.quantile(found, [0.25, 0.75], axis=0)
    np.testing.assert_allclose(quartiles[1] - quartiles[0], 1.349 * spread, rtol=0.1)


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
    """Without one of conv1's channels, less is lost than with all of them."""
    losses = [
        (Strategy({"conv1": first / 4, "conv2": second / 6}, {}), {4: 10.0, 3: 1.0}[first])
        for first, second in itertools.product((4, 3), range(1, 6))
    ]
    belief = belief_of(model_of(tiny_graph), losses=losses)
    assert belief.posterior()[0][0] < 0
    drawn = belief.draw(np.random.default_rng(0), 0.0)
    assert drawn.removal[0][3] == pytest.approx(LEAST * ERRORS.removal[0][3])


@pytest.mark.parametrize("number", [1, 300])
def test_posterior_that_is_all_but_certain_can_be_drawn_from(tiny_graph, number):
    """The same strategies over and over, in units a billion times smaller than the estimates'."""
    costs = model_of(tiny_graph, "bops", pairs=PAIRS)
    errors = made_up_errors(costs)
    losses = [(s, 1e-9 * lost) for s, lost in random_losses(costs, errors, number=8)] * number
    drawn = belief_of(costs, errors, losses).draw(np.random.default_rng(0), 1.0)
    assert all(np.isfinite(curve[1:]).all() for curve in drawn.removal)
    assert np.isfinite(drawn.options).all()


def test_root_of_a_covariance_that_rounding_left_indefinite():
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    values = np.array([-1e-9, 0, 1, 2])
    root = _root(vectors * values @ vectors.T)
    np.testing.assert_allclose(root @ root.T, vectors * values.clip(0) @ vectors.T, atol=1e-12)


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
        assert costs.cost_of(belief.propose(rng)) <= costs.bound
        belief.note(strategy, WHOLE - lost)


def test_same_seed_gives_the_same_proposal_whatever_was_proposed_before(resnet):
    """A search that goes on after a stop proposes what it would have proposed without."""
    costs = model_of(resnet)
    errors = made_up_errors(costs)
    losses = random_losses(costs, errors, number=10)
    fresh, used = belief_of(costs, errors, losses), belief_of(costs, errors)
    other = used.propose(np.random.default_rng(1))
    for strategy, lost in losses:
        used.note(strategy, WHOLE - lost)
    first, again = (belief.propose(np.random.default_rng(0)) for belief in (fresh, used))
    assert first == again != other


@pytest.mark.parametrize(("worse", "group"), [(0, "conv1"), (1, "conv2")])
def test_group_that_loses_more_than_estimated_is_allocated_more(tiny_graph, worse, group):
    """It is estimated at a tenth of what stands above, and loses ten times that."""
    costs = model_of(tiny_graph, fraction=0.5)
    factors = np.where(np.arange(3) == worse, 100, 1)
    errors = LayerErrors(
        tuple(c / f**0.5 for c, f in zip(ERRORS.removal, factors, strict=True)), ERRORS.options
    )
    rng = np.random.default_rng(0)
    before = costs.decode(*belief_of(costs, errors).allocate(errors))
    losses = random_losses(costs, errors, 4, 60, factors)
    belief = belief_of(costs, errors, losses)
    after = costs.decode(*belief.allocate(belief.draw(rng, 0.0)))
    assert before.preserve_ratio[group] < after.preserve_ratio[group]


def test_what_was_evaluated_is_not_proposed_again_while_there_is_more(resnet):
    costs = model_of(resnet)
    belief, rng = belief_of(costs, made_up_errors(costs)), np.random.default_rng(0)
    proposed = []
    for number in range(6):
        proposed.append(belief.propose(rng))
        belief.note(proposed[-1], WHOLE - 1 - number % 3)
    assert len(set(proposed)) == 6


def test_all_there_is_evaluated_is_proposed_again(tiny_graph):
    """Two groups of four and six channels: 24 strategies, most of them over the budget."""
    costs = model_of(tiny_graph, fraction=0.6)
    belief, rng = belief_of(costs), np.random.default_rng(0)
    for number in range(25):
        proposal = belief.propose(rng)
        assert costs.cost_of(proposal) <= costs.bound
        belief.note(proposal, WHOLE - 1 - number % 3)


@pytest.mark.parametrize("seed", range(2))
def test_proposals_find_what_the_estimates_hide(resnet, seed):
    """Groups lose up to five times more or less than estimated: learnt in few proposals."""
    costs = model_of(resnet, fraction=0.5)
    errors = made_up_errors(costs, seed)
    rng = np.random.default_rng(seed)
    factors = np.exp(rng.uniform(-np.log(5), np.log(5), len(errors.removal)))
    truth = LayerErrors(
        tuple(curve * factor for curve, factor in zip(errors.removal, factors, strict=True)),
        errors.options,
    )

    def lost(strategy):
        return truth.total(*(part.tolist() for part in costs.encode(strategy)))

    belief = belief_of(costs, errors)
    guess, ideal = (lost(knapsack_strategy(costs, known)) for known in (errors, truth))
    found = []
    for _ in range(15):
        proposal = belief.propose(rng)
        found.append(lost(proposal))
        belief.note(proposal, WHOLE - found[-1])
    assert min(found) - ideal < 0.75 * (guess - ideal)


def test_nothing_to_choose_is_proposed_as_it_is(tiny_graph):
    costs = model_of(tiny_graph, "bops", 0.9, (Bits(8, 8),), low=1.0)
    proposal = belief_of(costs).propose(np.random.default_rng(0))
    assert set(proposal.preserve_ratio.values()) == {1.0}
    assert set(proposal.bits.values()) == {Bits(8, 8)}


def test_covariance_grows_to_what_it_is_from_scratch():
    places = np.random.default_rng(0).random((7, 5))
    alike = np.empty((0, 0))
    for count in (2, 3, 3, 7):
        alike = grown(alike, places[:count])
        assert alike.tolist() == departures(places[:count], places[:count]).tolist()
    assert grown(np.empty((0, 0)), np.empty((3, 0))).tolist() == [[DEPARTURE**2] * 3] * 3


def test_proposals_take_what_is_being_evaluated_for_known(tiny_graph):
    costs = model_of(tiny_graph)
    belief, same = (belief_of(costs, losses=[(HALF_1, 3.0), (HALF_2, 1.0)]) for _ in range(2))
    third, fourth = (Strategy({"conv1": 0.75, "conv2": kept}, {}) for kept in (0.5, 0.75))
    choices = [belief._choice(third), belief._choice(fourth)]
    means, before = belief.predict(choices)
    belief.expect(third)
    belief.expect(fourth)
    with belief._expecting():
        after = belief.predict(choices)[1]
        # Both losses' median is 2: expected of them is their mean, but never less than the best, 1.
        assert belief._losses[2:] == pytest.approx([max(2 * mean, 1.0) for mean in means])
    assert (after < before).all()
    for one in (belief, same):
        np.testing.assert_array_equal(one.predict(choices)[1], before)
        one.note(third, WHOLE - 5.0)
    np.testing.assert_array_equal(belief.posterior()[0], same.posterior()[0])
    with belief._expecting():
        assert belief._noted[2:] == choices  # the fourth is still being evaluated
    belief.note(fourth, WHOLE - 2.0)
    with belief._expecting():
        assert len(belief._noted) == 4


def test_nothing_is_expected_before_anything_is_known(tiny_graph):
    belief = belief_of(model_of(tiny_graph))
    belief.expect(HALF_1)
    with belief._expecting():
        assert not belief._noted


# -- hypotheses ----------------------------------------------------------------------------------


def corrected_wrongly(errors: LayerErrors) -> LayerErrors:
    """The first group's errors a twentieth of the estimates, the second's twenty times them."""
    first, second, frozen = errors.removal
    return LayerErrors((first / 20, second * 20, frozen), errors.options)


def test_errors_are_believed_under_which_the_rewards_are_most_likely(tiny_graph):
    costs = model_of(tiny_graph)
    right = Hypothesis(costs, ERRORS)
    wrong = Hypothesis(costs, corrected_wrongly(ERRORS))
    belief = Surrogate([wrong, right], WHOLE)
    assert belief.believed is wrong  # nothing told: the first
    for strategy, lost in random_losses(costs, ERRORS, 1, 12):
        belief.note(strategy, WHOLE - lost)
    assert belief.believed is right
    alone = belief_of(costs, losses=random_losses(costs, ERRORS, 1, 12))
    np.testing.assert_array_equal(belief.posterior()[0], alone.posterior()[0])
    first, second = (one.propose(np.random.default_rng(3)) for one in (belief, alone))
    assert first == second


def test_errors_that_a_policy_corrects_rightly_stay_believed(tiny_graph):
    costs = model_of(tiny_graph)
    truth = corrected_wrongly(ERRORS)
    right, estimated = Hypothesis(costs, truth), Hypothesis(costs, ERRORS)
    belief = Surrogate([right, estimated], WHOLE)
    for strategy, lost in random_losses(costs, truth, 1, 12):
        belief.note(strategy, WHOLE - lost)
    assert belief.believed is right


def test_evidence_is_the_density_of_what_was_lost_but_for_a_constant(tiny_graph):
    """Beside SciPy's normal distribution, whose constant is that of the dimension."""
    costs = model_of(tiny_graph)
    losses = random_losses(costs, ERRORS, 4, 7)
    belief = belief_of(costs, losses=losses)
    parts, lost = parts_of(costs, ERRORS, losses), np.array([loss for _, loss in losses])
    parts, lost = parts / np.median(parts.sum(1)), lost / np.median(lost)
    covariance = parts @ prior(2) @ parts.T + alike(costs, losses)
    covariance += np.diag((NOISE * lost + FLOOR) ** 2)
    density = multivariate_normal(parts.sum(1), covariance).logpdf(lost)
    expected = density + len(lost) / 2 * np.log(2 * np.pi)
    assert belief._evaluated().evidence == pytest.approx(expected)
