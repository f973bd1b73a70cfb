import pytest

from agents.trial import SearchResult, Trial, eligible
from amc.errors import BudgetError
from amc.strategy import Strategy


def trial(index, ratio, reward, **diagnostics):
    return Trial(index, Strategy({"g": ratio}, {}), None, reward, diagnostics)


def test_best_is_the_highest_reward_and_the_first_of_equals():
    trials = [trial(1, 0.1, -1.0), trial(2, 0.2, 0.5), trial(3, 0.3, 0.5)]
    assert SearchResult("x", trials).best is trials[1]


def test_top_lists_distinct_strategies_best_first():
    trials = [trial(1, 0.1, 1.0), trial(2, 0.2, 3.0), trial(3, 0.2, 3.0), trial(4, 0.3, 2.0)]
    result = SearchResult("x", trials)
    assert [t.index for t in result.top(2)] == [2, 4]
    assert [t.index for t in result.top(9)] == [2, 4, 1]


def over(index, ratio, reward):
    return Trial(index, Strategy({"g": ratio}, {}), None, reward, meets_budget=False)


def test_what_lies_above_the_budget_is_neither_best_nor_among_the_top():
    result = SearchResult("x", [over(1, 1.0, 9.0), trial(2, 0.2, 0.5), over(3, 0.9, 8.0)])
    assert result.best is result.trials[1]
    assert result.top(3) == [result.trials[1]]


def test_where_the_reward_prices_the_cost_the_best_may_exceed_the_budget():
    trials = [over(1, 1.0, 9.0), trial(2, 0.2, 0.5), over(3, 0.9, 8.0)]
    result = SearchResult("x", trials, soft=True)
    assert result.best is trials[0]
    assert [t.index for t in result.top(3)] == [1, 3, 2]
    assert eligible(trials, soft=False) == [trials[1]]


def test_search_that_was_stopped_above_the_budget_says_so():
    result = SearchResult("netadapt", [over(1, 1.0, 9.0)])
    for ask in (lambda: result.best, lambda: result.top(3)):
        with pytest.raises(BudgetError, match=r"None of the 1 .* agent=netadapt .* Let it run"):
            ask()


def test_wall_clock_takes_no_part_in_equality():
    assert trial(1, 0.1, 1.0, agent_seconds=1.0) == trial(1, 0.1, 1.0, agent_seconds=2.0)
    assert trial(1, 0.1, 1.0) != trial(1, 0.1, 1.5)
