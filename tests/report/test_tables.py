import csv
import io
from dataclasses import replace

from rich.console import Console

from amc.objectives import DEFAULT, NamedScore
from amc.report.tables import (
    ComparisonRow,
    comparison_table,
    settings_to_markdown,
    significant,
    to_csv,
    to_markdown,
)

ORIGINAL = ComparisonRow(
    "original",
    test={"accuracy": 0.93, "loss": 0.2},
    search={"accuracy": 0.94, "loss": 0.1},
    predicted_ms=12.0,
    measured_ms=10.0,
    measured_spread_ms=0.25,
    macs=41_000_000,
    params=270_000,
    size_bytes=1_080_000,
    energy_mj=3.2,
)
SMALL = ComparisonRow(
    "best found", test={"accuracy": 0.92}, measured_ms=5.0, macs=20_500_000, params=135_000
)


SCORES = DEFAULT.scores


def printed(rows: list[ComparisonRow], width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(comparison_table(rows, SCORES))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table_shows_numbers_in_their_units_and_compares_them_with_the_first_row() -> None:
    text = printed([ORIGINAL, SMALL])
    for shown in ("93.00", "10.000 ± 0.250", "41.00", "270.0", "1080.0", "3.200"):
        assert shown in text
    for compared in ("-1.00", "0.50x", "5.000", "20.50", "135.0"):
        assert compared in text


def test_widest_table_fits_100_columns_without_breaking_a_number() -> None:
    big = ComparisonRow("uniform", {"accuracy": 0.89}, {"accuracy": 0.9}, 112.25, 118.5, 12.125,
                        4_100_000_000, 25_500_000, 102_000_000, 312.5)  # fmt: skip
    text = printed([ORIGINAL, big])
    assert max(len(line) for line in text.splitlines()) <= 100
    for shown in ("118.500 ± 12.125", "4100.00", "25500.0", "102000.0", "312.500"):
        assert shown in text
    assert "…" not in text


def test_what_is_not_known_is_a_dash() -> None:
    line = to_markdown([ORIGINAL, SMALL], SCORES).splitlines()[3]
    assert line.count("\N{EN DASH}") == 4  # search accuracy, predicted, size, energy


def test_columns_that_no_row_knows_are_left_out() -> None:
    rows = [ComparisonRow("a", macs=1_000_000), ComparisonRow("b", macs=250_000)]
    assert to_markdown(rows, SCORES) == (
        "| network | MACs (M) |\n| :-- | --: |\n| a | 1.00 |\n| b | 0.25 (0.25x) |\n"
    )


def test_ratio_to_zero_or_to_the_unknown_is_not_made_up() -> None:
    unknown = to_markdown([ComparisonRow("a"), ComparisonRow("b", macs=2_000_000)], SCORES)
    assert "| b | 2.00 |" in unknown
    zero = to_markdown([ComparisonRow("a", macs=0), ComparisonRow("b", macs=2_000_000)], SCORES)
    assert "| b | 2.00 (\N{EN DASH}) |" in zero


def test_names_are_shown_as_they_are() -> None:
    assert "rl [red] x" in printed([ComparisonRow("rl [red] x", macs=1)])
    assert "a\\|b" in to_markdown([ComparisonRow("a|b", macs=1)], SCORES)


def test_table_of_nothing_is_empty() -> None:
    assert comparison_table([], SCORES).row_count == 0
    assert to_csv([], SCORES).count("\n") == 1


def test_csv_holds_exact_numbers_and_ratios_and_leaves_the_unknown_empty() -> None:
    first, second = csv.DictReader(io.StringIO(to_csv([ORIGINAL, SMALL], SCORES)))
    assert first["size_bytes"] == "1080000"
    assert first["macs_ratio"] == "1.0"
    assert second["name"] == "best found"
    assert float(second["measured_ms_ratio"]) == 0.5
    assert float(second["params_ratio"]) == 135 / 270
    assert second["size_bytes"] == second["size_bytes_ratio"] == ""


def test_agreement_stands_in_for_accuracy_where_there_are_no_labels() -> None:
    rows = [
        ComparisonRow("a", {"agreement": -0.0}, {"agreement": 0.0}, macs=1_000_000),
        ComparisonRow("b", {"agreement": -2.8049e-6}, {"agreement": -0.5}, macs=500_000),
    ]
    assert to_markdown(rows, SCORES) == (
        "| network | test (agreement) | search (agreement) | MACs (M) |\n"
        "| :-- | --: | --: | --: |\n"
        "| a | 0 | 0 | 1.00 |\n| b | -2.8e-06 | -0.5 | 0.50 (0.50x) |\n"
    )
    labelled = [
        replace(row, test={"accuracy": 0.9, **row.test}, search={"accuracy": 0.8, **row.search})
        for row in rows
    ]
    assert "agreement" not in to_markdown(labelled, SCORES)
    (first, second) = csv.DictReader(io.StringIO(to_csv(labelled, SCORES)))
    assert (first["test_agreement"], second["search_agreement"]) == ("0.0", "-0.5")


def test_scores_of_any_objective_have_columns_of_their_own() -> None:
    scores = [NamedScore("mean_iou", "IoU", is_fraction=True), NamedScore("error", "px")]
    first = ComparisonRow("a", {"mean_iou": 0.5, "error": 2.0}, {"mean_iou": 0.25})
    second = replace(first, name="b", test={"mean_iou": 0.4, "error": 3.0})
    assert to_markdown([first, second], scores).splitlines()[2:] == [
        "| a | 50.00 | 25.00 | 2 |",
        "| b | 40.00 (-10.00) | 25.00 (+0.00) | 3 |",
    ]
    header = to_csv([first], scores).splitlines()[0]
    assert header.startswith("name,test_mean_iou,search_mean_iou,test_error,search_error,predicted")


def test_numbers_have_as_many_digits_as_tell_them_apart() -> None:
    assert significant([-0.12345, 0.5, -0.0]) == ["-0.123", "0.5", "0"]
    assert significant([-1.234e-05, -2e-05]) == ["-1.23e-05", "-2e-05"]
    assert significant([-0.12345, -0.12346]) == ["-0.12345", "-0.12346"]
    assert significant([1.0000001, 1.0000002]) == ["1", "1"]  # nothing to tell apart


def test_settings_in_markdown_name_what_is_within_a_setting() -> None:
    settings = {"seed": 3, "agent": {"name": "ddpg", "hidden": [300, 200]}}
    lines = settings_to_markdown(settings).splitlines()
    assert lines == ["- **seed**: 3", "- **agent.name**: ddpg", "- **agent.hidden**: 300, 200"]
