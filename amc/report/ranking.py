"""Searchers beside each other in numbers: for the terminal, as CSV, as Markdown.

What ranks a searcher is its winner on the test split; the rewards that it saw on its own images
are no result, as the best of many on few images is partly luck.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from amc.objectives import NamedScore
from amc.report.tables import MISSING


@dataclass(frozen=True)
class Score:
    """One search of a comparison.

    Attributes:
        reward: The best that the search saw, on its own images.
        search, test: The objective's scores of the winner, repaired: on the whole search split
            and on the test split.
        drop: What the winner's primary score on the test split is below the original's; None where
            there are no labels.
        evaluations: How many strategies were evaluated.
        evaluations_to_beat_uniform: Until a reward above the best uniform strategy's; None: never.
        beats_uniform: Whether the winner's reward on the whole search split is above that of the
            best uniform strategy, both repaired.
        agent_seconds: Wall time of the search without its evaluations.
        seconds: Wall time of the search.
    """

    agent: str
    seed: int
    reward: float
    search: Mapping[str, float]
    test: Mapping[str, float]
    drop: float | None
    evaluations: int
    evaluations_to_beat_uniform: int | None
    beats_uniform: bool
    agent_seconds: float
    seconds: float


@dataclass(frozen=True)
class RankingRow:
    """An agent's scores over its seeds; none of them where no search of it ended.

    Attributes:
        seeds: How many seeds were asked for.
    """

    agent: str
    seeds: int
    scores: tuple[Score, ...]

    def known(self, value: Callable[[Score], float | None]) -> list[float]:
        """A number of the finished seeds, where it is known."""
        return [number for number in map(value, self.scores) if number is not None]

    def mean(self, value: Callable[[Score], float | None]) -> float | None:
        """Mean over the finished seeds."""
        known = self.known(value)
        return statistics.fmean(known) if known else None

    def tested(self, primary: NamedScore) -> float:
        """What agents are ranked by: the mean of the primary score on the test split."""
        mean = self.mean(lambda score: score.test.get(primary.name))
        return -math.inf if mean is None else mean


def rank(
    scores: Sequence[Score], agents: Sequence[str], seeds: int, primary: NamedScore
) -> list[RankingRow]:
    """A row for every agent, by what the test split says, best first; agents without a score last.

    Args:
        seeds: How many were asked for, of each agent.
        primary: What they are ranked by.
    """
    rows = [
        RankingRow(agent, seeds, tuple(score for score in scores if score.agent == agent))
        for agent in agents
    ]
    return sorted(rows, key=lambda row: -row.tested(primary))


# -- the table -----------------------------------------------------------------------------


def _percent(row: RankingRow, value: Callable[[Score], float | None]) -> str:
    mean = row.mean(value)
    return MISSING if mean is None else f"{100 * mean:.2f}"


def _spread(row: RankingRow, value: Callable[[Score], float | None]) -> str:
    """Mean ± standard deviation over seeds, n - 1 in its denominator."""
    known = row.known(value)
    if len(known) < 2:
        return _percent(row, value)
    return f"{_percent(row, value)} ± {100 * statistics.stdev(known):.2f}"


def _number(row: RankingRow, value: Callable[[Score], float | None], digits: str = ".4g") -> str:
    mean = row.mean(value)
    return MISSING if mean is None else f"{mean:{digits}}"


def _better(row: RankingRow) -> str:
    """In how many of the finished seeds."""
    if not row.scores:
        return MISSING
    return f"{sum(score.beats_uniform for score in row.scores)}/{len(row.scores)}"


def _beaten_after(row: RankingRow) -> str:
    """Median over the seeds that came there, and how many did unless all."""
    found = [score.evaluations_to_beat_uniform for score in row.scores]
    after = [evaluations for evaluations in found if evaluations is not None]
    if not after:
        return "never" if found else MISSING
    share = "" if len(after) == len(found) else f" ({len(after)}/{len(found)})"
    return f"{statistics.median(after):g}{share}"


def _seeds(row: RankingRow) -> str:
    done = len(row.scores)
    return str(done) if done == row.seeds else f"{done} of {row.seeds}"


_Column = tuple[str, str, Callable[[RankingRow], str]]
"""Title, its second line, cell."""

_SEEDS: _Column = ("seeds", "", _seeds)
_OTHERS: tuple[_Column, ...] = (
    ("beats", "uniform", _better),
    ("best", "reward", lambda row: _number(row, lambda s: s.reward)),
    ("evals", "", lambda row: _number(row, lambda s: s.evaluations)),
    ("at", "eval", _beaten_after),
    ("agent", "s/eval", lambda row: _number(row, lambda s: s.agent_seconds / s.evaluations, ".3f")),
)

LEGEND = """\
Means over seeds; what is in percent on the test split ± the standard deviation.

- test, drop: the winner, repaired, on the test split; how much the original is above it.
- search: the winner, repaired, on the whole search split. beats uniform: in how many seeds its
  reward there is above the best uniform strategy's.
- where there are no labels, test alone: by the original's outputs (agreement: minus the divergence
  from them, nats).
- best reward: on the search's own images: no result. at eval: the evaluation whose reward is the
  first above the best uniform strategy's; the median over the seeds that came there.
- agent s/eval: seconds per evaluation that the agent took for itself.
"""


def _columns(primary: NamedScore) -> tuple[_Column, ...]:
    form = _percent if primary.is_fraction else _number

    def test(score: Score) -> float | None:
        return score.test.get(primary.name)

    def search(score: Score) -> float | None:
        return score.search.get(primary.name)

    spread = _spread if primary.is_fraction else _number
    tested: _Column = ("test", primary.heading, lambda row: spread(row, test))
    if primary.needs_targets is False:
        return (_SEEDS, tested, *_OTHERS)
    drop = "points" if primary.is_fraction else ""
    return (
        _SEEDS,
        tested,
        ("drop", drop, lambda row: form(row, lambda score: score.drop)),
        ("search", primary.heading, lambda row: form(row, search)),
        *_OTHERS,
    )


def ranking_table(rows: Sequence[RankingRow], primary: NamedScore) -> Table:
    """The ranking for a terminal of 100 columns."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("agent", no_wrap=True)
    columns = _columns(primary)
    for title, unit, _ in columns:
        table.add_column(f"{title}\n{unit}", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row.agent), *(cell(row) for _, _, cell in columns))
    return table


def ranking_markdown(rows: Sequence[RankingRow], primary: NamedScore) -> str:
    """The same table in Markdown."""
    titles, cells = ranking_cells(rows, primary)
    lines = [["agent", *titles], [":--", *("--:" for _ in titles)]]
    lines += [[agent, *numbers] for agent, numbers in cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def ranking_cells(
    rows: Sequence[RankingRow], primary: NamedScore
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The same table in its parts: titles, and of every agent its name and its cells."""
    columns = _columns(primary)
    titles = [f"{title} {unit}".rstrip() for title, unit, _ in columns]
    return titles, [(row.agent, [cell(row) for _, _, cell in columns]) for row in rows]


def never_better_than_uniform(rows: Sequence[RankingRow]) -> list[str]:
    """Agents whose winners did not beat the best uniform strategy in any seed."""
    return [
        row.agent
        for row in rows
        if row.scores and not any(score.beats_uniform for score in row.scores)
    ]


def scores_csv(scores: Sequence[Score], named: Sequence[NamedScore]) -> str:
    """One line per agent and seed, all numbers unrounded; what is not known is empty.

    Args:
        named: The objective's scores: those with a heading are in it, as ``search_<name>`` and
            ``test_<name>``.
    """
    shown = [score.name for score in named if score.heading]
    names = [field.name for field in fields(Score)]
    splits = {"search": shown, "test": shown}
    columns = [(name, score) for name in names for score in splits.get(name, [""])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f"{name}_{score}" if score else name for name, score in columns])
    for one in scores:
        values = ((getattr(one, name), score) for name, score in columns)
        writer.writerow([value.get(score) if score else value for value, score in values])
    return text.getvalue()
