"""Shell completion: Hydra's own, which knows one command, led to the command of the line.

``eval "$(amc -sc install=bash)"`` asks for the shell's script. The script asks ``amc -sc
query=bash`` what may follow, with the line typed so far in ``COMP_LINE``: as commands that have
options are Hydra's programs, the line is handed on without the command's name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

FLAGS = ("-sc", "--shell-completion")


def is_completion(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for completion, behind a command or not."""
    return any(flag in arguments[:2] for flag in FLAGS)


def complete(
    arguments: Sequence[str], commands: Sequence[str], run: Callable[[str, list[str]], int]
) -> int:
    """Answer the shell.

    Args:
        arguments: Of the command line.
        commands: All that there are.
        run: Runs one with arguments; the first has options.

    Returns:
        The exit code.
    """
    asked = [argument for argument in arguments if "=" in argument]
    if not any(argument.startswith("query=") for argument in asked):
        return run(commands[0], ["-sc", *asked])
    with _silent():
        before, line, word = _parted(os.environ.get("COMP_LINE", ""))
        if line is None:
            separator = " " if asked == ["query=bash"] else "\n"
            print(separator.join(name for name in commands if name.startswith(word)))
        else:
            os.environ["COMP_LINE"] = line
            run(before, ["-sc", *asked])
    return 0


def words_typed(arguments: Sequence[str]) -> list[str]:
    """The whole words of the line that is being completed; those of the command line otherwise."""
    if not is_completion(arguments):
        return list(arguments)
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    return words if line[-1:].isspace() else words[:-1]


def _parted(line: str) -> tuple[str, str | None, str]:
    """A typed line as its command, the line without it, and the word that is typed.

    Where the command itself is typed there is no line yet.
    """
    words = line.split()
    if len(words) > 2 or (len(words) == 2 and line[-1].isspace()):
        program, command = words[:2]
        rest = line.split(None, 2)[2:]
        return command, f"{program} {rest[0] if rest else ''}", ""
    return "", None, words[1] if len(words) == 2 else ""


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What goes wrong while somebody types is not shown among what they type."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        yield
