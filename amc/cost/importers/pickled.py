"""Reading a pickle that may hold numbers, texts, lists, tuples and dictionaries, and no code.

NetAdapt's tables come in no other form. `amc.utils.pickles` runs it; it may call one function,
``collections.OrderedDict``, which stands for a plain ``dict``.
"""

from __future__ import annotations

from amc.errors import TableError
from amc.utils.pickles import Known, RefusedError, dictionary_of, run_pickle

_NAMES = {"collections.OrderedDict": Known(dictionary_of)}


def plain_pickle(content: bytes, where: str) -> object:
    """The value that a pickle of plain values holds.

    Args:
        where: Names the file in errors.

    Raises:
        TableError: It is no pickle, or asks for anything but plain values; the message names the
            class or the instruction.
    """
    try:
        value: object = run_pickle(content, _NAMES.get)[0]
    except RefusedError as cause:
        raise TableError(
            f"{where} asks for {str(cause)[:120]}: expected a NetAdapt table, a pickle of numbers, "
            "texts, lists, tuples and dictionaries alone. Nothing was called. Do not trust where "
            "it came from."
        ) from None
    except Exception as cause:  # of many kinds, whatever a broken program does to the stack
        raise TableError(f"{where} is not a readable pickle: {cause}.") from cause
    return value
