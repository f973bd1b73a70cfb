from __future__ import annotations

import csv
from pathlib import Path

import pytest

from amc import api
from amc.cost.table import read_table
from amc.files import cache_folder
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


@pytest.mark.parametrize(
    ("device", "name"),
    [("device=roofline_phone", "'roofline_phone'"), ("~device", "'null'")],
)
def test_only_devices_of_this_machine_are_measured(device: str, name: str, capsys: Output) -> None:
    assert amc("profile", NETWORK, device) == 2
    assert f"Device {name} is not measured on this machine" in capsys.readouterr().err


def test_ctrl_c_says_where_the_prices_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "device_for", interrupted)
    assert amc("profile", NETWORK, *DEVICE) == 130
    assert "what was measured of torch_cpu is kept in " in capsys.readouterr().err
