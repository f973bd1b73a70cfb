"""What the options of a command mean: the comments beside them in conf/."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib.resources import files as package_files
from itertools import takewhile

_OPTION = re.compile(r"^( *)(\w+):(?: .*?)?(?:\s+#\s+(.*))?$")
_MORE = re.compile(r"^\s+#\s*(.*)$")  # a comment that goes on
_DEFAULT = re.compile(r"^ +- (?:optional )?(\w+): +(\S+)(?: +# (.*))?$", re.M)  # of a defaults list
_HIDDEN = ("defaults", "hydra")


NO_OPTIONS = ("hydra", "experiment")  # folders of conf/ whose files hold no options of a group

# What the names of a group's choices do not say.
_GROUPS = {
    "network": "also the name of any classification model of torchvision, timm/<name>, or "
    "package.module:function that returns your torch.nn.Module",
    "data": "image_folder: data.root=<folder of train/<class>/* and test/<class>/*>; mask_folder: "
    "data.root=<folder of images/* and masks/*>; also package.module:function that returns a torch "
    "dataset or tensors",
    "device": "torch_* and onnxruntime_cpu are measured on this machine; ethos_* are estimated by "
    "Arm's compiler; roofline_* are models of devices; table, haq, netadapt, ofa read device.path; "
    "todo lists what to measure elsewhere; custom: device.name=package.module:Class",
    "budget": "the metric; how much of it: budget.fraction or budget.absolute",
    "agent": "how strategies are chosen",
}


def explanations(command: str, arguments: Sequence[str]) -> str:
    """The groups of a command with their choices, and one line for every option with a comment.

    Args:
        arguments: Of the command line: a group's choice there takes the default's place.
    """
    conf = package_files("amc.conf")
    groups, files = [], [("", conf / f"{command}.yaml")]
    for group, choice, comment in _chosen(command, arguments):
        groups.append(_of_group(group, comment))
        file = conf / group / f"{choice}.yaml"
        if file.is_file():
            files.append((f"{group}.", file))
            about = _about(file.read_text(encoding="utf-8"))
            groups += [f"{'':13}{choice}: {about}"] if about else []
    options = [
        f"  {prefix}{name:{max(1, 34 - len(prefix))}} {comment}"
        for prefix, file in files
        for name, comment in commented(file.read_text(encoding="utf-8"))
    ]
    return "\n".join(
        ["== Groups: group=choice ==", *groups, "", "== What options mean ==", *options]
    )


def _of_group(group: str, comment: str) -> str:
    """Its choices, then what they do not say; only its comment where it has one."""
    if group in ("network", "data") and comment:  # the run knows which they are
        return f"  {group:10} {comment}"
    said = [", ".join(choices_of(group)), comment, _GROUPS.get(group, "")]
    return f"  {group:10} " + f"\n{'':13}".join(filter(None, said))


def _about(text: str) -> str:
    """The comment at the top of a choice's file, without the command that uses it."""
    top = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in top if not line.startswith("# amc "))


def choices_of(group: str) -> list[str]:
    """Names of the files of a group; none for a group that there is not."""
    folder = package_files("amc.conf") / group
    names = (entry.name for entry in folder.iterdir()) if folder.is_dir() else ()
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


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


def _chosen(command: str, arguments: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The groups of a command, what is chosen of each, and the comment beside it."""
    text = (package_files("amc.conf") / f"{command}.yaml").read_text(encoding="utf-8")
    given = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    for group, choice, comment in _DEFAULT.findall(text):
        if group != "experiment":
            yield group, str(given.get(group, choice)), comment
