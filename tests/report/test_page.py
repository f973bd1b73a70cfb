from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from amc.errors import ArtifactError
from amc.objectives import DEFAULT
from amc.report.finetuned import FinetunedRecord
from amc.report.page import decided, write_page
from amc.report.page_of_run import run_page, tiles
from amc.report.page_of_runs import overview_page
from amc.report.page_of_searchers import Searchers, searchers_page
from amc.report.ranking import Score, rank
from amc.report.runs import Overview, Run, State, Trials
from tests.report import browser
from tests.report.folders import LAYERS, RESULT, STRATEGY
from tests.report.test_runs import at, run

EVIL = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(1)>"
FULL = replace(
    run("a/run", seed="0", agent="ddpg"),
    overrides=["seed=0", "data.root=my photos"],
    strategy=STRATEGY,
    trials=Trials([-0.5, -0.2, -0.3], [-0.5, -0.2, -0.2]),
    notes=RESULT.notes,
)
FAILED = Run(Path("b"), State.FAILED, "search", "no price for <conv>", options={"seed": "1"})
OVERVIEW = Overview(
    "sweep_1", [FULL, at("c", 3.0, 0.8, seed="2"), FAILED], "amc search -m seed=0,1,2"
)


def searchers() -> Searchers:
    """Two agents over two seeds."""
    scores = [
        Score(agent, seed, -0.1, {"accuracy": 0.9}, {"accuracy": test}, 0.05, 3, 2, True, 0.1, 1.0)
        for agent, tests in (("ddpg", (0.86, 0.88)), ("random", (0.80, 0.82)))
        for seed, test in enumerate(tests)
    ]
    curves = {"ddpg": [[None, -0.2, -0.1], [-0.4, -0.2, -0.2]], "random": [[-0.5, -0.5, -0.3], []]}
    record = replace(RESULT, asked={"ddpg": [0, 1], "random": [0, 1]}, layers=[])
    ranking = rank(scores, ["ddpg", "random"], 2, record.named)
    return Searchers(record, ranking, curves, {"ddpg-seed0": {"conv1": 0.5}})


def text_of(page: str) -> str:
    """What is to be read on a page."""
    return " ".join(re.sub(r"<(style|title)>.*?</\1>|<[^>]*>", " ", page, flags=re.S).split())


def test_headlines_say_how_much_faster_and_how_much_lost() -> None:
    found = [(tile.number, tile.what, tile.more) for tile in tiles(FULL)]
    assert found == [
        ("2.50x", "as fast as the original", "measured: 2.000 ms of 5.000 ms; predicted 4.00x"),
        ("2.00", "points of accuracy lost", "88.00 % of 90.00 %, on the test split"),
        ("0.50x", "multiply-adds", "500 of 1000"),
        ("0.25x", "size of the weights", "0.2 of 0.8 kB"),
        ("0.50x", "parameters", "100 of 200"),
    ]


def test_a_gain_is_no_loss() -> None:
    tile = tiles(at("0", 2.0, 0.91))[1]
    assert (tile.number, tile.what) == ("1.00", "points of accuracy gained")


def test_the_page_of_a_run_has_all_that_is_asked_of_it() -> None:
    text = text_of(run_page(FULL))
    for part in (
        "Net: latency_ms at most 0.5 of the original",
        "Before and after",
        "Predicted beside measured",
        "2.000 ± 0.200 ms",
        "Where the time goes before 4 ms after 2 ms",  # 3 + 0.75 + 0.25; 1 + 0.5 + 0.5
        "conv1 16 → 8 channels, 8/8 bits",
        "conv2 32 channels, float",
        "How the search learned",
        "uniform -0.3",
        "Measured on the device, batch 1.",
        "Two &lt;layers&gt; &amp; more.",
        "amc search seed=0 &#39;data.root=my photos&#39;",
        "torch 2.6",
    ):
        assert part in text, part


TUNED = FinetunedRecord(
    DEFAULT.scores[0], 0.88, 0.895, 0.9, best_epoch=2, losses=[0.5, 0.25], searched=[0.885, 0.8925]
)


def test_fine_tuning_has_a_headline_and_its_epochs() -> None:
    run = replace(FULL, finetuned=TUNED)
    tile = next(tile for tile in tiles(run) if "fine-tuned" in tile.what)
    assert (tile.number, tile.what) == ("0.50", "points of accuracy lost, fine-tuned")
    assert tile.more == "89.50 % of 90.00 %, on the test split"
    read = text_of(run_page(run))
    assert "88.00 % before, 89.50 % after, 90.00 % of the original. Kept: epoch 2." in read
    assert "1 0.5 88.50 % 2 0.25 89.25 %" in read
    assert "Fine-tuned" not in text_of(run_page(FULL))
    better = replace(FULL, finetuned=replace(TUNED, after=0.91, best_epoch=0))
    assert "1.00 points of accuracy gained, fine-tuned" in text_of(run_page(better))
    assert "No epoch was better." in text_of(run_page(better))


def test_fine_tuning_is_read_from_its_folder_and_a_damaged_file_is_said(tmp_path: Path) -> None:
    assert FinetunedRecord.read(tmp_path) is None
    TUNED.write(tmp_path)
    assert FinetunedRecord.read(tmp_path) == TUNED
    path = tmp_path / "finetuned.json"
    written = path.read_text()
    for good, bad in (
        ('"before": 0.88', '"before": "much"'),
        ('"losses": [\n  0.5,', '"losses": ['),
        ('"name": "accuracy"', '"name": 3'),
        ('"format": "amc-finetuned"', '"format": "other"'),
    ):
        assert good in written
        path.write_text(written.replace(good, bad))
        with pytest.raises(ArtifactError, match="amc finetune writes it anew"):
            FinetunedRecord.read(tmp_path)


def test_a_layer_that_is_left_out_is_said_to_be() -> None:
    gone = replace(LAYERS[0], channels_after=0, cost_after=0.0)
    page = run_page(replace(FULL, record=replace(RESULT, layers=[gone, LAYERS[1]])))
    assert "conv1 left out" in text_of(page)


def test_a_run_of_an_earlier_version_has_a_page_without_layers() -> None:
    text = text_of(run_page(replace(FULL, record=None)))
    assert "What is kept" in text
    assert "Where the time goes" not in text


def test_a_run_without_a_result_says_why() -> None:
    text = text_of(run_page(FAILED))
    assert "failed: no price for &lt;conv&gt;" in text
    assert "Before and after" not in text


def test_a_run_that_goes_on_says_how_far_it_is() -> None:
    one = Run(
        Path("r"), State.RUNNING, "search", evaluations=7, asked=60, trials=Trials([0.5], [0.5])
    )
    assert "running after 7 of 60 evaluations" in text_of(run_page(one))


def test_the_page_of_a_sweep_has_every_run_with_its_state() -> None:
    text = text_of(overview_page(OVERVIEW, Path()))
    for part in (
        "3 runs: 2 done, 1 failed",
        "1 ★ &ensp; seed=0",
        "failed: no price for &lt;conv&gt;",
        "measured latency (ms)",
        "What each keeps",
        "amc search -m seed=0,1,2",
    ):
        assert part in text, part


def test_runs_of_a_sweep_are_linked_where_they_have_a_page(tmp_path: Path) -> None:
    folder = tmp_path / "0_a b"
    folder.mkdir()
    overview = Overview("s", [replace(FULL, folder=folder)])
    assert "<a href" not in overview_page(overview, tmp_path)
    (folder / "report.html").touch()
    assert '<a href="0_a%20b/report.html">' in overview_page(overview, tmp_path)


def test_the_page_of_a_comparison_has_the_ranking_and_the_curves_of_the_rivals() -> None:
    text = text_of(
        searchers_page(searchers(), "amc compare agents=[ddpg,random]", {"threads": "1"}, "")
    )
    for part in (
        "ddpg is best test accuracy 87.00 %, mean of 2 seeds",
        "random comes next test accuracy 81.00 %",
        "90.00 % is the original&#39;s",
        "87.00 ± 1.41",
        "How the searches learned",
        "ddpg -0.15",
        "ddpg-seed0",
        "amc compare agents=[ddpg,random]",
    ):
        assert part in text, part


def test_runs_without_results_make_a_page_too() -> None:
    page = overview_page(Overview("s", [FAILED, Run(Path("x"), State.RUNNING)]), Path())
    assert "2 runs: 1 running, 1 failed" in text_of(page)


def _all_evil() -> list[str]:
    layer = replace(LAYERS[0], name=EVIL, others={EVIL: 1.0})
    score = replace(RESULT.named, heading=EVIL)
    record = replace(
        RESULT,
        title=EVIL,
        about={EVIL: EVIL},
        reward=EVIL,
        levels={EVIL: 0.0},
        scores=[score],
        notes=[EVIL],
        versions={EVIL: EVIL},
        unit=EVIL,
        metric=EVIL,
        layers=[layer],
        asked={EVIL: [0]},
    )
    rows = [replace(row, name=EVIL) for row in FULL.rows]
    one = replace(
        FULL,
        rows=rows,
        record=record,
        notes=[EVIL],
        overrides=[EVIL],
        options={EVIL: EVIL, "seed": EVIL},
        faults=[EVIL],
        said=EVIL,
    )
    other = replace(one, options={"seed": "2"})
    evil = replace(
        searchers(), record=record, curves={EVIL: [[0.0, 1.0]]}, kept={EVIL: {EVIL: 1.0}}
    )
    return [
        run_page(one),
        overview_page(Overview(EVIL, [one, other], EVIL), Path()),
        searchers_page(evil, EVIL, {EVIL: EVIL}, EVIL),
    ]


def test_whatever_files_say_is_escaped() -> None:
    for page in _all_evil():
        assert "<script" not in page
        assert "<img" not in page


def test_pages_name_nothing_outside_of_themselves() -> None:
    for page in (run_page(FULL), overview_page(OVERVIEW, Path())):
        assert not re.search(
            r"(?:src|href)=\"(?!data:|#|[\w./%-]*report\.html)|url\(|@import|<script", page
        )
        assert len(page) < 200_000


# -- in a real browser -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if browser.program() is None:
        pytest.skip(f"no browser: none of {', '.join(browser.PROGRAMS)} is installed")
    with browser.browser(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["run", "overview", "searchers", "evil"])
def test_a_page_is_shown_without_complaint_request_or_sideways_scrolling(
    kind: str, width: int, chromium: browser.Browser, tmp_path: Path
) -> None:
    long = replace(FULL, options={f"an.option.{'x' * 80}": "y" * 200}, faults=["z" * 300])
    pages = {
        "run": [run_page(long)],
        "overview": [overview_page(OVERVIEW, tmp_path)],
        "searchers": [searchers_page(searchers(), "amc compare " + "x" * 200, {}, "")],
        "evil": _all_evil(),
    }
    for place, page in enumerate(pages[kind]):
        path = tmp_path / f"{place}.html"
        write_page(path, page)
        for dark in (False, True):
            seen = chromium.look(path, width, 800, dark=dark)
            assert (seen.complaints, seen.requests) == ([], [])
            assert (seen.width, seen.inner) == (width, width)
        assert "Made by" in seen.text


def test_light_and_dark_follow_the_readers_choice(
    chromium: browser.Browser, tmp_path: Path
) -> None:
    write_page(tmp_path / "p.html", run_page(FULL))
    grounds = []
    for dark in (False, True):
        chromium.look(tmp_path / "p.html", 800, 600, dark=dark)
        grounds.append(chromium.value("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(255, 255, 255)", "rgb(20, 24, 29)"]


def test_costs_are_chosen_without_a_program(chromium: browser.Browser, tmp_path: Path) -> None:
    write_page(tmp_path / "p.html", overview_page(OVERVIEW, tmp_path))
    chromium.look(tmp_path / "p.html", 800, 600)
    shown = "[...document.querySelectorAll('.panel')].map(p => getComputedStyle(p).display).join()"
    assert chromium.value(shown).startswith("block,none,none")
    chromium.value("document.querySelector('label[for=cost1]').click()")
    assert chromium.value(shown).startswith("none,block,none")


def test_what_else_was_decided_has_a_strip_of_its_own() -> None:
    sparse = [
        replace(layer, others={"sparsity": n}) for layer, n in zip(LAYERS, (0.75, 0.5), strict=True)
    ]
    found = decided(replace(FULL, record=replace(RESULT, layers=sparse)))
    assert found.count('class="strip"') == decided(FULL).count('class="strip"') + 1
    # 0.06 + 0.94 of the share of the most: of 0.75 all, of 0.5 two thirds
    assert '<rect x="0" y="0" width="1" height="1" fill-opacity="1.000">' in found
    assert 'fill-opacity="0.687"><title>conv2: sparsity 0.5</title>' in found
