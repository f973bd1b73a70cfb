"""The recipes of the command line as functions on any network."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents import episode
from agents import searcher as searchers
from agents.policy import Policy
from agents.searcher import OnTrial, Resumable, Searcher, Trial, build_searcher
from agents.settings import settings_of
from agents.state import Checkpoints
from agents.trial import eligible
from amc import artifact, blas
from amc.aiming import (
    Aim,
    check_reaim,
    evaluations_until,
    is_missed,
    judged,
    tightened_bound,
)
from amc.arguments import (
    check_count,
    check_data,
    check_folder,
    check_image_shape,
    check_kind,
    check_module,
)
from amc.checkpoint import CheckpointFile
from amc.compress.network import CompressedNetwork, decide
from amc.compress.verify import graph_of
from amc.conclusion import Conclusion, conclude
from amc.cost.account import account
from amc.cost.budget import Budget
from amc.cost.device import Device
from amc.cost.importers.haq import HaqTable
from amc.cost.model import CostModel, check_metric
from amc.cost.profile import LocalSpec, check_table, settled
from amc.cost.shipped import DeviceLike, as_device
from amc.data import DataSet
from amc.errors import ConfigError, NetworkError, PolicyError
from amc.evaluate import Evaluator
from amc.files import cache_folder, fingerprint, write_tensors, write_text
from amc.interrupt import stop_on_interrupt
from amc.journal import Journal, origin_of
from amc.local import device_for_network
from amc.networks import admit, load_checkpoint, unwrapped
from amc.networks.check import run_images
from amc.objectives import DEFAULT, ObjectiveLike, build_objective, primary_score, score_texts
from amc.progress import progress_bar
from amc.recording import Recorder, layer_rows
from amc.recovery.settings import RecoverySettings
from amc.recovery.training import (
    BASE_TRAINING,
    EpochRecord,
    TrainingResult,
    TrainingSettings,
    train,
)
from amc.report.plots import plot_learning_curve, plot_strategy
from amc.report.tables import (
    ComparisonRow,
    settings_to_markdown,
    significant,
    to_csv,
    to_markdown,
)
from amc.report.tensorboard import RESULT, EventWriter
from amc.runs import SEARCH_AGAIN, told_how_to_go_on
from amc.store import open_store
from amc.strategy import Strategy
from amc.task import CompressionTask, SearchSpace, check_task_arguments, matched
from envs.compression import CompressionEnv
from envs.observation import feature_names
from envs.reward import DEFAULT_REWARD, Outcome, build_reward

log = logging.getLogger("amc")

BudgetLike = Budget | Mapping[str, Any] | float
RewardLike = str | Callable[[Outcome], float]


@dataclass
class SearchResult:
    """What a search (or an applied policy) gives back.

    Attributes:
        strategy: The best one found; it meets the budget.
        network: The smaller network, repaired, in evaluation mode.
        comparison: Original, uniform, best: scores on the test split, costs, latencies.
        notes: What the user should know of the result.
        trials: Every evaluation, in order.
        policy: What the agent learned; None where nothing was learned.
        task: The prepared network, for further evaluations.
        compressed: The smaller network with what it was made from.
        best_reward: Of all evaluations that may be the result, before the best are repaired.
        interrupted: Whether Ctrl-C was pressed; then there may be fewer trials than asked for.
        evaluations: How many a search was asked for, those of later aims included.
    """

    strategy: Strategy
    network: nn.Module
    comparison: list[ComparisonRow]
    notes: list[str]
    trials: list[Trial]
    policy: Policy | None
    task: CompressionTask
    compressed: CompressedNetwork
    best_reward: float
    interrupted: bool = False
    evaluations: int = 0

    def __str__(self) -> str:
        """The comparison as a Markdown table, and the notes."""
        return _report(self)


def search(
    network: nn.Module,
    data: DataSet,
    device: DeviceLike = "onnxruntime_cpu",
    budget: BudgetLike = 0.5,
    *,
    objective: ObjectiveLike = DEFAULT,
    agent: str | Mapping[str, Any] = "ddpg",
    evaluations: int = 200,
    reward: RewardLike = DEFAULT_REWARD,
    seed: int = 0,
    space: SearchSpace | None = None,
    recovery: RecoverySettings | None = None,
    search_images: int = 1000,
    bfloat16: bool | None = None,
    final_candidates: int = 5,
    observation: Sequence[str] | None = None,
    folder: str | Path | None = None,
    resume: bool = False,
    resume_force: bool = False,
    checkpoint_every: int = 5,
    reaim: int = 0,
    store: bool | str | Path = True,
    hparams: Mapping[str, bool | int | float | str] | None = None,
) -> SearchResult:
    """Find the best smaller network within a budget.

    Args:
        network: Trained; maps images of the data's shape to what the objective judges. Not
            modified.
        data: Train, calibration, search and test images.
        device: Name of a shipped device, its options as a mapping, a loaded device; None
            where the budget's metric needs none.
        budget: A `Budget`, its fields as a mapping, or a fraction of the original's latency.
        objective: What the network is for: "classification", ``package.module:Class``, or an
            `amc.Objective`.
        agent: Name of a searcher, or a mapping of its name and settings.
        evaluations: Strategies that the searcher may try.
        reward: Name of a reward, or a function of an `Outcome`.
        seed: Same seed, same machine, same number of threads, same prices: the same strategy.
        search_images: Images of the search split that each evaluation runs on.
        bfloat16: Whether candidates without quantized layers are evaluated in bfloat16 (what is
            kept is judged in float32); None: where the processor computes in it and the
            original's outputs stay what they are.
        final_candidates: So many of the best are repaired and ranked on the whole search split.
        observation: Features that the agent sees; None: all of `envs.observation.FEATURES`.
        folder: Where to write the run; None writes nothing.
        resume: Go on with the unfinished search in ``folder``, given the same arguments as it;
            it ends as it would have. Where there is none yet, it starts.
        resume_force: Resume although arguments, code or machine changed.
        checkpoint_every: Evaluations between two writings of a learning agent's state.
        reaim: How often the search may go on under a tighter bound, each time with a quarter more
            evaluations, where the latency measured on the device misses the budget that the
            predicted one meets. What is measured then decides what is found: the same seed may
            end elsewhere.
        store: Whether evaluations are looked up and remembered, for this search and others:
            True in the user's cache, False nowhere, or a file.
        hparams: Further columns of the run's row in TensorBoard's HParams table.

    Raises:
        AmcError: One of its kinds, for whatever does not fit; see `amc.errors`.
    """
    check_task_arguments(network, data, space, recovery, search_images, bfloat16)
    check_folder(folder)
    check_count("search.final_candidates", final_candidates)
    check_count("search.checkpoint_every", checkpoint_every)
    check_count("search.reaim", reaim, least=0)
    settings, objective = _agent_settings(agent), build_objective(objective)
    check_search(settings, reward, device, budget, reaim, observation, space)
    episode.check_search(evaluations, seed)
    network = admit(network, data.image_shape)
    build_reward(reward).check_scores(*matched(network, data, objective))
    if resume and folder is None:
        raise ConfigError("resume=True needs the folder of the run: folder=...")
    searcher = build_searcher(**settings)
    place = _writable(folder)
    with (
        closing(Journal(place, resume=resume)) as journal,
        told_how_to_go_on(place, SEARCH_AGAIN),
        blas.one_thread(),
    ):
        if place is not None:
            artifact.remove_leftovers(place)
        task = _task(
            network,
            data,
            device,
            budget,
            objective=objective,
            space=space,
            recovery=recovery,
            search_images=search_images,
            bfloat16=bfloat16,
            store=open_store(store),
        )
        env = environment(task, reward, observation)
        introduce(task)
        config = {
            "agent": settings_of(searcher),
            "evaluations": evaluations,
            "seed": seed,
            "reward": env.reward_name,
            "observation": list(env.observation_names),
            "final_candidates": final_candidates,
            "reaim": reaim,
        }
        first = _take_up(journal, task, config, resume_force)
        checkpoint = CheckpointFile(place, journal, checkpoint_every)
        with stop_on_interrupt() as stop, _events(place, first) as events:
            aim = Aim.resumed(task.costs, checkpoint, journal.aims, evaluations)
            while True:
                until = evaluations_until(aim.leg, evaluations)
                aimed = environment(task, reward, observation, aim.costs)
                recorder = Recorder(task, place, events, until, stop, journal, soft=env.is_soft)
                with recorder.kept(), progress_bar(f"searching ({searcher.name})", until) as bar:
                    found = _run(searcher, aimed, until, seed, recorder.watch(bar), aim)
                bound = _recorded_bound(journal, aim.leg, found, stop)
                if bound is None:
                    with recorder.kept():
                        within = _within(found, task)
                        end = _conclude(task, env, within, final_candidates)
                        if aim.leg < reaim and not stop.is_set():
                            bound = _next_bound(task, end, journal)
                        if bound is None:
                            result = _result(task, end.tested(task), within)
                            result.interrupted = stop.is_set()
                            break
                aim = aim.next(bound, found.trials)
            result.evaluations = evaluations_until(len(journal.aims), evaluations)
            result.notes += _aiming_notes(task, _held(journal.aims, result.trials, evaluations))
            if place is not None:
                _write_run(place, result, env)
            if events is not None:
                _note_result(events, result, config)
                _note_hparams(events, result, env, searcher.name, seed, hparams or {})
        if not result.interrupted:
            journal.finish()
            checkpoint.remove()
    return result


def apply_policy(
    policy: Policy,
    network: nn.Module,
    data: DataSet,
    device: DeviceLike = "onnxruntime_cpu",
    budget: BudgetLike = 0.5,
    *,
    objective: ObjectiveLike = DEFAULT,
    space: SearchSpace | None = None,
    recovery: RecoverySettings | None = None,
    search_images: int = 1000,
    bfloat16: bool | None = None,
    strengths: Sequence[float] | None = None,
    folder: str | Path | None = None,
    store: bool | str | Path = True,
) -> SearchResult:
    """Compress a network by a learned policy: a few walks, no search.

    What one network taught may be too much for another. The policy walks once at each strength,
    and the best of these walks on the search images is the result; its notes say which.

    Args:
        strengths: Fractions of the policy's departures from the program's advice, in [0, 1]; each
            costs one evaluation. None: `agents.policy.STRENGTHS`, or 1 for a policy that departs
            from no advice.

    Raises:
        PolicyError: The policy observes features that this version does not have, or has no such
            strengths.
        AmcError: As `search`.
    """
    check_kind(
        "policy", policy, Policy, "amc.Policy.load(run_folder) reads one.", error=PolicyError
    )
    check_task_arguments(network, data, space, recovery, search_images, bfloat16)
    check_folder(folder)
    if strengths is None:
        strengths = policy.strengths
    policy.check_strengths(strengths)
    policy.check_features()
    objective = build_objective(objective)
    place = _writable(folder)
    task = _task(
        network,
        data,
        device,
        budget,
        objective=objective,
        space=space,
        recovery=recovery,
        search_images=search_images,
        bfloat16=bfloat16,
        store=open_store(store),
    )
    env = environment(task, DEFAULT_REWARD, policy.observation_names)
    introduce(task)
    trials = []
    with progress_bar("applying the policy", len(strengths)) as bar:
        for index, strength in enumerate(strengths, 1):
            trials.append(policy.walk(env, strength, index))
            bar.advance()
    found = searchers.SearchResult("policy", trials, policy)
    end = _conclude(task, env, found, 1, name="policy")
    result = _result(task, end.tested(task), found)
    if len(strengths) > 1:
        result.notes.append(_strength_note(strengths, trials, found.best))
    if place is not None:
        _write_run(place, result, env)
    return result


def check_search(
    agent: Mapping[str, Any],
    reward: RewardLike,
    device: DeviceLike,
    budget: BudgetLike,
    reaim: int = 0,
    observation: str | Sequence[str] | None = None,
    space: SearchSpace | None = None,
) -> None:
    """Check what can be checked before anything long is started.

    Raises:
        AmcError: The agent, the reward, the device or a feature is not one that amc knows, the
            device has no cost in the budget's metric or none of the bits of the space, or these
            cannot be aimed anew.
    """
    space = space or SearchSpace()
    feature_names(observation, space.other_parts)
    searcher = build_searcher(**agent)
    hard = build_reward(reward).hard
    loaded, metric = as_device(device), as_budget(budget).metric
    check_metric(metric, loaded)
    space.options(metric, loaded)
    if reaim:
        check_reaim(loaded, metric, resumable=isinstance(searcher, Resumable), hard=hard)


def describe(task: CompressionTask) -> str:
    """The prepared task in a few lines: what is free, what is frozen and why, the budget."""
    graph, costs = task.graph, task.costs
    lines = [
        f"{type(task.network).__name__}: {len(graph.layers)} layers, "
        f"{len(graph.free_groups)} channel groups free, {len(graph.frozen_groups)} frozen"
    ]
    lines += [f"  frozen: {group.name} {group.reason}" for group in graph.frozen_groups]
    lines += [f"  not followed: {path} {reason}" for path, reason in graph.opaque.items()]
    unit, metric = task.budget.unit, task.budget.metric
    lines += [f"  {line}" for line in account(task.network, graph, metric, task.device)]
    lines.append(
        f"budget: {metric} at most {costs.bound:,.6g} {unit}, "
        f"{costs.bound / costs.original:.3f} of the original's {costs.original:,.6g} {unit} "
        f"(smallest reachable: {costs.floor:,.6g} {unit}, {costs.floor / costs.original:.3f} of it)"
    )
    shape = "x".join(map(str, task.data.image_shape))
    data, objective = task.data, task.objective
    lines.append(
        f"data: {data.name}, images {shape}, {data.labels_in_words}; {len(data.calibration)} to "
        f"calibrate by, {len(data.search)} to search on"
    )
    if data.is_labelled:
        texts = score_texts(objective, task.original.scores, labelled=True)
        lines.append(f"original: {texts} on the search images")
    else:
        lost, counts = (primary_score(objective, labelled=which).name for which in (True, False))
        lines.append(f"no {lost} without labels ({data.why_unlabelled}): {counts} counts")
    lines += objective.notes
    return "\n".join(lines)


def introduce(task: CompressionTask) -> None:
    """Say what a task is, and what makes its numbers doubtful."""
    log.info("%s", describe(task))
    for note in (task.data.shortage, *task.notes):
        if note:
            log.warning("%s", note)
    if task.data.has_other_labels:
        log.warning(
            "The labels are left aside: %s. For %s give a network whose outputs are of the labels "
            "(for the last classes that have no image, the data's class_names).",
            task.data.why_unlabelled,
            primary_score(task.objective, labelled=True).name,
        )
    doubt = task.objective.doubt(task.original.scores)
    if doubt:
        log.warning("%s", doubt)


def environment(
    task: CompressionTask,
    reward: RewardLike,
    observation: Sequence[str] | None = None,
    costs: CostModel | None = None,
) -> CompressionEnv:
    """The walk over a task's network.

    Args:
        costs: With another bound than the task's.
    """
    return CompressionEnv(
        costs or task.costs,
        task.evaluate,
        task.original,
        reward,
        observation,
        lambda: task.errors,
    )


def profile(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    device: DeviceLike = "onnxruntime_cpu",
    *,
    space: SearchSpace | None = None,
) -> Device:
    """Measure every price that a search of a network can ask a device for.

    A table in a file, or imported, is checked to have them all.

    Raises:
        DeviceError: The device is not one that this machine can measure, and has no table.
        TableError: A table lacks prices.
        NetworkError: The network rejects images of this shape.
    """
    check_module(network)
    check_image_shape(image_shape)
    check_kind("space", space, SearchSpace, optional=True)
    loaded = as_device(device)
    check_table(loaded)
    assert loaded is not None
    space = space or SearchSpace()
    graph = graph_of(network, image_shape)
    if isinstance(loaded, HaqTable):
        loaded = loaded.for_network(graph)
    with _said_on_interrupt(_measured_so_far(loaded)):
        loaded = settled(loaded)
        choices = space.choices(graph, "latency_ms", loaded)
        return device_for_network(loaded, graph, choices, image_shape)


def load_compressed(
    folder: str | Path, network: nn.Module, image_shape: tuple[int, int, int]
) -> nn.Module:
    """The smaller network that a run left in its folder (or fine-tuning in ``finetune/``).

    Args:
        folder: Of a search, an applied policy, or a fine-tuning.
        network: The original network; only its structure counts. Not modified.
        image_shape: (channels, height, width) of its images; of other sizes than the run's too,
            where the network takes them.

    Returns:
        The compressed network with its weights, in evaluation mode.

    Raises:
        ArtifactError: A file is missing, unreadable, or of another version.
        StrategyError: The files are not of this network.
        AmcError: An argument is of another kind.
    """
    check_module(network)
    check_image_shape(image_shape)
    check_folder(folder, optional=False)
    return artifact.rebuild_compressed(Path(folder), network, image_shape).module.eval()


def finetune(
    compressed: nn.Module,
    original: nn.Module,
    data: DataSet,
    *,
    settings: TrainingSettings,
    objective: ObjectiveLike = DEFAULT,
    folder: str | Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> TrainingResult:
    """Train a compressed network on the labels, if there are any, and the original's outputs.

    Knowledge distillation (Hinton et al. 2015), quantization kept in the loop. The best epoch on
    the search split is kept, by the objective's first score of labels or, without labels, its first
    other; with a folder, a killed run goes on where it was, and `load_compressed` reads what came
    of it.

    Args:
        compressed: As `search` or `load_compressed` gives it; trained in place.
        original: The teacher. Not modified, nor moved.
        settings: `TrainingSettings`, of which ``epochs`` has no usual value.
        objective: As in `search`.
        folder: Where each epoch's state is kept and, at the end, the network, if ``compressed``
            is one that amc made; None keeps nothing.
        on_epoch: Called after every epoch.

    Returns:
        The result; its network is ``compressed`` (without `torch.compile`), on the CPU.

    Raises:
        AmcError: An argument is of another kind, the folder holds a training with other
            settings, or the networks and the data do not fit each other.
    """
    check_module(compressed, "compressed")
    check_module(original, "original")
    check_data(data)
    check_kind("settings", settings, TrainingSettings)
    check_folder(folder)
    on_gpu = torch.cuda.is_available()
    place = "cuda" if on_gpu else "cpu"
    teacher = admit(original, data.image_shape)
    fitted, data = matched(teacher, data, build_objective(objective))
    if not data.is_labelled:
        log.info("no labels (%s): the original alone is learned from", data.why_unlabelled)
    reference = None if data.is_labelled else teacher
    evaluator = Evaluator(data.search, data.mean, data.std, reference, objective=fitted)
    named = primary_score(fitted, labelled=data.is_labelled)
    mean, std = _normalisation(data)
    teacher = teacher.to(place)
    compressed = unwrapped(compressed)
    run_images(compressed, data.image_shape)
    student = compressed.to(place)
    for parameter in student.parameters():
        parameter.requires_grad_(True)

    made = CompressedNetwork.of(compressed)

    def score(network: nn.Module) -> float:
        network.cpu()
        if made is not None:  # an epoch moves what was decided of the weights
            decide(made.module, made.strategy)
        found = evaluator(network)
        network.to(place)
        return found.scores[named.name]

    try:
        with stop_on_interrupt() as stop:
            trained = train(
                student,
                data.train.images,
                data.train.labels,
                mean=mean,
                std=std,
                settings=settings,
                objective=fitted,
                teacher=teacher,
                evaluate=score,
                checkpoint_folder=None if folder is None else Path(folder),
                on_epoch=on_epoch,
                should_stop=stop.is_set,
                description="fine-tuning",
            )
    finally:
        compressed.cpu()
    if folder is not None and made is not None:
        artifact.write_compressed(Path(folder), made)
    return trained


def train_base(network: nn.Module, data: DataSet, name: str) -> nn.Module:
    """Train a small data set's network from scratch, once; afterwards it comes from the cache.

    Raises:
        NetworkError: What the cache holds is damaged.
    """
    start = [part for item in network.state_dict().items() for part in item]
    key = fingerprint(name, data.fingerprint(), repr(BASE_TRAINING), *start)
    path = cache_folder() / "networks" / f"{name}-{data.name}-{key}.safetensors"
    if path.is_file():
        try:
            load_checkpoint(network, path)
        except NetworkError as error:
            raise NetworkError(f"{error} Remove {path}: the network is trained anew.") from error
        return network.eval()
    log.info("training the base network %s on %s (once; kept in %s)", name, data.name, path)
    evaluator = Evaluator(data.search, data.mean, data.std)
    named = primary_score(DEFAULT, labelled=True)
    mean, std = _normalisation(data)
    with _said_on_interrupt("nothing is kept of an unfinished base training"):
        train(
            network,
            data.train.images,
            data.train.labels,
            mean=mean,
            std=std,
            settings=BASE_TRAINING,
            evaluate=lambda net: evaluator(net).scores[named.name],
            description=f"training {name}",
        )
    write_tensors(path, network.state_dict())
    return network.eval()


def _normalisation(data: DataSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for `train`, which normalises all that it is given: float images are already."""
    if data.train.images.is_floating_point():
        return (0.0,) * len(data.mean), (1.0,) * len(data.std)
    return data.mean, data.std


# -- what can be given in several forms ----------------------------------------------------


def _agent_settings(agent: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(agent, str):
        return {"name": agent}
    if not isinstance(agent, Mapping) or not isinstance(agent.get("name"), str):
        raise ConfigError(
            "agent must be a name, or a mapping of its name and settings such as "
            f"{{'name': 'ddpg', 'hidden': [300]}}, got {agent!r}."
        )
    return dict(agent)


def as_budget(budget: BudgetLike) -> Budget:
    """A budget from a fraction of the latency, its fields, or itself."""
    return Budget.of(budget)


# -- Ctrl-C where there is no result yet ---------------------------------------------------


def _task(
    network: nn.Module, data: DataSet, device: DeviceLike, budget: BudgetLike, **options: Any
) -> CompressionTask:
    loaded = as_device(device)
    with _said_on_interrupt(_measured_so_far(loaded)):
        return CompressionTask(network, data, loaded, as_budget(budget), **options)


def _measured_so_far(device: Device | LocalSpec | None) -> str:
    if isinstance(device, LocalSpec):
        return f"what was measured of {device.name} is kept in {device.table_path()}"
    return "stopped before the search"


@contextmanager
def _said_on_interrupt(kept: str) -> Iterator[None]:
    """Say what is left of the work when Ctrl-C ends it."""
    try:
        yield
    except KeyboardInterrupt:
        log.warning("Ctrl-C: %s", kept)
        raise


# -- a search under way --------------------------------------------------------------------


def _take_up(
    journal: Journal, task: CompressionTask, config: Mapping[str, Any], force: bool
) -> int | None:
    """Recall what the journal holds; gives the evaluation to go on with, None at the start."""
    origin = origin_of(task.fingerprints(), config)
    journal.begin(origin, task.evaluation_key(), force=force)
    task.recall(journal.evaluations())
    if not journal.trials:
        return None
    log.info("resuming after %d evaluations", len(journal.trials))
    return len(journal.trials) + 1


def _run(
    searcher: Searcher,
    env: CompressionEnv,
    evaluations: int,
    seed: int,
    on_trial: OnTrial,
    checkpoints: Checkpoints,
) -> searchers.SearchResult:
    if isinstance(searcher, Resumable):
        found = searcher.search_on(env, evaluations, seed, on_trial, checkpoints)
    else:
        found = searcher.search(env, evaluations, seed, on_trial)
    found.soft = env.is_soft
    return found


def _within(found: searchers.SearchResult, task: CompressionTask) -> searchers.SearchResult:
    """What a leg found; if nothing meets its bound yet (Ctrl-C), by the user's own."""
    if any(trial.meets_budget for trial in found.trials):
        return found
    return replace(found, trials=judged(found.trials, task.costs))


def _next_bound(task: CompressionTask, end: Conclusion, journal: Journal) -> float | None:
    """Where to aim after an end that misses the budget; recorded, as it came from a clock."""
    bound = tightened_bound(task, end.comparison)
    if bound is not None:
        log.info(
            "measured, the budget is missed: going on with predictions of at most %.3f of the "
            "original",
            bound / task.costs.original,
        )
        journal.aim(bound)
    elif is_missed(task, end.comparison):
        end.notes.append("Not aimed lower: no strategy is predicted to be that fast.")
    return bound


def _recorded_bound(
    journal: Journal, leg: int, found: searchers.SearchResult, stop: threading.Event
) -> float | None:
    """Where the search aimed after this leg before it was resumed; None if it did not.

    After Ctrl-C, only if it has tried something there: what is recorded is not thrown away.
    """
    if leg < len(journal.aims) and not (stop.is_set() and len(journal.trials) <= len(found.trials)):
        return journal.aims[leg]
    return None


def _held(bounds: Sequence[float], trials: Sequence[Trial], evaluations: int) -> list[float]:
    """The bounds that any of the trials were held to.

    Args:
        evaluations: Of the first leg.
    """
    return [
        bound
        for leg, bound in enumerate(bounds)
        if len(trials) > evaluations_until(leg, evaluations)
    ]


def _aiming_notes(task: CompressionTask, bounds: Sequence[float]) -> list[str]:
    if not bounds:
        return []
    shares = ", then ".join(f"{bound / task.costs.original:.3f}" for bound in bounds)
    return [
        f"Aimed anew, as the measured latency missed the budget of "
        f"{task.costs.bound / task.costs.original:.3f}: predictions were held to {shares}."
    ]


# -- the end of a run ----------------------------------------------------------------------


def _writable(folder: str | Path | None) -> Path | None:
    """The run folder, made at once: a folder that cannot be written is found before the work."""
    if folder is None:
        return None
    probe = Path(folder) / ".writable"
    write_text(probe, "")
    probe.unlink()
    return Path(folder)


def _events(folder: Path | None, first: int | None) -> Any:
    return nullcontext() if folder is None else EventWriter(folder, first)


def _conclude(
    task: CompressionTask,
    env: CompressionEnv,
    found: searchers.SearchResult,
    final_candidates: int,
    name: str = "best found",
) -> Conclusion:
    uniform = _best_uniform(env, found)
    return conclude(task, found.top(final_candidates), uniform, env.reward, name=name)


def _result(task: CompressionTask, end: Conclusion, found: searchers.SearchResult) -> SearchResult:
    return SearchResult(
        strategy=end.best.strategy,
        network=end.best.network.module,
        comparison=end.comparison,
        notes=end.notes,
        trials=found.trials,
        policy=found.policy,
        task=task,
        compressed=end.best.network,
        best_reward=found.best.reward,
    )


def _best_uniform(env: CompressionEnv, found: searchers.SearchResult) -> Strategy:
    """The best of the uniform strategies; those that the search tried are not tried again."""
    tried = {trial.strategy.to_json(): trial.evaluation for trial in found.trials}

    def reward(strategy: Strategy) -> float:
        return env.reward_of(strategy, tried.get(strategy.to_json()))

    return max(env.uniform_strategies()[:_UNIFORM_TRIED], key=reward)


_UNIFORM_TRIED = 8  # of the uniform strategies, when the search tried none of them


def _write_run(folder: Path, result: SearchResult, env: CompressionEnv) -> None:
    artifact.write_compressed(folder, result.compressed)
    if result.policy is not None:
        result.policy.save(folder)
    table = to_csv(result.comparison, result.task.objective.scores)
    write_text(folder / f"{artifact.COMPARISON_FILE}.csv", table)
    write_text(folder / f"{artifact.COMPARISON_FILE}.md", _report(result))
    metric = result.task.budget.metric
    plot_strategy(
        layer_rows(result.task.costs, result.strategy),
        folder / artifact.STRATEGY_PICTURE,
        f"{type(result.task.network).__name__}: {result.task.budget}",
        cost_label=metric,
    )
    plot_learning_curve(
        [trial.reward for trial in eligible(result.trials, soft=env.is_soft)],
        folder / artifact.CURVE_PICTURE,
        title=f"{type(result.task.network).__name__}: {result.task.budget}",
        warmup=_warmup(result.trials),
        references=_references(result, env),
        reward_label=f"reward ({env.reward_name})",
    )


def _warmup(trials: Sequence[Trial]) -> int:
    """Trials up to the one that the first update followed; 0 where nothing was learned."""
    learned = (index for index, t in enumerate(trials, 1) if "critic_loss" in t.diagnostics)
    return next(learned, 0)


def _references(result: SearchResult, env: CompressionEnv) -> dict[str, float]:
    """Rewards to compare the curve with: the original's, the best uniform strategy's if tried."""
    references = {}
    original, named = result.task.original, primary_score(result.task.objective, labelled=True)
    if env.reward.is_score and env.reward.score == named.name:
        references["original"] = original.scores[named.name]
    uniform = {strategy.to_json() for strategy in env.uniform_strategies()}
    tried = [trial.reward for trial in result.trials if trial.strategy.to_json() in uniform]
    if tried:
        references["uniform"] = max(tried)
    return references


def _strength_note(strengths: Sequence[float], trials: Sequence[Trial], best: Trial) -> str:
    texts = significant([trial.reward for trial in trials])
    rewards = ", ".join(
        f"{text} at {strength:g}" for text, strength in zip(texts, strengths, strict=True)
    )
    nothing_learned = "0 is the program's own allocation, nothing learned"
    reached = texts[best.index - 1]
    equal = [s for s, text in zip(strengths, texts, strict=True) if text == reached]
    chosen = strengths[best.index - 1]
    if len(equal) == len(strengths):
        found = "The policy's strength makes no difference here"
        meaning = f", and {nothing_learned}" if 0 in equal else ""
    elif len(equal) > 1:
        named = ", ".join(f"{strength:g}" for strength in equal)
        found, meaning = f"The policy does equally well here at strengths {named}", ""
        if 0 in equal:
            meaning = f"; {nothing_learned}"
    else:
        found = f"The policy helps most here at strength {chosen:g}"
        meaning = f"; {nothing_learned}" if chosen == 0 else ""
    return f"{found}{meaning}. Rewards: {rewards}."


def _report(result: SearchResult) -> str:
    table = to_markdown(result.comparison, result.task.objective.scores)
    lines = [table, *(f"- {note}" for note in result.notes)]
    return "\n".join(lines) + "\n"


def _note_result(events: EventWriter, result: SearchResult, config: Mapping[str, object]) -> None:
    """The strategy that was found as a picture, the final table and the configuration as texts."""
    task = result.task
    found = (trial.index for trial in result.trials if trial.strategy == result.strategy)
    rows = layer_rows(task.costs, result.strategy)
    events.strategy_image(next(found, len(result.trials)), rows, RESULT)
    settings = {
        "network": type(task.network).__name__,
        "data": task.data.name,
        "images": "x".join(map(str, task.data.image_shape)),
        "device": task.device.name if task.device else "none",
        "budget": task.budget,
        **config,
    }
    events.text("result/table", _report(result))
    events.text("configuration", settings_to_markdown(settings))


def _note_hparams(
    events: EventWriter,
    result: SearchResult,
    env: CompressionEnv,
    agent: str,
    seed: int,
    more: Mapping[str, bool | int | float | str],
) -> None:
    costs, metric = result.task.costs, result.task.budget.metric
    budget = costs.bound / costs.original
    # TensorBoard shows five columns unasked.
    columns = {"agent": agent, "seed": seed, "metric": metric, "budget": budget, **more}
    events.hparams(columns, _final_metrics(result, soft=env.is_soft))


def _final_metrics(result: SearchResult, *, soft: bool) -> dict[str, float]:
    best = result.comparison[-1]
    named = primary_score(result.task.objective, labelled=True).name
    found = {
        "best_reward": max(trial.reward for trial in eligible(result.trials, soft=soft)),
        f"test_{named}": best.test.get(named),
        f"search_{named}": best.search.get(named),
        "predicted_ms": best.predicted_ms,
        "measured_ms": best.measured_ms,
    }
    return {f"final/{name}": value for name, value in found.items() if value is not None}
