"""Arm's Ethos-U: Vela's estimates, where it is installed, and programs that answer in its place."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

from amc import api
from amc.cost.device import TableDevice
from amc.cost.ethos import runtime
from amc.cost.ethos.models import UnknownError, chain_of, model_of
from amc.cost.ethos.runtime import Vela
from amc.cost.load import load_device
from amc.cost.remote import described_in
from amc.cost.shipped import as_device, shipped_device
from amc.cost.table import read_table
from amc.errors import ConfigError, DeviceError
from amc.graph.types import Signature
from amc.recovery.settings import RecoverySettings
from amc.runtimes.request import Request
from amc.strategy import Bits
from tests.conftest import TINY_SHAPE

INT8 = Bits(8, 8)


def conv(ins, outs, size, kernel=3, stride=1, groups=1):
    out = -(-size // stride)
    signature = Signature(
        "conv2d",
        (kernel, kernel),
        (stride, stride),
        (kernel // 2, kernel // 2),
        groups=groups,
        in_size=(size, size),
        out_size=(out, out),
    )
    return Request(signature, ins, outs, INT8)


def told(requests):
    """As the worker is told of them."""
    described = [described_in(n, r, batch=1, threads=1) for n, r in enumerate(requests)]
    return json.loads(json.dumps(described))


@pytest.fixture
def answering(monkeypatch, tmp_path):
    """Puts a program in Vela's place; `one` is what it is told of an operator."""

    def put(program):
        script = tmp_path / "worker.py"
        lines = "".join(f"    {line}\n" for line in program.splitlines())
        script.write_text(
            "import json, os, sys\n"
            "def say(**fields):\n"
            "    print(json.dumps({'id': one['id'], 'clock_hz': 5e8, 'host': False, **fields}),\n"
            "          flush=True)\n"
            f"for line in sys.stdin:\n    one = json.loads(line)\n{lines}"
        )
        monkeypatch.setattr(runtime, "WORKER", (sys.executable, "-ISE", str(script)))
        monkeypatch.setattr(runtime, "version", lambda _: "5.2.0")

    return put


def estimated(requests, vela=None):
    with (vela or Vela()).timing(1, 1) as sample:
        return list(sample(requests))


# --- With a program in Vela's place -----------------------------------------------------------

REQUESTS = [conv(3, 8, 8), conv(8, 8, 8, groups=0), conv(8, 16, 8, 1)]


def test_cycles_are_milliseconds_at_the_clock_and_never_nothing(answering):
    answering("say(cycles=1000.0 * one['id'])")
    assert estimated(REQUESTS) == [1 / 5e8 * 1e3, 1000 / 5e8 * 1e3, 2000 / 5e8 * 1e3]


def test_what_runs_on_the_host_is_said_and_costs_nothing(answering, caplog):
    answering("say(cycles=0.0 if one['id'] == 1 else 1e6, host=one['id'] == 1)")
    assert estimated(REQUESTS) == [2.0, 1 / 5e8 * 1e3, 2.0]
    assert "1 operators cannot be placed on ethos-u55-256: depthwise conv2d" in caplog.text
    assert "they cost nothing" in caplog.text


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("say(error='unsupported stride')", r"no estimate of conv2d .*: unsupported stride"),
        ("sys.exit('out of memory')", r"no estimate of conv2d .*exit code 1; it said: out of mem"),
        ("sys.exit(0)", "no estimate of conv2d .*: it ended"),
    ],
)
def test_operator_without_an_estimate_is_named(answering, program, said):
    answering(program)
    with pytest.raises(DeviceError, match=said):
        estimated(REQUESTS)


def test_worker_that_hangs_is_ended(answering, monkeypatch):
    monkeypatch.setattr(runtime, "_PATIENCE_S", 0.5)
    answering("import time; time.sleep(60)")
    with pytest.raises(DeviceError, match=r"no estimate of conv2d .* in 0\.5 seconds"):
        estimated(REQUESTS)


def test_table_of_estimates_has_one_sample_each_and_is_gone_on_with(
    answering, tiny_net, tmp_path, monkeypatch
):
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
    options = shipped_device("ethos_u55") | {"channel_step": 4}
    log = tmp_path / "asked"
    answering(f"open({str(log)!r}, 'a').write('x'); say(cycles=1e5 if one['id'] < 3 else 1 / 0)")
    with pytest.raises(DeviceError, match="ZeroDivisionError"):
        api.profile(tiny_net, TINY_SHAPE, options)
    answering(f"open({str(log)!r}, 'a').write('x'); say(cycles=1e5)")
    table = api.profile(tiny_net, TINY_SHAPE, options)
    assert isinstance(table, TableDevice)
    assert len(log.read_text()) == len(table.rows) + 1  # the one that failed is asked once more
    assert {row.samples for row in table.rows.values()} == {1}
    assert {row.latency_ms for row in table.rows.values()} == {0.2}
    (file,) = (tmp_path / "cache" / "tables").glob("ethos_u55-b1-t1-*.csv")
    header = read_table(file).header
    assert (header.runtime, header.supported_bits) == ("vela", (INT8,))
    assert header.source == (
        "estimates of Vela 5.2.0 for ethos-u55-256 (Ethos_U55_High_End_Embedded, Shared_Sram, "
        "Arm/vela.ini)"
    )


def test_search_for_an_npu_says_that_its_prices_are_estimates_and_times_here(
    answering, tiny_net, tmp_path, monkeypatch
):
    monkeypatch.setenv("AMC_CACHE", str(tmp_path))
    answering("say(cycles=100.0 * one['in_channels'] * one['out_channels'])")
    images = torch.randn(60, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))
    result = api.search(
        tiny_net,
        api.DataSet.from_tensors(images),
        shipped_device("ethos_u55") | {"channel_step": 2},
        0.6,
        evaluations=2,
        search_images=10,
        final_candidates=1,
        recovery=RecoverySettings(images=10, quick_images=5, batch_norm_images=5),
    )
    assert any(
        note.startswith("Prices of ethos_u55 are of: estimates of Vela 5.2.0")
        for note in result.notes
    )
    assert any("this machine, which is not the device" in note for note in result.notes)
    original, *_, best = (row.predicted_ms for row in result.comparison)
    assert best <= 0.6 * original
    with pytest.raises(ConfigError, match="a device that is this machine"):
        api.search(
            tiny_net, api.DataSet.from_tensors(images), "ethos_u55", 0.6, evaluations=2, reaim=1
        )


def test_vela_that_is_not_installed_is_an_extra(monkeypatch, tiny_net):
    def absent(name):
        raise runtime.PackageNotFoundError(name)

    monkeypatch.setattr(runtime, "version", absent)
    with pytest.raises(DeviceError, match=r"not installed: pip install 'amc-compress\[ethos\]'"):
        api.profile(tiny_net, TINY_SHAPE, "ethos_u55")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accelerator": "ethos-u55-512"}, r"accelerator must be one of .*got 'ethos-u55-512'"),
        ({"memory_mode": 3}, "memory_mode must be one line of text, got 3"),
        ({"acelerator": "x"}, "no key 'acelerator'. Did you mean"),
    ],
)
def test_options_of_an_npu_are_checked(change, said):
    with pytest.raises(DeviceError, match=said):
        load_device(shipped_device("ethos_u55") | change)


def test_batches_of_more_images_and_networks_are_refused(monkeypatch):
    monkeypatch.setattr(runtime, "version", lambda _: "5.2.0")
    said = r"batches of one image: device\.batch=1, got 4"
    with pytest.raises(DeviceError, match=said), Vela().timing(4, 1):
        pass
    with pytest.raises(DeviceError, match="estimates networks and runs none"):
        Vela().compile(None, 1)


def test_models_are_written_of_what_vela_is_asked_for():
    file = model_of(told([conv(8, 16, 8)])[0])
    assert file[4:8] == b"TFL3"
    assert len(file) > 16 * 8 * 9  # its weights
    with pytest.raises(UnknownError, match="no TensorFlow Lite model of gelu"):
        model_of({**told([conv(8, 8, 8)])[0], "op": "gelu"})
    with pytest.raises(UnknownError, match="adaptive pooling to one pixel only"):
        model_of({**told([conv(8, 8, 8)])[0], "op": "adaptive_avg_pool2d"})


# --- With Vela --------------------------------------------------------------------------------

POOL = Request(Signature("adaptive_avg_pool2d", in_size=(7, 7), out_size=(1, 1)), 64, 64, INT8)
LINEAR = Request(Signature("linear"), 64, 10, INT8)
MOBILE = [  # as MobileNetV1 begins and ends
    conv(3, 16, 28, stride=2),
    conv(16, 16, 14, groups=0),
    conv(16, 32, 14, 1),
    conv(32, 32, 14, stride=2, groups=0),
    conv(32, 64, 7, 1),
    conv(64, 64, 7, groups=0),
    conv(64, 64, 7, 1),
    POOL,
    LINEAR,
]


@pytest.fixture
def vela():
    pytest.importorskip("ethosu.vela", reason="needs ethos-u-vela (the extra ethos)")
    return Vela()


@pytest.mark.parametrize("device", ["ethos_u55", "ethos_u65", "ethos_u85"])
def test_estimates_of_operators_sum_to_that_of_the_network(vela, device):
    from amc.cost.ethos.worker import estimate

    npu = as_device(device).runs_on
    cycles, clock, on_npu = estimate(chain_of(told(MOBILE)), npu.options, lambda _: True)
    assert on_npu
    assert sum(estimated(MOBILE, npu)) == pytest.approx(cycles / clock * 1e3, rel=0.05)


def test_every_operator_that_there_is_a_model_of_has_an_estimate(vela):
    size = {"in_size": (8, 8), "out_size": (8, 8)}
    half = {"in_size": (8, 8), "out_size": (4, 4)}
    pool = {"kernel": (2, 2), "stride": (2, 2)}
    signatures = [
        Signature("add", **size),
        Signature("mul", **size),
        Signature("max_pool2d", **pool, **half),
        Signature("avg_pool2d", **pool, **half),
        Signature("pad", in_size=(8, 8), out_size=(10, 10)),
    ]
    joins = [Request(signature, 16, 16, INT8) for signature in signatures]
    layers = [conv(16, 32, 8, groups=4), conv(16, 16, 9, stride=2), POOL, LINEAR]
    in_place = [Request(Signature(op, **size), 16, 16, INT8) for op in ("concat", "relu", "tanh")]
    found = estimated([*joins, *layers, *in_place])
    assert min(found[: len(joins) + len(layers)]) > 1e-4
    assert found[-3:] == [1 / 5e8 * 1e3] * 3  # a cycle each: they take no time of their own


def test_what_vela_says_of_an_operator_reaches_the_user(vela, caplog):
    far = conv(16, 16, 16, stride=4, groups=0)
    assert estimated([far]) == [1 / 5e8 * 1e3]
    assert "cannot be placed on ethos-u55-256" in caplog.text
    unknown = Request(Signature("gelu", in_size=(8, 8), out_size=(8, 8)), 8, 8, INT8)
    with pytest.raises(DeviceError, match="amc writes no TensorFlow Lite model of gelu"):
        estimated([unknown])
    with pytest.raises(DeviceError, match=r"CliOptionError: .*No_Such_System not found"):
        estimated([far], Vela(system_config="No_Such_System"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks on this system")
def test_operator_on_which_vela_crashes_ends_itself_alone(vela, monkeypatch):
    from amc.cost.ethos import worker

    first, second = told(MOBILE[:2])
    monkeypatch.setattr(worker, "answer", lambda asked, options: os.kill(os.getpid(), 9))
    assert worker.answer_apart(first, [])["error"] == "Vela was ended by signal 9"
    monkeypatch.undo()
    monkeypatch.setattr(worker, "model_of", lambda _: b"no model")
    assert "error" in worker.answer_apart(first, vela.options)
    monkeypatch.undo()
    assert worker.answer_apart(second, vela.options)["cycles"] > 0
