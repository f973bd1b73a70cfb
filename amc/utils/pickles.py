"""Reading a pickle without Python's own: plain values are built, and nothing that it names is run.

A pickle is a program for a small stack machine. What makes one dangerous is that it may look up
any function by name and call it, and that a few bytes of it can ask for memory or time without
end. This is a machine of the same kind that knows plain values alone:

- A name means what the caller says, or the file is refused.
- Every instruction takes one step, a list or dictionary and every item that a call copies takes
  several: so many steps are the most, and each makes one small object at most.
- A key of a dictionary is a text, a number, or a flat tuple of a few of them, so that hashing it
  takes no time. (Python hashes a tuple by hashing what is in it: thirty tuples of the one before,
  twice, are a thousand million hashes.)
"""

from __future__ import annotations

import codecs
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST_STEPS = 4_000_000
STEPS_PER_COPY = 4  # an entry of a dictionary takes as much memory as several instructions,
STEPS_PER_CONTAINER = 16  # and so does a list, which the garbage collector looks at too
MOST_MARKS = 100  # of containers begun and not ended
MOST_INTEGER_BYTES = 256
LONGEST_KEY = 8  # items of a tuple

Persistent = Callable[[Any], Any]


class RefusedError(Exception):
    """A pickle asks for something that is not given: says for what."""


@dataclass(frozen=True)
class Known:
    """A function that a pickle may call: gets the arguments, of any types and number."""

    call: Callable[..., Any]


Names = Callable[[str], Any]
"""The value that "module.name" stands for, a `Known` if it may be called; None refuses it."""


def run_pickle(
    content: bytes, names: Names, persistent: Persistent | None = None, start: int = 0
) -> tuple[Any, int]:
    """The value that a pickle holds, and where it ends.

    Args:
        names: Asked for every name.
        persistent: What an object that is kept elsewhere stands for, by its identifier; without
            it there is none.
        start: Where the pickle begins in the content.

    Raises:
        RefusedError: It asks for what is not given, or for too much.
        Exception: Of many kinds: it is no pickle.
    """
    machine = _Machine(content, names, persistent, start)
    return machine.run(), machine.at


def checked_key(value: Any) -> Any:
    """A value that may be a dictionary's key: it is hashed in no time.

    Raises:
        RefusedError: It may not.
    """
    if type(value) is tuple:
        if len(value) > LONGEST_KEY:
            raise RefusedError(f"a key of {len(value)} items")
        for item in value:
            _check_scalar(item)
    else:
        _check_scalar(value)
    return value


def _check_scalar(value: Any) -> None:
    if type(value) not in _SCALARS:
        raise RefusedError(f"a key that holds a {type(value).__name__}: texts and numbers are keys")
    if type(value) is int and not -(2**63) <= value < 2**63:
        raise RefusedError("a key that is a huge integer")


_SCALARS = (str, int, float, bool, bytes, type(None))


class _Machine:
    def __init__(
        self, content: bytes, names: Names, persistent: Persistent | None, start: int
    ) -> None:
        self.content, self.at = content, start
        self.names, self.persistent = names, persistent
        self.steps = 0
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.aside: dict[int, Any] = {}

    def run(self) -> Any:
        content, stop = self.content, ord(".")
        while True:
            if self.at >= len(content):
                raise EOFError("it ends too early")
            code = content[self.at]
            self.at += 1
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise RefusedError(f"more than {MOST_STEPS} instructions")
            if code == stop:
                break
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                known = [o.name for o in pickletools.opcodes if ord(o.code) == code]
                if not known:
                    raise ValueError(f"there is no instruction {chr(code)!a}")
                raise RefusedError(f"instruction {known[0]}")
            instruction(self)
        if self.outer or len(self.stack) != 1:
            raise ValueError("it ends with more or less than one value")
        return self.stack[0]

    # -- what is read from the content

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.content):
            raise EOFError("it ends too early")
        found = self.content[self.at : end]
        self.at = end
        return found

    def line(self) -> bytes:
        end = self.content.find(b"\n", self.at)
        if end < 0:
            raise EOFError("it ends too early")
        found = self.content[self.at : end]
        self.at = end + 1
        return found

    def short_line(self) -> bytes:
        """A line that holds a number: one of many digits takes long to read."""
        found = self.line()
        if len(found) > MOST_INTEGER_BYTES:
            raise RefusedError(f"a number of {len(found)} digits")
        return found

    # -- what is built

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def push_pickled_name(self, name: str) -> None:
        value = self.names(name)
        if value is None:
            raise RefusedError(name)
        self.stack.append(value)

    def mark(self) -> None:
        if len(self.outer) >= MOST_MARKS:
            raise RefusedError(f"containers nested more than {MOST_MARKS} deep")
        self.outer.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def tuple_of(self, size: int) -> None:
        items = tuple(self.stack[-size:])
        if len(items) < size:
            raise ValueError("a tuple lacks items")
        self.stack[-size:] = [items]

    def container(self, value: list[Any] | dict[Any, Any]) -> None:
        self.steps += STEPS_PER_CONTAINER
        self.stack.append(value)

    def dictionary(self) -> None:
        items = self.pop_mark()
        self.container({})
        self.set_items(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("entries without a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[checked_key(key)] = value

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("items without a list")
        target += items

    def integer(self, size: int) -> None:
        if size > MOST_INTEGER_BYTES:
            raise RefusedError(f"an integer of {size} bytes")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def text_integer(self) -> None:
        text = self.short_line()
        whole = {b"00": False, b"01": True}
        self.stack.append(whole[text] if text in whole else int(text))

    def quoted(self) -> None:
        text = self.line()
        if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
            raise ValueError("a text is not quoted")
        self.stack.append(codecs.escape_decode(text[1:-1])[0].decode("ascii"))

    def put(self, place: int) -> None:
        self.aside[place] = self.stack[-1]

    def named(self) -> None:
        module, name = self.line().decode(), self.line().decode()
        self.push_pickled_name(f"{module}.{name}")

    def named_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("a name is no text")
        self.push_pickled_name(f"{module}.{name}")

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(function) is not Known or type(arguments) is not tuple:
            raise ValueError("a call of what is no function")
        sized = (len(a) for a in arguments if isinstance(a, (list, tuple, dict, str, bytes)))
        self.steps += STEPS_PER_COPY * sum(sized)
        if self.steps > MOST_STEPS:
            raise RefusedError(f"more than {MOST_STEPS} instructions and copies")
        self.stack.append(function.call(*arguments))

    def build(self) -> None:
        """Attributes that are hung onto a dictionary: they are no values, and left out."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise RefusedError("instruction BUILD")

    def kept_elsewhere(self) -> None:
        if self.persistent is None:
            raise RefusedError("an object that is kept elsewhere")
        self.stack.append(self.persistent(self.stack.pop()))


_Instruction = Callable[[_Machine], Any]


def _value(value: Any) -> _Instruction:
    return lambda m: m.stack.append(value)


def _number(layout: str, use: Callable[[_Machine, Any], Any]) -> _Instruction:
    """An instruction that a number follows: ``use`` is given it."""
    form = struct.Struct(layout)
    unpack, size = form.unpack_from, form.size

    def instruction(m: _Machine) -> None:
        (number,) = unpack(m.content, m.at)
        m.at += size
        use(m, number)

    return instruction


def _push(m: _Machine, value: Any) -> None:
    m.stack.append(value)


def _push_put_aside(m: _Machine, place: int) -> None:
    m.stack.append(m.aside[place])


def _push_text(m: _Machine, size: int) -> None:
    m.stack.append(m.take(size).decode("utf-8", "surrogatepass"))


def _push_ascii(m: _Machine, size: int) -> None:
    m.stack.append(m.take(size).decode("ascii"))


def _push_bytes(m: _Machine, size: int) -> None:
    m.stack.append(m.take(size))


_BY_NAME: dict[str, _Instruction] = {
    "PROTO": lambda m: m.take(1),
    "FRAME": lambda m: m.take(8),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "NONE": _value(None),
    "NEWTRUE": _value(True),
    "NEWFALSE": _value(False),
    "INT": _Machine.text_integer,
    "BININT": _number("<i", _push),
    "BININT1": _number("<B", _push),
    "BININT2": _number("<H", _push),
    "LONG": lambda m: m.stack.append(int(m.short_line().removesuffix(b"L"))),
    "LONG1": _number("<B", _Machine.integer),
    "LONG4": _number("<I", _Machine.integer),
    "FLOAT": lambda m: m.stack.append(float(m.short_line())),
    "BINFLOAT": _number(">d", _push),
    "STRING": _Machine.quoted,
    "BINSTRING": _number("<I", _push_ascii),
    "SHORT_BINSTRING": _number("<B", _push_ascii),
    "UNICODE": lambda m: m.stack.append(m.line().decode("raw-unicode-escape")),
    "SHORT_BINUNICODE": _number("<B", _push_text),
    "BINUNICODE": _number("<I", _push_text),
    "BINUNICODE8": _number("<Q", _push_text),
    "SHORT_BINBYTES": _number("<B", _push_bytes),
    "BINBYTES": _number("<I", _push_bytes),
    "BINBYTES8": _number("<Q", _push_bytes),
    "EMPTY_LIST": lambda m: m.container([]),
    "LIST": lambda m: m.container(m.pop_mark()),
    "APPEND": lambda m: m.append([m.stack.pop()]),
    "APPENDS": lambda m: m.append(m.pop_mark()),
    "EMPTY_TUPLE": _value(()),
    "TUPLE": lambda m: _push(m, tuple(m.pop_mark())),
    "TUPLE1": lambda m: m.tuple_of(1),
    "TUPLE2": lambda m: m.tuple_of(2),
    "TUPLE3": lambda m: m.tuple_of(3),
    "EMPTY_DICT": lambda m: m.container({}),
    "DICT": _Machine.dictionary,
    "SETITEM": _Machine.set_item,
    "SETITEMS": lambda m: m.set_items(m.pop_mark()),
    "PUT": lambda m: m.put(int(m.short_line())),
    "BINPUT": _number("<B", _Machine.put),
    "LONG_BINPUT": _number("<I", _Machine.put),
    "MEMOIZE": lambda m: m.put(len(m.aside)),
    "GET": lambda m: m.stack.append(m.aside[int(m.short_line())]),
    "BINGET": _number("<B", _push_put_aside),
    "LONG_BINGET": _number("<I", _push_put_aside),
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.named_from_stack,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.kept_elsewhere,
}
_INSTRUCTIONS = {
    ord(opcode.code): _BY_NAME[opcode.name]
    for opcode in pickletools.opcodes
    if opcode.name in _BY_NAME
}


def dictionary_of(*arguments: Any) -> dict[Any, Any]:
    """What ``collections.OrderedDict`` and ``Counter`` stand for: a dict of pairs, or of a dict."""
    (pairs,) = arguments or ((),)
    if type(pairs) is dict:
        return dict(pairs)
    if type(pairs) not in (list, tuple):
        raise ValueError(f"a dictionary of a {type(pairs).__name__}")
    made: dict[Any, Any] = {}
    for pair in pairs:
        if type(pair) not in (list, tuple):
            raise ValueError(f"an entry of a dictionary that is a {type(pair).__name__}")
        key, value = pair
        made[checked_key(key)] = value
    return made
