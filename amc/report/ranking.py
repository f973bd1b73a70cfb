"""Searchers beside each other in numbers: for the terminal, as CSV, as Markdown.

What ranks a searcher is its winner on the test split; the rewards that it saw on its own images
are no result, as the best of many on few images is partly luck.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from amc.report.tables import MISSING


@dataclass(frozen=True)
class Score:
    """One search of a comparison; accuracies are fractions.

    Attributes:
        reward: The best that the search saw, on its own images.
        search_accuracy, test_accuracy: Of the winner, repaired: on the whole search split and on
            the test split.
        drop: Test accuracy of the original minus the winner's.
        evaluations: How many strategies were evaluated.
        evaluations_to_beat_uniform: Until a reward above the best uniform strategy's; None: never.
        beats_uniform: Whether the winner does better than the best uniform strategy on the whole
            search split, both repaired.
        agent_seconds: Wall time of the search without its evaluations.
        seconds: Wall time of the search.
    """

    agent: str
    seed: int
    reward: float
    search_accuracy: float
    test_accuracy: float
    drop: float
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

    def mean(self, value: Callable[[Score], float]) -> float | None:
        """Mean over the finished seeds."""
        return statistics.fmean(map(value, self.scores)) if self.scores else None

    @property
    def test_accuracy(self) -> float | None:
        """Mean over the finished seeds: what agents are ranked by."""
        return self.mean(lambda score: score.test_accuracy)


def rank(scores: Sequence[Score], agents: Sequence[str], seeds: int) -> list[RankingRow]:
    """A row for every agent, by mean test accuracy, best first; agents without a score last.

    Args:
        seeds: How many were asked for, of each agent.
    """
    rows = [
        RankingRow(agent, seeds, tuple(score for score in scores if score.agent == agent))
        for agent in agents
    ]
    return sorted(rows, key=lambda r: -1.0 if r.test_accuracy is None else -r.test_accuracy - 2)


# -- the table -----------------------------------------------------------------------------


def _percent(row: RankingRow, value: Callable[[Score], float]) -> str:
    mean = row.mean(value)
    return MISSING if mean is None else f"{100 * mean:.2f}"


def _spread(row: RankingRow, value: Callable[[Score], float]) -> str:
    """Mean ± standard deviation over seeds, n - 1 in its denominator."""
    if len(row.scores) < 2:
        return _percent(row, value)
    return f"{_percent(row, value)} ± {100 * statistics.stdev(map(value, row.scores)):.2f}"


def _number(row: RankingRow, value: Callable[[Score], float], digits: str) -> str:
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


# Title, its second line, cell.
_COLUMNS: tuple[tuple[str, str, Callable[[RankingRow], str]], ...] = (
    ("seeds", "", _seeds),
    ("test", "acc. %", lambda row: _spread(row, lambda s: s.test_accuracy)),
    ("drop", "points", lambda row: _percent(row, lambda s: s.drop)),
    ("search", "acc. %", lambda row: _percent(row, lambda s: s.search_accuracy)),
    ("beats", "uniform", _better),
    ("best", "reward", lambda row: _number(row, lambda s: s.reward, ".4g")),
    ("evals", "", lambda row: _number(row, lambda s: s.evaluations, ".4g")),
    ("at", "eval", _beaten_after),
    ("agent", "s/eval", lambda row: _number(row, lambda s: s.agent_seconds / s.evaluations, ".3f")),
)

LEGEND = """\
Means over seeds; the test accuracy ± the standard deviation.

- test, drop: the winner, repaired, on the test split; how much the original is above it.
- search: the winner, repaired, on the whole search split. beats uniform: in how many seeds that is
  more than the best uniform strategy's.
- best reward: on the search's own images: no result. at eval: the evaluation whose reward is the
  first above the best uniform strategy's; the median over the seeds that came there.
- agent s/eval: seconds per evaluation that the agent took for itself.
"""


def ranking_table(rows: Sequence[RankingRow]) -> Table:
    """The ranking for a terminal of 100 columns."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("agent", no_wrap=True)
    for title, unit, _ in _COLUMNS:
        table.add_column(f"{title}\n{unit}", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row.agent), *(cell(row) for _, _, cell in _COLUMNS))
    return table


def ranking_markdown(rows: Sequence[RankingRow]) -> str:
    """The same table in Markdown."""
    titles = [f"{title} {unit}".rstrip() for title, unit, _ in _COLUMNS]
    lines = [["agent", *titles], [":--", *("--:" for _ in titles)]]
    lines += [[row.agent, *(cell(row) for _, _, cell in _COLUMNS)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def never_better_than_uniform(rows: Sequence[RankingRow]) -> list[str]:
    """Agents whose winners did not beat the best uniform strategy in any seed."""
    return [
        row.agent
        for row in rows
        if row.scores and not any(score.beats_uniform for score in row.scores)
    ]


def scores_csv(scores: Sequence[Score]) -> str:
    """One line per agent and seed, all numbers unrounded; what is not known is empty."""
    names = [field.name for field in fields(Score)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(score, name) for name in names] for score in scores)
    return text.getvalue()
