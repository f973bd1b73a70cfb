"""The store in a database, by SQLAlchemy: here its own SQLite dialect stands for a server."""

from __future__ import annotations

import math
import pickle
import sqlite3
import sys
from argparse import Namespace
from pathlib import Path
from random import Random

import pytest

from amc.errors import ArtifactError, ConfigError, StorageError
from amc.problem.evaluate import Evaluation
from amc.problem.server import TABLE, ServerStore
from amc.problem.store import open_store
from amc.strategy import IDENTITY, Strategy
from amc.utils.urls import has_password, is_url
from benchmarks.store import killed_in_the_middle, nothing_wrong

sqlalchemy = pytest.importorskip("sqlalchemy", reason="needs pip install amc-compress[server]")

HALF = Strategy({"conv1": 0.5}, {})
FOUND = Evaluation({"accuracy": 1 / 3, "agreement": -0.0, "loss": math.inf}, seconds=0.1)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'shared.db'}"


def test_what_was_put_is_found_again_to_the_bit_by_another_process_in_its_place(url: str) -> None:
    store = open_store(url)
    assert isinstance(store, ServerStore)
    store.put("task", HALF, FOUND)
    other = pickle.loads(pickle.dumps(store))
    found = other.get("task", HALF)
    assert found is not None
    assert repr(found) == repr(FOUND)
    assert (other.get("task", IDENTITY), other.get("other task", HALF)) == (None, None)
    assert len(other) == 1


def test_first_to_write_an_evaluation_wins(url: str) -> None:
    store = ServerStore(url)
    store.put("task", HALF, FOUND)
    store.put("task", HALF, Evaluation({"accuracy": 0.9}, seconds=2.0))
    assert store.get("task", HALF) == FOUND
    assert [strategy for strategy, _ in store.all("task")] == [HALF]
    assert store.all("other") == []


def test_writers_of_which_some_are_killed_lose_and_double_nothing(url: str) -> None:
    ServerStore(url).close()
    options = Namespace(writers=3, killed=1, strategies=40, within=0.1)
    found = killed_in_the_middle(url, options, Random(0))
    assert nothing_wrong(found, 1), found


@pytest.mark.parametrize(
    ("column", "value"), [("scores", "no scores"), ("scores", '{"accuracy": 1}'), ("seconds", "x")]
)
def test_damaged_row_is_one_clear_error(url: str, column: str, value: str) -> None:
    store = ServerStore(url)
    store.put("task", HALF, FOUND)
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        database.execute(f"UPDATE {TABLE} SET {column} = ?", (value,))
    with pytest.raises(ArtifactError, match=rf"{TABLE} of sqlite.* is damaged.*Drop the table"):
        store.get("task", HALF)


def test_server_that_is_gone_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be used: unable to open.*search.store=true"):
        open_store(f"sqlite:///{tmp_path / 'nowhere' / 'shared.db'}")


@pytest.mark.parametrize("url", ["nosuchdatabase://host/name", "://x"])
def test_url_of_no_database_says_what_one_is(url: str) -> None:
    with pytest.raises(ConfigError, match=r"no database .* postgresql\+psycopg://user@host"):
        open_store(url)


def test_missing_library_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    with pytest.raises(ConfigError, match=r"pip install 'amc-compress\[server\]'"):
        open_store("postgresql://user@host/name")


def test_password_is_not_shown(tmp_path: Path) -> None:
    with pytest.raises((StorageError, ConfigError)) as caught:
        open_store(f"sqlite://user:secret@/{tmp_path / 'nowhere' / 'x.db'}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "url", "password"),
    [
        ("postgresql://me@host/db", True, False),
        ("postgresql://me:pw@host/db", True, True),
        ("postgresql://host:5432/db", True, False),
        ("evaluations.sqlite", False, False),
    ],
)
def test_urls_are_told_from_files(text: str, url: bool, password: bool) -> None:
    assert (is_url(text), has_password(text)) == (url, password)
