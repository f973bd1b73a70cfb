"""The recipes of the command line as functions on any network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from agents.policies import AnyPolicy, load_policy
from agents.policy import Policy
from agents.trust import NO_PRIOR, SHIPPED, TrustPolicy
from amc.comparison.cells import cells_of
from amc.comparison.comparison import Comparison
from amc.comparison.comparison import compare as compare_on
from amc.compress.network import CompressedNetwork
from amc.compress.verify import graph_of
from amc.cost.budget import BudgetLike
from amc.cost.device import Device
from amc.cost.profile import LocalSpec, check_table, measured_so_far, settled
from amc.cost.shipped import DeviceLike, as_device
from amc.cost.unmeasured import OrderedTable
from amc.data import DataSet
from amc.errors import ConfigError, NetworkError, PolicyError
from amc.export import Packed, pack
from amc.export import load_packed as read_packed
from amc.problem.local import device_for_network
from amc.problem.problem import Problem, ProblemOptions
from amc.problem.space import SearchSpace
from amc.runtimes import DEFAULT_DEVICE
from amc.study import artifact
from amc.study.apply import apply
from amc.study.finetuning import finetune
from amc.study.result import SearchResult
from amc.study.search import AgentLike, SearchSettings
from amc.study.search import search as search_problem
from amc.utils.arguments import (
    check_count,
    check_folder,
    check_image_shape,
    check_kind,
    check_module,
)
from amc.utils.interrupt import said_on_interrupt
from envs.reward import DEFAULT_REWARD, RewardLike

__all__ = [
    "apply_policy",
    "compare",
    "finetune",
    "load_compressed",
    "load_packed",
    "profile",
    "save_packed",
    "search",
]


def search(
    network: nn.Module,
    data: DataSet,
    device: DeviceLike = DEFAULT_DEVICE,
    budget: BudgetLike = 0.5,
    *,
    agent: AgentLike = "ddpg",
    evaluations: int = 200,
    reward: RewardLike = DEFAULT_REWARD,
    seed: int = 0,
    observation: Sequence[str] | None = None,
    final_candidates: int = 5,
    reaim: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    resume_force: bool = False,
    checkpoint_every: int = 5,
    workers: int = 0,
    proposals: int | None = None,
    workers_on: str = "processes",
    store: bool | str | Path = True,
    hparams: Mapping[str, bool | int | float | str] | None = None,
    **problem: Unpack[ProblemOptions],
) -> SearchResult:
    """Find the best smaller network within a budget.

    Args:
        network, data, device, budget: As `amc.Problem` takes them.
        agent: Name of a searcher, a mapping of its name and settings, or a searcher itself.
        evaluations: Strategies that the searcher may try.
        reward: Name of a reward, or a function of an `Outcome`.
        seed: Same seed, same machine, same number of threads, same prices: the same strategy.
        observation: Features that the agent sees; None: all of `envs.observation.FEATURES`.
        final_candidates: So many of the best are repaired and ranked on the whole search split.
        reaim: How often the search may go on under a tighter bound, each time with a quarter more
            evaluations, where the latency measured on the device misses the budget that the
            predicted one meets. What is measured then decides what is found: the same seed may
            end elsewhere.
        folder: Where to write the run; None writes nothing.
        resume: Go on with the unfinished search in ``folder``, given the same arguments as it;
            it ends as it would have. Where there is none yet, it starts.
        resume_force: Resume although arguments, code or machine changed.
        checkpoint_every: Evaluations between two writings of a learning agent's state.
        workers: Processes, of one thread each, in which strategies are evaluated side by side; 0:
            one after the other, in this process.
        proposals: Strategies under way at any time, proposed before the results of the others are
            known; None: two for each worker. What is found depends on it, not on the workers.
        workers_on: "processes" of this machine, or "ray": actors of a Ray cluster.
        store: Whether evaluations are looked up and remembered, for this search and others:
            True in the user's cache, False nowhere, or a file.
        hparams: Further columns of the run's row in TensorBoard's HParams table.
        problem: ``objective``, ``space``, ``recovery``, ``search_images``, ``bfloat16``, as
            `amc.Problem` takes them.

    Raises:
        AmcError: One of its kinds, for whatever does not fit; see `amc.errors`.
    """
    check_folder(folder)
    settings = SearchSettings(
        agent,
        evaluations,
        reward,
        seed,
        observation,
        final_candidates,
        reaim,
        checkpoint_every,
        workers,
        proposals,
        workers_on,
    )
    asked = Problem(network, data, device, budget, **problem)
    if resume and folder is None:
        raise ConfigError("resume=True needs the folder of the run: folder=...")
    return search_problem(
        asked,
        settings,
        folder=None if folder is None else Path(folder),
        resume=resume,
        resume_force=resume_force,
        store=store,
        hparams=hparams or {},
    )


def compare(
    network: nn.Module,
    data: DataSet,
    device: DeviceLike = "onnxruntime_cpu",
    budget: BudgetLike = 0.5,
    *,
    agents: Sequence[str | Mapping[str, Any]] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    evaluations: int = 200,
    reward: RewardLike = DEFAULT_REWARD,
    observation: str | Sequence[str] | None = None,
    final_candidates: int = 5,
    threads: int = 1,
    folder: str | Path | None = None,
    store: bool | str | Path = True,
    **problem: Unpack[ProblemOptions],
) -> Comparison:
    """Search with several agents over several seeds.

    Ctrl-C ends the searches under way and gives back what is there. In a folder that an earlier
    call wrote to, searches that ended are not repeated.

    Args:
        network, data, device, budget, reward, problem: As in `search`.
        agents: Names, or mappings of a name and settings (``label``: what it is called in the
            table; ``observation``: features that it sees; ``evaluations``: strategies that it may
            try). None: all that there are.
        evaluations: Strategies that each other search may try.
        observation: Features that agents see which name none of their own; None: all.
        threads: CPU threads of PyTorch; another number adds in another order.
        folder: Where to write table, CSV and picture after every search; None writes nothing.
        final_candidates, store: As in `search`.

    Raises:
        ConfigError: An unknown agent, a seed twice, or another option that cannot be.
        ArtifactError: The folder holds searches under other conditions.
        AmcError: One of its other kinds, for whatever does not fit; see `amc.errors`.
    """
    check_folder(folder)
    space = problem.get("space") or SearchSpace()
    check_kind("space", space, SearchSpace)
    cells_of(agents, seeds, evaluations, observation, space.other_parts)
    return compare_on(
        Problem(network, data, device, budget, **problem),
        agents,
        seeds,
        evaluations,
        reward=reward,
        observation=observation,
        final_candidates=final_candidates,
        threads=threads,
        folder=None if folder is None else Path(folder),
        store=store,
    )


def apply_policy(
    policy: AnyPolicy | str | Path,
    network: nn.Module,
    data: DataSet,
    device: DeviceLike = DEFAULT_DEVICE,
    budget: BudgetLike = 0.5,
    *,
    strengths: Sequence[float] | None = None,
    refine: int = 0,
    folder: str | Path | None = None,
    store: bool | str | Path = True,
    **problem: Unpack[ProblemOptions],
) -> SearchResult:
    """Compress a network by a learned policy: a few walks, no search.

    What one network taught may be too much for another. The policy walks once at each strength,
    and the best of these walks on the search images is the result; its notes say which.

    Args:
        policy: "shipped", the one that comes with amc; the folder of a training or of a search;
            or itself.
        network, data, device, budget, problem: As in `search`.
        strengths: Fractions of the policy's departures from the program's advice, in [0, 1]; each
            costs one evaluation. None: `agents.policy.STRENGTHS`, or 1 for a policy that departs
            from no advice.
        refine: Evaluations of a search that goes on from there; 0: none. It begins with the
            policy's corrections, where it is of that kind and comes from a folder.
        folder, store: As in `search`.

    Raises:
        PolicyError: The policy observes features that this version does not have, or has no such
            strengths.
        AmcError: As `search`.
    """
    prior = NO_PRIOR
    if isinstance(policy, (str, Path)):
        loaded = load_policy(policy)
        prior = str(policy) if isinstance(loaded, TrustPolicy) else NO_PRIOR
        policy = loaded
    if not isinstance(policy, (Policy, TrustPolicy)):
        raise PolicyError(
            f"policy must be a policy, {SHIPPED!r} or the folder of one, got {policy!r}. "
            "amc.load_policy(run_folder) reads one."
        )
    check_count("refine", refine, least=0)
    check_folder(folder)
    asked = Problem(network, data, device, budget, **problem)
    if strengths is None:
        strengths = policy.strengths
    policy.check_strengths(strengths)
    policy.check_features()
    place = None if folder is None else Path(folder)
    return apply(policy, asked, strengths, folder=place, store=store, refine=refine, prior=prior)


def profile(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    device: DeviceLike = DEFAULT_DEVICE,
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
    if isinstance(loaded, LocalSpec):
        loaded.runs_on.check()
    space = space or SearchSpace()
    graph = graph_of(network, image_shape)
    if isinstance(loaded, OrderedTable):
        loaded = loaded.for_network(graph)
    with said_on_interrupt(measured_so_far(loaded)):
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


def save_packed(
    compressed: nn.Module,
    network: nn.Module,
    image_shape: tuple[int, int, int],
    path: str | Path,
    *,
    coder: str = "range",
) -> Packed:
    """Write a compressed network as a packed file: about as few bytes as there is information.

    Numbers that are no grid's and no codebook's are rounded to 16-bit floats.

    Args:
        compressed: As `search`, `load_compressed` or `finetune` give it.
        network: The original network; only its structure counts. Not modified.
        image_shape: (channels, height, width) of its images.
        coder: "range", or "huffman" for a file that amc reads without another package.

    Returns:
        What was written: its ``network.module`` is what `load_packed` gives, its ``tensors`` and
        ``part_bytes`` say what the bytes are spent on.

    Raises:
        NetworkError: The network is none that amc made.
        StorageError: The file cannot be written.
        AmcError: An argument is of another kind.
    """
    check_module(compressed, "compressed")
    check_module(network)
    check_image_shape(image_shape)
    found = CompressedNetwork.of(compressed)
    if found is None:
        raise NetworkError(
            "compressed must be a network as amc.search, amc.load_compressed or amc.finetune gives "
            f"it, got a {type(compressed).__name__}. Of others amc does not know the strategy."
        )
    packed = pack(found, graph_of(network, image_shape), type(network).__name__, coder=coder)
    packed.write(Path(path))
    return packed


def load_packed(path: str | Path, network: nn.Module) -> nn.Module:
    """The compressed network of a packed file, in evaluation mode, bit by bit what was written.

    `amc.export_onnx` makes an ONNX file of it, as of any network.

    Args:
        network: The original network; only its structure counts. Not modified.

    Raises:
        ArtifactError: The file is missing, damaged, of another version, or no packed file.
        StrategyError: It is of another network.
        ConfigError: It needs a package that is not installed.
        AmcError: An argument is of another kind.
    """
    check_module(network)
    return read_packed(path, network).module
