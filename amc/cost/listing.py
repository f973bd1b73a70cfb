"""How it is said which prices a device still needs."""

from __future__ import annotations

import json
import re
import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amc.cost.device import TableHeader


def listing_command(header: TableHeader) -> str:
    """The command that lists what to measure on the device of a table, wherever that is."""
    bits = ",".join(f'"{pair}"' for pair in header.supported_bits)
    name = re.sub(r"[^\w.-]", "_", header.device)  # a table's may be any text
    covers = " todo_covers=layers" if header.covers == "layers" else ""
    return (
        f"amc profile device=todo {_option('name', name)} "
        f"{_option('runtime', header.runtime)} device.batch={header.batch} "
        f"device.threads={header.threads} device.channel_step={header.channel_step} "
        f"'device.bits=[{bits}]' todo=<file>.csv{covers} network=<network>"
    )


def _option(key: str, text: str) -> str:
    """An option of the device as it is typed; what is more than a word needs quotes."""
    is_word = re.fullmatch(r"[A-Za-z_][\w.-]*", text, re.ASCII)
    option = f"device.{key}={text if is_word else json.dumps(text, ensure_ascii=False)}"
    return option if is_word else shlex.quote(option)
