from __future__ import annotations

import csv
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from amc import api
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.table import read_table, write_table
from amc.errors import TableError
from amc.graph.types import Signature
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits
from amc.utils.machine import cache_folder
from tests.cli.command import NETWORK, amc, search

Output = pytest.CaptureFixture[str]
DEVICE = ("device=torch_cpu", "device.batch=1", "device.channel_step=16")


@pytest.mark.usefixtures("quick")
def test_profile_measures_a_table_that_a_search_can_use(capsys: Output) -> None:
    assert amc("profile", NETWORK, *DEVICE, "output=table.csv") == 0
    shown = capsys.readouterr().out
    assert "written to table.csv" in shown
    use = "amc search network=tests.cli.nets:tiny device=table device.path=table.csv"
    assert f"use it:  {use}\n" in shown
    assert list(Path("outputs/profile").iterdir()) == []  # no folder without a result in it
    table = read_table(Path("table.csv"))
    assert table.batch == 1
    assert all(row.latency_ms > 0 for row in table.rows.values())
    cached = list((cache_folder() / "tables").glob("torch_cpu-b1-t1-*.csv"))
    assert len(cached) == 1
    given = ("device=table", "device.path=table.csv", "env.channel_step=16")
    assert search(*given, "budget=params", "budget.fraction=0.8", "hydra.run.dir=out") == 0
    with Path("out/comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["predicted_ms"]) > 0 for row in rows)


def test_use_of_a_table_is_shown_with_the_images_it_was_made_for(capsys: Output) -> None:
    images = ("data=digits", "data.image_size=16")
    assert amc("profile", NETWORK, *DEVICE, "output=table.csv", *images) == 0
    shown = capsys.readouterr().out
    use = "amc search network=tests.cli.nets:tiny data=digits data.image_size=16 device=table"
    assert f"use it:  {use} device.path=table.csv\n" in shown


def test_table_in_the_cache_is_used_by_its_device(capsys: Output) -> None:
    assert amc("profile", NETWORK, *DEVICE) == 0
    use = f"amc search network=tests.cli.nets:tiny {' '.join(DEVICE)}"
    assert f"use it:  {use}\n" in capsys.readouterr().out


def test_use_of_a_table_is_shown_with_all_that_decides_its_rows(capsys: Output) -> None:
    given = (
        "network=tests.cli.nets:sized",
        "+network.options.width=8",
        "data=digits",
        "env.min_preserve_ratio=0.5",
        "env.weight_bits=[32]",
    )
    assert amc("profile", *given, *DEVICE, "output=my table.csv") == 0
    shown = " ".join(capsys.readouterr().out.split())
    used = shlex.split(shown[shown.index("amc search") :])
    assert used[2] == given[0]
    assert sorted(used[3:]) == sorted([*given[1:], "device=table", "device.path=my table.csv"])


@pytest.mark.parametrize(
    ("device", "name"),
    [("device=roofline_phone", "'roofline_phone'"), ("~device", "'null'")],
)
def test_only_devices_of_this_machine_are_measured(device: str, name: str, capsys: Output) -> None:
    assert amc("profile", NETWORK, device) == 2
    assert f"Device {name} is not measured on this machine" in capsys.readouterr().err


def test_list_for_a_board_elsewhere_is_written_once_and_never_over(capsys: Output) -> None:
    options = ("device=todo", "device.name=pi", "device.batch=4", 'device.bits=["32/32","8/8"]')
    assert amc("profile", NETWORK, *options, "todo=layers.csv", "todo_covers=layers") == 0
    said = capsys.readouterr().out
    text = Path("layers.csv").read_text()
    # tiny: 3 -> 8, 16 channels; 8, 16 -> 8, 16, 24; 8, 16, 24 -> 10; in two pairs of bits
    assert f"pi: {(2 + 2 * 3 + 3) * 2} operators to measure, batch 4" in said
    assert "device=table device.path=layers.csv" in said
    assert "# device: pi\n" in text
    with pytest.raises(TableError, match="22 of 22 rows are still to be filled in"):
        read_table(Path("layers.csv"))
    assert amc("profile", NETWORK, *options, "todo=layers.csv") == 2
    assert "todo=layers.csv is there already" in capsys.readouterr().err
    assert Path("layers.csv").read_text() == text


BOARD = Path(__file__).resolve().parents[2] / "examples" / "board_script.py"


def test_board_is_asked_for_the_prices_of_a_list_by_a_command(capsys: Output) -> None:
    """The script that comes as an example, on this machine, and once more where nothing is left."""
    options = ("device=todo", "device.name=pi", "device.runtime=torch", "todo=layers.csv")
    asks = f"remote='{sys.executable} {BOARD}'"
    for _ in range(2):
        assert amc("profile", NETWORK, *options, asks) == 0
        said = capsys.readouterr().out
        assert "written to layers.csv" in said
        assert "device=table device.path=layers.csv" in said
    table = read_table(Path("layers.csv"))
    assert table.header.source.endswith(f"PyTorch {torch.__version__}")
    assert {r.signature.op for r in table.rows} >= {"conv2d", "linear", "relu"}
    assert all(row.samples == 7 and row.latency_ms > 0 for row in table.rows.values())


def test_board_that_fails_says_where_its_answers_are_kept(capsys: Output) -> None:
    options = ("device=todo", "todo=layers.csv", f"remote='{sys.executable} -c exit(3)'")
    assert amc("profile", NETWORK, *options) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "it ended with exit code 3" in said
    assert "kept in layers.csv" in said


def test_remote_needs_a_list(capsys: Output) -> None:
    assert amc("profile", NETWORK, "device=todo", "remote='ssh board'") == 2
    assert "remote=<command> fills in a list: name it, todo=<file>.csv" in capsys.readouterr().err
    assert amc("profile", NETWORK, "device=todo", "todo=a.csv", "remote=3") == 2
    assert "remote must be" in capsys.readouterr().err


def test_table_without_a_price_names_a_command_that_lists_it(capsys: Output) -> None:
    header = TableHeader("my board", "ONNX Runtime 1.2", 2, 4, 8, (FLOAT, Bits(8, 8)))
    row = {Request(Signature("linear"), 8, 8, FLOAT): Measurement(1.0, 0.0, 1)}
    write_table(TableDevice(header, row), Path("board.csv"))
    given = (NETWORK, "device=table", "device.path=board.csv", "output=table.csv")
    assert amc("profile", *given) == 2
    said = " ".join(capsys.readouterr().err.split())
    command = said[said.index("amc profile") : said.index(" network=<network>")]
    assert amc(*shlex.split(command.replace("<file>", "layers"))[1:], NETWORK) == 0
    assert set(Path("layers.csv").read_text().splitlines()) >= {
        "# device: my_board",
        "# runtime: ONNX Runtime 1.2",
        "# threads: 2",
        "# batch: 4",
        "# channel_step: 8",
        "# supported_bits: 32/32 8/8",
    }


def test_output_is_written_over_a_complete_table_and_over_nothing_else(capsys: Output) -> None:
    board = ("device=todo", "device.name=pi", "todo_covers=layers")
    assert amc("profile", NETWORK, *board, "todo=layers.csv") == 0
    listed = Path("layers.csv").read_text()
    half_filled = listed.replace(",,0,1\n", ",1.5,0,1\n", 5)
    assert half_filled.count(",1.5,") == 5
    for name, text in {"half.csv": half_filled, "mine.txt": "not a table"}.items():
        Path(name).write_text(text)
        capsys.readouterr()
        assert amc("profile", NETWORK, *DEVICE, f"output={name}") == 2
        said = capsys.readouterr().err
        assert f"output={name} is there already and is no complete table" in said
        assert Path(name).read_text() == text
    assert "6 of 11 rows are still to be" in " ".join(_said_of("half.csv", capsys).split())
    Path("table.csv").write_text(listed.replace(",,0,1\n", ",1.5,0,1\n"))
    assert amc("profile", NETWORK, *DEVICE, "output=table.csv") == 0
    assert read_table(Path("table.csv")).name == "torch_cpu"


def _said_of(name: str, capsys: Output) -> str:
    assert amc("profile", NETWORK, *DEVICE, f"output={name}") == 2
    return capsys.readouterr().err


def test_list_has_the_batch_and_bits_of_a_device_of_this_machine(capsys: Output) -> None:
    assert amc("profile", NETWORK, *DEVICE, "todo=layers.csv") == 0
    assert "torch_cpu: " in capsys.readouterr().out
    assert "# batch: 1\n" in Path("layers.csv").read_text()
    assert amc("profile", NETWORK, *DEVICE, "todo=more.csv", "todo_covers=lairs") == 2
    assert "todo_covers must be one of all, layers" in capsys.readouterr().err


def test_device_of_the_users_own_class_takes_its_options(capsys: Output) -> None:
    own = ("device=custom", "device.name=tests.cost.test_plugins:Board")
    assert amc("profile", NETWORK, *own, "+device.options.factor=2", "todo=layers.csv") == 0
    assert "board: " in capsys.readouterr().out
    assert "# supported_bits: 32/32 8/8\n" in Path("layers.csv").read_text()
    assert amc("profile", NETWORK, *own, "+device.options.fctor=2", "todo=more.csv") == 2
    assert "Check device.options" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_table_of_haq_is_made_into_one_of_the_network_and_searched(capsys: Output) -> None:
    np.save(
        "haq.npy", np.multiply.outer([300, 200, 100], np.multiply.outer(range(1, 9), range(1, 9)))
    )
    haq = ("device=haq", "device.path=haq.npy", "device.ms_per_unit=1e-3")
    assert amc("profile", NETWORK, *haq) == 2
    assert "output=<file>.csv" in capsys.readouterr().err
    assert amc("profile", NETWORK, *haq, "output=table.csv") == 0
    assert f"haq: {3 * 64} prices, batch 16" in capsys.readouterr().out
    whole = ("device=table", "device.path=table.csv", "env.min_preserve_ratio=1")
    assert amc("profile", NETWORK, *whole, "output=again.csv") == 0
    assert Path("again.csv").read_bytes() == Path("table.csv").read_bytes()
    budget = ("budget.fraction=0.6", "search.evaluations=1", "agent=random")
    table = ("device=table", "device.path=table.csv")
    assert search(*table, *budget, "hydra.run.dir=out") == 0
    with Path("out/comparison.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    original = (300 + 200 + 100) * 8 * 8 * 1e-3
    assert float(rows["original"]["predicted_ms"]) == pytest.approx(original)
    assert all(float(rows[name]["predicted_ms"]) <= 0.6 * original for name in list(rows)[1:])
    assert search(*haq, *budget, "hydra.run.dir=direct") == 0  # the same without the table between
    assert Path("direct/strategy.json").read_bytes() == Path("out/strategy.json").read_bytes()


def test_ctrl_c_says_where_the_prices_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "device_for_network", interrupted)
    assert amc("profile", NETWORK, *DEVICE) == 130
    assert "what was measured of torch_cpu is kept in " in capsys.readouterr().err


def test_runtime_of_a_class_of_ones_own_is_measured_by_its_name(capsys: Output) -> None:
    device = ("device=tests.runtimes.test_runtime:Toy", "+device.batch=2", "+device.channel_step=4")
    assert amc("profile", NETWORK, *device, "output=toy.csv") == 0
    assert "toy: " in capsys.readouterr().out
    table = read_table(Path("toy.csv"))
    assert (table.name, table.runtime, table.batch, table.threads) == ("toy", "toy", 2, 1)


def test_programs_of_a_phone_need_a_list_and_are_steps_of_their_own(capsys: Output) -> None:
    for option in ("programs=phone", "import=phone"):
        assert amc("profile", NETWORK, option) == 2
        assert f"{option} is of the operators of a list: name it" in capsys.readouterr().err
    assert amc("profile", NETWORK, "todo=l.csv", "programs=phone", "import=phone") == 2
    assert "Give one of programs and import: each is a step" in capsys.readouterr().err


def test_list_is_filled_in_by_what_ran_on_a_phone(
    capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.cost.phone.operator_program", lambda part, batch: (b"program", None))
    board = ("device=todo", "device.name=pixel", "device.runtime=executorch")
    given = (*board, "device.channel_step=16", "todo=phone.csv", NETWORK)
    assert amc("profile", *given, "programs=phone") == 0
    programs = sorted(Path("phone").glob("*.pte"))
    assert f"{len(programs)} programs in phone" in capsys.readouterr().out
    for program in programs:
        program.with_suffix(".log").write_text("executed successfully 20 time(s) in 5.000000 ms.")
    assert amc("profile", *given, "import=phone") == 0
    assert "use it:  amc search" in capsys.readouterr().out
    assert {row.latency_ms for row in read_table(Path("phone.csv")).rows.values()} == {0.25}


def test_table_is_kept_in_a_file_of_several_and_searched_with(capsys: Output) -> None:
    assert amc("profile", NETWORK, *DEVICE, "output=tables.sqlite") == 0
    said = capsys.readouterr().out
    assert "written to tables.sqlite as table " in said
    assert amc("profile", NETWORK, *DEVICE, "device.threads=2", "output=tables.sqlite") == 0
    name = said.partition(" as table ")[2].split()[0]
    given = ("device=table", "device.path=tables.sqlite", "env.channel_step=16")
    budget = ("budget=params", "budget.fraction=0.8")
    assert search(*given, f"device.table={name[:8]}", *budget) == 0
    assert search(*given, *budget) == 2
    assert "tables.sqlite has 2 tables, and not one that alone" in capsys.readouterr().err
    Path("other.db").write_text("no database, but long enough to be read as one" * 30)
    assert amc("profile", NETWORK, *DEVICE, "output=other.db") == 2
    assert "other.db is damaged, or not a file of this amc" in capsys.readouterr().err
