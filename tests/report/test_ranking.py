from __future__ import annotations

import csv
import io
from dataclasses import replace

from rich.console import Console

from amc.objectives import DEFAULT
from amc.report.ranking import (
    Score,
    never_better_than_uniform,
    rank,
    ranking_markdown,
    ranking_table,
    scores_csv,
)

SCORE = Score(
    agent="a",
    seed=0,
    reward=0.5,
    search={"accuracy": 0.8, "agreement": -0.02},
    test={"accuracy": 0.7, "agreement": -0.05},
    drop=0.2,
    evaluations=10,
    evaluations_to_beat_uniform=4,
    beats_uniform=True,
    agent_seconds=5.0,
    seconds=20.0,
)
BETTER = replace(SCORE, agent="b", test={"accuracy": 0.75})
ACCURACY, _, AGREEMENT = DEFAULT.scores
DASH = "\N{EN DASH}"


def cells(scores: list[Score], agent: str = "a", seeds: int = 1) -> list[str]:
    """The agent's cells of the table in Markdown, without its name."""
    lines = ranking_markdown(rank(scores, [agent], seeds, ACCURACY), ACCURACY).splitlines()
    return [cell.strip() for cell in lines[2].strip("|").split("|")][1:]


def test_agents_are_ranked_by_mean_test_accuracy_whatever_their_reward() -> None:
    seeds = [replace(SCORE, reward=9.0), replace(SCORE, seed=1, test={"accuracy": 0.76})]
    rows = rank([*seeds, BETTER], ["a", "b"], 2, ACCURACY)  # means: 0.73 and 0.75
    assert [row.agent for row in rows] == ["b", "a"]


def test_agents_without_a_score_come_last_with_dashes() -> None:
    rows = rank([replace(SCORE, test={"accuracy": 0.0})], ["failed", "a"], 1, ACCURACY)
    assert [row.agent for row in rows] == ["a", "failed"]
    assert cells([], seeds=3) == ["0 of 3", *[DASH] * 8]


def test_numbers_are_means_over_seeds_with_the_standard_deviation_of_the_test_accuracy() -> None:
    other = replace(
        SCORE,
        seed=1,
        reward=0.7,
        search={"accuracy": 0.9},
        test={"accuracy": 0.74},
        drop=0.16,
        evaluations=20,
        agent_seconds=2.0,
    )
    found = cells([SCORE, other], seeds=2)
    # stdev of 70 and 74 over n - 1: sqrt((4 + 4) / 1) = 2.83; agent: (5 / 10 + 2 / 20) / 2
    assert found == ["2", "72.00 ± 2.83", "18.00", "85.00", "2/2", "0.6", "15", "4", "0.300"]


def test_a_single_seed_has_no_standard_deviation() -> None:
    assert cells([SCORE])[1] == "70.00"


def test_seeds_say_how_many_of_those_asked_for_ended() -> None:
    assert cells([SCORE], seeds=3)[0] == "1 of 3"


def test_evaluations_to_beat_uniform_are_the_median_over_the_seeds_that_did() -> None:
    after = [4, 6, 50, None]
    seeds = [replace(SCORE, seed=i, evaluations_to_beat_uniform=n) for i, n in enumerate(after)]
    assert cells(seeds, seeds=4)[7] == "6 (3/4)"
    assert cells(seeds[3:])[7] == "never"


def test_agents_that_never_beat_uniform_are_named() -> None:
    worse = replace(SCORE, agent="b", beats_uniform=False)
    rows = rank(
        [SCORE, replace(SCORE, seed=1, beats_uniform=False), worse], ["a", "b", "c"], 2, ACCURACY
    )
    assert never_better_than_uniform(rows) == ["b"]
    assert cells([SCORE, replace(SCORE, seed=1, beats_uniform=False)])[4] == "1/2"


def test_table_of_a_terminal_fits_100_columns() -> None:
    scores = [
        replace(
            SCORE, agent="ddpg_amc_features", seed=seed, reward=-0.12345, test={"accuracy": test}
        )
        for seed, test in enumerate((0.9, 0.1))
    ]
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(ranking_table(rank(scores, ["ddpg_amc_features"], 3, ACCURACY), ACCURACY))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for shown in ("ddpg_amc_features", "50.00 ± 56.57", "2 of 3", "-0.1235", "s/eval"):
        assert shown in text
    assert "…" not in text


def test_csv_holds_exact_numbers_per_agent_and_seed() -> None:
    text = scores_csv(
        [SCORE, replace(SCORE, seed=7, evaluations_to_beat_uniform=None)], DEFAULT.scores
    )
    first, second = csv.DictReader(io.StringIO(text))
    assert (first["agent"], first["seed"], second["seed"]) == ("a", "0", "7")
    assert (float(first["test_accuracy"]), float(first["agent_seconds"])) == (0.7, 5.0)
    assert (first["evaluations_to_beat_uniform"], second["evaluations_to_beat_uniform"]) == (
        "4",
        "",
    )


def test_without_labels_agents_are_ranked_by_their_agreement_on_the_test_split() -> None:
    score = replace(SCORE, search={}, test={"agreement": -0.05}, drop=None)
    rows = rank(
        [score, replace(score, agent="b", test={"agreement": -0.01})], ["a", "b", "c"], 1, AGREEMENT
    )
    assert [row.agent for row in rows] == ["b", "a", "c"]
    lines = ranking_markdown(rows, AGREEMENT).splitlines()
    assert lines[0] == (
        "| agent | seeds | test agreement | beats uniform | best reward | evals | at eval "
        "| agent s/eval |"
    )
    assert lines[2].startswith("| b | 1 | -0.01 | 1/1 |")
    assert lines[4].startswith(f"| c | 0 of 1 | {DASH} | {DASH} |")
    (row,) = csv.DictReader(io.StringIO(scores_csv([score], DEFAULT.scores)))
    assert (row["test_accuracy"], row["drop"], row["test_agreement"]) == ("", "", "-0.05")
