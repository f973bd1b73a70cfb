"""Programs that run on a phone, for which a script on this machine stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from amc.cost import phone
from amc.cost.device import TableHeader
from amc.cost.phone import printed_price, told_by, write_programs
from amc.cost.remote import fill_from
from amc.cost.table import read_table
from amc.errors import TableError
from amc.graph.types import Signature
from amc.quantplan.conversions import INT8
from amc.runtimes.request import Request
from amc.strategy import FLOAT

SCRIPT = Path(__file__).parents[2] / "examples" / "executorch_phone.sh"
CONV = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(8, 8), out_size=(8, 8))
REQUESTS = [Request(CONV, 8, 8, FLOAT), Request(CONV, 8, 16, FLOAT), Request(CONV, 8, 8, INT8)]
FLOATS = REQUESTS[:2]
HEADER = TableHeader("pixel", "executorch", 1, 1, 8, (FLOAT, INT8))

# Printed by executor_runner, of ExecuTorch 1.4 on.
RECORDED = """\
I 00:00:00.000452 executorch:executor_runner.cpp:412] Resetting threadpool with num threads = 1
I 00:00:00.002301 executorch:executor_runner.cpp:497] Model file program.pte is loaded.
I 00:00:00.002310 executorch:executor_runner.cpp:507] Using method forward
I 00:00:00.002339 executorch:executor_runner.cpp:562] Setting up CPU planned buffer 0, size 8192.
I 00:00:00.003412 executorch:executor_runner.cpp:629] Model loaded in 1.109000 ms.
I 00:00:00.004021 executorch:executor_runner.cpp:771] Iteration 1 of 8: 0.581000 ms
I 00:00:00.004214 executorch:executor_runner.cpp:771] Iteration 2 of 8: 0.172000 ms
I 00:00:00.004400 executorch:executor_runner.cpp:771] Iteration 3 of 8: 0.170000 ms
I 00:00:00.004581 executorch:executor_runner.cpp:771] Iteration 4 of 8: 0.160000 ms
I 00:00:00.004780 executorch:executor_runner.cpp:771] Iteration 5 of 8: 0.180000 ms
I 00:00:00.004952 executorch:executor_runner.cpp:771] Iteration 6 of 8: 0.140000 ms
I 00:00:00.005121 executorch:executor_runner.cpp:771] Iteration 7 of 8: 0.150000 ms
I 00:00:00.005410 executorch:executor_runner.cpp:771] Iteration 8 of 8: 0.170000 ms
I 00:00:00.005432 executorch:executor_runner.cpp:787] Model executed successfully 8 time(s) in \
1.723000 ms.
I 00:00:00.005440 executorch:executor_runner.cpp:796] 1 outputs:
"""
# By earlier ones.
RECORDED_BEFORE = """\
I 00:00:00.001205 executorch:executor_runner.cpp:211] Model file program.pte is loaded.
I 00:00:00.009311 executorch:executor_runner.cpp:322] Model executed successfully 20 time(s) in \
5.000000 ms.
"""

ADB = '''#!{python}
"""adb to a phone that is a folder: {phone}."""
import pathlib, shutil, subprocess, sys
phone = pathlib.Path({phone!r})
def at(place): return phone / place.lstrip("/")
verb, *given = sys.argv[1:]
if verb == "push": shutil.copy(given[0], at(given[1]))
elif verb == "pull": shutil.copy(at(given[0]), given[1])
elif verb == "shell" and given[0] == "getprop": print("Pixel\\r")
elif verb == "shell":
    line = " ".join(given).replace("/data/", str(phone / "data") + "/")
    sys.exit(subprocess.run(["sh", "-c", line]).returncode)
'''


def run(folder: Path, runner: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """The example's script, with a runner that is a shell script."""
    adb, program = tmp_path / "adb", tmp_path / "runner"
    place = tmp_path / "phone"
    (place / "data/local/tmp").mkdir(parents=True, exist_ok=True)
    adb.write_text(ADB.format(python=sys.executable, phone=str(place)))
    program.write_text(runner)
    adb.chmod(0o755)
    given = {**os.environ, "ADB": str(adb), "RUNNER": str(program), "FLAGS": "--num_executions=8"}
    script = ["sh", str(SCRIPT), str(folder)]
    return subprocess.run(script, env=given, capture_output=True, text=True, check=True)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of the operators in floats, which say who they are."""

    def written(part: list[Request], batch: int) -> tuple[bytes, None]:
        return f"{part[0].out_channels} x {batch}".encode(), None

    monkeypatch.setattr(phone, "operator_program", written)
    assert write_programs(tmp_path / "phone-programs", FLOATS, 1) == 2
    return tmp_path / "phone-programs"


def test_printed_price_is_the_lower_quartile_of_the_calls_after_the_first_three() -> None:
    price = printed_price(RECORDED)
    # Of 0.14, 0.15, 0.16, 0.17, 0.18: quartiles 0.15 and 0.17, as of what is measured here.
    assert price == pytest.approx({"latency_ms": 0.15, "spread_ms": 0.01, "samples": 5})
    assert printed_price(RECORDED + RECORDED) == price  # the phone's log repeats the console
    assert printed_price(RECORDED_BEFORE) == {"latency_ms": 0.25, "samples": 1}


def test_price_of_two_calls_lies_between_them() -> None:
    two = "".join(f"Iteration {n} of 5: {ms:.6f} ms\n" for n, ms in enumerate([9, 9, 9, 1, 3], 1))
    assert printed_price(two) == {"latency_ms": 1.5, "spread_ms": 0.5, "samples": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected 'Iteration 4 of 30: 0.123 ms'"),
        ("E 00:00 executor_runner.cpp:320] Loading of method forward failed", "Loading of method"),
        ("ERROR: unknown command line flag 'cpu_threads'", "unknown command line flag"),
        ("executed successfully 0 time(s) in 1.0 ms", "gave no time"),
    ],
)
def test_output_without_a_time_is_refused_with_what_it_says(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        printed_price(text)


def test_list_is_filled_in_by_what_a_phone_printed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "said").write_text(RECORDED)
    run(folder, f"#!/bin/sh\ncat {tmp_path}/said; echo $* $(cat program.pte)\n", tmp_path)
    assert "--model_path=program.pte --num_executions=8 16 x 1" in (folder / "2.log").read_text()
    path = tmp_path / "layers.csv"
    fill_from(path, HEADER, FLOATS, told_by(folder, FLOATS, 1))
    table = read_table(path)
    assert [table.rows[request].latency_ms for request in FLOATS] == [pytest.approx(0.15)] * 2
    assert table.header.source == "Pixel (Pixel), ExecuTorch, --num_executions=8"


def test_phone_that_fails_on_one_program_has_the_others_and_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "said").write_text(RECORDED)
    fails = "case $(cat program.pte) in 16*) echo 'E: out of memory'; exit 1;; esac\n"
    run(folder, f"#!/bin/sh\n{fails}cat {tmp_path}/said\n", tmp_path)
    path = tmp_path / "layers.csv"
    with pytest.raises(TableError, match=r"1 of 2 rows are without a price(.|\n)*out of memory"):
        fill_from(path, HEADER, FLOATS, told_by(folder, FLOATS, 1))
    (folder / "2.log").unlink()
    first = (folder / "1.log").stat().st_mtime_ns
    run(folder, f"#!/bin/sh\ncat {tmp_path}/said\n", tmp_path)
    assert (folder / "1.log").stat().st_mtime_ns == first  # not run again
    assert len(fill_from(path, HEADER, FLOATS, told_by(folder, FLOATS, 1)).rows) == 2


def test_integers_are_not_believed_to_a_console(folder: Path, tmp_path: Path) -> None:
    (folder / phone.OPERATORS_FILE).write_text(phone._operators(REQUESTS, 1))
    for number in (1, 2, 3):
        (folder / f"{number}.log").write_text(RECORDED)
    with pytest.raises(TableError, match=r"1 of 3 rows(.|\n)*integers need an ETDump: 3\.log"):
        fill_from(tmp_path / "l.csv", HEADER, REQUESTS, told_by(folder, REQUESTS, 1))


def test_programs_of_another_list_are_refused(folder: Path) -> None:
    with pytest.raises(TableError, match="holds programs of another list"):
        told_by(folder, FLOATS[:1], 1)
    with pytest.raises(TableError, match="holds programs of another list"):
        write_programs(folder, FLOATS[::-1], 1)
    with pytest.raises(TableError, match="holds programs of another list"):
        write_programs(folder, FLOATS, 8)  # of batches of 8 images
    with pytest.raises(TableError, match="List of a folder's programs not found"):
        told_by(folder / "other", FLOATS, 1)


def test_written_programs_are_not_written_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "1.pte").unlink()
    written: list[int] = []

    def again(part: list[Request], batch: int) -> tuple[bytes, None]:
        written.append(part[0].out_channels)
        return b"", None

    monkeypatch.setattr(phone, "operator_program", again)
    write_programs(folder, FLOATS, 1)
    assert written == [8]


def test_etdump_tells_what_an_operator_in_integers_took_alone(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="ExecuTorch is not installed")
    from amc.runtimes.executorch import METHOD, _executorch, operator_program

    folder, requests = tmp_path / "programs", REQUESTS[2:]
    write_programs(folder, requests, 1)
    _, inputs = operator_program(requests, 1)
    loaded = _executorch().runtime.load_program(folder / "1.pte", enable_etdump=True)
    method = loaded.load_method(METHOD)
    for _ in range(12):
        method.execute(inputs)
    loaded.write_etdump_result_to_file(str(folder / "1.etdump"), str(tmp_path / "values"))
    price = phone.price_of(folder, 1, requests[0])
    assert 0 < price["latency_ms"] < 5
    (folder / "1.etdump").write_bytes(b"no dump")
    with pytest.raises(TableError, match=r"1\.etdump is no ETDump that can be read"):
        fill_from(tmp_path / "l.csv", HEADER, requests, told_by(folder, requests, 1))
