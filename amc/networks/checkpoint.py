"""Trained weights from a file into a network, without running any code of the file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.errors import NetworkError
from amc.networks.torch_file import OtherTensor, StoredTensor, load_tensors, read_torch_file
from amc.utils.checkpoints import check_checkpoint
from amc.utils.documents import shown
from amc.utils.files import read_tensors

# Where training scripts keep the weights beside other things.
WRAPPERS = ("state_dict", "model", "model_state_dict", "net")
SHOWN = 8
_LONGEST = 300  # characters of a key in a message


def load_checkpoint(network: nn.Module, path: str | Path, *, ignore: Sequence[str] = ()) -> None:
    """Load a .safetensors, .pt or .pth file into ``network``; on an error it is unchanged.

    A PyTorch file may hold the state dict itself or under one of ``WRAPPERS``; a "module."
    before every key (nn.DataParallel) is stripped. Missing counters of batch normalisation
    (num_batches_tracked) are no error: they are no weights.

    Args:
        ignore: Keys, or patterns such as "linear.*", that are neither loaded nor required.

    Raises:
        NetworkError: The file is missing, damaged, holds more than tensors, holds NaN or
            infinity, or does not fit the network.
    """
    path = Path(path)
    state = _read(path)
    state = {key: tensor for key, tensor in state.items() if not _matches(key, ignore)}
    _check_fits(network, state, path, ignore)
    _check_finite(state, path)
    network.load_state_dict(state, strict=False)


def outputs_in(path: str | Path, network: nn.Module, outputs: int) -> int | None:
    """How many outputs the network of a checkpoint has, where it is this one but for them.

    Args:
        outputs: Of ``network``.

    Returns:
        None where it has as many, or is another network.

    Raises:
        NetworkError: The file is missing, damaged, or holds more than tensors.
    """
    state = _read(Path(path))
    found: set[int] = set()
    for key, tensor in network.state_dict().items():
        stored = state.get(key)
        if stored is None or stored.shape == tensor.shape:
            continue
        last = stored.dim() > 0 and tensor.dim() > 0 and tensor.shape[0] == outputs
        if not last or stored.shape[1:] != tensor.shape[1:]:
            return None
        found.add(stored.shape[0])
    return found.pop() if len(found) == 1 else None


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint."""
    check_checkpoint(path)
    return _as_numbers(_without_prefix(_READERS[path.suffix](path)), path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    return read_tensors(path, "Checkpoint", NetworkError)


def _read_torch(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        found = read_torch_file(path, file)
        content = found.content
        for wrapper in WRAPPERS:
            if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
                content = content[wrapper]
        if not (isinstance(content, dict) and content and all(map(_is_entry, content.items()))):
            raise NetworkError(
                f"Checkpoint {path} must hold a state dict (name -> tensor), bare or under one of "
                f"{', '.join(WRAPPERS)}; it holds {_outline(content)}."
            )
        others = [f"{key}: {t.kind}" for key, t in content.items() if isinstance(t, OtherTensor)]
        if others:
            raise NetworkError(
                f"Checkpoint {path} must hold dense tensors of numbers; it holds "
                f"{_listed(others)}. Save their dense values, in float32, instead."
            )
        return load_tensors(path, found, content)


def _is_entry(item: tuple[object, object]) -> bool:
    key, value = item
    return isinstance(key, str) and isinstance(value, (StoredTensor, OtherTensor))


def _outline(content: object) -> str:
    if isinstance(content, dict):
        return _listed([f"{_name(key)}: {_kind(value)}" for key, value in content.items()])
    return _kind(content)


def _kind(value: object) -> str:
    tensor = isinstance(value, (StoredTensor, OtherTensor))
    return "Tensor" if tensor else type(value).__name__


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return state


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _as_numbers(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Weights of eight bits in floating point as float32, which PyTorch computes with."""
    found = {}
    for key, tensor in state.items():
        narrow = tensor.is_floating_point() and tensor.dtype.itemsize == 1
        try:
            found[key] = tensor.float() if narrow else tensor
        except RuntimeError as cause:
            raise NetworkError(
                f"Checkpoint {path} holds {shown(key)} as {tensor.dtype}, which cannot be read as "
                "float32. Save it in float32."
            ) from cause
    return found


def _check_fits(
    network: nn.Module, state: dict[str, Tensor], path: Path, ignore: Sequence[str]
) -> None:
    expected = {key: t for key, t in network.state_dict().items() if not _matches(key, ignore)}
    missing = [
        key for key in expected if key not in state and not key.endswith("num_batches_tracked")
    ]
    unexpected = [key for key in state if key not in expected]
    misshapen = [
        f"{key} (expected {tuple(tensor.shape)}, got {tuple(state[key].shape)})"
        for key, tensor in expected.items()
        if key in state and state[key].shape != tensor.shape
    ]
    mistyped = [
        f"{key} (expected {tensor.dtype}, got {state[key].dtype})"
        for key, tensor in expected.items()
        if key in state and tensor.is_floating_point() and not state[key].is_floating_point()
    ]
    faults = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": misshapen,
        "no real numbers": mistyped,  # whole ones lack their scale, complex ones lose a half
    }
    if any(faults.values()):
        said = "; ".join(f"{fault}: {_listed(keys)}" for fault, keys in faults.items() if keys)
        raise NetworkError(
            f"Checkpoint {path} seems to be of another architecture than this "
            f"{type(network).__name__}. {said}. Check network.name, network.options and the "
            "number of classes."
        )


def _check_finite(state: dict[str, Tensor], path: Path) -> None:
    broken = [key for key, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise NetworkError(
            f"Checkpoint {path} holds NaN or infinity in: {_listed(broken)}. "
            "Its training diverged or the file is damaged: use another one."
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(_name, names[:SHOWN])) + more


def _name(key: object) -> str:
    """A key in a message: a file's may be long, or not for printing."""
    short = isinstance(key, str) and len(key) <= _LONGEST and key.isprintable()
    return str(key) if short else shown(key)


_READERS = {".safetensors": _read_safetensors, ".pt": _read_torch, ".pth": _read_torch}
