"""``amc finetune``: train the compressed network of a run on labels and what a teacher gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from amc import api
from amc.cli import recipe
from amc.cli.check import check_options
from amc.cli.export import FOLDER as EXPORT_FOLDER
from amc.comparison.reading import write_report
from amc.errors import ArtifactError, ConfigError
from amc.networks import admit
from amc.objectives import NamedScore, build_objective, primary_score
from amc.problem.evaluate import Evaluator
from amc.problem.problem import matched
from amc.recovery.training import (
    BEST_FILE,
    STATE_FILE,
    EpochRecord,
    TrainingResult,
    TrainingSettings,
)
from amc.report.finetuned import FinetunedRecord
from amc.report.tensorboard import EventWriter
from amc.study import artifact
from amc.utils.group import Group, joined
from amc.utils.runs import FINETUNE_FOLDER

ORIGINAL = "original"  # among the teachers: the network that was compressed


def run(config: DictConfig) -> recipe.Ended:
    """Rebuild the run's networks, train, keep the best, show the epochs.

    Of several processes (`amc.utils.group`) the first judges, writes and shows.
    """
    with joined() as group:
        return _run(config, group)


def _run(config: DictConfig, group: Group) -> recipe.Ended:
    source = Path(config.run).expanduser()
    record = artifact.RunRecord.read(source)
    check_options({"network": record.network, "data": record.data})
    settings = _settings(config)
    asked = build_objective(**recipe.recorded_objective(record.settings, config))
    recipe.recorded_decisions(record.settings, config)
    taught_by = _teacher_options(config, record.data)
    original, data = recipe.prepared(
        recipe.recorded_network(record.network, config), recipe.recorded_data(record.data, config)
    )
    original = admit(original, data.image_shape)
    if config.augment is None:
        settings = replace(settings, augment=data.augment)
    teachers = [
        original if options is None else recipe.network_of(options, data) for options in taught_by
    ]
    compressed = artifact.rebuild_compressed(source, original, data.image_shape)
    folder = source / FINETUNE_FOLDER
    if config.restart and group.is_first:
        for name in (STATE_FILE, BEST_FILE):
            (folder / name).unlink(missing_ok=True)
    group.wait()  # until it is gone
    objective, data = matched(original, data, asked)

    def trained(on_epoch: Callable[[EpochRecord], None] | None) -> TrainingResult:
        return api.finetune(
            compressed.module,
            original,
            data,
            settings=settings,
            objective=objective,
            teachers=teachers or None,
            folder=folder,
            on_epoch=on_epoch,
        )

    if not group.is_first:
        return recipe.Ended(not trained(None).complete)
    named = primary_score(objective, labelled=data.is_labelled)
    reference = None if data.is_labelled else original
    test = Evaluator(data.test, data.mean, data.std, reference, objective=objective)
    before = test(compressed.module).scores[named.name]
    done: list[EpochRecord] = []
    with EventWriter(folder) as events, _restart_offered():
        result = trained(lambda epoch: _note(events, epoch, named.name, done))
    after, best = (test(network).scores[named.name] for network in (result.network, original))
    tested = (
        f"test {named.name}: {named.text(before)} before, {named.text(after)} after, "
        f"{named.text(best)} original"
    )
    FinetunedRecord(
        score=named,
        before=before,
        after=after,
        original=best,
        best_epoch=result.best_epoch,
        losses=[epoch.loss for epoch in result.history],
        searched=[epoch.score for epoch in result.history],
    ).write(folder)
    page = write_report(source)
    _show(tested, result.history, named, folder, augmented=bool(settings.augment))
    print(f"{page} shows it")
    gained = result.best_epoch > 0 or not result.history
    for line in _advice(result.complete, gained, bool(done), settings, bool(config.restart)):
        print(line)
    exported = folder / EXPORT_FOLDER
    if done and exported.is_dir():
        print(f"{exported} holds what was exported before this training: export again")
    print(f"as ONNX: amc export run={folder}{recipe.code_again(record)}")
    return recipe.Ended(not result.complete)


def _advice(
    complete: bool, gained: bool, trained: bool, settings: TrainingSettings, restart: bool
) -> Iterator[str]:
    """What to do next, where training did not simply end."""
    if not complete:
        again = "without restart=true" if restart else "again"
        yield f"ended early by Ctrl-C: run the same command {again} to go on"
    if not gained:
        what = "another learning_rate or more epochs"
        if settings.distill.get("at") or settings.distill.get("sp"):
            what = f"smaller weights distill.at and distill.sp, {what}"
        if settings.augment:
            what += ", or augment=[] where flipped or shifted images are of another class"
        yield (
            "no epoch did better on the search split than the network had: its weights are kept. "
            f"Try {what} (with restart=true)."
        )
    if complete and not trained:
        yield "nothing was left to train: an earlier call did all epochs (restart=true: anew)"


@contextmanager
def _restart_offered() -> Iterator[None]:
    try:
        yield
    except ArtifactError as error:
        said = str(error).replace(", or another folder.", ".")  # there is one folder for each run
        raise ArtifactError(f"{said} restart=true forgets what was trained.") from error


def _settings(config: DictConfig) -> TrainingSettings:
    return TrainingSettings(
        epochs=config.epochs,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        batch_size=config.batch_size,
        warmup_fraction=config.warmup_fraction,
        distillation_weight=config.distillation_weight,
        temperature=config.temperature,
        seed=config.seed,
        augment=tuple(config.augment or ()),
        distill=recipe.plain(config.distill),
        learned_steps=config.learned_steps,
        gradual=config.gradual,
        straight_through=config.straight_through,
        average=config.average,
        batch_norm_images=config.batch_norm_images,
    )


def _teacher_options(config: DictConfig, data: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """Of the networks that are learned from, checked; None for the original.

    Raises:
        ConfigError: There are not as many checkpoints as networks.
        NetworkError: As those of a search.
    """
    names, checkpoints = _listed(config.teacher), _listed(config.teacher_checkpoint)
    if checkpoints and len(checkpoints) != len(names):
        raise ConfigError(
            f"teacher_checkpoint must hold as many files as teacher has networks, {len(names)}, "
            f"got {len(checkpoints)}. A function of your own may load its weights itself."
        )
    found: list[dict[str, Any] | None] = []
    for name, checkpoint in zip_longest(names, checkpoints):
        options = {"name": name, "checkpoint": checkpoint}
        if name != ORIGINAL:
            recipe.check_network(options, data)
        found.append(None if name == ORIGINAL else options)
    return found


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _note(events: EventWriter, epoch: EpochRecord, score: str, done: list[EpochRecord]) -> None:
    done.append(epoch)
    scalars = {
        "finetune/loss": epoch.loss,
        f"finetune/train_{score}": epoch.train_score,
        "finetune/learning_rate": epoch.learning_rate,
        f"finetune/search_{score}": epoch.score,
    }
    known = {name: value for name, value in scalars.items() if value is not None}
    events.episode(epoch.epoch, known)


def _show(
    tested: str,
    history: Sequence[EpochRecord],
    named: NamedScore,
    folder: Path,
    *,
    augmented: bool,
) -> None:
    console = Console()
    # What it trains on is harder than what it is judged on where images are augmented.
    trained_on = "train, augmented" if augmented else "train"
    shown = {f"search {named.name}": [epoch.score for epoch in history]}
    if named.needs_targets:
        shown = {f"{trained_on} {named.name}": [epoch.train_score for epoch in history], **shown}
    epochs = Table("epoch", "loss", *shown)
    for epoch, *scores in zip(history, *shown.values(), strict=True):
        texts = ("" if score is None else named.text(score) for score in scores)
        epochs.add_row(str(epoch.epoch), f"{epoch.loss:.4f}", *texts)
    if history:
        console.print(epochs)
    console.print(tested, highlight=False)
    console.print(f"written to {folder.resolve()}", highlight=False, soft_wrap=True)
