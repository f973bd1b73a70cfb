"""``report.html``: a run, a comparison of searchers, or many runs, on one page of its own.

The page needs nothing but itself: its pictures are SVG inside of it, its style is too, and it says
so to the browser, which then asks nobody for anything. Whatever comes from a run's files is escaped
(`markupsafe`, Jinja's autoescape).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from amc.report.charts import COLOURS, Line, line_chart, readable, strip
from amc.report.runs import Run
from amc.strategy import FLOAT_BITS
from amc.utils.files import write_text

PAGE_FILE = "report.html"


@dataclass(frozen=True)
class Tile:
    """A headline number.

    Attributes:
        what: What it says of the result.
        more: The numbers behind it.
    """

    number: str
    what: str
    more: str = ""


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("amc.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["readable"] = readable
    return environment.get_template("page.html.jinja")


_PARTS: dict[str, Any] = {
    **dict.fromkeys(("said", "command"), ""),
    **dict.fromkeys(
        ("faults", "tiles", "times", "notes", "headings", "rows", "pictures", "maps"), ()
    ),
    **dict.fromkeys(("table", "layers", "strategy", "curve", "curves", "finetuned")),
    **{name: {} for name in ("about", "options", "versions")},
}


def rendered(**parts: Any) -> str:
    """The page of these parts; what is not given is not on it."""
    return _template().render({**_PARTS, **parts})


def write_page(path: Path, page: str) -> None:
    """Write a page.

    Raises:
        StorageError: The folder cannot be written.
    """
    write_text(path, page)


# -- what several kinds of pages show --------------------------------------------------------


def decided(run: Run) -> Markup:
    """What is kept of every layer, its bits where they are not all float, and what else it has."""
    found = strip([(f"{n}: {100 * share:.0f} % kept", share) for n, share in run.kept.items()])
    bits = run.bits
    if all(each == (FLOAT_BITS, FLOAT_BITS) for each in bits.values()):
        return found + _others(run)
    cells = [
        (f"{name}: {weight}/{activation} bits", min(1.0, weight / _FLOAT_PLACE))
        for name, (weight, activation) in bits.items()
    ]
    return found + strip(cells) + _others(run)


def _others(run: Run) -> Markup:
    """A strip for each other number that was decided of any layer, of the most that one has."""
    layers = run.record.layers if run.record else ()
    most: dict[str, float] = {}
    for layer in layers:
        for name, number in layer.others.items():
            most[name] = max(most.get(name, 0.0), number)
    found = Markup("")
    for name, top in most.items():
        numbers = [(layer.name, layer.others.get(name, 0.0)) for layer in layers]
        found += strip([(f"{at}: {name} {n:g}", n / top if top else 0.0) for at, n in numbers])
    return found


_FLOAT_PLACE = 12  # float is shown as a little more than 8 bits, not as four times as many


def level_keys(levels: Sequence[tuple[str, float]], floor: float) -> list[tuple[str, str]]:
    """Levels in a legend; those that lie below the chart too."""
    drawn = [level for level in levels if level[1] >= floor]
    keys = [(f"level l{at % 3}", f"{n} {value:.4g}") for at, (n, value) in enumerate(drawn)]
    return keys + [("none", f"{n} {value:.4g} (below)") for n, value in levels if value < floor]


def many_curves(
    lines: Sequence[Line], y_label: str, levels: Sequence[tuple[str, float]]
) -> dict[str, Any] | None:
    known = [[v for v in line.values if v is not None] for line in lines]
    settled = [values[len(values) // 10] for values in known if values]
    if not settled:
        return None
    floor = min([*settled, *(values[-1] for values in known if values)])
    spread = max(max(values) for values in known if values) - floor
    near = [(name, value) for name, value in levels if value < floor + 2.5 * spread + 1e-12]
    far = [("none", f"{n} {v:.4g} (above)") for n, v in levels if (n, v) not in near]
    shown = [level for level in near if level[1] >= floor]
    chart = line_chart(lines, x_label="evaluations", y_label=y_label, levels=shown, floor=floor)
    return {
        "chart": chart,
        "legend": [(f"line c{line.colour % COLOURS}", line.name) for line in lines],
        "levels": level_keys(near, floor) + far,
        "warm": False,
    }
