from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from amc.objectives import NamedScore
from amc.report.runs import Overview, Run, State, command_line, differing, front
from tests.report.folders import FOUND, ORIGINAL, RESULT, STRATEGY


def run(name: str = "0", **options: str) -> Run:
    """A finished run."""
    rows = (ORIGINAL, FOUND)
    return Run(Path(name), State.DONE, "search", options=options, rows=rows, record=RESULT)


def at(name: str, ms: float, accuracy: float, **options: str) -> Run:
    """A finished run whose network has this latency and accuracy."""
    found = replace(FOUND, measured_ms=ms, test={"accuracy": accuracy})
    return replace(run(name, **options), rows=(ORIGINAL, found))


def test_numbers_of_a_run_compare_what_was_found_with_the_original() -> None:
    one = run()
    assert one.lost == pytest.approx(0.90 - 0.88)
    assert one.faster == ("measured", 5.0 / 2.0)
    assert one.share("macs") == 500 / 1000
    assert one.share("energy_mj") is None


def test_speed_is_predicted_where_it_is_not_measured() -> None:
    rows = [replace(row, measured_ms=None) for row in (ORIGINAL, FOUND)]
    assert replace(run(), rows=rows).faster == ("predicted", 4.0 / 1.0)


def test_of_a_score_of_which_less_is_better_what_is_lost_is_what_it_rose_by() -> None:
    loss = NamedScore("rmse", "RMSE", more_is_better=False)
    rows = [replace(ORIGINAL, test={"rmse": 2.0}), replace(FOUND, test={"rmse": 2.5})]
    one = replace(run(), rows=rows, record=replace(RESULT, scores=[loss], primary="rmse"))
    assert one.lost == 0.5


def test_scores_of_an_earlier_version_are_known_by_their_names() -> None:
    one = replace(run(), record=None)
    assert one.primary is not None
    assert (one.primary.name, one.primary.is_fraction) == ("accuracy", True)


def test_without_labels_agreement_counts() -> None:
    rows = [
        replace(row, test={"agreement": n}, search={})
        for row, n in ((ORIGINAL, 0.0), (FOUND, -0.25))
    ]
    one = replace(run(), rows=rows, record=None)
    assert one.primary is not None
    assert one.primary.name == "agreement"
    assert one.lost == 0.25


def test_a_run_without_a_result_has_no_numbers() -> None:
    one = Run(Path("0"), State.RUNNING)
    assert (one.lost, one.faster, one.share("macs"), one.kept, one.bits) == (
        None,
        None,
        None,
        {},
        {},
    )


def test_what_is_kept_is_of_layers_where_they_are_known_and_of_groups_otherwise() -> None:
    assert run().kept == {"conv1": 0.5, "conv2": 1.0}
    one = replace(run(), record=None, strategy=STRATEGY)
    assert one.kept == {"conv1": 0.5, "conv2": 1.0}
    assert one.bits == {"conv1": (8, 8), "conv2": (32, 32)}


def test_the_front_holds_what_nothing_cheaper_is_as_good_as() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.5), (2.5, 0.8), (4.0, 0.9), (1.0, 0.4)]
    assert front(points) == [1, 3, 0]
    assert front([]) == []
    assert front([(1.0, 0.5), (1.0, 0.5)]) == [0]


def test_runs_are_called_by_what_differs() -> None:
    overview = Overview("s", [run("0", seed="0", data="d"), run("1", seed="1", data="d")])
    assert overview.labels() == ["seed=0", "seed=1"]


def test_runs_that_are_called_the_same_have_their_folders_beside() -> None:
    overview = Overview("s", [run("0", seed="0"), run("1", seed="0"), run("2", seed="1")])
    assert overview.labels() == ["seed=0 (0)", "seed=0 (1)", "seed=1"]


def test_settings_of_agents_that_differ_tell_nothing_unless_they_were_given() -> None:
    runs = [
        run("0", agent="ddpg", **{"agent.tau": "0.1", "agent.size": "2"}),
        replace(
            run("1", agent="td3", **{"agent.tau": "0.2", "agent.size": "3"}),
            overrides=["agent=td3", "agent.tau=0.2"],
        ),
    ]
    assert differing(runs) == ["agent", "agent.tau"]


def test_runs_of_all_kinds_go_by_their_folders() -> None:
    many = dict.fromkeys("abcde", ("0", "1"))
    runs = [run(str(i), **{name: values[i] for name, values in many.items()}) for i in (0, 1)]
    assert Overview("s", runs).labels() == ["0", "1"]


def test_the_best_of_a_sweep_are_those_that_none_beats_in_score_and_cost() -> None:
    overview = Overview("s", [at("0", 2.0, 0.88), at("1", 3.0, 0.87), at("2", 4.0, 0.89)])
    assert overview.best("measured_ms") == {0, 2}
    assert overview.fronts("measured_ms") == {"a device that is not noted": [0, 2]}
    assert overview.mixed("measured_ms") == ""
    assert overview.points("measured_ms")[1] == (3.0, 0.87)
    assert overview.originals("measured_ms") == [(5.0, 0.90)]
    assert overview.points("energy_mj") == {}


def test_milliseconds_of_several_devices_make_a_front_each_and_are_said_to() -> None:
    one = {"device": "onnxruntime_cpu", "device.batch": "1", "device.threads": "1"}
    other = {"device": "onnxruntime_cpu", "device.batch": "8", "device.threads": "1"}
    overview = Overview(
        "s",
        [at("0", 2.0, 0.88, **one), at("1", 3.0, 0.87, **one), at("2", 30.0, 0.80, **other)],
    )
    names = ["onnxruntime_cpu, batch 1, threads 1", "onnxruntime_cpu, batch 8, threads 1"]
    assert overview.fronts("measured_ms") == {names[0]: [0], names[1]: [2]}
    assert overview.mixed("measured_ms") == (
        "The measured latency (ms) is of 2 kinds (onnxruntime_cpu, batch 1, threads 1; "
        "onnxruntime_cpu, batch 8, threads 1): compare runs within one of them. The best are "
        "those of each."
    )
    assert len(overview.originals("measured_ms")) == 2
    assert overview.fronts("macs").keys() == {""}  # no device has a say in them
    assert overview.mixed("macs") == ""


def test_a_run_that_notes_no_device_is_compared_with_the_only_one_that_others_note() -> None:
    program, noted = at("0", 2.0, 0.88), at("1", 3.0, 0.9, device="a")
    assert Overview("s", [program, noted]).fronts("measured_ms") == {"a": [0, 1]}
    three = Overview("s", [program, noted, at("2", 1.0, 0.8, device="b")])
    assert three.fronts("measured_ms") == {"a device that is not noted": [0], "a": [1], "b": [2]}


def test_runs_of_another_score_are_not_in_one_picture() -> None:
    other = replace(run("2"), record=replace(RESULT, primary="agreement"))
    overview = Overview("s", [run("0"), run("1"), other])
    assert sorted(overview.points("macs")) == [0, 1]


def test_states_are_counted() -> None:
    overview = Overview("s", [run("0"), Run(Path("1"), State.RUNNING), run("2")])
    assert overview.counts() == {State.DONE: 2, State.RUNNING: 1}


def test_a_command_is_written_as_a_shell_takes_it() -> None:
    written = command_line(
        "search", ["seed=0,1", "data.root=my photos", "network=a\\:b"], sweep=True
    )
    assert written == "amc search -m seed=0,1 'data.root=my photos' network=a:b"
    assert replace(run(), overrides=["seed=1"]).command == "amc search seed=1"
    assert run().command == ""
