"""Has Vela estimate operators: lines of JSON in (`amc.cost.remote.described`), lines of JSON out.

    {"id": 1, "cycles": 165506.0, "clock_hz": 500000000.0, "host": false}
    {"id": 2, "error": "..."}

A process of its own, and, where there are forks, one for each operator: whatever ends Vela ends
nothing else.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from amc.cost.ethos.models import FREE, TARGET, Asked, UnknownError, model_of

_POOL = "MaxPool"  # what is around the operator that is counted
_LONGEST = 300  # characters of an error


def estimate(
    content: bytes, options: list[str], wanted: Callable[[Mapping[str, str]], bool]
) -> Any:
    """Vela's cycles for the operators of a file that are wanted.

    Args:
        options: Of Vela's command line.
        wanted: Given a row of Vela's table of operators.

    Returns:
        Cycles, cycles a second, and whether all of them run on the NPU.

    Raises:
        UnknownError: Vela did not compile the file; the message is Vela's.
    """
    from ethosu.vela import vela

    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "one.tflite"
        file.write_bytes(content)
        asked = [str(file), "--output-dir", folder, "--verbose-performance", *options]
        try:
            with redirect_stdout(said), redirect_stderr(said):
                code = vela.main(asked)
        except SystemExit as leaving:
            code = leaving.code
        tables = list(Path(folder).glob("*_per-layer.csv"))
        summaries = list(Path(folder).glob("*_summary_*.csv"))
        if code or not tables or not summaries:
            raise UnknownError(f"Vela did not compile it: {said.getvalue().strip()[-_LONGEST:]}")
        rows = list(csv.DictReader(tables[0].read_text().splitlines()))
        (summary,) = csv.DictReader(summaries[0].read_text().splitlines())
    chosen = [row for row in rows if wanted(row)]
    cycles = sum(float(row["Op Cycles"]) for row in chosen)
    clock = float(summary["core_clock"])
    return cycles, clock, all(row["Target"] == "NPU" for row in chosen)


def answer(asked: Asked, options: list[str]) -> dict[str, object]:
    """What is said of one operator."""
    op = asked["op"]

    def own(row: Mapping[str, str]) -> bool:
        around = row["Original Operator"] == _POOL and op != "max_pool2d"
        return row["Name"].startswith(TARGET) and not around

    try:
        if op in FREE:
            _, clock, _ = estimate(model_of({**asked, "op": "relu"}), options, own)
            return {"id": asked["id"], "cycles": 0.0, "clock_hz": clock, "host": False}
        cycles, clock, on_npu = estimate(model_of(asked), options, own)
    except Exception as error:  # of many kinds: of Vela, whatever it meets
        said = f"{error}" if isinstance(error, UnknownError) else f"{type(error).__name__}: {error}"
        return {"id": asked["id"], "error": said[:_LONGEST]}
    return {"id": asked["id"], "cycles": cycles, "clock_hz": clock, "host": not on_npu}


def answer_apart(asked: Asked, options: list[str]) -> dict[str, object]:
    """As `answer`, by a fork."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with os.fdopen(writing, "w") as file:
            json.dump(answer(asked, options), file)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        how = f"Vela was ended by signal {os.WTERMSIG(status)}"
        return {"id": asked["id"], "error": how}
    found: dict[str, object] = json.loads(said)
    return found


def main() -> None:
    """Answer every line."""
    options = sys.argv[1:]
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Vela's own code writes there
    answered = answer_apart if hasattr(os, "fork") else answer
    from ethosu.vela import vela  # noqa: F401 - once, not in every fork

    for line in sys.stdin:
        print(json.dumps(answered(json.loads(line), options)), file=answers, flush=True)


if __name__ == "__main__":
    main()
