import csv
import threading

from agents.trial import Trial
from amc.strategy import Strategy
from amc.study import artifact
from amc.study.journal import Journal
from amc.study.recorder import Recorder
from amc.utils.progress import progress_bar
from tests.conftest import classified


def trial(index, ratio, reward, meets_budget):
    evaluation = classified(accuracy=reward, loss=1.0, agreement=-0.1)
    return Trial(index, Strategy({"g": ratio}, {}), evaluation, reward, meets_budget=meets_budget)


def test_strategy_above_the_budget_is_recorded_but_never_the_best(tmp_path):
    recorder = Recorder(None, tmp_path, None, 3, threading.Event(), Journal(None))
    with progress_bar("", 3, enabled=False) as bar, recorder.kept():
        on_trial = recorder.watch(bar)
        assert on_trial(trial(1, 0.9, 0.8, meets_budget=False))
        assert on_trial(trial(2, 0.5, 0.6, meets_budget=True))
        assert on_trial(trial(3, 0.8, 0.7, meets_budget=False))
    assert artifact.read_strategy(tmp_path).preserve_ratio == {"g": 0.5}
    with (tmp_path / artifact.TRIALS_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["reward"] for row in rows] == ["0.8", "0.6", "0.7"]
    assert [row["best_reward"] for row in rows] == ["", "0.6", "0.6"]


def test_where_the_reward_prices_the_cost_the_best_may_exceed_the_budget(tmp_path):
    recorder = Recorder(None, tmp_path, None, 2, threading.Event(), Journal(None), soft=True)
    with progress_bar("", 2, enabled=False) as bar, recorder.kept():
        on_trial = recorder.watch(bar)
        on_trial(trial(1, 0.9, 0.8, meets_budget=False))
        on_trial(trial(2, 0.5, 0.6, meets_budget=True))
    assert artifact.read_strategy(tmp_path).preserve_ratio == {"g": 0.9}
