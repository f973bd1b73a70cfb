"""The page of one run, whatever became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from amc.objectives import NamedScore
from amc.report.charts import Line, line_chart, readable, stack
from amc.report.finetuned import FinetunedRecord
from amc.report.page import Tile, decided, level_keys, rendered
from amc.report.plots import LayerRow, shown_from
from amc.report.record import ResultRecord
from amc.report.runs import Run, State
from amc.report.tables import ComparisonRow, comparison_cells
from amc.strategy import FLOAT_BITS

_NAMES = {
    "macs": "multiply-adds",
    "size_bytes": "size of the weights",
    "packed_bytes": "size of the packed file",
    "params": "parameters",
}


def run_page(run: Run) -> str:
    """The page of a run, whatever became of it."""
    record = run.record
    said = f"{run.state}: {run.said}" if run.said else ""
    if run.state in (State.ENDED, State.RUNNING):
        of_all = f" of {run.asked}" if run.asked else ""
        said = f"{run.state} after {run.evaluations}{of_all} evaluations"
    return rendered(
        title=record.title if record else run.folder.resolve().name,
        kind="run",
        said=said,
        faults=run.faults,
        about=dict(record.about) if record else {},
        tiles=tiles(run) if run.has_result else [],
        table=_compared(run) if run.has_result else None,
        times=_times(run.rows),
        layers=_layers(record) if record else None,
        strategy=None if record and record.layers else _strategy(run),
        curve=_curve(run),
        finetuned=None if run.finetuned is None else _finetuned(run.finetuned),
        notes=run.notes,
        command=run.command,
        options=run.options,
        versions=dict(record.versions) if record else {},
    )


def tiles(run: Run) -> list[Tile]:
    """How much faster, how much lost, how much smaller."""
    found = []
    faster = run.faster
    if faster is not None:
        how, times = faster
        before, after = (row.number(f"{how}_ms") or 0.0 for row in (run.original, run.found))
        more = f"{how}: {after:.3f} ms of {before:.3f} ms"
        predicted = run.share("predicted_ms")
        if how == "measured" and predicted:
            more += f"; predicted {1 / predicted:.2f}x"
        found.append(Tile(f"{times:.2f}x", "as fast as the original", more))
    if run.lost is not None and run.primary is not None:
        found.append(_lost(run, run.primary, run.lost))
    if run.finetuned is not None:
        tuned = run.finetuned
        more = f"{tuned.score.text(tuned.after)} of {tuned.score.text(tuned.original)}, on the test"
        found.append(_change(tuned.score, _lost_of(tuned), "fine-tuned", f"{more} split"))
    for cost, name in _NAMES.items():
        share = run.share(cost)
        if share is not None:
            values = [row.number(cost) or 0.0 for row in (run.found, run.original)]
            more = " of ".join(readable(value) for value in values)
            if cost.endswith("_bytes"):
                more = f"{values[0] / 1e3:,.1f} of {values[1] / 1e3:,.1f} kB"
            found.append(Tile(f"{share:.2f}x", name, more))
    return found


def _lost(run: Run, primary: NamedScore, lost: float) -> Tile:
    before, after = (run.score(row) or 0.0 for row in (run.original, run.found))
    where = f"on the {'test' if primary.name in run.found.test else 'search'} split"
    return _change(primary, lost, "", f"{primary.text(after)} of {primary.text(before)}, {where}")


def _lost_of(tuned: FinetunedRecord) -> float:
    lost = tuned.original - tuned.after
    return lost if tuned.score.more_is_better else -lost


def _change(score: NamedScore, lost: float, when: str, more: str) -> Tile:
    number = f"{100 * abs(lost):.2f}" if score.is_fraction else f"{abs(lost):.3g}"
    unit = "points of " if score.is_fraction else "of "
    what = f"{unit}{score.name.replace('_', ' ')} {'gained' if lost < 0 else 'lost'}"
    return Tile(number, f"{what}, {when}" if when else what, more)


def _finetuned(tuned: FinetunedRecord) -> dict[str, Any]:
    """How it went, in words, and a row of cells for each epoch."""
    score = tuned.score
    said = (
        f"{score.name.replace('_', ' ')} on the test split: {score.text(tuned.before)} before, "
        f"{score.text(tuned.after)} after, {score.text(tuned.original)} of the original. "
    )
    kept = f"Kept: epoch {tuned.best_epoch}." if tuned.best_epoch else "No epoch was better."
    epochs = zip(tuned.losses, tuned.searched, strict=True)
    return {
        "said": said + kept,
        "score": f"{score.name.replace('_', ' ')}, search split",
        "rows": [
            (str(epoch), f"{loss:.4g}", "not judged" if found is None else score.text(found))
            for epoch, (loss, found) in enumerate(epochs, start=1)
        ],
    }


def _compared(run: Run) -> tuple[list[str], list[tuple[str, str, list[list[str]]]]]:
    """Networks side by side: their names, and a row of cells for every number."""
    return [row.name for row in run.rows], comparison_cells(run.rows, run.scores)


def _times(rows: Sequence[ComparisonRow]) -> list[tuple[str, list[tuple[str, str, float]]]]:
    """Predicted beside measured milliseconds of each network: (what, text, percent of the most)."""
    if not all(row.predicted_ms is not None and row.measured_ms is not None for row in rows):
        return []
    most = max((max(row.predicted_ms or 0, row.measured_ms or 0) for row in rows), default=0.0)
    found = []
    for row in rows if most > 0 else ():
        predicted, measured = row.predicted_ms or 0.0, row.measured_ms or 0.0
        spread = "" if row.measured_spread_ms is None else f" ± {row.measured_spread_ms:.3f}"
        bars = [
            ("predicted", f"{predicted:.3f} ms", 100 * predicted / most),
            ("measured", f"{measured:.3f}{spread} ms", 100 * measured / most),
        ]
        found.append((row.name, bars))
    return found


def _layers(record: ResultRecord) -> dict[str, Any] | None:
    """Every layer before and after, and where the cost goes as two sums."""
    if not record.layers:
        return None
    before = [(layer.name, layer.cost_before) for layer in record.layers]
    after = [(layer.name, layer.cost_after) for layer in record.layers]
    totals = [
        sum(n for _, n in part) + e
        for part, e in zip((before, after), record.elsewhere, strict=True)
    ]
    unit, most = record.unit, max(n for _, n in [*before, *after])
    sums = []
    for name, part, other, total in zip(
        ("before", "after"), (before, after), record.elsewhere, totals, strict=True
    ):
        parts = [*part, *([("between layers", other)] if other > 0 else [])]
        texts = [(f"{what}: {readable(number)} {unit}", number) for what, number in parts]
        sums.append((name, f"{readable(total)} {unit}", stack(texts, max(totals))))
    return {
        "metric": record.metric,
        "unit": unit,
        "sums": sums,
        "elsewhere": record.elsewhere,
        "rows": [(layer, _facts(layer), _share(layer, most)) for layer in record.layers],
    }


def _facts(layer: LayerRow) -> str:
    """What was decided of a layer, in words."""
    if not layer.channels_after:
        return "left out"
    words = [f"{layer.channels_before} → {layer.channels_after} channels"]
    if layer.channels_before == layer.channels_after:
        words = [f"{layer.channels_after} channels"]
    bits = {layer.weight_bits, layer.activation_bits}
    words.append(
        "float" if bits == {FLOAT_BITS} else f"{layer.weight_bits}/{layer.activation_bits} bits"
    )
    words += [f"{name} {number:g}" for name, number in layer.others.items()]
    return ", ".join(words)


def _share(layer: LayerRow, most: float) -> dict[str, float]:
    """Lengths of a layer's bars, percent."""
    kept = layer.channels_after / max(1, layer.channels_before)
    costs = layer.cost_before, layer.cost_after
    before, after = (100 * max(0.0, n) / most if most > 0 else 0.0 for n in costs)
    return {"kept": min(100.0, 100 * kept), "before": before, "after": after}


def _strategy(run: Run) -> Markup | None:
    """What was decided, where layers are not known."""
    return decided(run) if run.kept else None


def _curve(run: Run) -> dict[str, Any] | None:
    if not run.trials.rewards:
        return None
    record = run.record
    rewards = list(run.trials.rewards)
    found = [best for best in run.trials.best if best is not None]
    floor = shown_from(rewards, found[-1:] or rewards)
    levels = list(record.levels.items()) if record else []
    reward = record.reward if record else run.options.get("reward", "")
    chart = line_chart(
        [Line("each evaluation", rewards, dots=True), Line("best so far", run.trials.best)],
        x_label="evaluation",
        y_label=f"reward ({reward})" if reward else "reward",
        levels=[level for level in levels if level[1] >= floor],
        shaded=record.warmup if record else 0,
        floor=floor,
    )
    return {
        "chart": chart,
        "legend": [("each", "each evaluation"), ("line c0", "best so far")],
        "levels": level_keys(levels, floor),
        "warm": bool(record and record.warmup),
    }
