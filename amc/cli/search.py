"""``amc search``: find a smaller network within a budget."""

from __future__ import annotations

from omegaconf import DictConfig

from amc import api, artifact
from amc.cli import recipe


def run(config: DictConfig) -> bool:
    """Set up, search, write, show. True if Ctrl-C was pressed."""
    folder = recipe.run_folder()
    budget = recipe.budget_of(recipe.plain(config.budget))
    space = recipe.space_of(recipe.plain(config.env))
    recovery = recipe.recovery_of(recipe.plain(config.recovery))
    agent = recipe.plain(config.agent)
    device = recipe.device_of(config)
    parts = recipe.record_parts(config)
    artifact.RunRecord(
        kind="search",
        **parts,
        device=device or {},
        budget=recipe.plain(config.budget),
        settings={
            "seed": config.seed,
            "reward": config.reward,
            "agent": agent,
            "env": recipe.plain(config.env),
            "recovery": recipe.plain(config.recovery),
            "search": recipe.plain(config.search),
        },
    ).write(folder)
    api.check_search(agent, config.reward, device, budget)
    data = recipe.data_of(parts["data"])
    network = recipe.network_of(parts["network"], data)
    result = api.search(
        network,
        data,
        device,
        budget,
        agent=agent,
        evaluations=config.search.evaluations,
        reward=config.reward,
        seed=config.seed,
        space=space,
        recovery=recovery,
        search_images=config.search.images,
        final_candidates=config.search.final_candidates,
        observation=config.env.observation,
        folder=folder,
        hparams={"target": f"{parts['network']['name']} on {(device or {}).get('name', 'table')}"},
    )
    recipe.show(result, folder, config.search.evaluations)
    return result.interrupted
