"""Prices from another machine, for which a script on this one stands."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time

import pytest

from amc.cost import command, filling
from amc.cost.answers import Answers
from amc.cost.device import Measurement, TableHeader
from amc.cost.remote import Remote, described, fill_list, remote_of
from amc.cost.table import read_list, read_table
from amc.errors import ConfigError, DeviceError, TableError
from amc.graph.types import Signature
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits

INT8 = Bits(8, 8)
CONV = Signature("conv2d", (3, 3), (2, 2), (1, 1), in_size=(8, 8), out_size=(4, 4))
DEPTHWISE = Signature("conv2d", (3, 3), (1, 1), (1, 1), groups=0, in_size=(4, 4), out_size=(4, 4))
REQUESTS = [
    Request(CONV, 3, 8, FLOAT),
    Request(CONV, 3, 16, FLOAT),
    Request(DEPTHWISE, 8, 8, FLOAT),
    Request(DEPTHWISE, 16, 16, INT8),
    Request(Signature("linear"), 16, 10, FLOAT),
]
HEADER = TableHeader("pi", "tflite", 2, 4, 8, (FLOAT, INT8))

# Answers each operator with its output channels; `asked` is what came in.
ANSWER = """
import json, os, sys, time
asked = [json.loads(line) for line in sys.stdin]
def say(one, **fields):
    fields = fields or {"latency_ms": one["out_channels"]}
    print(json.dumps({"id": one["id"], **fields}), flush=True)
"""
EACH = ANSWER + "for one in asked: say(one)\n"


def board(tmp_path, program, rows=200, patience_s=30.0):
    """A remote that is a program on this machine."""
    script = tmp_path / "board.py"
    script.write_text(program)
    return Remote((sys.executable, "-ISE", str(script)), rows, patience_s)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layers.csv"


def kept(path):
    """Milliseconds of the rows that a list has, by their place among the requests."""
    rows = read_list(path).rows
    return {n: rows[r].latency_ms for n, r in enumerate(REQUESTS, start=1) if r in rows}


ALL = {1: 8.0, 2: 16.0, 3: 8.0, 4: 16.0, 5: 10.0}


def test_every_operator_of_the_list_is_answered_into_a_table(tmp_path, path):
    table = fill_list(path, HEADER, REQUESTS, board(tmp_path, EACH))
    assert kept(path) == ALL
    assert table.rows == read_table(path).rows
    assert table.header == read_table(path).header == HEADER
    assert table.rows[REQUESTS[0]] == Measurement(8.0, 0.0, 1)


def test_an_operator_is_described_without_amc_s_conventions():
    said = described(7, REQUESTS[2], HEADER)
    assert json.loads(json.dumps(said)) == {
        "id": 7,
        "op": "conv2d",
        "kernel": [3, 3],
        "stride": [1, 1],
        "padding": [1, 1],
        "dilation": [1, 1],
        "groups": 8,  # depthwise: as many as channels
        "in_size": [4, 4],
        "out_size": [4, 4],
        "in_channels": 8,
        "out_channels": 8,
        "weight_bits": 32,
        "activation_bits": 32,
        "batch": 4,
        "threads": 2,
    }


def test_answers_may_be_lines_of_csv_and_say_spread_samples_and_energy(tmp_path, path):
    answers = ["1,0.5", "2, 0.25, 0.01", "3,1.5,0,9", "4,2,,,", "5,1e-3,0.1,7"]
    program = f"import sys; sys.stdin.read(); print({chr(10).join(answers)!r})"
    table = fill_list(path, HEADER, REQUESTS, board(tmp_path, program))
    assert [table.rows[request] for request in REQUESTS] == [
        Measurement(0.5, 0.0, 1),
        Measurement(0.25, 0.01, 1),
        Measurement(1.5, 0.0, 9),
        Measurement(2.0, 0.0, 1),
        Measurement(1e-3, 0.1, 7),
    ]
    energy = ANSWER + "for one in asked: say(one, latency_ms=1, energy_mj=one['in_channels'])\n"
    table = fill_list(tmp_path / "energy.csv", HEADER, REQUESTS, board(tmp_path, energy))
    assert table.metrics == ("latency_ms", "energy_mj")
    assert read_table(tmp_path / "energy.csv").rows[REQUESTS[0]].energy_mj == 3.0


def test_a_call_is_told_so_many_operators_at_a_time(tmp_path, path):
    program = EACH + f"open({str(tmp_path / 'calls')!r}, 'a').write(f'{{len(asked)}} ')\n"
    fill_list(path, HEADER, REQUESTS, board(tmp_path, program, rows=2))
    assert (tmp_path / "calls").read_text() == "2 2 1 "
    assert kept(path) == ALL


BROKEN = {
    "say(one, latency_ms='fast')": "latency_ms must be a positive, finite number, got 'fast'",
    "say(one, latency_ms=-1)": "latency_ms must be a positive, finite number, got -1",
    "say(one, latency_ms=0)": "got 0",
    "say(one, latency_ms=True)": "got True",
    "say(one, latency_ms=10**400)": "latency_ms must be a positive, finite number",
    "say(one, latency_ms=float('nan'))": "got nan",
    "say(one, latency_ms=1, spread_ms=-1)": "spread_ms must be a finite number, not negative",
    "say(one, latency_ms=1, samples=0)": "samples must be a whole number from 1, got 0",
    "say(one, latency_ms=1, energy_mj=-3)": "energy_mj must be a positive, finite number, got -3",
    "say(one, ms=1)": "'ms' is none of id, latency_ms, spread_ms",
    "say(one, spread_ms=1)": "there is no latency_ms",
    "say(one, error='no such kernel')": "the other machine says: 'no such kernel'",
    "say({'id': 99}, latency_ms=1)": "its id is none that was asked for",
    "say({'id': '2'}, latency_ms=1)": "its id is none that was asked for",
    "say(one); say(one, latency_ms=2)": "it is a second answer for id 2, of which none is kept",
    "print('warming up')": '\'warming up\': expected {"id": ..., "latency_ms": ...}',
    "print('{\"id\": 2')": "expected a line of JSON",
    "print('{\"a\":' * 5000)": "expected a line of JSON",
    "print('2,fast')": "latency_ms must be a positive, finite number, got 'fast'",
    "print('2,1,2,3,4,5')": "expected",
    "print(json.dumps({'machine': 3}))": "machine must be one line of text, got 3",
    "pass": "1 of 5 rows are without a price",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_answer_is_refused_by_row_and_the_rest_is_kept(tmp_path, path, broken):
    spoilt = ANSWER + f"for one in asked:\n  if one['id'] != 2: say(one)\n  else: {broken}\n"
    with pytest.raises(TableError, match="1 of 5 rows are without a price") as error:
        fill_list(path, HEADER, REQUESTS, board(tmp_path, spoilt))
    assert BROKEN[broken] in str(error.value)
    assert kept(path) == {n: ms for n, ms in ALL.items() if n != 2}
    with pytest.raises(TableError, match="1 of 5 rows are still to be filled in"):
        read_table(path)
    program = EACH + f"open({str(tmp_path / 'ids')!r}, 'w').write(str([o['id'] for o in asked]))\n"
    fill_list(path, HEADER, REQUESTS, board(tmp_path, program))
    assert (tmp_path / "ids").read_text() == "[2]"
    assert kept(path) == ALL


def test_answers_that_are_taken_back_after_they_were_written_are_gone(tmp_path, path, monkeypatch):
    monkeypatch.setattr(filling, "_WRITE_EVERY_S", 0.0)
    program = EACH + "time.sleep(0.1); say(asked[0], latency_ms=9)\n"
    with pytest.raises(TableError, match="second answer for id 1"):
        fill_list(path, HEADER, REQUESTS, board(tmp_path, program))
    assert kept(path) == {n: ms for n, ms in ALL.items() if n != 1}


def test_what_is_said_beside_all_answers_is_only_warned_of(tmp_path, path, caplog):
    fill_list(path, HEADER, REQUESTS, board(tmp_path, "print('hello')\n" + EACH))
    assert "line 1, 'hello': expected" in caplog.text
    assert kept(path) == ALL


def test_command_that_fails_is_named_with_what_it_said_and_its_answers_are_kept(tmp_path, path):
    program = ANSWER + "say(asked[0]); sys.exit('no such board')\n"
    with pytest.raises(DeviceError) as error:
        fill_list(path, HEADER, REQUESTS, board(tmp_path, program))
    for words in (
        "it ended with exit code 1; it said: no such board",
        "1 of 5 operators are answered",
        str(path),
    ):
        assert words in str(error.value)
    assert kept(path) == {1: 8.0}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal on this system")
def test_command_that_is_killed_is_asked_for_the_rest_by_the_next_call(tmp_path, path):
    program = ANSWER + "say(asked[0]); say(asked[1]); os.kill(os.getpid(), 9)\n"
    for so_far in ({1, 2}, {1, 2, 3, 4}):
        with pytest.raises(DeviceError, match="it was ended by signal 9"):
            fill_list(path, HEADER, REQUESTS, board(tmp_path, program))
        assert set(kept(path)) == so_far
    fill_list(path, HEADER, REQUESTS, board(tmp_path, EACH))
    assert kept(path) == ALL


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups on this system")
def test_command_that_hangs_is_ended_with_all_that_it_started(tmp_path, path):
    program = ANSWER + (
        "import subprocess\n"
        "say(asked[0])\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        "print('still here', file=sys.stderr, flush=True)\n"
        "time.sleep(60)\n"
    )
    start = time.monotonic()
    with pytest.raises(DeviceError, match=r"no answer for 1 seconds .*1 of 5 .*still here"):
        fill_list(path, HEADER, REQUESTS, board(tmp_path, program, patience_s=1.0))
    assert time.monotonic() - start < 20
    assert kept(path) == {1: 8.0}
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if _is_gone(child):
            break
        time.sleep(0.05)
    assert _is_gone(child)


def _is_gone(pid):
    """Whether a process has ended; one that no one has waited for yet has."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("flood", "said"),
    [
        ("while True: print('.' * 50)", "1006 lines that are no answers"),
        ("while True: sys.stdout.write('.' * 65536)", "put out more than 1 MiB"),
    ],
)
def test_command_that_floods_its_output_is_ended(tmp_path, path, monkeypatch, flood, said):
    monkeypatch.setattr(command, "MOST_BYTES", 2**20)
    with pytest.raises(DeviceError, match=said):
        fill_list(path, HEADER, REQUESTS, board(tmp_path, ANSWER + f"say(asked[0])\n{flood}\n"))
    assert kept(path) == {1: 8.0}


def test_command_that_answers_nothing_or_reads_nothing_is_named(tmp_path, path):
    with pytest.raises(DeviceError, match="it answered nothing that was asked"):
        fill_list(path, HEADER, REQUESTS, board(tmp_path, "pass"))
    many = [Request(CONV, 3, outs, FLOAT) for outs in range(1, 2000)]  # more than a pipe holds
    with pytest.raises(DeviceError, match="0 of 1999 operators are answered"):
        fill_list(tmp_path / "many.csv", HEADER, many, board(tmp_path, "pass", rows=5000))


def test_operators_that_the_board_cannot_run_do_not_keep_it_from_the_others(tmp_path, path):
    program = ANSWER + (
        "for one in asked:\n  say(one) if one['id'] > 2 else say(one, error='unsupported')\n"
    )
    with pytest.raises(TableError, match="2 of 5 rows") as error:
        fill_list(path, HEADER, REQUESTS, board(tmp_path, program, rows=2))
    assert str(error.value).count("the other machine says: 'unsupported'") == 2
    assert set(kept(path)) == {3, 4, 5}


def test_command_that_cannot_be_started_is_named(path):
    with pytest.raises(DeviceError, match=r"'no-such-program -x' cannot be started"):
        fill_list(path, HEADER, REQUESTS, Remote(("no-such-program", "-x")))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("ssh 'board",), "remote=ssh 'board is no command: No closing quotation"),
        (("  ",), "remote must be a command"),
        (("ssh board", 0), "remote_rows must be a whole number from 1, got 0"),
        (("ssh board", 1, 0.0), "remote_timeout_s must be a positive"),
        (("ssh board", 1, float("inf")), "remote_timeout_s must be a positive"),
    ],
)
def test_options_of_a_remote_that_make_no_sense_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        remote_of(*given)
    assert remote_of("ssh pi 'a b'").command == ("ssh", "pi", "a b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 1}, "is a list of batch 4, asked for is 1"),
        ({"device": "pie"}, "is a list of device 'pi', asked for is 'pie'"),
        ({"supported_bits": (FLOAT,)}, "supported_bits '32/32 8/8', asked for is '32/32'"),
        ({"covers": "layers"}, "covers 'all', asked for is 'layers'"),
    ],
)
def test_list_of_other_conditions_is_not_gone_on_with(tmp_path, path, change, said):
    fill_list(path, HEADER, REQUESTS, board(tmp_path, EACH))
    before = path.read_text()
    other = TableHeader(**{**vars(HEADER), **change})
    with pytest.raises(TableError, match=said):
        fill_list(path, other, REQUESTS, board(tmp_path, EACH))
    assert path.read_text() == before


def test_machine_is_kept_in_the_table_and_another_one_is_refused(tmp_path, path):
    says = "print(json.dumps({{'machine': {!r}}}), flush=True)\n"
    first = ANSWER + says.format("Cortex-A72") + "say(asked[0])\n"
    with pytest.raises(TableError, match="4 of 5 rows"):
        fill_list(path, HEADER, REQUESTS, board(tmp_path, first))
    assert read_list(path).header.source == "Cortex-A72"
    with pytest.raises(TableError, match=r"measured on 'Cortex-A72', what answers now is 'A53'"):
        fill_list(path, HEADER, REQUESTS, board(tmp_path, ANSWER + says.format("A53")))
    rest = says.format("Cortex-A72") + "for one in asked: say(one)\n"
    table = fill_list(path, HEADER, REQUESTS, board(tmp_path, ANSWER + rest))
    assert table.header.source == "Cortex-A72"


def test_prices_that_were_filled_in_by_hand_stay(tmp_path, path):
    with pytest.raises(DeviceError):
        fill_list(path, HEADER, REQUESTS, board(tmp_path, "pass"))
    path.write_text(path.read_text().replace(",,0,1\n", ",123.5,0,1\n", 1))
    fill_list(path, HEADER, REQUESTS, board(tmp_path, EACH))
    assert kept(path) == ALL | {1: 123.5}


def _fill(path, asked):
    filling._WRITE_EVERY_S = 0.0
    fill_list(path, HEADER, REQUESTS, asked)


def _filler(path, asked):
    """A process of its own that fills a list."""
    process = multiprocessing.get_context("fork").Process(target=_fill, args=(path, asked))
    process.start()
    return process


FORKS = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no forks on this system"
)


@FORKS
def test_list_whose_filling_is_killed_keeps_its_answers_and_goes_on(tmp_path, path):
    slow = board(tmp_path, ANSWER + "say(asked[0])\ntime.sleep(15)\n")
    process = _filler(path, slow)
    for _ in range(600):
        if path.exists() and kept(path):
            break
        time.sleep(0.05)
    process.kill()
    process.join()
    assert kept(path) == {1: 8.0}
    fill_list(path, HEADER, REQUESTS, board(tmp_path, EACH))
    assert kept(path) == ALL


@FORKS
def test_two_processes_fill_one_list_and_lose_nothing(tmp_path, path):
    each = board(tmp_path, ANSWER + "for one in asked: time.sleep(0.05); say(one)\n", rows=2)
    processes = [_filler(path, each) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert kept(path) == ALL


def test_answers_count_what_they_were_asked():
    answers = Answers(frozenset([1, 2]))
    assert answers.hear('{"id": 1, "latency_ms": 2}')
    assert not answers.hear("")
    assert not answers.hear('{"id": 1, "latency_ms": 2}')  # about nothing new
    assert answers.so_far() == "0 of 2 operators are answered"
