"""Networks beside each other in numbers: for the terminal, as CSV, as Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from amc.objectives import NamedScore
from amc.utils.documents import Fault

MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class ComparisonRow:
    """One network of a comparison; None is what is not known.

    Attributes:
        test, search: The objective's scores by name, on the test and the whole search split.
        predicted_ms: From the device's table.
        measured_ms, measured_spread_ms: On the device itself.
        packed_bytes: Of the packed file, where its size is budgeted; the original's by prediction.
    """

    name: str
    test: Mapping[str, float] = field(default_factory=dict)
    search: Mapping[str, float] = field(default_factory=dict)
    predicted_ms: float | None = None
    measured_ms: float | None = None
    measured_spread_ms: float | None = None
    macs: int | None = None
    params: int | None = None
    size_bytes: int | None = None
    energy_mj: float | None = None
    packed_bytes: int | None = None

    def number(self, name: str) -> float | None:
        """A field, or ``test_`` or ``search_`` and the name of a score; None where not known."""
        split, _, score = name.partition("_")
        if split in ("test", "search"):
            value = getattr(self, split).get(score)
            return None if value is None else value + 0.0  # no -0
        found: float | None = getattr(self, name)
        return found


@dataclass(frozen=True)
class _Column:
    """A column of the table: its two-line title, which number it shows, and how."""

    title: str
    unit: str
    field: str
    scale: float
    form: str
    relation: Callable[[float, float], str] | None
    spread_field: str | None = None

    def cell(self, row: ComparisonRow, first: ComparisonRow) -> list[str]:
        """The number and, but for the first row, how it compares with the first row's."""
        value, reference = row.number(self.field), first.number(self.field)
        if value is None:
            return [MISSING]
        lines = [f"{value * self.scale + 0.0:{self.form}}"]  # not -0
        spread = row.number(self.spread_field) if self.spread_field else None
        if spread is not None:
            lines[0] += f" ± {spread * self.scale:{self.form}}"
        if row is not first and reference is not None and self.relation is not None:
            lines.append(self.relation(value, reference))
        return lines


def _ratio(value: float, reference: float) -> str:
    return f"{value / reference:.2f}x" if reference else MISSING


def _points(value: float, reference: float) -> str:
    return f"{100 * (value - reference):+.2f}"


_COSTS = (
    _Column("predicted", "ms", "predicted_ms", 1, ".3f", _ratio),
    _Column("measured", "ms", "measured_ms", 1, ".3f", _ratio, "measured_spread_ms"),
    _Column("MACs", "M", "macs", 1e-6, ".2f", _ratio),
    _Column("params", "k", "params", 1e-3, ".1f", _ratio),
    _Column("size", "kB", "size_bytes", 1e-3, ".1f", _ratio),
    _Column("packed", "kB", "packed_bytes", 1e-3, ".1f", _ratio),
    _Column("energy", "mJ", "energy_mj", 1, ".3f", _ratio),
)


def _score_columns(scores: Sequence[NamedScore]) -> Iterator[_Column]:
    for score in scores:
        # Fractions are compared by percentage points: 91 of 93 % as "0.98x" says little.
        how = (100, ".2f", _points) if score.is_fraction else (1, ".3g", None)
        for split in ("test", "search"):
            yield _Column(split, score.heading, f"{split}_{score.name}", *how)


def comparison_table(rows: Sequence[ComparisonRow], scores: Sequence[NamedScore]) -> Table:
    """A table for a terminal of 100 columns; columns that no row knows are left out.

    The second line of a cell compares it with the first row: a ratio, for scores that are
    fractions the difference in percentage points.

    Args:
        scores: The objective's. Those without a heading are not shown; those that need no labels
            only where no other is known.
    """
    columns = _known_columns(rows, scores)
    table = Table(box=SIMPLE_HEAD, show_lines=True, pad_edge=False, collapse_padding=True)
    table.add_column("network", no_wrap=True)
    for column in columns:
        title_lines = f"{column.title}\n{column.unit}"
        table.add_column(title_lines, justify="right", no_wrap=True)
    for row in rows:
        cells = ["\n".join(column.cell(row, rows[0])) for column in columns]
        table.add_row(escape(row.name), *cells)
    return table


def to_markdown(rows: Sequence[ComparisonRow], scores: Sequence[NamedScore]) -> str:
    """The same table in Markdown; ratios and differences stand in parentheses."""
    columns = _known_columns(rows, scores)
    lines = [
        _markdown_line(["network", *(f"{column.title} ({column.unit})" for column in columns)]),
        _markdown_line([":--", *("--:" for _ in columns)]),
    ]
    for row in rows:
        cells = [_in_one_line(column.cell(row, rows[0])) for column in columns]
        lines.append(_markdown_line([row.name.replace("|", "\\|"), *cells]))
    return "\n".join(lines) + "\n"


def comparison_cells(
    rows: Sequence[ComparisonRow], scores: Sequence[NamedScore]
) -> list[tuple[str, str, list[list[str]]]]:
    """The same table turned: of each number its title, its unit, and a cell for every network."""
    columns = _known_columns(rows, scores)
    return [
        (column.title, column.unit, [column.cell(row, rows[0]) for row in rows])
        for column in columns
    ]


def significant(values: Sequence[float]) -> list[str]:
    """Numbers in three significant digits, in up to six where different ones would look alike."""
    for digits in range(3, 7):
        texts = [f"{value + 0.0:.{digits}g}" for value in values]  # -0.0 is 0
        if len({*texts}) == len({*values}):
            break
    return texts


def settings_to_markdown(settings: Mapping[str, object]) -> str:
    """Names and values as a list in Markdown; a mapping's under its name and a dot."""
    return "".join(f"- **{name}**: {_in_words(value)}\n" for name, value in _flat(settings))


def _in_words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _flat(settings: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def to_csv(rows: Sequence[ComparisonRow], scores: Sequence[NamedScore]) -> str:
    """All numbers unrounded, scores that have a heading as ``test_<name>`` and ``search_<name>``.

    What is not known is empty. Each number has a column ``<name>_ratio`` too, the number over the
    first row's; but for spreads, and scores of which the original's is that of a perfect match.
    """
    costs = [f.name for f in fields(ComparisonRow) if f.name not in ("name", "test", "search")]
    shown = [
        (score, column.field)
        for score in scores
        if score.heading
        for column in _score_columns([score])
    ]
    numbers = [*(name for _, name in shown), *costs]
    compared = [name for score, name in shown if score.needs_targets is not False]
    compared += [name for name in costs if name != "measured_spread_ms"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *numbers, *(f"{name}_ratio" for name in compared)])
    for row in rows:
        ratios = [_exact_ratio(row.number(name), rows[0].number(name)) for name in compared]
        writer.writerow([row.name, *map(row.number, numbers), *ratios])
    return text.getvalue()


def from_csv(text: str, wrong: Fault) -> list[ComparisonRow]:
    """The rows that `to_csv` wrote.

    Raises:
        AmcError: It is no such table.
    """
    try:
        lines = list(csv.DictReader(io.StringIO(text), strict=True))
        rows = [_row_of({k: v for k, v in line.items() if v}) for line in lines]
    except (csv.Error, KeyError, TypeError, ValueError, OverflowError) as cause:
        raise wrong(f"is no table of amc's: {type(cause).__name__}: {cause}") from cause
    if not rows:
        raise wrong("holds no network")
    return rows


_COUNTS = ("macs", "params", "size_bytes", "packed_bytes")


def _row_of(line: Mapping[str, str]) -> ComparisonRow:
    """A line of the CSV file, of which what is not known is left out."""
    read = {name: float(text) for name, text in line.items() if name != "name"}
    numbers = {name: number for name, number in read.items() if math.isfinite(number)}
    scores: dict[str, dict[str, float]] = {"test": {}, "search": {}}
    for name, number in numbers.items():
        split, _, score = name.partition("_")
        if split in scores and not name.endswith("_ratio"):
            scores[split][score] = number
    costs = {f.name for f in fields(ComparisonRow)} & numbers.keys()
    known = {name: round(n) if name in _COUNTS else n for name in costs for n in [numbers[name]]}
    return ComparisonRow(line["name"], **scores, **known)  # type: ignore[arg-type]


def _known_columns(rows: Sequence[ComparisonRow], scores: Sequence[NamedScore]) -> list[_Column]:
    def known(columns: Iterable[_Column]) -> list[_Column]:
        return [c for c in columns if any(row.number(c.field) is not None for row in rows)]

    shown = [score for score in scores if score.heading]
    if known(_score_columns([score for score in shown if score.needs_targets])):
        shown = [score for score in shown if score.needs_targets is not False]
    return [*known(_score_columns(shown)), *known(_COSTS)]


def _in_one_line(cell: list[str]) -> str:
    return cell[0] if len(cell) == 1 else f"{cell[0]} ({cell[1]})"


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _exact_ratio(value: float | None, reference: float | None) -> float | None:
    return None if value is None or not reference else value / reference
