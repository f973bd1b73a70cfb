"""What the options of a command mean: the comments beside them in conf/."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.resources import files as package_files

import yaml

_OPTION = re.compile(r"^( *)(\w+):(?: .*?)?(?:\s+#\s+(.*))?$")
_MORE = re.compile(r"^\s+#\s*(.*)$")  # a comment that goes on
_HIDDEN = ("defaults", "hydra")


def explanations(command: str, arguments: Sequence[str]) -> str:
    """One line for every option of a command that has a comment, its groups' included.

    Args:
        arguments: Of the command line: a group's choice there takes the default's place.
    """
    conf = package_files("amc.conf")
    files = [("", conf / f"{command}.yaml")]
    for group, choice in _choices(command, arguments):
        file = conf / group / f"{choice}.yaml"
        if file.is_file():
            files.append((f"{group}.", file))
    lines = [
        f"  {prefix}{name:{max(1, 34 - len(prefix))}} {comment}"
        for prefix, file in files
        for name, comment in commented(file.read_text(encoding="utf-8"))
    ]
    return "\n".join(["== What they mean ==", *lines])


def commented(text: str) -> list[tuple[str, str]]:
    """Options of a YAML file with what is written beside them, (dotted name, comment)."""
    found: list[tuple[str, str]] = []
    path: list[tuple[int, str]] = []  # (indentation, name) down to the last option
    for line in text.splitlines():
        option = _OPTION.match(line)
        if option is None:
            more = _MORE.match(line)
            if more and found and found[-1][1]:
                found[-1] = found[-1][0], f"{found[-1][1]} {more[1]}"
            continue
        indent = len(option[1])
        path = [*(outer for outer in path if outer[0] < indent), (indent, option[2])]
        found.append((".".join(name for _, name in path), option[3] or ""))
    return [
        (name, comment)
        for name, comment in found
        if comment and name.partition(".")[0] not in _HIDDEN
    ]


def _choices(command: str, arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The groups of a command and what is chosen of each."""
    text = (package_files("amc.conf") / f"{command}.yaml").read_text(encoding="utf-8")
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    for entry in yaml.safe_load(text).get("defaults", ()):
        if isinstance(entry, dict):
            for group, choice in entry.items():
                plain = str(group).removeprefix("optional ")
                if " " not in plain and "/" not in plain:
                    yield plain, str(given.get(plain, choice))
