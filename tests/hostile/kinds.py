"""Every kind of file that amc reads: how a sound one is made, and how it is read."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import yaml
from torch import nn

from agents.policy import Policy
from agents.searcher import Resumable, build_searcher
from agents.state import AgentState, Forgetful
from agents.trial import Trial
from amc.cli import recipe
from amc.cli.check import check_options
from amc.cli.resume import read_run
from amc.comparison.cells import Cell, CellResult, Entry, read_cell
from amc.compress.verify import graph_of
from amc.cost.budget import Budget
from amc.cost.correction import Correction
from amc.cost.corrections import own_correction
from amc.cost.device import Measurement, TableDevice, TableHeader
from amc.cost.importers.haq import read_haq
from amc.cost.importers.netadapt import read_netadapt
from amc.cost.importers.ofa import read_ofa
from amc.cost.load import load_device
from amc.cost.profile import LocalSpec, settled
from amc.cost.samples import key_of, read_samples, write_samples
from amc.cost.shipped import shipped_device
from amc.cost.table import list_text, read_table, write_table
from amc.cost.unmeasured import OrderedTable
from amc.export import export_onnx, read_precisions
from amc.graph.graph import NetworkGraph
from amc.graph.types import Signature
from amc.networks import load_checkpoint
from amc.problem.candidate import Compressor
from amc.problem.store import EvaluationStore
from amc.recovery import training, training_state
from amc.recovery.settings import RecoverySettings
from amc.runtimes.request import Request
from amc.strategy import FLOAT, Bits, Strategy
from amc.study import artifact, checkpoint
from amc.study.artifact import RunRecord
from amc.study.checkpoint import CheckpointFile
from amc.study.journal import Journal, is_finished
from amc.utils.files import write_text
from tests.agents.toy import ToyWalk
from tests.conftest import TINY_SHAPE, classified, fixed_tiny_net
from tests.hostile import containers
from tests.hostile.mutations import BYTES, Mutation, json_value, line, number


@dataclass(frozen=True)
class FileKind:
    """One kind of file.

    Attributes:
        file: Its name in the folder that ``make`` fills.
        make: Fills a folder with sound files.
        read: Reads the file as amc does, in all the ways that it does.
        changes: Mutations that keep the file's form, beside those of its bytes.
    """

    file: str
    make: Callable[[Path], object]
    read: Callable[[Path], object]
    changes: tuple[Mutation, ...] = ()

    @property
    def mutations(self) -> tuple[Mutation, ...]:
        """All mutations: half of them keep the file's form."""
        own = self.changes * max(1, len(BYTES) // max(1, len(self.changes)))
        return (*BYTES, *own)


HALF = Strategy({"conv1": 0.5, "conv2": 0.5}, {"conv2": Bits(8, 8)})
FOUND = classified(1 / 3, 0.5, -0.1, seconds=0.25)
HEADER = TableHeader("board", "torch", 1, 16, 8, (FLOAT, Bits(8, 8)))
ORIGIN: dict[str, dict[str, Any]] = {
    "task": {"data": "0123456789abcdef"},
    "config": {"seed": 0, "agent": {"lr": 1e-4}},
}
_JSON = (json_value, json_value, number)
_TENSORS = (containers.safetensors_header, containers.safetensors_tensors)


@cache
def _graph() -> NetworkGraph:
    return graph_of(fixed_tiny_net(), TINY_SHAPE)


# -- runs ----------------------------------------------------------------------------------


def _make_run(folder: Path) -> None:
    groups = {
        "env": {
            "min_preserve_ratio": 0.1,
            "channel_step": 8,
            "weight_bits": [8, 32],
            "activation_bits": None,
            "drop_blocks": False,
            "observation": None,
        },
        "recovery": {"images": 100, "least_squares": True},
        "search": {"evaluations": 8, "images": 20, "store": False},
        "agent": {"name": "ddpg"},
    }
    RunRecord(
        "search",
        network={"name": "resnet20", "checkpoint": None, "options": {}},
        data={"name": "digits", "seed": 0, "mean": [0.5], "std": [0.5]},
        device={"name": "roofline_phone", "batch": 1},
        budget={"metric": "latency_ms", "fraction": 0.5, "absolute": None},
        settings={"seed": 0, "reward": "agreement", **groups},
    ).write(folder)


def _read_run(folder: Path) -> None:
    record = read_run(
        folder, {"seed": 0, "reward": "", "env": {}, "recovery": {}, "search": {}}, {}
    )
    check_options({"network": record.network, "data": record.data, "env": record.settings["env"]})
    Budget.of_options(record.budget)
    recipe.space_of(record.settings["env"])
    recipe.recovery_of(record.settings["recovery"])
    if record.data["name"] == "digits":
        recipe.data_of(record.data)


def _make_policy(folder: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(2, 4), nn.Linear(4, 3)]
    Policy.from_modules("ddpg", ["a", "b"], layers).save(folder)


def _make_store(folder: Path) -> None:
    store = EvaluationStore(folder / "evaluations.sqlite")
    for index in range(30):
        store.put(f"task{index}", HALF, FOUND)
    store._database.execute("PRAGMA journal_mode=DELETE")
    store.close()


def _read_store(folder: Path) -> None:
    store = EvaluationStore(folder / "evaluations.sqlite")
    try:
        for index in range(3):
            store.get(f"task{index}", HALF)
        store.put("new", HALF, FOUND)
    finally:
        store.close()


def _make_journal(folder: Path) -> None:
    journal = Journal(folder)
    journal.begin(ORIGIN, "key")
    for index in range(1, 4):
        evaluation = classified(1 / index, 0.5, -0.0, {"macs": 1e9 / 3}, seconds=0.25)
        journal.append(Trial(index, HALF, evaluation, 0.1 * index, {"noise": 0.1}))
    journal.aim(0.7)
    journal.close()


def _read_journal(folder: Path) -> None:
    is_finished(folder)
    journal = Journal(folder, resume=True)
    try:
        journal.begin(ORIGIN, "key")
        journal.evaluations()
    finally:
        journal.close()


class _FromFile(Forgetful):
    """A searcher's past, as a file has it."""

    def __init__(self, file: CheckpointFile) -> None:
        self._file = file

    def load(self) -> tuple[list[Trial], AgentState | None]:
        return self._file.load()

    def note(self, trial: Trial, state: Callable[[], AgentState]) -> None:
        self._file.note(trial, state)


_AGENT = {"hidden": [4], "batch_size": 4, "replay_episodes": 3, "warm_start": "none"}
_AGENT |= {"anchor": "none", "belief_share": 0, "warmup": 2}
_TRIALS = 4


def _go_on(trial: Trial) -> bool:
    return True


def _search(folder: Path, recorded: list[Trial], every: int, evaluations: int) -> list[Trial]:
    journal = Journal(None)
    journal.trials = recorded
    checkpoints = _FromFile(CheckpointFile(folder, journal, every))
    searcher = build_searcher("sac", **_AGENT)
    assert isinstance(searcher, Resumable)
    env = cast(Any, ToyWalk(3))
    return searcher.search_on(env, evaluations, 3, _go_on, checkpoints).trials


@cache
def _recorded() -> tuple[Trial, ...]:
    return tuple(_search(Path("."), [], 10**6, _TRIALS))


def _make_checkpoint(folder: Path) -> None:
    journal = Journal(None)
    file = CheckpointFile(folder, journal, _TRIALS)
    searcher = build_searcher("sac", **_AGENT)
    assert isinstance(searcher, Resumable)
    searcher.search_on(cast(Any, ToyWalk(3)), _TRIALS, 3, _go_on, _FromFile(file))


def _read_checkpoint(folder: Path) -> None:
    _search(folder, list(_recorded()), 10**6, _TRIALS + 1)


def _train(folder: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    images = torch.linspace(0, 1, 4 * 16).reshape(4, 1, 4, 4)
    settings = training.TrainingSettings(epochs=2, batch_size=2)
    training.train(
        network,
        images,
        torch.arange(4) % 2,
        mean=[0.5],
        std=[0.5],
        settings=settings,
        evaluate=lambda _: 0.5,
        checkpoint_folder=folder,
        progress=False,
    )


def _make_compressed(folder: Path) -> None:
    images = torch.randn(16, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))
    network = Compressor(_graph(), images, RecoverySettings(16, 16)).apply(HALF)
    artifact.write_compressed(folder, network)
    artifact.write_strategy(folder, HALF)


def _read_compressed(folder: Path) -> None:
    artifact.rebuild_compressed(folder, fixed_tiny_net(), TINY_SHAPE)


_CELL = Cell(Entry("ddpg", "ddpg", {}, (), 3), 0)


def _make_cell(folder: Path) -> None:
    numbers = {"search_reward": -0.2, "agent_seconds": 1.0, "seconds": 2.0}
    result = CellResult(
        "ddpg",
        0,
        (None, -0.3, -0.2),
        HALF,
        search={"accuracy": 0.9, "agreement": -0.1},
        test={"agreement": -0.1},
        **numbers,
    )
    result.write(folder, {"data": "abc"})


def _make_onnx(folder: Path) -> None:
    export_onnx(fixed_tiny_net(), TINY_SHAPE, folder / "model.onnx")


# -- tables --------------------------------------------------------------------------------


def _requests() -> list[Request]:
    conv = Signature("conv2d", (3, 3), (1, 1), (1, 1), in_size=(8, 8), out_size=(8, 8))
    return [Request(conv, 8 * n, 16, bits) for n in (1, 2, 3) for bits in HEADER.supported_bits]


def _make_table(folder: Path) -> None:
    rows = {request: Measurement(0.1 + n, 0.01, 7) for n, request in enumerate(_requests())}
    write_table(TableDevice(HEADER, rows), folder / "table.csv")


def _make_samples(folder: Path) -> None:
    write_samples(
        folder / "table.csv", HEADER, {key_of(request): [0.1, 0.2] for request in _requests()}
    )


def _step_spec(folder: Path) -> LocalSpec:
    spec = load_device({**shipped_device("onnxruntime_cpu"), "channel_step": None})
    assert isinstance(spec, LocalSpec)
    object.__setattr__(spec, "table_path", lambda: folder / "table.csv")
    return spec


def _correction(folder: Path) -> Correction:
    measured = Correction((0.9, 1.1, 1.0, 1.0), 0.03, 9, -0.001)
    return own_correction(folder / "table.csv", _graph(), mixed=False, measure=lambda: measured)


def _make_correction(folder: Path) -> None:
    _correction(folder)
    (made,) = folder.glob("*.float")
    made.rename(folder / "table.float")


def _read_correction(folder: Path) -> None:
    _correction(folder)  # under the name of its network
    (made,) = folder.glob("table-*.float")
    (folder / "table.float").replace(made)
    _correction(folder)


def _make_haq(folder: Path) -> None:
    layer, weight, activation = np.ogrid[1:5, 1:9, 1:9]
    file = io.BytesIO()
    np.save(file, (1000.0 * layer * weight + activation))
    (folder / "table.npy").write_bytes(file.getvalue())


def _make_netadapt(folder: Path) -> None:
    conv = {
        "is_depthwise": False,
        "num_in_channels": 4,
        "num_out_channels": 6,
        "kernel_size": (3, 3),
        "stride": (2, 2),
        "padding": (1, 1),
        "groups": 1,
        "layer_type_str": "Conv2d",
        "input_feature_map_size": [1, 4, 8, 8],
        "latency": {(i, o): i * o / 1000 for i in (2, 4) for o in (2, 4, 6)},
    }
    linear = conv | {"layer_type_str": "Linear", "latency": {(6, 5): 0.030}}
    (folder / "lut.pkl").write_bytes(pickle.dumps(OrderedDict(conv=conv, linear=linear), 2))


def _make_netadapt_list(folder: Path) -> None:
    layers = [{(layer.in_channels, layer.out_channels): 9} for layer in _graph().layers]
    (folder / "list.pkl").write_bytes(pickle.dumps(layers))


def _netadapt_list(path: Path) -> object:
    device = load_device(shipped_device("netadapt") | {"path": str(path), "ms_per_unit": 1.0})
    return device.for_network(_graph()) if isinstance(device, OrderedTable) else device


def _make_ofa(folder: Path) -> None:
    entries = {
        "Conv-input:224x224x3-output:112x112x32": {"mean": 12.5, "std": 0.1, "count": 3},
        "Conv_1-input:7x7x160-output:7x7x640": {"mean": 1.25},
        "Logits-input:1x1x1280-output:1000": {"mean": 0.5},
        "expanded_conv-input:112x112x32-output:112x112x16-expand:1": {"mean": 3.0},
    }
    write_text(folder / "table.yaml", yaml.safe_dump(entries))


_LAYERS = TableHeader("board", "torch", 1, 128, 2, (FLOAT,), covers="layers")

# -- weights -------------------------------------------------------------------------------


def _small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def _make_torch(folder: Path, *, zipped: bool) -> None:
    network = _small_net()
    content = {"model": network.state_dict(), "epoch": 3, "rates": [0.1, 0.01], "name": "small"}
    torch.save(content, folder / "net.pt", _use_new_zipfile_serialization=zipped)


def _make_safetensors(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file(_small_net().state_dict(), folder / "net.safetensors")


def _load(folder: Path, name: str) -> None:
    load_checkpoint(_small_net(), folder / name)


KINDS: Mapping[str, FileKind] = {
    "strategy": FileKind(
        "strategy.json",
        lambda folder: artifact.write_strategy(folder, HALF),
        artifact.read_strategy,
        _JSON,
    ),
    "run": FileKind("run.json", _make_run, _read_run, _JSON),
    "policy": FileKind("policy.json", _make_policy, Policy.load, _JSON),
    "policy's weights": FileKind("policy.safetensors", _make_policy, Policy.load, _TENSORS),
    "structure": FileKind("compressed.json", _make_compressed, _read_compressed, _JSON),
    "compressed weights": FileKind(
        "compressed.safetensors", _make_compressed, _read_compressed, _TENSORS
    ),
    "cell": FileKind(
        "cells/ddpg-seed0.json",
        _make_cell,
        lambda folder: read_cell(folder, _CELL, {"data": "abc"}),
        _JSON,
    ),
    "store": FileKind("evaluations.sqlite", _make_store, _read_store, (containers.rows,)),
    "journal": FileKind("journal.sqlite", _make_journal, _read_journal, (containers.rows,)),
    "agent's checkpoint": FileKind(
        artifact.CHECKPOINT_FILE,
        _make_checkpoint,
        _read_checkpoint,
        (*_TENSORS, containers.sealed(checkpoint._SEALED), containers.sealed(checkpoint._SEALED)),
    ),
    "training state": FileKind(
        training.STATE_FILE,
        _train,
        _train,
        (*_TENSORS, *[containers.sealed(training_state.STATE)] * 2),
    ),
    "table": FileKind(
        "table.csv", _make_table, lambda folder: read_table(folder / "table.csv"), (line,)
    ),
    "list to measure": FileKind(
        "todo.csv",
        lambda folder: write_text(folder / "todo.csv", list_text(HEADER, _requests())),
        lambda folder: read_table(folder / "todo.csv"),
        (line,),
    ),
    "samples": FileKind(
        "table.samples",
        _make_samples,
        lambda folder: read_samples(folder / "table.csv", HEADER),
        _JSON,
    ),
    "channel step": FileKind(
        "table.step",
        lambda folder: write_text(folder / "table.step", "8\n"),
        lambda folder: settled(_step_spec(folder)),
    ),
    "correction": FileKind("table.float", _make_correction, _read_correction, (number,)),
    "HAQ's table": FileKind(
        "table.npy",
        _make_haq,
        lambda folder: read_haq(folder / "table.npy", _graph(), name="haq", ms_per_unit=0.5),
        (containers.npy_header,),
    ),
    "NetAdapt's table": FileKind(
        "lut.pkl",
        _make_netadapt,
        lambda folder: read_netadapt(folder / "lut.pkl", _LAYERS),
        (containers.pickled,),
    ),
    "NetAdapt's list": FileKind(
        "list.pkl",
        _make_netadapt_list,
        lambda folder: _netadapt_list(folder / "list.pkl"),
        (containers.pickled,),
    ),
    "Once-for-All's table": FileKind(
        "table.yaml",
        _make_ofa,
        lambda folder: read_ofa(folder / "table.yaml", _LAYERS, skip_others=True),
        (number, line),
    ),
    "checkpoint, .pt": FileKind(
        "net.pt",
        partial(_make_torch, zipped=True),
        lambda folder: _load(folder, "net.pt"),
        (containers.archive,),
    ),
    "checkpoint, .pt before 1.6": FileKind(
        "net.pt", partial(_make_torch, zipped=False), lambda folder: _load(folder, "net.pt")
    ),
    "checkpoint, .safetensors": FileKind(
        "net.safetensors",
        _make_safetensors,
        lambda folder: _load(folder, "net.safetensors"),
        _TENSORS,
    ),
    "ONNX": FileKind(
        "model.onnx", _make_onnx, lambda folder: read_precisions(folder / "model.onnx")
    ),
}
