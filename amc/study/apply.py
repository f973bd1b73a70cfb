"""A learned policy applied to another network: a few walks, and where asked a short search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agents import searcher as searchers
from agents.ddpg import DDPGSearcher
from agents.policies import AnyPolicy
from agents.searcher import Trial
from agents.trust import NO_PRIOR
from amc.problem.problem import Problem
from amc.report.tables import significant
from amc.study.introduction import introduce
from amc.study.keep import refuse_keep
from amc.study.result import SearchResult, write_run
from amc.study.search import finished, make_writable, prepared
from amc.utils.interrupt import stop_on_interrupt
from amc.utils.progress import progress_bar
from envs.compression import CompressionEnv
from envs.make import environment
from envs.reward import DEFAULT_REWARD


def apply(
    policy: AnyPolicy,
    problem: Problem,
    strengths: Sequence[float],
    *,
    folder: Path | None,
    store: bool | str | Path,
    refine: int = 0,
    prior: str = NO_PRIOR,
    seed: int = 0,
) -> SearchResult:
    """Walk once at each strength, search on, and write the run: see `amc.apply_policy`.

    Args:
        refine: Evaluations of the search that goes on from there; 0: none.
        prior: What that search believes (`agents.off_policy.OffPolicySearcher.prior`).
        seed: Of that search.
    """
    refuse_keep(problem.budget, "a policy")
    make_writable(folder)
    task = prepared(problem, store)
    env = environment(task, DEFAULT_REWARD, policy.observed)
    introduce(task)
    trials = []
    with progress_bar("applying the policy", len(strengths)) as bar:
        for index, strength in enumerate(strengths, 1):
            trials.append(policy.walk(env, strength, index))
            bar.advance()
    found = searchers.SearchResult("policy", trials, policy)
    walked = found.best
    if refine:
        found.trials = [*trials, *_refined(environment(task), refine, prior, seed, len(trials))]
    end = finished(task, env, found, 1, name="policy")
    result = SearchResult.of(task, end.tested(task), found)
    if len(strengths) > 1:
        result.notes.append(strength_note(strengths, trials, walked))
    if refine:
        texts = significant([walked.reward, found.best.reward])
        result.notes.append(
            f"Refined by {refine} evaluations: best reward {texts[1]}, {texts[0]} before."
        )
    if folder is not None:
        write_run(folder, result, env)
    return result


def _refined(
    env: CompressionEnv, evaluations: int, prior: str, seed: int, before: int
) -> list[Trial]:
    """Trials of a search that begins with what the policy corrects.

    Args:
        before: How many evaluations there were.
    """
    with progress_bar("searching on", evaluations) as bar, stop_on_interrupt() as stop:

        def on_trial(trial: Trial) -> bool:
            bar.advance(1, f"reward {trial.reward:.4g}")
            return not stop.is_set()

        found = DDPGSearcher(prior=prior).search(env, evaluations, seed, on_trial)
    return [replace(trial, index=trial.index + before) for trial in found.trials]


def strength_note(strengths: Sequence[float], trials: Sequence[Trial], best: Trial) -> str:
    """Which strength of the policy helped most here, with the rewards at all of them."""
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
