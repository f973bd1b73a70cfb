from __future__ import annotations

import csv
import json
from pathlib import Path

import hydra
import pytest

from agents.experience import load_experience
from agents.policies import load_policy
from agents.trust import TrustPolicy
from amc.cli.train import _records, _sources
from amc.problem import workers
from amc.problem.task import CompressionTask
from tests.cli.command import NETWORK, REPAIR, amc

Output = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("quick")

forks = pytest.mark.skipif(not workers._can_fork(), reason="processes cannot be copied here")
QUICK = ("fit.actors=2", "fit.hidden=4", "fit.steps=5", "episodes=16")


DEEPER = "network=tests.cli.nets:deeper"


def task(network: str = DEEPER, bounds: str = "0.4,0.3") -> str:
    repair = " ".join(REPAIR)
    return f"{network} ~device budget=macs budget.fraction={bounds} {repair}"


def train(*arguments: str, tasks: list[str] | None = None, out: str = "out") -> int:
    chosen = [task()] if tasks is None else tasks
    quoted = ",".join(f"'{text}'" for text in chosen)
    return amc("train", f"tasks=[{quoted}]", f"hydra.run.dir={out}", *QUICK, *arguments)


def rows(folder: str = "out") -> list[dict[str, str]]:
    with Path(folder, "tasks.csv").open() as file:
        return list(csv.DictReader(file))


def test_training_leaves_a_policy_its_experience_and_what_it_is_worth(capsys: Output) -> None:
    assert train() == 0
    policy = load_policy("out")
    assert isinstance(policy, TrustPolicy)
    assert len(policy.actors) == 2
    assert policy.origin["options"]["episodes"] == 16
    experience = load_experience(Path("out"))
    assert len(experience) == 2  # a network under two bounds
    assert all(len(task.lost) >= 5 for task in experience)
    assert len(rows()) == 2
    for row in rows():
        assert float(row["best"]) >= float(row["policy"])
    assert "written to " in capsys.readouterr().out


def test_training_again_is_the_same_policy_and_evaluates_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert train("recall=false") == 0
    first = load_policy("out")

    def never(*_: object) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr("amc.problem.task.CompressionTask._run", never)
    assert train("recall=false", out="again") == 0
    again = load_policy("again")
    assert isinstance(first, TrustPolicy)
    assert isinstance(again, TrustPolicy)
    assert first.id == again.id


@forks
@pytest.mark.usefixtures("one_thread")
def test_workers_change_nothing_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("recall=false", "store=false", out="alone") == 0
    evaluated: list[object] = []
    run = CompressionTask._run

    def here(self: CompressionTask, *arguments: object) -> object:
        evaluated.append(0)
        return run(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(CompressionTask, "_run", here)
    assert train("recall=false", "store=false", "workers=2", out="together") == 0
    ids = [load_policy(folder).id for folder in ("alone", "together")]  # type: ignore[union-attr]
    assert ids[0] == ids[1]
    # In this process only the knapsack's strategy and the policy's, of each of two tasks.
    assert len(evaluated) <= 4


def test_training_killed_twice_ends_as_it_would_have(monkeypatch: pytest.MonkeyPatch) -> None:
    from amc.study.train import _Training

    explore, left = _Training._explore, []

    def killed(self: _Training, *arguments: object) -> None:
        if not left:
            raise MemoryError
        left.pop()
        explore(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_Training, "_explore", killed)
    chosen = [task(bounds="0.35,0.25")]
    for strategies in (13, 22):
        left += [0] * strategies
        assert train("recall=false", out="killed", tasks=chosen) == 1
        assert not Path("killed/policy.json").exists()
    monkeypatch.setattr(_Training, "_explore", explore)
    assert amc("train", "resume=killed") == 2  # of code of the user's: named again by the command
    assert train("recall=false", out="killed", tasks=chosen) == 0
    monkeypatch.setenv("AMC_CACHE", str(Path("elsewhere").absolute()))
    assert train("recall=false", out="never_killed", tasks=chosen) == 0
    ids = [load_policy(folder).id for folder in ("killed", "never_killed")]  # type: ignore[union-attr]
    assert ids[0] == ids[1]


def test_ctrl_c_ends_with_a_policy_and_says_what_does_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    from amc.study.train import _Training

    explore, done = _Training._explore, []

    def interrupted(self: _Training, *arguments: object) -> None:
        explore(self, *arguments)  # type: ignore[arg-type]
        done.append(0)
        if len(done) == 25:
            self._stop.set()

    monkeypatch.setattr(_Training, "_explore", interrupted)
    assert train("recall=false") == 0
    said = capsys.readouterr().out
    assert "ended early by Ctrl-C" in said
    assert "the rest: amc train resume=" in said
    assert isinstance(load_policy("out"), TrustPolicy)
    assert len(done) == 25


def test_what_the_store_remembers_is_learned_from_and_stays_the_same_for_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AMC_CACHE", str(Path("cache").absolute()))
    assert train("recall=false", tasks=[task(bounds="0.4")]) == 0
    (walked,) = load_experience(Path("out"))
    assert train("episodes=0", out="recalled", tasks=[task(bounds="0.45,0.4")]) == 0
    looser, same = load_experience(Path("recalled"))  # each under the tightest bound that it meets
    assert len(looser.lost) == 1  # the knapsack's, which every task is compared with
    assert len(same.lost) == len(walked.lost)
    assert sorted(same.lost) == sorted(walked.lost)
    assert train(out="more", tasks=[task(bounds="0.3")]) == 0  # evaluates more of this network
    assert train("episodes=0", out="recalled", tasks=[task(bounds="0.45,0.4")]) == 0
    assert sum(len(one.lost) for one in load_experience(Path("recalled"))) == 1 + len(walked.lost)


def test_experience_of_another_training_is_learned_from_as_well() -> None:
    assert train() == 0
    assert train("start=out", out="more", tasks=[task(bounds="0.35")]) == 0
    names = [one.name for one in load_experience(Path("more"))]
    assert len(names) == 3
    assert amc("train", "start=out", "hydra.run.dir=alone", *QUICK) == 0, "no task of its own"
    assert len(load_experience(Path("alone"))) == 2


def test_trained_policy_is_applied_refined_and_a_prior(capsys: Output) -> None:
    assert train() == 0
    options = (NETWORK, "budget.metric=macs", "budget.fraction=0.4", *REPAIR)
    assert amc("apply", "policy=out", "hydra.run.dir=applied", "refine=4", *options) == 0
    report = Path("applied/comparison.md").read_text()
    assert "Rewards: " in report
    assert "Refined by 4 evaluations" in report
    record = json.loads(Path("applied/run.json").read_text())
    assert record["settings"]["refine"] == 4
    assert record["settings"]["strengths"] == [1.0, 0.5, 0.0]
    search = ("search.evaluations=4", "agent.prior=out", "budget=macs")
    assert amc("search", NETWORK, "~device", *search, *REPAIR, "hydra.run.dir=searched") == 0


def test_shipped_policy_is_applied_without_any_run(capsys: Output) -> None:
    options = ("network=tests.cli.nets:deeper", "budget.metric=macs", *REPAIR)
    assert amc("apply", "policy=shipped", "hydra.run.dir=applied", *options) == 0
    record = json.loads(Path("applied/run.json").read_text())
    assert record["settings"]["policy"] == "shipped"
    assert record["budget"] == {"metric": "macs", "fraction": 0.5, "absolute": None}
    assert "Rewards: " in Path("applied/comparison.md").read_text()


def test_prior_that_is_none_is_said_before_the_search(capsys: Output) -> None:
    assert amc("search", NETWORK, "agent.prior=nowhere", "hydra.run.dir=out", *REPAIR) == 2
    assert "Policy description not found: nowhere" in capsys.readouterr().err


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tasks=[]"], "There is nothing to learn from: give tasks="),
        (["tasks=[3]"], "tasks must be a list of texts"),
        (["tasks=['network=resnet20 seed=3']"], "seed=3 is no option of a task"),
        (["tasks=['network=resnet20 budget.fraction']"], "cannot be read as options of amc search"),
        (["tasks=['network=resnet20 budgt=macs']"], "budgt=macs is no option of a task"),
        (["tasks=['budget.absolute=3']"], "a fraction of the original's cost"),
        (["tasks=[]", "start=nowhere"], "start must be none, shipped, or the folder"),
        (["tasks=[]", "runs=[nowhere]"], "Run folder not found: nowhere"),
        (["tasks=[]", "episodes=-1"], "episodes must be a whole number from 0, got -1"),
        (["tasks=[]", "fit.actors=x"], "fit.actors must be a whole number from 1, got 'x'"),
        (["tasks=[]", "fit.layers=3"], "no such option. Did you mean 'fit.actors'"),
        (["tasks=[]", "noise=0"], "train.noise of amc train must be a number above 0"),
    ],
)
def test_options_that_make_no_training_are_refused(
    arguments: list[str], said: str, capsys: Output
) -> None:
    assert amc("train", "hydra.run.dir=out", *arguments) == 2
    assert said in capsys.readouterr().err


def test_task_that_does_not_fit_is_named(capsys: Output) -> None:
    assert train(tasks=[task(bounds="0.4,0.001")]) == 2
    said = capsys.readouterr().err
    assert "error: Task " in said
    assert "smallest reachable" in said


def test_run_of_another_command_is_no_task(searched: Path, capsys: Output) -> None:
    assert amc("train", f"runs=[{searched}]", "hydra.run.dir=out") == 2
    assert "amc calls no code that only a file names" in capsys.readouterr().err


def test_values_joined_by_commas_are_tasks_that_share_what_is_prepared() -> None:
    with hydra.initialize_config_module("amc.conf", version_base="1.3"):
        text = "network=resnet20,resnet32 budget=macs budget.fraction=0.5,0.3 ~device"
        sources = _sources(_records(text))
    assert [source.family for source in sources] == ["resnet20 on digits", "resnet32 on digits"]
    assert [source.fractions for source in sources] == [(0.5, 0.3), (0.5, 0.3)]
