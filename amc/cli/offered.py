"""Networks, data, devices and agents of the user's, as options that Hydra knows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files as package_files
from typing import Any

from hydra.core.config_store import ConfigStore

from amc.data.options import OF_ALL as DATA_OPTIONS
from amc.errors import ConfigError
from amc.utils.packages import as_module

_OFFERED: dict[str, dict[str, Any]] = {  # group -> its options, beside the name
    "network": {"checkpoint": None, "options": {}, "outputs": None},
    "data": {"seed": 0, **dict.fromkeys(("root", *DATA_OPTIONS))},
    "objective": {"weights": None, "metric": None},
    "device": {"kind": "class", "options": {}},
    "agent": {},
}
_ANY = ("network", "objective")  # of these what is built says which names there are
_IN_A_PACKAGE = re.compile(r"timm/[\w.-]+(?<!\.py)$")  # no file, though there is a slash in it
_FUNCTIONS = {"network": "A network is", "data": "Data of yours are"}
_NAMED = re.compile(rf"({'|'.join(_OFFERED)})=([\w.:,/-]+)")


def offer_names(arguments: Sequence[str]) -> None:
    """Make a group of every name on the command line that conf/ has none for.

    So ``network=resnet18`` and ``agent=package.module:Class`` need no file.
    """
    for argument in arguments:
        option, _, name = argument.partition("=")
        is_named = option in _OFFERED and not (option == "network" and _IN_A_PACKAGE.match(name))
        module = as_module(name) if is_named else None
        if module is not None and (option == "network" or ":" in name):
            kind = f"{_FUNCTIONS.get(option)} a function, package.module:function"
            if option not in _FUNCTIONS:
                kind = f"Of {option}s of yours, amc takes the class, package.module:Class"
            raise ConfigError(f"{option}={name} names a file. {kind}: {option}={module}.")
    for match in filter(None, map(_NAMED.fullmatch, arguments)):
        group, names = match[1], match[2].split(",")
        for name in names:
            known = (package_files("amc.conf") / group / f"{name}.yaml").is_file()
            if not known and (group in _ANY or ":" in name):
                published = {} if ":" in name or group != "network" else {"pretrained": False}
                node = {"name": name, **published, **_OFFERED[group]}
                folder, _, file = f"{group}/{name}".rpartition("/")
                ConfigStore.instance().store(name=file, group=folder, node=node, package=group)
