"""Networks of torchvision, by name. torchvision's models are imported when one is asked for."""

from __future__ import annotations

from typing import Any

from torch import nn

from amc.errors import NetworkError

# Their auxiliary classifiers only serve training, and their own initialisation takes minutes.
TORCHVISION_OPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}


def torchvision_names() -> list[str]:
    """Names of torchvision's classification models."""
    from torchvision import models  # a second that our own networks do not need

    names: list[str] = models.list_models(module=models)
    return names


def torchvision_network(name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
    """A network of torchvision's, with the best of its published weights if they are asked for.

    Raises:
        NetworkError: The weights cannot be fetched.
    """
    from torchvision import models

    if not pretrained:
        arguments = {**TORCHVISION_OPTIONS.get(name, {}), **options}
        network: nn.Module = models.get_model(name, weights=None, **arguments)
        return network
    try:
        network = models.get_model(name, weights="DEFAULT", **options)
    except OSError as cause:
        raise unfetched(name, cause) from cause
    if name == "inception_v3":  # its weights come with a classifier that only serves training
        network.aux_logits, network.AuxLogits = False, None  # type: ignore[assignment]
    return network


def torchvision_images(name: str) -> dict[str, Any]:
    """What the weights of a network were trained on: options of data."""
    from torchvision import models

    images = models.get_model_weights(name).DEFAULT.transforms()
    return {
        "image_size": images.crop_size[0],
        "mean": [*map(float, images.mean)],
        "std": [*map(float, images.std)],
    }


def unfetched(name: str, cause: Exception) -> NetworkError:
    """What is said where weights cannot be downloaded."""
    return NetworkError(
        f"The weights of {name!r} cannot be fetched: {type(cause).__name__}: {cause}. Connect "
        "to the internet, or give a file: network.checkpoint=<file.safetensors or .pt>."
    )
