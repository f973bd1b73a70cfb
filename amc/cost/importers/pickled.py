"""Reading a pickle that may hold numbers, texts, lists, tuples and dictionaries, and no code.

This is the only place that opens a pickle: NetAdapt's tables come in no other form. A pickle is
a program for a small stack machine, and what makes one dangerous is that it may look up any
function by name and call it. Two walls stand before that:

1. The program is read first, without running it. Every instruction must be of ``_ALLOWED``: those
   that build plain values. None of them sets an object's state or asks for an extension.
2. The unpickler knows one name, ``collections.OrderedDict``, and takes a plain ``dict`` for it.
   So the only thing that a pickle can call is ``dict``.

Python hashes a tuple that is a key of a dictionary by hashing what is in it, however deep: the
program's tuples may not be nested so deep that the interpreter's own stack would end.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import NoReturn

from amc.errors import TableError

_INSTRUCTIONS = """
    PROTO FRAME STOP MARK POP POP_MARK
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
    EMPTY_LIST LIST APPEND APPENDS
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_DICT DICT SETITEM SETITEMS
    PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL REDUCE
"""
_ALLOWED = frozenset(_INSTRUCTIONS.split())
_KNOWN = "collections.OrderedDict"
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_DEEPEST = 100  # tuples in tuples; a table has them one deep


def plain_pickle(content: bytes, where: str) -> object:
    """The value that a pickle of plain values holds.

    Args:
        where: Names the file in errors.

    Raises:
        TableError: It is no pickle, or asks for anything but plain values; the message names the
            class or the instruction.
    """
    try:
        _check(content, where)
        return _Plain(io.BytesIO(content), where).load()
    except TableError:
        raise
    except Exception as cause:  # of many kinds, whatever a broken program does to the stack
        raise TableError(f"{where} is not a readable pickle: {cause}.") from cause


def _check(content: bytes, where: str) -> None:
    """Read the program without running it."""
    texts: list[str] = []
    named: list[str] = []  # what it looked up so far, as well as that is known without running it
    depths = _TupleDepths()
    for instruction, argument, _ in pickletools.genops(content):
        if isinstance(argument, str):
            texts.append(argument.replace(" ", "."))
        if instruction.name in ("GLOBAL", "STACK_GLOBAL"):
            named.append(".".join(texts[-1 if instruction.name == "GLOBAL" else -2 :]))
        if instruction.name not in _ALLOWED:
            strange = [name for name in named if name != _KNOWN]
            raise _refused(where, strange[0] if strange else f"instruction {instruction.name}")
        if instruction.name == "GLOBAL" and named[-1] != _KNOWN:
            raise _refused(where, named[-1])
        # A place far away would make the unpickler reserve all the memory up to it.
        if instruction.name in _PUTS and int(argument or 0) > len(content):
            raise _refused(where, f"place {argument} to put a value aside")
        if depths.after(instruction, argument) > _DEEPEST:
            raise _refused(where, f"tuples nested more than {_DEEPEST} deep")


class _TupleDepths:
    """How deep tuples are nested in each value that a program has, found without making them.

    Lists and dictionaries count as 0: they have no hash, so no key reaches through them.
    """

    def __init__(self) -> None:
        self._stack: list[int | None] = []  # None is a mark
        self._aside: dict[int, int] = {}

    def after(self, instruction: pickletools.OpcodeInfo, argument: object) -> int:
        """Follow an instruction; gives the depth of the value on top of the stack."""
        name, stack = instruction.name, self._stack
        if name == "MARK":
            stack.append(None)
        elif name in _GETS:
            stack.append(self._aside.get(int(str(argument)), 0))
        elif name in _PUTS or name == "MEMOIZE":
            place = len(self._aside) if name == "MEMOIZE" else int(str(argument))
            self._aside[place] = stack[-1] or 0
        elif name == "POP":
            stack.pop()
        else:
            taken = self._take(instruction.stack_before)
            depth = 1 + max(taken, default=0) if "TUPLE" in name else 0
            stack += [depth] * len(instruction.stack_after)
        return (stack[-1] or 0) if stack else 0

    def _take(self, wanted: list[pickletools.StackObject]) -> list[int]:
        """The depths that an instruction takes from the stack, which is then without them."""
        taken, single = [], len(wanted)
        if pickletools.stackslice in wanted:
            single = wanted.index(pickletools.markobject)
            while (depth := self._stack.pop()) is not None:
                taken.append(depth)
        return taken + [self._stack.pop() or 0 for _ in range(single)]


class _Plain(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, where: str) -> None:
        super().__init__(file)
        self._where = where

    def find_class(self, module: str, name: str) -> type[dict[object, object]]:
        if f"{module}.{name}" == _KNOWN:
            return dict  # its order is a dict's, and nothing can be hung onto it
        raise _refused(self._where, f"{module}.{name}")

    def persistent_load(self, pid: object) -> NoReturn:
        raise _refused(self._where, "an object that is kept elsewhere")


def _refused(where: str, what: str) -> TableError:
    return TableError(
        f"{where} asks for {what[:120]}: expected a NetAdapt table, a pickle of numbers, texts, "
        "lists, tuples and dictionaries alone. Nothing was called. Do not trust where it came from."
    )
