"""A learned policy applied to another network: a few walks, no search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agents import searcher as searchers
from agents.policy import Policy
from agents.searcher import Trial
from amc.problem.problem import Problem
from amc.report.tables import significant
from amc.study.introduction import introduce
from amc.study.result import SearchResult, write_run
from amc.study.search import finished, make_writable, prepared
from amc.utils.progress import progress_bar
from envs.make import environment
from envs.reward import DEFAULT_REWARD


def apply(
    policy: Policy,
    problem: Problem,
    strengths: Sequence[float],
    *,
    folder: Path | None,
    store: bool | str | Path,
) -> SearchResult:
    """Walk once at each strength, and write the run: see `amc.apply_policy`."""
    make_writable(folder)
    task = prepared(problem, store)
    env = environment(task, DEFAULT_REWARD, policy.observation_names)
    introduce(task)
    trials = []
    with progress_bar("applying the policy", len(strengths)) as bar:
        for index, strength in enumerate(strengths, 1):
            trials.append(policy.walk(env, strength, index))
            bar.advance()
    found = searchers.SearchResult("policy", trials, policy)
    end = finished(task, env, found, 1, name="policy")
    result = SearchResult.of(task, end.tested(task), found)
    if len(strengths) > 1:
        result.notes.append(strength_note(strengths, trials, found.best))
    if folder is not None:
        write_run(folder, result, env)
    return result


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
