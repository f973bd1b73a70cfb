"""Energy by RAPL, from a folder that stands for Linux's."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from amc.errors import DeviceError
from amc.utils import energy

RANGE_UJ = 1_000_000


def package(folder: Path, name: str, energy_uj: int) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    (place / "energy_uj").write_text(f"{energy_uj}\n")
    (place / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    return place


def test_energy_of_a_call_is_that_of_all_packages_and_beyond_what_idleness_takes(
    tmp_path: Path,
) -> None:
    """A clock that goes on a second at a glance; 30 mJ a call on each package, 10 mJ asleep."""
    places = [package(tmp_path, f"intel-rapl:{n}", 0) for n in range(2)]
    package(tmp_path, "intel-rapl:0:0", 5)  # the cores, which are in the package's sum
    given, ticks = energy.check_energy(tmp_path), itertools.count()
    assert [counter.folder.name for counter in given] == ["intel-rapl:0", "intel-rapl:1"]

    def use(uj: int) -> None:
        for place in places:
            before = int((place / "energy_uj").read_text())
            (place / "energy_uj").write_text(str((before + uj) % RANGE_UJ))

    whole, beyond = energy.energy_mj(
        given, lambda: use(30_000), least_s=4.0, clock=lambda: float(next(ticks)),
        sleep=lambda s: use(10_000),
    )  # fmt: skip
    # Start at 0 s; looked at 1, 2, 3 s: three calls, then it is 4 s. 3 x 60 mJ in 4 s: 45 mW.
    call_s = 4 / 3
    assert whole == pytest.approx(45 * call_s)
    assert beyond == pytest.approx((45 - 15) * call_s)


def test_counter_that_began_anew_is_read_on(tmp_path: Path) -> None:
    package(tmp_path, "intel-rapl:0", 0)
    (counter,) = energy.counters(tmp_path)
    assert counter.between(999_000, 1_500) == 2_500
    assert counter.between(1_000, 1_500) == 500


def test_machine_without_counters_is_told_what_has_a_model(tmp_path: Path) -> None:
    assert energy.counters(tmp_path / "nothing") == []
    with pytest.raises(DeviceError, match=r"shows no energy: .*device=roofline_phone"):
        energy.check_energy(tmp_path)


def test_counters_that_may_not_be_read_or_hold_no_number_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = package(tmp_path, "intel-rapl:0", 0)
    (place / "energy_uj").write_text("much")
    with pytest.raises(DeviceError, match="energy_uj holds no number of microjoules"):
        energy.counters(tmp_path)

    def denied(self: Path, encoding: str = "") -> str:
        if self.name == "energy_uj":
            raise PermissionError
        return "1000"

    monkeypatch.setattr(Path, "read_text", denied)  # root may read all
    with pytest.raises(DeviceError, match=r"sudo chmod a\+r .*intel-rapl:0/energy_uj"):
        energy.counters(tmp_path)
