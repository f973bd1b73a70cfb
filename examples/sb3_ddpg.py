"""Plain Stable-Baselines3 on the demo's task: what 2,000 steps of its DDPG learn, beside random.

    python examples/sb3_ddpg.py                 100 episodes of 20 steps; some minutes
    python examples/sb3_ddpg.py --steps 200     ten, to see that it runs
    python examples/sb3_ddpg.py --advised       actions are departures from an integer program's

Nothing of amc's agents is used: a reader can put any algorithm for continuous actions here.
"""

from __future__ import annotations

import argparse

import gymnasium
import numpy as np
from stable_baselines3 import DDPG
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise

import amc
from amc.study.finetuning import train_base
from envs.prior import PriorEnv

RANDOM_EPISODES = 10  # before the first update


def make_env(budget: float = 0.3) -> gymnasium.Env:
    """ResNet-20 on digits at a fraction of its latency here, where residual blocks may go."""
    data = amc.build_data("digits")
    network = amc.build_network(
        "resnet20", num_classes=data.num_classes, image_shape=data.image_shape
    )
    return gymnasium.make(
        "amc/Compression-v0",
        network=train_base(network, data, "resnet20"),
        data=data,
        device="onnxruntime_cpu",
        budget=budget,
        space=amc.SearchSpace(drop_blocks=True),
        search_images=256,
    )


def random_rewards(env: gymnasium.Env, episodes: int, seed: int) -> list[float]:
    """Rewards of episodes whose actions are drawn at random; all of them meet the budget."""
    env.action_space.seed(seed)
    rewards = []
    for _ in range(episodes):
        env.reset()
        done, reward = False, 0.0
        while not done:
            _, reward, done, _, _ = env.step(env.action_space.sample())
        rewards.append(float(reward))
    return rewards


def ddpg(env: gymnasium.Env, steps: int, seed: int) -> tuple[DDPG, list[float]]:
    """SB3's DDPG with its own defaults, but for what an episode of 20 steps asks for.

    - Noise: SB3's default is none, and then every episode is nearly the same.
    - gamma 1: the reward comes once, at the end, and counts in full for the first layer too.
    - Learning starts after ten episodes (SB3: 100 steps), of random actions.
    - A small batch and network: there are 2,000 steps, not a million.
    """
    steps_per_episode = env.unwrapped.layers_count
    parts = env.action_space.shape
    noise = NormalActionNoise(np.zeros(parts), 0.3 * np.ones(parts))
    watched = Monitor(env)
    agent = DDPG(
        "MlpPolicy",
        watched,
        action_noise=noise,
        gamma=1.0,
        learning_starts=RANDOM_EPISODES * steps_per_episode,
        batch_size=64,
        policy_kwargs={"net_arch": [64, 64]},
        seed=seed,
    )
    agent.learn(steps)
    return agent, watched.get_episode_rewards()


def greedy_reward(agent: DDPG, env: gymnasium.Env) -> float:
    """The reward of the learned policy without noise."""
    seen, _ = env.reset()
    done, reward = False, 0.0
    while not done:
        action, _ = agent.predict(seen, deterministic=True)
        seen, reward, done, _, _ = env.step(action)
    return float(reward)


def _summary(rewards: list[float]) -> str:
    return f"mean {np.mean(rewards):.3f}, best {max(rewards):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--advised", action="store_true", help="action 0 is the advice")
    options = parser.parse_args()
    env = make_env()
    walked = PriorEnv(env.unwrapped) if options.advised else env
    episodes = options.steps // env.unwrapped.layers_count
    for seed in options.seeds:
        print(f"random, seed {seed}: {_summary(random_rewards(env, episodes, seed))}", flush=True)
        agent, learned = ddpg(walked, options.steps, seed)
        for start in range(0, len(learned), 10):
            part = learned[start : start + 10]
            print(f"DDPG, episodes {start + 1:3} to {start + len(part):3}: {_summary(part)}")
        print(f"DDPG, seed {seed}, without noise: {greedy_reward(agent, walked):.3f}", flush=True)


if __name__ == "__main__":
    main()
