from agents.trial import SearchResult, Trial
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


def test_wall_clock_takes_no_part_in_equality():
    assert trial(1, 0.1, 1.0, agent_seconds=1.0) == trial(1, 0.1, 1.0, agent_seconds=2.0)
    assert trial(1, 0.1, 1.0) != trial(1, 0.1, 1.5)
