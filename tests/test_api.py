from __future__ import annotations

import copy
import dataclasses
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.utils import parametrizations

from agents.policy import Policy
from agents.searcher import Trial
from amc import api
from amc.api import SearchResult, search
from amc.cost.budget import Budget
from amc.cost.device import TableDevice
from amc.cost.profile import LocalSpec
from amc.cost.shipped import shipped_device
from amc.data import DataSet
from amc.errors import (
    AmcError,
    ArtifactError,
    BudgetError,
    ConfigError,
    DeviceError,
    EvaluationError,
    NetworkError,
    PolicyError,
    UnreachableBudgetError,
)
from amc.export import export_onnx, read_precisions
from amc.problem import local
from amc.problem.space import SearchSpace
from amc.problem.task import CompressionTask
from amc.recovery.settings import RecoverySettings
from amc.recovery.training import TrainingSettings
from amc.report.plots import LayerRow
from amc.report.tensorboard import EventWriter
from amc.runtimes import TorchRuntime
from amc.strategy import IDENTITY
from amc.study.apply import strength_note
from amc.study.artifact import read_strategy
from amc.study.finetuning import train_base
from amc.study.introduction import describe
from amc.study.recorder import layer_rows
from amc.study.result import _warmup
from amc.utils.machine import cache_folder
from amc.utils.measure import measure_latency
from envs.make import environment
from envs.reward import Outcome, Reward
from tests.conftest import TINY_CLASSES, TINY_SHAPE, classified, randomise_norms
from tests.graph.nets import Residuals

RECOVERY = RecoverySettings(images=20, batch_norm_images=10)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "measure_latency", partial(measure_latency, rounds=1))
    monkeypatch.setattr(EventWriter, "strategy_image", lambda *_: None)
    monkeypatch.setattr("amc.study.result.plot_strategy", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def data() -> DataSet:
    """Random images: what is asked here is not how accurate a network is."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (150, *TINY_SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.arange(150) % TINY_CLASSES
    return DataSet.from_tensors(images, labels)


@pytest.fixture
def find(tiny_net: nn.Module, data: DataSet) -> Any:
    """A small search under a MACs budget."""
    small = {"evaluations": 3, "search_images": 20, "final_candidates": 1, "recovery": RECOVERY}

    def run(*, budget: Any = None, **options: Any) -> SearchResult:
        bound = {"metric": "macs", "fraction": 0.5} if budget is None else budget
        return search(tiny_net, data, options.pop("device", None), bound, **{**small, **options})

    return run


# -- search --------------------------------------------------------------------------------


def test_search_gives_a_smaller_network_within_the_budget(find: Any, tiny_net: nn.Module) -> None:
    before = copy.deepcopy(tiny_net.state_dict())
    result = find()
    assert [row.name for row in result.comparison] == ["original", "uniform", "best found"]
    assert result.comparison[-1].macs <= 0.5 * result.comparison[0].macs
    assert len(result.trials) == 3
    assert result.policy is not None
    assert not result.interrupted
    assert not result.network.training
    assert result.network(torch.zeros(2, *TINY_SHAPE)).shape == (2, TINY_CLASSES)
    kept = sum(parameter.numel() for parameter in result.network.parameters())
    assert kept < sum(parameter.numel() for parameter in tiny_net.parameters())
    after = tiny_net.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_search_without_a_folder_writes_nothing(find: Any, tmp_path: Path) -> None:
    find()
    assert list(tmp_path.iterdir()) == []


def test_what_a_folder_holds_is_loaded_as_the_same_network(
    find: Any, tiny_net: nn.Module, tmp_path: Path
) -> None:
    result = find(folder=tmp_path / "run")
    loaded = api.load_compressed(tmp_path / "run", tiny_net, TINY_SHAPE)
    images = torch.randn(4, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(images), result.network(images))
    assert not loaded.training


def test_the_same_seed_gives_the_same_trials_wherever_the_random_numbers_stood(find: Any) -> None:
    first = find(agent="random", seed=3)
    torch.manual_seed(99)
    second = find(agent="random", seed=3)
    other = find(agent="random", seed=4)
    strategies = [[t.strategy for t in result.trials] for result in (first, second, other)]
    assert strategies[0] == strategies[1]
    assert strategies[0] != strategies[2]


def test_reward_may_be_a_function_of_the_user(find: Any) -> None:
    def fewest_macs(outcome: Outcome) -> float:
        return -outcome.macs

    result = find(agent="random", reward=fewest_macs)
    assert [trial.reward for trial in result.trials] == [
        -trial.evaluation.costs["macs"] for trial in result.trials
    ]


@pytest.mark.parametrize("sign", [1, -1])
def test_reward_of_ones_own_chooses_the_winner_and_the_uniform_strategy(
    find: Any, sign: int
) -> None:
    result = find(
        agent="random",
        budget={"metric": "size_bytes", "fraction": 0.5},
        space=SearchSpace(weight_bits=(8, 32), activation_bits=(32,)),
        evaluations=6,
        final_candidates=6,
        reward=lambda outcome: sign * outcome.macs,
    )
    chosen = max if sign == 1 else min
    _, uniform, best = result.comparison
    assert best.macs == chosen(trial.evaluation.costs["macs"] for trial in result.trials)
    even = environment(result.task, "agreement").uniform_strategies()
    assert len(even) > 1
    costs = [result.task.strategy_costs(strategy)["macs"] for strategy in even]
    assert uniform.macs == chosen(costs)


def test_result_above_the_budget_is_said_where_the_reward_prices_the_cost(
    find: Any, tmp_path: Path
) -> None:
    dear = Reward("dear", lambda outcome: outcome.cost, hard=False)
    result = find(agent="random", reward=dear, folder=tmp_path / "run")
    bound = result.task.costs.bound
    costs = [trial.evaluation.costs["macs"] for trial in result.trials]
    assert [trial.meets_budget for trial in result.trials] == [cost <= bound for cost in costs]
    assert max(costs) > bound
    (note,) = [note for note in result.notes if "exceeded" in note]
    assert note.startswith(f"The budget is exceeded: macs is {max(costs):,.6g} ")
    assert result.task.strategy_costs(result.strategy)["macs"] == max(costs)
    assert not any("exceeded" in note for note in find(agent="random").notes)


def test_agent_may_be_given_with_its_settings(find: Any) -> None:
    result = find(agent={"name": "ddpg", "hidden": [8], "warm_start": "none", "warmup": 1})
    assert result.policy is not None
    assert result.policy.layer_sizes[1:] == [8, 3]


def test_shipped_device_is_known_by_name_and_prices_latency(find: Any) -> None:
    budget = Budget("latency_ms", fraction=0.9)
    step = SearchSpace(channel_step=1)
    result = find(device="roofline_phone", budget=budget, space=step, agent="uniform")
    assert result.comparison[-1].predicted_ms <= 0.9 * result.comparison[0].predicted_ms


def test_search_from_another_thread_works_without_ctrl_c(find: Any) -> None:
    found: list[SearchResult] = []
    thread = threading.Thread(target=lambda: found.append(find(agent="uniform")))
    thread.start()
    thread.join()
    assert len(found) == 1


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"agent": "dpg"}, ConfigError, "Unknown agent 'dpg'"),
        ({"agent": {"name": "ddpg", "layers": 3}}, ConfigError, "'layers'"),
        ({"observation": ["colour"]}, ConfigError, r"unknown features \['colour'\]"),
        ({"reward": "acuracy"}, ConfigError, "Did you mean 'accuracy'"),
        ({"evaluations": 0}, ConfigError, "at least 1 evaluation"),
        ({"seed": -1}, ConfigError, "seed=-1"),
        ({"final_candidates": 0}, ConfigError, "final_candidates must be at least 1, got 0"),
        ({"device": "toaster"}, DeviceError, "Unknown device 'toaster'. amc ships .*roofline_edge"),
        ({"device": {"kind": "tabel"}}, DeviceError, "Did you mean 'table'"),
        ({"budget": {"metric": "macs", "ratio": 1}}, BudgetError, "got ratio"),
        ({"budget": 0.5}, AmcError, "latency_ms needs a device"),
        ({"budget": Budget("energy_mj", 0.5), "device": "torch_cpu"}, AmcError, "energy_mj"),
    ],
)
def test_mistakes_are_found_before_anything_is_traced(
    options: dict[str, Any],
    error: type[AmcError],
    said: str,
    find: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("amc.study.search.CompressionTask", None)
    with pytest.raises(error, match=said):
        find(folder=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_unreachable_budget_and_misfit_network_have_their_own_errors(
    find: Any, data: DataSet
) -> None:
    with pytest.raises(UnreachableBudgetError, match="smallest reachable"):
        find(budget={"metric": "macs", "fraction": 0.001})
    network = nn.Sequential(nn.Conv2d(3, 7, 3))
    with pytest.raises(NetworkError, match="objective=classification expects a tensor"):
        search(network, data, None, {"metric": "macs", "fraction": 0.5}, objective="classification")


def test_tensorboard_has_the_result_under_tags_of_its_own(
    find: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures: list[tuple[int, list[LayerRow], str]] = []
    monkeypatch.setattr(
        EventWriter,
        "strategy_image",
        lambda _, index, rows, tag, title: pictures.append((index, rows, tag)),
    )
    result = find(folder=tmp_path / "run")
    index, rows, tag = pictures[-1]
    assert tag == "result/strategy"
    assert [tag for *_, tag in pictures].count("result/strategy") == 1
    assert result.trials[index - 1].strategy == result.strategy
    assert rows == layer_rows(result.task.costs, result.strategy)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    (table,) = events.Tensors("result/table/text_summary")
    assert table.tensor_proto.string_val[0].decode() == str(result)
    (configuration,) = events.Tensors("configuration/text_summary")
    lines = configuration.tensor_proto.string_val[0].decode().splitlines()
    for line in (
        "- **network**: TinyNet",
        "- **images**: 3x8x8",
        "- **budget**: macs at most 0.5 of the original",
        "- **agent.name**: ddpg",
        "- **evaluations**: 3",
        "- **reward**: agreement",
    ):
        assert line in lines


# -- the other recipes -----------------------------------------------------------------------


def test_policy_is_applied_to_the_same_network_without_a_search(
    find: Any, tiny_net: nn.Module, data: DataSet
) -> None:
    policy = find().policy
    result = api.apply_policy(
        policy,
        tiny_net,
        data,
        None,
        {"metric": "macs", "fraction": 0.4},
        recovery=RECOVERY,
        strengths=[1.0],
    )
    assert [row.name for row in result.comparison] == ["original", "uniform", "policy"]
    assert result.comparison[-1].macs <= 0.4 * result.comparison[0].macs
    assert len(result.trials) == 1


def test_policy_of_unknown_features_is_refused_before_the_network_is_traced(
    data: DataSet, tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc.study.search.CompressionTask", None)
    layer = torch.zeros(3, 2), torch.zeros(3)
    policy = Policy("ddpg", ("stride", "colour"), (layer,))
    with pytest.raises(PolicyError, match="missing here: colour"):
        api.apply_policy(policy, tiny_net, data)


def test_policy_is_tried_at_several_strengths_and_the_best_walk_is_kept(
    find: Any, tiny_net: nn.Module, data: DataSet
) -> None:
    policy = find().policy
    budget = {"metric": "macs", "fraction": 0.4}
    result = api.apply_policy(policy, tiny_net, data, None, budget, recovery=RECOVERY)
    assert [trial.index for trial in result.trials] == [1, 2, 3, 4]
    rewards = [trial.reward for trial in result.trials]
    best = rewards.index(max(rewards))
    assert result.strategy == result.trials[best].strategy
    for strength, trial in zip((1.0, 0.5, 0.25, 0.0), result.trials, strict=True):
        alone = api.apply_policy(
            policy, tiny_net, data, None, budget, recovery=RECOVERY, strengths=[strength]
        )
        assert alone.strategy == trial.strategy
    (note,) = (note for note in result.notes if "strength" in note)
    assert note == strength_note((1.0, 0.5, 0.25, 0.0), result.trials, result.trials[best])


def test_note_says_that_strength_0_is_nothing_learned(
    find: Any, tiny_net: nn.Module, data: DataSet
) -> None:
    policy = find().policy
    still = dataclasses.replace(
        policy, layers=tuple((0 * weight, 0 * bias) for weight, bias in policy.layers)
    )
    budget = {"metric": "macs", "fraction": 0.4}
    strengths = [0, 1]
    result = api.apply_policy(
        still, tiny_net, data, None, budget, recovery=RECOVERY, strengths=strengths
    )
    assert result.trials[0].strategy == result.trials[1].strategy
    (note,) = (note for note in result.notes if "strength" in note)
    assert note.startswith(
        "The policy's strength makes no difference here, and 0 is the program's own allocation, "
        "nothing learned. Rewards: "
    )


@pytest.mark.parametrize(
    ("rewards", "best", "said"),
    [
        ([-0.31, -0.2, -0.5], 1, "helps most here at strength 0.5. Rewards: -0.31 at 1, -0.2 at"),
        ([-1e-5, -2e-5, -3e-5], 0, "helps most here at strength 1. Rewards: -1e-05 at 1, -2e-05"),
        ([-0.4, -0.3, -0.2], 2, "helps most here at strength 0; 0 is the program's own allocation"),
        ([-0.12345, -0.12346, -0.3], 0, "at strength 1. Rewards: -0.12345 at 1, -0.12346 at 0.5"),
        ([-0.2, -0.2, -0.3], 0, "does equally well here at strengths 1, 0.5. Rewards: -0.2 at 1,"),
        ([-0.2, -0.3, -0.2], 0, "does equally well here at strengths 1, 0; 0 is the program's own"),
        ([-0.0, 0.0, -0.0], 0, "'s strength makes no difference here, and 0 is the program's own"),
    ],
)
def test_note_on_strengths_says_most_only_of_one_and_in_digits_that_tell_them_apart(
    rewards: list[float], best: int, said: str
) -> None:
    evaluation = classified(0.5, 1.0, 0.0)
    trials = [Trial(i, IDENTITY, evaluation, reward) for i, reward in enumerate(rewards, 1)]
    assert said in strength_note([1.0, 0.5, 0.0], trials, trials[best])


def test_profile_measures_what_a_search_asks_for(tiny_net: nn.Module) -> None:
    spec = LocalSpec("test_profile", TorchRuntime(), batch=1, threads=1, channel_step=4)
    table = api.profile(tiny_net, TINY_SHAPE, spec)
    assert isinstance(table, TableDevice)
    assert all(row.latency_ms > 0 for row in table.rows.values())


@pytest.mark.parametrize("name", [None, "roofline_phone", "todo"])
def test_device_that_has_no_table_and_is_not_measured_here_is_not_profiled(
    name: str | None, tiny_net: nn.Module
) -> None:
    shown = {None: "'null'", "todo": "'my_board'"}.get(name, repr(name))
    with pytest.raises(DeviceError, match=f"Device {shown} is not measured on this machine"):
        api.profile(tiny_net, TINY_SHAPE, name)


def test_table_of_haq_is_profiled_for_its_network(tiny_net: nn.Module, tmp_path: Path) -> None:
    np.save(tmp_path / "haq.npy", np.full((4, 8, 8), 3.0))
    options = {"path": str(tmp_path / "haq.npy"), "ms_per_unit": 0.5}
    table = api.profile(tiny_net, TINY_SHAPE, {**shipped_device("haq"), **options})
    assert isinstance(table, TableDevice)
    # TinyNet's layers are of four shapes, all of them at 64 pairs of bits.
    assert [row.latency_ms for row in table.rows.values()] == [3.0 * 0.5] * (4 * 64)


def test_profile_names_images_that_the_network_does_not_take_as_a_search_does() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.LazyLinear(TINY_CLASSES))
    network(torch.zeros(1, 1, 8, 8))
    with pytest.raises(NetworkError, match=r"does not accept images of 3x8x8.*data\.channels"):
        api.profile(network, TINY_SHAPE, "torch_cpu")


def test_finetuning_trains_every_weight_and_keeps_the_teacher(
    find: Any, tiny_net: nn.Module, data: DataSet
) -> None:
    before = copy.deepcopy(tiny_net.state_dict())
    student = find(agent="uniform").network
    start = copy.deepcopy(student.state_dict())
    settings = TrainingSettings(epochs=1, batch_size=16, distillation_weight=0.5)
    epochs: list[int] = []
    trained = api.finetune(
        student, tiny_net, data, settings=settings, on_epoch=lambda e: epochs.append(e.epoch)
    )
    assert epochs == [1]
    assert trained.complete
    assert all(torch.equal(t, before[name]) for name, t in tiny_net.state_dict().items())
    names = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert names == {name for name, _ in student.named_parameters()}
    assert trained.best_epoch == 0 or any(
        not torch.equal(tensor.cpu(), start[name])
        for name, tensor in trained.network.state_dict().items()
    )


def _pickled(network: nn.Module) -> nn.Module:
    network._tracer_cls = torch.fx.Tracer  # fx traces a graph anew when it is loaded
    return pickle.loads(pickle.dumps(network))


@pytest.mark.parametrize("copied", [lambda network: network, copy.deepcopy, _pickled])
def test_what_finetuning_leaves_in_a_folder_is_loaded_like_the_network_of_a_search(
    copied: Callable[[nn.Module], nn.Module],
    find: Any,
    tiny_net: nn.Module,
    data: DataSet,
    tmp_path: Path,
) -> None:
    found = find(agent="uniform")
    settings = TrainingSettings(epochs=1, batch_size=16)
    folder = tmp_path / "run" / "finetune"
    student = copied(found.network)
    trained = api.finetune(student, tiny_net, data, settings=settings, folder=folder)
    loaded = api.load_compressed(str(folder), tiny_net, TINY_SHAPE)
    assert not loaded.training
    assert read_strategy(folder) == found.strategy
    weights = trained.network.state_dict()
    assert list(loaded.state_dict()) == list(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.state_dict().items())


def test_a_training_of_another_network_says_that_no_network_was_written(
    tiny_net: nn.Module, data: DataSet, tmp_path: Path
) -> None:
    settings = TrainingSettings(epochs=1, batch_size=16)
    api.finetune(copy.deepcopy(tiny_net), tiny_net, data, settings=settings, folder=tmp_path)
    with pytest.raises(ArtifactError, match=r"holds no compressed network .* is not written\)"):
        api.load_compressed(tmp_path, tiny_net, TINY_SHAPE)


def test_finetuning_leaves_the_teacher_in_its_mode_and_its_place_and_gives_a_network_on_the_cpu(
    data: DataSet, tiny_net: nn.Module
) -> None:
    student, teacher = copy.deepcopy(tiny_net), copy.deepcopy(tiny_net).train()
    settings = TrainingSettings(epochs=1, batch_size=16, distillation_weight=0.5)
    trained = api.finetune(student, teacher, data, settings=settings)
    assert all(module.training for module in teacher.modules())
    assert trained.network is student
    for network in (student, teacher):  # where there is a GPU, that is where they were trained
        assert {tensor.device.type for tensor in network.state_dict().values()} == {"cpu"}
    broken = replace(settings, learning_rate=1e30)
    with pytest.raises(EvaluationError, match="loss became"):
        api.finetune(student, teacher, data, settings=broken)
    assert {tensor.device.type for tensor in student.state_dict().values()} == {"cpu"}


def test_other_teachers_than_the_original_are_given_as_a_list(
    data: DataSet, tiny_net: nn.Module
) -> None:
    settings = TrainingSettings(epochs=1, batch_size=16, distillation_weight=1.0)
    other = copy.deepcopy(tiny_net)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)

    def losses(teachers: list[nn.Module] | None) -> list[float]:
        student = copy.deepcopy(tiny_net)
        trained = api.finetune(student, tiny_net, data, settings=settings, teachers=teachers)
        return [epoch.loss for epoch in trained.history]

    assert losses(None) == losses([tiny_net])
    assert losses([other]) != losses([tiny_net, other]) != losses(None)
    for wrong in ([], tiny_net):
        with pytest.raises(ConfigError, match="teachers must be a list of one network or more"):
            losses(wrong)  # type: ignore[arg-type]
    with pytest.raises(NetworkError, match="teachers must be"):
        losses([tiny_net.state_dict()])  # type: ignore[list-item]


def both_kinds(data: DataSet) -> tuple[DataSet, DataSet]:
    """The same images as pixels, and as floats that are normalised already."""
    pixels, labels = data.train.images, data.train.labels
    floats = (pixels.float() / 255 - 0.3) / 0.2
    first, second = (
        DataSet.from_tensors(images, labels, mean=(0.3,), std=(0.2,)) for images in (pixels, floats)
    )
    return first, second


def test_training_takes_float_images_as_normalised_already(
    data: DataSet, tiny_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainingSettings(epochs=1, batch_size=16, distillation_weight=0.5)
    monkeypatch.setattr(
        "amc.study.finetuning.BASE_TRAINING", replace(settings, distillation_weight=0.0)
    )
    finetuned, trained = [], []
    for given in both_kinds(data):
        student = copy.deepcopy(tiny_net)
        finetuned.append(api.finetune(student, tiny_net, given, settings=settings).history)
        trained.append(train_base(copy.deepcopy(tiny_net), given, "tiny").state_dict())
    assert finetuned[0] == finetuned[1]
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


def test_base_network_is_trained_once_and_then_comes_from_the_cache(
    data: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "amc.study.finetuning.BASE_TRAINING", TrainingSettings(epochs=1, batch_size=16)
    )

    def fresh() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, TINY_CLASSES))

    first = train_base(fresh(), data, "linear")
    monkeypatch.setattr("amc.study.finetuning.train", None)
    second = train_base(fresh(), data, "linear")
    for name, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor)
    assert not second.training
    different = fresh()
    torch.nn.init.zeros_(different[1].bias)
    with pytest.raises(TypeError):  # other initial weights: it would be trained
        train_base(different, data, "linear")
    (kept,) = (cache_folder() / "networks").glob("linear-*")
    for content in (b"x", save({"1.weight": torch.zeros(2)})):
        kept.write_bytes(content)
        with pytest.raises(NetworkError, match=r"linear-.*Remove .*: the network is trained anew"):
            train_base(fresh(), data, "linear")


# -- what can be given in several forms ------------------------------------------------------


def test_budget_is_a_fraction_of_latency_its_fields_or_itself() -> None:
    assert Budget.of(0.5) == Budget("latency_ms", fraction=0.5)
    assert Budget.of({"metric": "macs", "absolute": 10}) == Budget("macs", absolute=10)
    budget = Budget("params", fraction=0.1)
    assert Budget.of(budget) is budget


# -- the learning curve ----------------------------------------------------------------------


def _trial(index: int, **diagnostics: float) -> Trial:
    evaluation = classified(accuracy=0.5, loss=1.0, agreement=0.0)
    return Trial(index, IDENTITY, evaluation, 0.5, diagnostics)


def test_warmup_lasts_until_the_first_update() -> None:
    quiet, learned = {"clamped_steps": 1.0}, {"critic_loss": 0.1}
    trials = [_trial(1, **quiet), _trial(2, **learned), _trial(3, **learned, noise=0.5)]
    assert _warmup(trials) == 2
    assert _warmup([_trial(1, **quiet)]) == 0


@pytest.mark.parametrize(("reward", "names"), [("accuracy", 2), ("agreement", 1)])
def test_curve_is_compared_with_the_original_and_the_best_uniform_strategy(
    reward: str, names: int, find: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[dict[str, float]] = []

    def draw(rewards: object, path: Path, *, references: dict[str, float], **_: Any) -> None:
        drawn.append(references)

    monkeypatch.setattr("amc.study.result.plot_learning_curve", draw)
    result = find(reward=reward, folder=tmp_path / "run")
    (references,) = drawn
    assert list(references) == ["original", "uniform"][-names:]
    assert references["uniform"] == result.trials[0].reward  # the warm start's only strategy
    if names == 2:
        assert references["original"] == result.task.original.accuracy


def test_curve_has_no_uniform_line_where_no_uniform_strategy_was_tried(
    find: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: list[dict[str, float]] = []
    monkeypatch.setattr(
        "amc.study.result.plot_learning_curve",
        lambda *_, references, **__: drawn.append(references),
    )
    find(agent="random", reward="accuracy", folder=tmp_path / "run")
    assert list(drawn[0]) == ["original"]


def test_description_names_the_frozen_groups_and_the_budget(find: Any) -> None:
    text = describe(find(agent="uniform").task)
    assert "TinyNet: 4 layers, 2 channel groups free, 1 frozen" in text
    assert "frozen: linear" in text
    assert "0.500 of the original's" in text
    assert "original: accuracy" in text


# Of five classes: guessing is right on 0.2, and 0.3 of the way from there to 1 is 0.44.
@pytest.mark.parametrize(
    ("accuracy", "is_said"), [(0.20, True), (0.435, True), (0.445, False), (0.90, False)]
)
def test_network_that_hardly_knows_the_data_is_warned_of(
    accuracy: float,
    is_said: bool,
    find: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Judged(CompressionTask):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.original = replace(
                self.original, scores={**self.original.scores, "accuracy": accuracy}
            )

    monkeypatch.setattr("amc.study.search.CompressionTask", Judged)
    find()
    assert (f"The original is right on only {100 * accuracy:.2f} %" in caplog.text) == is_said


def test_result_is_printed_as_a_table_with_its_notes(find: Any) -> None:
    result = find()
    lines = str(result).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == [
        "original",
        "uniform",
        "best found",
    ]
    assert all(f"- {note}" in lines for note in result.notes)


# -- residual blocks that go ---------------------------------------------------------------------


def test_search_that_may_leave_blocks_out_says_which_and_what_is_left_runs(
    data: DataSet, tmp_path: Path
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = randomise_norms(Residuals()).eval()
    folder = tmp_path / "run"
    result = search(
        network,
        data,
        "roofline_edge",
        {"metric": "latency_ms", "fraction": 0.3},
        evaluations=3,
        search_images=20,
        final_candidates=1,
        recovery=RecoverySettings(images=40, quick_images=10, batch_norm_images=10),
        space=SearchSpace(drop_blocks=True, weight_bits=(8,), activation_bits=(8,)),
        folder=folder,
    )
    gone = {name for name, ratio in result.strategy.preserve_ratio.items() if ratio == 0}
    assert gone  # without a block it cannot be met
    names = [name for name, _ in result.network.named_modules()]
    assert not any(name.startswith(group.rpartition(".")[0]) for name in names for group in gone)
    assert any(
        note.startswith(f"{len(gone)} of 4 residual blocks are left out: those of blocks.")
        for note in result.notes
    )
    images = torch.randn(4, *TINY_SHAPE, generator=torch.Generator().manual_seed(0))
    loaded = api.load_compressed(folder, network, TINY_SHAPE)
    assert torch.equal(loaded(images), result.network(images))
    # What is exported computes what is left in 8 bits, and nothing else.
    export_onnx(result.network, TINY_SHAPE, tmp_path / "model.onnx", images=images)
    precisions = read_precisions(tmp_path / "model.onnx")
    assert precisions == {
        name: bits for name, bits in result.strategy.bits.items() if name in names
    }
    assert len(precisions) < len(result.strategy.bits)


def test_switch_of_blocks_must_be_one() -> None:
    with pytest.raises(ConfigError, match=r"env\.drop_blocks must be true or false, got 'yes'"):
        SearchSpace(drop_blocks="yes")  # type: ignore[arg-type]


# -- networks in other forms -------------------------------------------------------------------


def test_parametrized_network_is_searched_in_8_bits_exported_and_loaded_again(
    find: Any, tiny_net: nn.Module, tmp_path: Path
) -> None:
    for layer in (tiny_net.conv1, tiny_net.conv2, tiny_net.linear):
        parametrizations.weight_norm(layer)
    bops = {"metric": "bops", "fraction": 0.1}
    space = SearchSpace(weight_bits=(8,), activation_bits=(8,))
    result = find(budget=bops, space=space, folder=tmp_path / "run", agent="random")
    report = export_onnx(result.network, TINY_SHAPE, tmp_path / "model.onnx")
    assert {str(bits) for bits in report.precisions.values()} == {"8/8"}
    loaded = api.load_compressed(tmp_path / "run", tiny_net, TINY_SHAPE)
    images = torch.randn(4, *TINY_SHAPE)
    assert torch.equal(loaded(images), result.network(images))


def test_teacher_may_be_of_half_precision_and_the_student_compiled(
    find: Any, tiny_net: nn.Module, data: DataSet
) -> None:
    student = find().network
    settings = TrainingSettings(epochs=1, distillation_weight=1.0)
    trained = api.finetune(
        torch.compile(student, backend="eager"), tiny_net.half(), data, settings=settings
    )
    assert trained.network is student
    assert next(tiny_net.parameters()).dtype is torch.float16


def test_what_the_batch_does_to_accuracies_is_among_the_notes(
    find: Any, tiny_net: nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_net.bn2 = nn.BatchNorm2d(6, track_running_stats=False)
    result = find(agent="random")
    assert result.notes[0].startswith("TinyNet gives an image other scores alone than in a batch")
    assert result.notes[0] in caplog.text
