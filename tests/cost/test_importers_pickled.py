"""Pickles: plain values are read, and nothing that a file asks for is ever called."""

from __future__ import annotations

import builtins
import os
import pickle
import pickletools
from collections import OrderedDict, defaultdict

import numpy as np
import pytest

from amc.cost.importers.pickled import plain_pickle
from amc.errors import TableError


class Calls:
    """Pickled, it is a call of ``function`` when the file is read."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


PLAIN = {"a": [1, 2.5, (3, 4)], "b": None, "c": {(1, 2): True, "d": 2**70}}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read_in_every_protocol(protocol):
    assert plain_pickle(pickle.dumps(PLAIN, protocol), "f") == PLAIN
    shared = [1, 2]
    ordered = OrderedDict(z=shared, a=shared)
    found = plain_pickle(pickle.dumps(ordered, protocol), "f")
    assert type(found) is dict
    assert list(found.items()) == [("z", [1, 2]), ("a", [1, 2])]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("how", ["system", "eval", "open", "nested", "dictionary key", "exec"])
def test_hostile_pickle_is_refused_and_leaves_no_trace(tmp_path, protocol, how):
    trace = tmp_path / "trace"
    touch = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    hostile = {
        "system": Calls(os.system, f"touch {trace}"),
        "eval": Calls(builtins.eval, touch),
        "open": Calls(builtins.open, str(trace), "w"),
        "nested": OrderedDict(x=[{"y": Calls(builtins.eval, Calls(builtins.str, touch))}]),
        "dictionary key": {Calls(builtins.eval, touch): 1},
        "exec": Calls(builtins.exec, touch),
    }[how]
    content = pickle.dumps(hostile, protocol)
    with pytest.raises(TableError, match=r"f asks for .*(system|eval|open|exec)"):
        plain_pickle(content, "f")
    assert not trace.exists()
    pickle.loads(content)  # what a plain load would have done
    assert trace.exists()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (defaultdict(list), "collections.defaultdict"),
        (np.float64(1), "numpy"),
        (np.zeros(2), "numpy"),
        ({1, 2}, "EMPTY_SET"),
    ],
)
def test_anything_but_plain_values_is_refused_by_name(value, said):
    with pytest.raises(TableError, match=f"f asks for .*{said}"):
        plain_pickle(pickle.dumps(value, 4), "f")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02\x82\x01.", "EXT1"),  # a registered extension
        (b"Pkey\n.", "PERSID"),  # an object kept elsewhere
        (b"(ios\nsystem\n.", "INST"),
        (b"(ccollections\nOrderedDict\no.", "OBJ"),
        (b"ccollections\nOrderedDict\n(t\x81.", "NEWOBJ"),
        (b"N}b.", "BUILD"),  # an object's state
        (b"ccollections\nOrderedDict.fromkeys\n.", "collections.OrderedDict.fromkeys"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.", "OrderedDict.fromkeys"),
    ],
)
def test_instructions_that_reach_beyond_plain_values_are_refused(content, said):
    assert list(pickletools.genops(content))  # a pickle that can be read
    with pytest.raises(TableError, match=f"f asks for .*{said}"):
        plain_pickle(content, "f")


def nested(depth):
    """Tuples of one item each, so many around None, written in four ways."""
    return [
        b"N" + b"\x85" * depth,
        b"(" * depth + b"N" + b"t" * depth,
        b"N" + b"\x85q\x000h\x00" * depth,  # put aside, dropped and got back each time
        b"\x80\x04N"
        + b"".join(b"\x85\x940j" + place.to_bytes(4, "little") for place in range(depth)),
    ]


@pytest.mark.parametrize("way", range(4))
def test_key_of_tuples_nested_without_end_is_refused_before_it_is_hashed(way):
    with pytest.raises(
        TableError, match=r"f asks for (a key that holds a tuple|containers nested)"
    ):
        plain_pickle(b"}" + nested(200_000)[way] + b"Ns.", "f")
    with pytest.raises(TableError, match="a key that holds a tuple: texts and numbers are keys"):
        plain_pickle(b"}" + nested(2)[way] + b"Ns.", "f")
    assert plain_pickle(b"}" + nested(1)[way] + b"Ns.", "f") == {(None,): None}


def test_tuples_nested_without_end_are_no_harm_as_values():
    value = plain_pickle(nested(200_000)[0] + b".", "f")
    for _ in range(200_000):
        (value,) = value
    assert value is None


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (b"(" + b"K\x01" * 9 + b"t", "a key of 9 items"),
        (b"\x8a\x09" + b"\x01" * 9, "a key that is a huge integer"),
        (b"\x8a\x09" + b"\x01" * 9 + b"\x85", "a key that is a huge integer"),
    ],
)
def test_key_that_takes_long_to_hash_is_refused(key, said):
    with pytest.raises(TableError, match=f"f asks for {said}"):
        plain_pickle(b"}" + key + b"Ns.", "f")


def test_memory_far_away_is_not_reserved():
    assert plain_pickle(b"Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.", "f") is None


@pytest.mark.parametrize("content", [b"", b"x", b".", b"0.", b"(.", b"N", b"]]s."])
def test_broken_pickle_is_one_clear_error(content):
    with pytest.raises(TableError, match="f is not a readable pickle"):
        plain_pickle(content, "f")


def test_dict_is_all_that_a_pickle_can_call():
    content = b"ccollections\nOrderedDict\n(NtR."
    with pytest.raises(TableError, match=r"not a readable pickle.*NoneType"):
        plain_pickle(content, "f")
    with pytest.raises(TableError, match="a call of what is no function"):
        plain_pickle(b"N)R.", "f")
