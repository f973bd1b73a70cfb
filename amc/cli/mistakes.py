"""What Hydra says of a mistaken command line, in the words of this command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib.resources import files as package_files
from importlib.resources.abc import Traversable
from typing import Any

import yaml
from hydra.errors import OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from amc.cli.explain import NO_OPTIONS, choices_of

# Hydra's plugins are packages of their own: hydra-<first word>-<kind>.
_PLUGINS = {
    "launcher": ("joblib", "ray", "ray_aws", "rq", "submitit_local", "submitit_slurm"),
    "sweeper": ("ax", "nevergrad", "optuna"),
}
_EXTRAS = ("joblib", "ray", "submitit")  # of amc's, which bring the plugin of that first word
_PLUGIN_NOTES = {
    "optuna": " It needs Optuna 2, and the agents tpe, gp and cma_es need Optuna 4: install it "
    "into an environment of its own.",
}

# What each command calls the run that it starts from, or goes on with.
_RUN_OPTIONS = {
    "apply": "policy",
    "compare": "resume",
    "export": "run",
    "finetune": "run",
    "search": "resume",
}


# How options without a default are given, where that is not plain.
_GIVEN = {
    "run": "run=<folder of a search>, as outputs/search/<date>",
    "policy": "policy=<folder of a search>, or policy=shipped, which comes with amc",
    "runs": "amc report <folder> ..., as amc report outputs/search",
}


def said_by_hydra(error: Exception, command: str, arguments: Sequence[str] = ()) -> str:
    """Hydra's message without its internals.

    Args:
        arguments: Of the command line.
    """
    if isinstance(error, MissingMandatoryValue):
        key = str(error.full_key)
        return f"{key} must be given: {_GIVEN.get(key, f'{key}=<value>')}."
    text = str(error)
    if isinstance(error, OverrideParseException) and error.override not in text:
        text = f"Error parsing override {error.override!r}: {text}"
    if isinstance(error, OmegaConfBaseException):
        text = text.partition("\n")[0]
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        text = text.partition("\n")[0] + "\nOptions are written name=value, as in run=<folder>."
    if text.startswith("LexerNoViableAltException") and isinstance(error, OverrideParseException):
        return (
            f"{error.override} has characters that must be quoted, twice because the shell takes "
            "the first quotes: \"run='photos (1)'\", or, in a list, \"agents=['a b']\"."
        )
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        return _unknown_option(unknown[1], command, arguments)
    if "Config group override must be" in text:
        text += "\nA number belongs to an option inside the group, as in budget.fraction=0.5."
    plugin = re.match(r".*Could not find 'hydra/(launcher|sweeper)/([^']+)'", text)
    if plugin:
        return _missing_plugin(plugin[1], plugin[2])
    missing = re.match(r".*Could not find '(\w+)/([^']+)'", text)
    if missing:
        near = difflib.get_close_matches(missing[2], choices_of(missing[1]), n=1)
        hint = f". Did you mean {near[0]!r}?" if near else "."
        if "." in missing[2] and missing[1] in ("agent", "device", "network"):
            hint = ". What is yours is named package.module:Name, with a colon."
        text = missing[0] + hint + text[missing.end() :]
    return text.partition("Config search path:")[0].rstrip()


def _missing_plugin(kind: str, name: str) -> str:
    if name in _PLUGINS[kind]:
        first = name.partition("_")[0]
        package = f"'amc-compress[{first}]'" if first in _EXTRAS else f"hydra-{first}-{kind}"
        return (
            f"hydra/{kind}={name} is in a package that is not installed: pip install {package}."
            f"{_PLUGIN_NOTES.get(name, '')}"
        )
    near = difflib.get_close_matches(name, _PLUGINS[kind], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"There is no hydra/{kind}={name}.{hint} Known: basic and, each in a package of its own, "
        f"{', '.join(_PLUGINS[kind])}."
    )


def _unknown_option(key: str, command: str, arguments: Sequence[str]) -> str:
    options = _options()
    having = options.pop(key, [])  # another command's, or of another choice of the group
    own = [name for name, places in options.items() if _may_have(command, places)]
    # What another command has is meant as it is written, unless it is all but an own option.
    near = difflib.get_close_matches(key, sorted(own), n=1, cutoff=0.85 if having else 0.6)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    group, of_class = key.partition(".")[0], False
    if group in ("agent", "device"):
        of_class = any(text.startswith(f"{group}=") and ":" in text for text in arguments)
    if of_class:  # Hydra knows no settings of it
        hint = f" A setting of a class of yours is added by a plus: +{key}=..."
    elif having:
        hint += f" What has it: {', '.join(having)}."
    if key in _RUN_OPTIONS.values() and command in _RUN_OPTIONS:
        hint += f" amc {command} takes a run as {_RUN_OPTIONS[command]}=<folder>."
    return (
        f"Could not override {key!r}: amc {command} has no such option.{hint} All of them: "
        f"amc {command} --help."
    )


def _may_have(command: str, places: Sequence[str]) -> bool:
    """Whether an option that these have may be given to a command: its own, or a group's."""
    return f"amc {command}" in places or any("=" in place for place in places)


def _options() -> dict[str, list[str]]:
    """Options of all commands and groups, as written on the command line -> what has them."""
    conf = package_files("amc.conf")
    found: dict[str, list[str]] = {}
    for command in commands():
        file = _yaml(conf / f"{command}.yaml")
        groups = [name for one in file.get("defaults", ()) if isinstance(one, dict) for name in one]
        for name in groups:
            if name.isidentifier():
                found.setdefault(name, []).append(f"amc {command}")
        for key, value in file.items():
            nested = value if isinstance(value, dict) else {}
            for name in (key, *(f"{key}.{inner}" for inner in nested)):
                found.setdefault(name, []).append(f"amc {command}")
    for group in sorted(entry.name for entry in conf.iterdir() if entry.is_dir()):
        if group not in NO_OPTIONS:
            for choice in choices_of(group):
                for option in _yaml(conf / group / f"{choice}.yaml"):
                    found.setdefault(f"{group}.{option}", []).append(f"{group}={choice}")
    return found


def commands() -> list[str]:
    """The commands, which have a file of their options each."""
    names = (entry.name for entry in package_files("amc.conf").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _yaml(file: Traversable) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))
