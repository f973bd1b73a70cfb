"""Everything that a search needs of one network, one data set, one device and one budget."""

from __future__ import annotations

import copy
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import nn

from amc.compress.fold import fold_batch_norm
from amc.compress.network import CompressedNetwork
from amc.compress.verify import graph_of
from amc.cost.budget import DEVICE_METRICS, Budget
from amc.cost.device import Device, TableDevice
from amc.cost.model import (
    Choices,
    CostModel,
    operator_prices,
    reference_bits,
    requests_for,
)
from amc.cost.origin import origin_note
from amc.cost.prices import FORMULAS, converts_of, fuses_of
from amc.cost.profile import LocalSpec, settled
from amc.cost.stored import PACKED
from amc.cost.unmeasured import OrderedTable
from amc.data import Split
from amc.decisions import TAKEN
from amc.errors import AmcError, DeviceError
from amc.export import pack
from amc.export.packed.costs import PackedCosts
from amc.graph.graph import NetworkGraph
from amc.objectives import (
    Objective,
    identity_of,
    score_texts,
)
from amc.problem.batches import DEPENDENT, batch_note
from amc.problem.candidate import Compressor
from amc.problem.evaluate import BATCH, Evaluation, Evaluator
from amc.problem.local import device_for_network, with_measured
from amc.problem.problem import Problem
from amc.problem.space import SearchSpace
from amc.problem.store import Store, evaluation_code
from amc.recovery.errors import LayerErrors
from amc.strategy import FLOAT, IDENTITY, Option, Strategy
from amc.utils.files import fingerprint
from amc.utils.layout import computes_in_bfloat16, fast_layout

log = logging.getLogger("amc")
BFLOAT16_IMAGES = 128  # enough to tell whether a network computes in bfloat16 what it does
BFLOAT16_DIVERGENCE = 1e-3  # nats between the original in bfloat16 and in float: at most


class CompressionTask:
    """One network to compress: traced, calibrated, priced, and ready to evaluate strategies.

    Attributes:
        problem: What it was prepared from.
        data: As they are to the network (`matched`).
        objective: What the network is for, as it is to the network.
        network: A copy of the original network (`amc.networks.admit`), in evaluation mode.
        graph: The network's layers and channel groups.
        costs: Prices of every decision under the budget's metric, and the bound.
        compressor: Builds candidates.
        original: Evaluation of the original network on the search images.
        reference: The original network as the graph that candidates are cut from.
        device: Prices latency; None where only formulas are needed.
        stored: Prices a file, where it is that whose size is budgeted; else None.
        local: How a runtime on this machine is the device; None if none is.
        bfloat16: Whether candidates without quantized layers are evaluated in bfloat16.
        notes: What the user should know of the network.
    """

    def __init__(self, problem: Problem, store: Store | None = None) -> None:
        """
        Args:
            store: Where evaluations are looked up and remembered.

        Raises:
            NetworkError, TraceError, DataError, DeviceError, BudgetError: What does not fit.
        """
        self.problem = problem
        self.network, self.data = problem.network, problem.data
        self.objective, self.budget = problem.objective, problem.budget
        self._space, self._recovery = problem.space, problem.recovery
        data, device = problem.data, problem.device
        self.graph: NetworkGraph = graph_of(self.network, data.image_shape, admitted=True)
        if device is not None and self._space.takes_step_of(device, self.budget.metric):
            device = settled(device)
        self._spec = device if isinstance(device, LocalSpec) else None
        self.local = self._spec if self._spec and not self._spec.runs_on.is_estimate else None
        self.device, choices = self._price(device, self._space)
        self._measured = self.device
        self.stored: PackedCosts | None = None
        if self.budget.metric == PACKED:
            self.stored = PackedCosts(self.graph, choices.options, type(self.network).__name__)
        self.costs = CostModel(self.graph, choices, self.budget, self.device, self.stored)
        self._subset = data.search.spread(problem.search_images)
        self.compressor = Compressor(
            self.graph,
            data.calibration.normalised(data.mean, data.std),
            self._recovery.judged_on(len(self._subset), math.prod(data.image_shape[1:])),
            self.objective,
            data.augment,
        )
        if self.stored is not None:
            ordered = [choices.options[place] for place in choices.by_closeness]
            self.stored.correct(self.compressor.apply, ordered)
            self.costs = CostModel(self.graph, choices, self.budget, self.device, self.stored)
        self.reference = self.graph.plan.module
        self._layout = fast_layout(self.reference, data.image_shape)
        depends = self.graph.batch_difference > DEPENDENT
        alone = self.device.batch if self.device is not None else 1
        self._batch = alone if depends else BATCH
        self._evaluator = self.evaluator(self._subset)
        self._store, self._recalled = store, dict[Strategy, Evaluation]()
        self._expected: dict[Strategy, Callable[[], Evaluation]] = {}
        self.original = replace(self._evaluator.original, costs=self.strategy_costs(IDENTITY))
        asked = problem.bfloat16
        if type(self.objective).measure is not Objective.measure:
            asked = False  # the user's function is given images of float32
        self.bfloat16 = self._may_compute_in_bfloat16() if asked is None else asked
        origin = "" if self.local else origin_note(self.device)
        batch = self._batch_note() if depends else ""
        self.notes = tuple(note for note in (origin, self._step_note(), batch) if note)

    def _price(
        self, device: Device | LocalSpec | None, space: SearchSpace
    ) -> tuple[Device | None, Choices]:
        """The device with all prices that the walk needs, and what the walk may choose."""
        metric = self.budget.metric
        if isinstance(device, OrderedTable):  # whose rows are layers, not signatures
            device = device.for_network(self.graph)
        choices = space.choices(self.graph, metric, device)
        if metric in DEVICE_METRICS and isinstance(device, (LocalSpec, TableDevice)):
            shape = self.data.image_shape
            return device_for_network(device, self.graph, choices, shape), choices
        if isinstance(device, LocalSpec):
            return None, choices  # nothing to measure for a budget that needs no clock
        return device, choices

    @property
    def searched_on(self) -> str:
        """The images that strategies are evaluated on: "1,000 of the 5,000 search images"."""
        used, there = len(self._subset), len(self.data.search)
        return (
            f"{used:,} of the {there:,} search images"
            if used < there
            else (f"the {there:,} search images")
        )

    # -- evaluating ---------------------------------------------------------------------------

    def evaluate(self, strategy: Strategy) -> Evaluation:
        """Build the candidate of a strategy and run it on the search images.

        A strategy that was recalled or is in the store is not built again; ``seconds`` is what
        its evaluation took when it was.

        Raises:
            EvaluationError: The candidate's outputs are not finite.
        """
        found = self._look_up(strategy)
        if found is None:
            found = self.evaluate_anew(strategy)
            self._remember(strategy, found)
        return replace(found, costs=self.strategy_costs(strategy))

    def evaluate_anew(self, strategy: Strategy) -> Evaluation:
        """As `evaluate`, whatever is remembered; without costs.

        Raises:
            EvaluationError: As `evaluate`.
        """
        start = time.perf_counter()
        candidate = fold_batch_norm(self.graph.plan, self.compressor.apply(strategy).module)
        found = self._run(candidate, strategy.is_float)
        return replace(found, seconds=time.perf_counter() - start)

    def knows(self, strategy: Strategy) -> bool:
        """Whether `evaluate` finds what it is asked for without building a candidate."""
        return strategy in self._expected or self._look_up(strategy) is not None

    def expect(self, strategy: Strategy, wait: Callable[[], Evaluation]) -> None:
        """What is being evaluated elsewhere (`evaluate_anew`); `evaluate` waits for it."""
        self._expected[strategy] = wait

    def expect_nothing(self) -> None:
        """Forget what was being evaluated elsewhere: nobody is at it any more."""
        self._expected.clear()

    def _run(self, candidate: nn.Module, is_float: bool) -> Evaluation:
        """Evaluate a candidate, which is not needed any more."""
        if self.bfloat16 and is_float:  # a grid of 8 bits and more is finer than bfloat16
            return self._evaluator(candidate.to(torch.bfloat16), torch.bfloat16)
        return self._evaluator(candidate)

    def _may_compute_in_bfloat16(self) -> bool:
        if not computes_in_bfloat16():
            return False
        try:
            network = fold_batch_norm(self.graph.plan, copy.deepcopy(self.reference))
            found = self._evaluator.divergence(
                network.to(torch.bfloat16), torch.bfloat16, BFLOAT16_IMAGES
            )
        except (RuntimeError, AmcError):  # an operator that has no bfloat16
            return False
        return found <= BFLOAT16_DIVERGENCE

    def recall(self, evaluations: Mapping[Strategy, Evaluation]) -> None:
        """Take these evaluations, of a run of the same `evaluation_key`, for what they are."""
        self._recalled.update(evaluations)

    def _look_up(self, strategy: Strategy) -> Evaluation | None:
        if strategy in self._expected:
            awaited = self._expected.pop(strategy)()
            self._recalled[strategy] = awaited
            self._remember(strategy, awaited)
            return awaited
        found = self._recalled.get(strategy)
        if found is not None or self._store is None:
            return found
        try:
            return self._store.get(self.evaluation_key(), strategy)
        except AmcError as error:
            self._give_up_store(error)
            return None

    def _remember(self, strategy: Strategy, evaluation: Evaluation) -> None:
        if self._store is None:
            return
        try:
            self._store.put(self.evaluation_key(), strategy, evaluation)
        except AmcError as error:
            self._give_up_store(error)

    def _give_up_store(self, error: AmcError) -> None:
        """What only saves time must not end a search."""
        log.warning("%s Going on without it.", error)
        self._store = None

    def evaluator(self, split: Split, batch: int | None = None) -> Evaluator:
        """An evaluator on another split, which compares with the original network too.

        Args:
            batch: Images that a network is given at once; None: as the task's evaluations do.
        """
        return Evaluator(
            split,
            self.data.mean,
            self.data.std,
            self.reference,
            objective=self.objective,
            layout=self._layout,
            batch=batch or self._batch,
        )

    def _step_note(self) -> str:
        """What bounds the counts under a metric that itself knows no steps; else nothing."""
        choices = self.costs.choices
        if self.budget.metric in DEVICE_METRICS or not choices.step_of or choices.channel_step == 1:
            return ""
        if not self._space.decides("channels"):
            return ""
        return (
            f"Channels are kept in multiples of {choices.channel_step}, the step in which "
            f"{choices.step_of} computes them: fewer {self.budget.metric} in between would save no "
            "time. For any number of them: env.channel_step=1; in Python "
            "space=SearchSpace(channel_step=1)."
        )

    def _batch_note(self) -> str:
        found = self.original, self.evaluator(self._subset, BATCH).original
        texts = (score_texts(self.objective, one.scores, labelled=True) for one in found)
        return batch_note(self.network, self._batch, *texts)

    def finish(self, strategy: Strategy) -> CompressedNetwork:
        """The network of a strategy that is kept, repaired layer by layer."""
        return self.compressor.repair(strategy)

    @cached_property
    def errors(self) -> LayerErrors:
        """Estimated errors of all decisions, found without an evaluation when first asked for.

        Raises:
            CalibrationError: The network's gradients are not finite.
        """
        return self.compressor.errors(self.costs.choices)

    # -- costs --------------------------------------------------------------------------------

    def strategy_costs(self, strategy: Strategy) -> dict[str, float]:
        """Cost of a strategy in every metric that can be priced without measuring anything."""
        metrics = [*FORMULAS, *([PACKED] if self.stored is not None else [])]
        totals = {metric: self._total(metric, strategy) for metric in metrics}
        for metric in self.device.metrics if self.device is not None else ():
            try:
                totals[metric] = self._total(metric, strategy)
            except DeviceError:  # a table of another network, or without these bits
                continue
        return totals

    def measure_prices(self, strategies: Sequence[Strategy]) -> None:
        """Measure what the latencies of these strategies are sums of, where the device can.

        Costs of the search stay what they are; `predicted_ms` goes by the new prices.

        Raises:
            TableError, DeviceError, StorageError: As `amc.problem.local.with_measured`.
        """
        if self._spec is not None and isinstance(self._measured, TableDevice):
            self._measured = with_measured(self._measured, self._spec, self.graph, strategies)

    def predicted_ms(self, strategy: Strategy) -> float | None:
        """Latency by the best prices that there are; None where the device has none."""
        if self._measured is None or "latency_ms" not in self._measured.metrics:
            return None
        try:
            prices = operator_prices(self.graph, strategy, "latency_ms", self._measured)
        except DeviceError:  # as `strategy_costs`
            return None
        return math.fsum(prices)

    @property
    def final_costs(self) -> CostModel:
        """As `costs`, of the prices that `predicted_ms` goes by, and without a bound."""
        if self._measured is self.device or self.budget.metric != "latency_ms":
            return self.costs
        unbounded = Budget("latency_ms", absolute=sys.float_info.max)
        return CostModel(self.graph, self.costs.choices, unbounded, self._measured)

    def _total(self, metric: str, strategy: Strategy) -> float:
        return math.fsum(operator_prices(self.graph, strategy, metric, self.device, self.stored))

    def file_bytes(self, network: CompressedNetwork) -> int | None:
        """What a network really takes, where it is that which is budgeted; else None."""
        if self.stored is None:
            return None
        return len(pack(network, self.graph, type(self.network).__name__).content)

    def simulated(self, strategy: Strategy) -> tuple[Option, ...]:
        """Options of a strategy that the device has no cost for: less stored, no less time."""
        real = set(self.device.supported_bits) if self.device is not None else {FLOAT}
        options = {strategy.option(layer) for _, layer, _ in strategy.values()}
        return tuple(sorted(o for o in options if o.others or o.bits not in real))

    # -- fingerprints -------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """Changes with all that a search depends on, its own settings aside."""
        return fingerprint(*(part for item in self.fingerprints().items() for part in item))

    def fingerprints(self) -> dict[str, str]:
        """What a search depends on, its own settings aside, by name.

        The network's layers and weights, the data, how many images are evaluated on, how a
        strategy is repaired; the device, the budget, and what a strategy may choose.
        """
        return {
            **self._evaluated(),
            "device": self._device_id,
            "budget": repr(self.budget),
            "search space": f"{self._space!r}{self._left_out}{self._step_id}{self._others_id}"
            f"{self._stored_id}",
        }

    def evaluation_key(self) -> str:
        """Changes with all that an evaluation depends on, but for the strategy and its costs.

        Neither budget, device nor search space: searches under others share evaluations. The
        original's own evaluation is part of it, and tells apart what looks alike.
        """
        original = replace(self.original, costs={}, seconds=0.0)
        parts = (part for item in self._evaluated().items() for part in item)
        return fingerprint(evaluation_code(), repr(original), *parts)

    def _evaluated(self) -> dict[str, str]:
        return {
            "network": self._network_id,
            "data": self.data.fingerprint(),
            "objective": identity_of(self.objective),
            "recovery": f"{self._recovery!r}{self._others_id}",
            "search images": str(len(self._subset)),
            "bfloat16": str(self.bfloat16),
        }

    @cached_property
    def _device_id(self) -> str:
        """What the device's prices are; of a table only those that the search asks for.

        A measured table gets rows for other networks: they change nothing here.
        """
        if self.device is None:
            return "none"
        if isinstance(self.device, TableDevice) and self.budget.metric in DEVICE_METRICS:
            choices, reference = self.costs.choices, reference_bits(self.device.supported_bits)
            fuses, converts = fuses_of(self.device), converts_of(self.device)
            return self.device.fingerprint(
                requests_for(self.graph, choices, reference, fuses, converts)
            )
        return self.device.fingerprint()

    @property
    def _step_id(self) -> str:
        """The step that a device gives to metrics which it has no prices for."""
        choices = self.costs.choices
        is_lent = choices.step_of and self.budget.metric not in DEVICE_METRICS
        return f", in steps of {choices.channel_step}" if is_lent else ""

    @property
    def _stored_id(self) -> str:
        """What prices a file, where its size is budgeted."""
        return "" if self.stored is None else f", {self.stored.fingerprint()}"

    @property
    def _left_out(self) -> str:
        """What is decided in other searches, and not in this one."""
        return "".join(f", no {name}" for name in TAKEN if not self._space.decides(name))

    @property
    def _others_id(self) -> str:
        """The decisions beside channels and bits."""
        _, *others = self.costs.choices.decisions
        return "".join(f", {identity_of(decision)}" for decision in others)

    @cached_property
    def _network_id(self) -> str:
        """Weights, the settings of every module, and what is done between them."""
        weights = [part for item in self.network.state_dict().items() for part in item]
        return fingerprint(*weights, str(self.reference), repr(self.graph.layers))
