"""Who learns a correction of estimates from the same walks: DDPG, or a fit to what was evaluated.

    python -m benchmarks.corrections --episodes 150

ResNet-20 at a quarter of its multiply-adds and a MobileNetV1 of half the width at 0.3, both on the
embedded digits. DDPG (Stable-Baselines3) walks `envs.trust_env.TrustEnv`, each action rewarded by
what its episode won; the actors are fitted to random walks of the same number. A reward of 0 is the
integer program's, 1 the original's. Both are judged on the tasks that they learned from.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from agents.ddpg import DDPGSearcher
from agents.trust_explore import explored
from agents.trust_fit import FitSettings, Remembered, fitted
from amc.data import build_data
from amc.networks import build_network
from amc.problem.problem import Problem
from amc.problem.store import open_store
from amc.problem.task import CompressionTask
from amc.study.finetuning import train_base
from benchmarks.provenance import print_table, provenance, write_csv
from envs.make import environment
from envs.trust import TRUST_PARTS
from envs.trust_env import TrustEnv

TASKS: tuple[tuple[str, dict[str, Any], float], ...] = (
    ("resnet20", {}, 0.25),
    ("mobilenet_v1", {"width": 0.5}, 0.3),
)
PARTS = 5  # of a learning curve
NOISE = 0.25


def walks() -> TrustEnv:
    """The walk over both tasks."""
    data, store, tasks = build_data("digits"), open_store(True), []
    for name, options, fraction in TASKS:
        network = build_network(
            name, num_classes=data.num_classes, image_shape=data.image_shape, **options
        )
        network = train_base(network, data, name)
        budget = {"metric": "macs", "fraction": fraction}
        task = CompressionTask(Problem(network, data, None, budget), store)
        tasks.append(environment(task, observation="plain"))
    return TrustEnv(tasks)


def taken(env: TrustEnv, place: int, actions: np.ndarray) -> float:
    """Reward of an episode with these actions."""
    env.reset(options={"task": place})
    reward = 0.0
    for action in actions.astype(np.float32):
        _, reward, _, _, _ = env.step(action)
    return reward


def by_agent(env: TrustEnv, episodes: int, seed: int) -> dict[str, object]:
    """DDPG's mean rewards over the parts of its training, and its actor's own at the end."""
    agent = DDPGSearcher(
        anchor="none", warm_start="none", belief_share=0, elite_share=0, gamma=0, hidden=(32, 32),
        warmup=episodes // PARTS, noise_share=1.0, noise_initial=NOISE, noise_final=0.8,
        actor_lr=1e-3,
    )  # fmt: skip
    found = agent.search(env, episodes, seed, lambda _: True)  # type: ignore[arg-type]
    rewards = np.array([trial.reward for trial in found.trials])
    curve = [f"{part.mean():.3f}" for part in np.array_split(rewards, PARTS)]
    policy = found.policy
    assert policy is not None
    final = [
        taken(env, place, np.stack([policy.act(row) for row in trust.observations]))
        for place, trust in enumerate(env.trusts)
    ]
    return {"learner": "DDPG", "while learning": " ".join(curve)} | _final(final)


def by_fit(env: TrustEnv, episodes: int, seed: int) -> dict[str, object]:
    """The same for actors fitted to random walks."""
    rng, rewards, remembered = np.random.default_rng(seed), [], []
    for place, (trust, task) in enumerate(zip(env.trusts, env.tasks, strict=True)):
        nowhere = np.zeros((len(trust.observations), len(TRUST_PARTS)))
        parts, lost = [], []
        for _ in range(episodes // len(env.tasks)):
            env.reset(options={"task": place})
            for action in explored(trust.observations, nowhere, NOISE, rng).astype(np.float32):
                _, reward, _, _, info = env.step(action)
            rewards.append(reward)
            kept, options = task.costs.encode(info["strategy"])
            parts.append(trust.parts(kept.tolist(), options.tolist()))
            lost.append(task.whole_reward - task.reward_of(info["strategy"], info["evaluation"]))
        name = TASKS[place][0]
        remembered.append(
            Remembered(name, name, trust.observations, np.array(parts), np.array(lost))
        )
    policy = fitted(remembered, FitSettings(), seed)
    final = [
        taken(env, place, policy.act(trust.observations)) for place, trust in enumerate(env.trusts)
    ]
    return {"learner": "fit", "while learning": f"{np.mean(rewards):.3f}"} | _final(final)


def _final(rewards: list[float]) -> dict[str, object]:
    names = [f"{name} {fraction}" for name, _, fraction in TASKS]
    return {name: round(reward, 3) for name, reward in zip(names, rewards, strict=True)}


def main() -> None:
    """Let both learn, print the table, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--episodes", type=int, default=150)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    env, rows = walks(), []
    for seed in options.seeds:
        for learn in (by_agent, by_fit):
            row = {"episodes": options.episodes, **learn(env, options.episodes, seed)}
            rows.append(row | provenance(seed))
    print_table(rows, [name for name in rows[0] if name not in provenance(0)] + ["seed"])
    print(write_csv("corrections", rows))


if __name__ == "__main__":
    main()
