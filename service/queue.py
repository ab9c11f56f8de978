"""The queue, in SQLite: what is answered as queued is on disk, and every change of a job is one transaction."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from time import time
from typing import Any

from ..errors import SplinterpError
from .commands import Work
from .jobs import ACTIVE, OPEN, Job, State

FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT, request TEXT UNIQUE, changed INTEGER NOT NULL,
    work TEXT NOT NULL, command TEXT NOT NULL, writes TEXT, state TEXT NOT NULL, priority INTEGER NOT NULL, threads INTEGER NOT NULL,
    ranks INTEGER NOT NULL, label TEXT NOT NULL, mode TEXT NOT NULL DEFAULT 'first', attempt INTEGER NOT NULL DEFAULT 0,
    restarts INTEGER NOT NULL DEFAULT 0, slot TEXT, handle TEXT NOT NULL DEFAULT '{}', line TEXT NOT NULL DEFAULT '[]',
    submitted REAL NOT NULL, begun REAL, started REAL, ended REAL, stop_at REAL, exit_code INTEGER,
    message TEXT NOT NULL DEFAULT '', result TEXT
);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, priority DESC, id);
CREATE INDEX IF NOT EXISTS by_output ON jobs (writes);
"""
_JSON = ("handle", "line", "result")
_PLAIN = [field.name for field in fields(Job) if field.name not in ("work", *_JSON)]
_ORDER = """ORDER BY CASE WHEN state IN ('starting', 'running', 'stopping') THEN 0 WHEN state = 'queued' THEN 1 ELSE 2 END,
            CASE WHEN state = 'queued' THEN -priority ELSE 0 END,
            CASE WHEN state IN ('done', 'failed', 'stopped') THEN -ended ELSE 0 END, id"""


class QueueFullError(SplinterpError):
    """There are as many queued jobs as the service takes."""


class Queue:
    """The jobs of one service; safe to use from several threads.

    Args:
        path: of the database, which is made if need be.
        most: jobs that may wait or run at a time.

    Raises:
        SplinterpError: the file is another program's, or a newer version's.
    """

    def __init__(self, path: Path, most: int = 10_000) -> None:
        self.most = most
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")  # an answer must survive a power cut
            found = self._db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, FORMAT):
                raise SplinterpError(f"{path} is of another version of splinterp (format {found}); serve it with that.")
            self._db.executescript(_SCHEMA)
            self._db.execute(f"PRAGMA user_version = {FORMAT}")
        except sqlite3.DatabaseError as error:
            raise SplinterpError(f"The queue {path} cannot be read ({error}); move it away to begin a new one.") from None
        self.changed = int(self._db.execute("SELECT coalesce(max(changed), 0) FROM jobs").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def submit(
        self, work: Work, *, priority: int = 0, threads: int = 1, ranks: int = 1, label: str = "", request: str | None = None
    ) -> Job:
        """A new job at the end of the queue; of the same `request` the job that it made before. Raises QueueFullError."""
        with self._transaction():
            if request is not None and (job := self.of_request(request)):
                return job
            if self.count(OPEN) >= self.most:
                raise QueueFullError(f"The queue is full ({self.most:,} jobs); wait until some have ended.")
            cursor = self._db.execute(
                "INSERT INTO jobs (request, changed, work, command, writes, state, priority, threads, ranks, label, submitted) "
                "VALUES (?, ?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?)",
                (
                    request,
                    self.changed + 1,
                    json.dumps(asdict(work)),
                    work.command,
                    next(iter(work.writes), None),
                    priority,
                    threads,
                    ranks,
                    label,
                    time(),
                ),
            )
            self.changed += 1
            assert cursor.lastrowid is not None
            return self.get(cursor.lastrowid)

    def of_request(self, request: str) -> Job | None:
        """The job that a request has made, if it did."""
        rows = self._rows("SELECT * FROM jobs WHERE request = ?", (request,))
        return _job(rows[0]) if rows else None

    def get(self, id: int) -> Job:
        """Raises KeyError where there is none."""
        rows = self._rows("SELECT * FROM jobs WHERE id = ?", (id,))
        if not rows:
            raise KeyError(id)
        return _job(rows[0])

    def jobs(self, states: Sequence[State] = (), limit: int = -1, offset: int = 0) -> list[Job]:
        """Running ones first, then those that wait, in the order of their turn, then those that ended, the last one first."""
        where, values = _where(states)
        return [
            _job(row) for row in self._rows(f"SELECT * FROM jobs {where} {_ORDER} LIMIT ? OFFSET ?", (*values, limit, offset))
        ]

    def count(self, states: Sequence[State] = ()) -> int:
        where, values = _where(states)
        return int(self._rows(f"SELECT count(*) FROM jobs {where}", values)[0][0])

    def counts(self) -> dict[str, int]:
        return {row["state"]: row["n"] for row in self._rows("SELECT state, count(*) AS n FROM jobs GROUP BY state", ())}

    def active(self) -> list[Job]:
        return self.jobs(ACTIVE)

    def claims(self) -> set[str]:
        """What jobs that have not ended will write."""
        where, values = _where(OPEN)
        return {row["writes"] for row in self._rows(f"SELECT writes FROM jobs {where} AND writes IS NOT NULL", values)}

    def writer_of(self, claim: str) -> Job | None:
        """The first job that has not ended and will write `claim`."""
        where, values = _where(OPEN)
        rows = self._rows(f"SELECT * FROM jobs {where} AND writes = ? ORDER BY id LIMIT 1", (*values, claim))
        return _job(rows[0]) if rows else None

    def durations(self, command: str, latest: int = 20) -> list[float]:
        """How long the latest jobs of a command took that were done at their first attempt, in seconds."""
        sql = "SELECT ended - begun AS s FROM jobs WHERE command = ? AND state = 'done' AND attempt = 1 ORDER BY ended DESC LIMIT ?"
        return [float(row["s"]) for row in self._rows(sql, (command, latest))]

    def change(self, id: int, from_states: Sequence[State], **values: Any) -> bool:
        """Change a job, if it is in one of `from_states`; says whether it was."""
        told = {name: json.dumps(value) if name in _JSON and value is not None else value for name, value in values.items()}
        sets = ", ".join(f"{name} = ?" for name in (*told, "changed"))
        where = ", ".join("?" * len(from_states))
        with self._transaction():
            found = self._db.execute(
                f"UPDATE jobs SET {sets} WHERE id = ? AND state IN ({where})",
                (*told.values(), self.changed + 1, id, *from_states),
            )
            self.changed += bool(found.rowcount)
            return bool(found.rowcount)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _rows(self, sql: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        with self._lock:
            return self._db.execute(sql, values).fetchall()


def _where(states: Sequence[State]) -> tuple[str, tuple[State, ...]]:
    return (f"WHERE state IN ({', '.join('?' * len(states))})", tuple(states)) if states else ("", ())


def _job(row: sqlite3.Row) -> Job:
    columns = dict(zip(row.keys(), row, strict=True))  # a row itself searches its names one by one
    told = {name: columns[name] for name in _PLAIN}
    # Most jobs wait, with neither.
    handle = json.loads(columns["handle"]) if columns["handle"] != "{}" else {}
    line = tuple(json.loads(columns["line"])) if columns["line"] != "[]" else ()
    result = json.loads(columns["result"]) if columns["result"] else None
    return Job(**told, work=_work(columns["work"]), handle=handle, line=line, result=result)


@lru_cache(maxsize=4096)
def _work(text: str) -> Work:
    """A job's work, which never changes."""
    told: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()
    }
    return Work(**told)
