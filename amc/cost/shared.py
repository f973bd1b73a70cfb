"""Tables of several machines and networks in one SQLite file, which many processes may write.

A table is known by its device, runtime and machine and by all else that prices depend on. Of two
prices for one operator the one of more samples stays; of two alike, the one that is there. Each
writing is one transaction: whoever is killed, or writes at the same time, leaves whole tables.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from amc.cost.device import TableDevice, TableHeader
from amc.cost.origin import machine_here
from amc.cost.table import COLUMNS, list_of, table_text
from amc.errors import TableError
from amc.utils.database import Database
from amc.utils.documents import shown
from amc.utils.files import fingerprint, storage_error

SUFFIXES = (".sqlite", ".sqlite3", ".db")
_ADVICE = "Name another file, or remove it and measure anew: amc profile output=<file>.sqlite."
_TABLES = """
    CREATE TABLE IF NOT EXISTS tables (
        id TEXT NOT NULL PRIMARY KEY, header TEXT NOT NULL
    ) WITHOUT ROWID
"""
_PRICES = """
    CREATE TABLE IF NOT EXISTS prices (
        id TEXT NOT NULL, operator TEXT NOT NULL, price TEXT NOT NULL, samples INTEGER NOT NULL,
        PRIMARY KEY (id, operator)
    ) WITHOUT ROWID
"""
_CORRECTION = "# correction:"
# A table's correction is that of its first network.
_KEEP_TABLE = f"""
    INSERT INTO tables VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET header = excluded.header
    WHERE instr(tables.header, '{_CORRECTION}') = 0
"""
_KEEP_PRICE = """
    INSERT INTO prices VALUES (?, ?, ?, ?) ON CONFLICT (id, operator)
    DO UPDATE SET price = excluded.price, samples = excluded.samples
    WHERE excluded.samples > prices.samples
"""
_PRICE = COLUMNS[COLUMNS.index("latency_ms") :]


@dataclass(frozen=True)
class Shared:
    """One of the tables in a file.

    Attributes:
        id: Sixteen hex digits, by which it can be named.
        prices: How many there are.
    """

    id: str
    header: TableHeader
    prices: int

    def __str__(self) -> str:
        head = self.header
        return (
            f"{self.id}: {head.device}, {head.runtime}, batch {head.batch}, {head.threads} "
            f"thread(s), {self.prices} prices, of {head.source or 'an unnamed machine'}"
        )


def is_shared(path: Path) -> bool:
    """Whether a path names a file of several tables."""
    return path.suffix in SUFFIXES


def keep_shared(device: TableDevice, path: Path) -> str:
    """Keep a table in a file, beside what is in it; gives the table's id.

    Raises:
        ArtifactError: The file is there and is none of amc's.
        TableError: The header has a value that a file cannot hold.
        StorageError: The file cannot be written.
    """
    lines = table_text(device).splitlines()
    header = [line for line in lines if line.startswith("#")]
    name = fingerprint(*(line for line in header if not line.startswith(_CORRECTION)))
    rows = []
    for row in csv.DictReader(lines[len(header) :]):
        operator = ",".join(cell for column, cell in row.items() if column not in _PRICE)
        price = ",".join(row.get(column) or "" for column in _PRICE)
        rows.append((name, operator, price, int(row["samples"])))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
    database = _opened(path)
    try:
        with database.transaction():
            database.execute(_KEEP_TABLE, name, "\n".join(header))
            database.execute_many(_KEEP_PRICE, rows)
    finally:
        database.close()
    return name


def check_shared(path: Path) -> None:
    """Check that tables can be kept in a file.

    Raises:
        ArtifactError: It is there and is none of amc's.
        StorageError: It cannot be written.
    """
    if path.exists():
        _opened(path).close()


def shared_tables(path: Path) -> list[Shared]:
    """The tables in a file.

    Raises:
        ArtifactError, TableError: The file is damaged, or none of amc's.
        StorageError: It cannot be read.
    """
    return [Shared(name, table.header, len(table.rows)) for name, table in _tables(path).items()]


def read_shared(path: Path, wanted: str | None = None) -> TableDevice:
    """A table of a file.

    Args:
        wanted: Its device's name or the beginning of its id; None: the only one, or the only one
            that is of this machine.

    Raises:
        TableError: There is no such table, or several: the message lists them.
        ArtifactError, StorageError: As `shared_tables`.
    """
    tables = _tables(path)
    asked = {
        name: table
        for name, table in tables.items()
        if wanted is None or name.startswith(wanted) or table.header.device == wanted
    }
    found = asked
    if len(asked) > 1:
        found = {name: one for name, one in asked.items() if _is_of_here(one.header)}
    if len(found) == 1:
        return next(iter(found.values()))
    listed = "".join(f"\n  {one}" for one in shared_tables(path))
    what = "no table" if wanted is None else f"no table {shown(wanted)}"
    why = f"{len(asked)} tables, and not one that alone is of this machine" if asked else what
    raise TableError(
        f"{path} has {why}. Name one by its device or the beginning of its id, device.table=... "
        f"It has:{listed or ' nothing'}"
    )


def _is_of_here(header: TableHeader) -> bool:
    return bool(header.source) and machine_here(header.runtime) == header.source


def _tables(path: Path) -> dict[str, TableDevice]:
    if not path.is_file():
        raise TableError(f"Device tables not found: {path}.")
    database = _opened(path)
    try:
        headers = database.rows("SELECT id, header FROM tables ORDER BY id")
        rows = database.rows("SELECT id, operator, price FROM prices ORDER BY id, operator")
    finally:
        database.close()
    found = {}
    for name, header in headers:
        own = [f"{operator},{price}" for of, operator, price in rows if of == name]
        text = "\n".join([str(header), ",".join(COLUMNS), *own])
        table = list_of(text + "\n", path)
        if table.empty:
            raise TableError(f"{path}: table {name} has {table.empty[0][1]} without a price.")
        found[str(name)] = TableDevice(table.header, table.rows)
    return found


def _opened(path: Path) -> Database:
    database = Database(path, [_TABLES, _PRICES], _ADVICE)
    try:
        if not database.check_schema():
            with database.transaction():
                database.execute(_TABLES)
                database.execute(_PRICES)
    except BaseException:
        database.close()
        raise
    return database
