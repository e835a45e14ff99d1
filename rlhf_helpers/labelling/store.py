"""Where judgements live: one SQLite file to which acts are only ever added.

Differs from "a table of labels" in that nothing is ever overwritten: undoing and changing one's mind are new events,
and what holds now is a view over all of them. The file is in rollback-journal mode with full synchronisation: slower
than a write-ahead log by a millisecond an act, but one file that can be copied, also on a network drive, and an act is
on the disk when `record` returns. Any thread and any number of notebooks may write at once.
"""
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from .records import BOTH, EVENT_FIELDS, FLAGS, FROM_CHAT, STRENGTHS, Comparison, Event, Label, Response, now, pair_label, pairs_in
from .schema import APPLICATION_ID, MIGRATIONS, SCHEMA, TABLES, VERSION

__all__ = ["BOTH", "FLAGS", "FROM_CHAT", "STRENGTHS", "TABLES", "VERSION", "Comparison", "Event", "Label", "LabelStore", "Response",
           "StoreError", "pairs_in"]
PATIENCE = 30                       # seconds to wait for another writer
ADVICE = {
    "SQLITE_READONLY": "it cannot be written to. Copy it to a folder of your own and open the copy",
    "SQLITE_BUSY": "another notebook keeps it locked. Stop that notebook's running cell, then try again",
    "SQLITE_FULL": "the disk is full. Free some space, then try again",
    "SQLITE_IOERR": "the disk reported an error. Check the disk and its free space, then try again",
    "SQLITE_CANTOPEN": "it cannot be opened. Check that the folder exists and that you may write in it",
    "SQLITE_NOTADB": "it is not a label store. Choose another name; the file was left as it is",
    "SQLITE_CORRUPT": "it is damaged. Keep it, and go on with a backup or under a new name; the file was left as it is",
}


class StoreError(RuntimeError):
    """The store could not be opened or an act could not be saved; the message says why and what to do."""

    place: int | None = None            # of the row that did not fit, where rows were added


class LabelStore:
    """The label store at `path`, made if there is none. Safe to use from any thread.

    Raises StoreError if the file is something else, damaged, read-only or of a newer version; it is then left alone.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._local = threading.local()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = f"its folder cannot be made ({error.strerror}). Choose another place."
            raise StoreError(f"{self.path}: {reason}") from error
        with self._clear_errors():
            self._check_and_prepare(self._connect())

    # ---- opening

    def _connect(self) -> sqlite3.Connection:
        """This thread's connection; a new one after a fork, which SQLite connections do not survive."""
        owner, connection = getattr(self._local, "held", (None, None))
        if owner != os.getpid():
            connection = sqlite3.connect(self.path, isolation_level=None)
            connection.row_factory = sqlite3.Row
            for pragma in ("foreign_keys=ON", "synchronous=FULL", f"busy_timeout={int(1000 * PATIENCE)}"):
                connection.execute(f"PRAGMA {pragma}")
            self._local.held = (os.getpid(), connection)
        return connection

    def _check_and_prepare(self, connection: sqlite3.Connection) -> None:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            self._check_identity(connection)
            self._migrate(connection)
        else:
            strict = sqlite3.sqlite_version_info >= (3, 37)
            connection.executescript(SCHEMA if strict else SCHEMA.replace(") STRICT", ")"))
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute(f"PRAGMA user_version = {VERSION}")     # writes: if that cannot be, say so now

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Bring an older file up to date, after a copy of it was put beside it (`*.version-1.sqlite`)."""
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        beside = self.path.with_name(f"{self.path.stem}.version-{version}{self.path.suffix}")
        if version < VERSION and not beside.exists():
            self.backup(beside)
        while version < VERSION:
            with self._transaction():                        # another notebook may be doing the same
                version = connection.execute("PRAGMA user_version").fetchone()[0]
                for statement in MIGRATIONS.get(version + 1, ()):
                    connection.execute(statement)
                version = min(version + 1, VERSION)
                connection.execute(f"PRAGMA user_version = {version}")

    def backup(self, path: str | Path) -> Path:
        """Copy the store, as it is now, to a new file, also while others write. Raises StoreError if the file exists or
        cannot be written."""
        path = Path(path)
        if path.exists():
            raise StoreError(f"{path}: there is a file of that name, and a backup overwrites nothing. Choose another name.")
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")      # else half a copy would pass for a whole one
        try:
            with self._clear_errors(path), closing(sqlite3.connect(aside)) as copy:
                self._connect().backup(copy)
            if not path.exists():              # another notebook may have been quicker, and have changed the store since
                os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        return path

    def _check_identity(self, connection: sqlite3.Connection) -> None:
        application, version, health = (connection.execute(f"PRAGMA {name}").fetchone()[0]
                                        for name in ("application_id", "user_version", "quick_check"))
        if application != APPLICATION_ID:
            raise StoreError(f"{self.path}: {ADVICE['SQLITE_NOTADB']}.")
        if version > VERSION:
            raise StoreError(f"{self.path}: made by a newer version of this package (format {version}, known here: "
                             f"{VERSION}). Update the package; the file was left as it is.")
        if health != "ok":
            raise StoreError(f"{self.path}: {ADVICE['SQLITE_CORRUPT']}.")

    @contextmanager
    def _clear_errors(self, path: Path | None = None) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorname", "") or ""
            advice = ADVICE.get("_".join(code.split("_")[:2]), str(error))
            clear = StoreError(f"{path or self.path}: {advice}.")
            clear.place = getattr(error, "place", None)
            raise clear from error

    def close(self) -> None:
        """Close this thread's connection; the next call opens a new one."""
        if hasattr(self._local, "held"):
            self._local.held[1].close()
            del self._local.held

    # ---- writing

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; on the disk when it ends."""
        if not self.path.exists():                 # else the acts would go to a file without a name, and be lost
            raise StoreError(f"{self.path}: the file was moved or deleted while it was open. "
                             "Put it back, or open a new store.")
        with self._clear_errors():
            connection = self._connect()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    def add_annotator(self, name: str, kind: str = "person") -> None:
        """Make `name` known as a "person" or "simulated". Raises StoreError if it is known as the other, ValueError if it is blank."""
        if not name.strip():
            raise ValueError(f"an annotator needs a name, and {name!r} is none. Write one, such as your own.")
        with self._transaction() as connection:
            connection.execute("INSERT INTO annotator VALUES(?, ?, ?) ON CONFLICT DO NOTHING", (name, kind, now()))
            known = connection.execute("SELECT kind FROM annotator WHERE name = ?", (name,)).fetchone()[0]
        if known != kind:
            raise StoreError(f'{self.path}: the annotator "{name}" is {known} here, not {kind}. Choose another name.')

    def add_comparisons(self, comparisons: Iterable[Comparison]) -> None:
        """Add the pairs that are not in the store yet."""
        comparisons = list(comparisons)
        pairs = [(pair.id, json.dumps(pair.messages, ensure_ascii=False), "rank" if len(pair.responses) > 2 else "pairwise",
                  pair.gold, now()) for pair in comparisons]
        answers = [(pair.id, answer.id, ordinal, answer.text, answer.model, json.dumps(answer.settings))
                   for pair in comparisons for ordinal, answer in enumerate(pair.responses)]
        with self._transaction() as connection:
            connection.executemany("INSERT INTO comparison(id, prompt, task, gold, created_at) VALUES(?, ?, ?, ?, ?)"
                                   " ON CONFLICT DO NOTHING", pairs)
            connection.executemany("INSERT INTO response VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", answers)

    def add_sides(self, annotator: str, left_ids: dict[str, str]) -> None:
        """Fix which response (id) of each pair (id) this annotator sees on the left; what is fixed already stays."""
        rows = [(annotator, pair_id, left_id) for pair_id, left_id in left_ids.items()]
        with self._transaction() as connection:
            connection.executemany("INSERT INTO side VALUES(?, ?, ?) ON CONFLICT DO NOTHING", rows)

    def record(self, *events: Event) -> int:
        """Save all events or none, and return how many were new. They are on the disk when this returns.

        Raises StoreError when an event is not valid (unknown pair, annotator, choice or response; an undo of someone
        else's act) or cannot be saved.
        """
        rows = [event.row() for event in events]
        with self._transaction() as connection:
            before = connection.total_changes
            connection.executemany(
                f"INSERT INTO event({', '.join(EVENT_FIELDS)}) VALUES(:{', :'.join(EVENT_FIELDS)})"
                " ON CONFLICT(id) DO NOTHING", rows)
            new = connection.total_changes - before
        return new

    # ---- reading

    def _rows(self, query: str, *values: str | int) -> list[sqlite3.Row]:
        with self._clear_errors():
            return self._connect().execute(query, values).fetchall()

    def sides(self, annotator: str) -> dict[str, str]:
        """{pair id: id of the response on the left} for this annotator."""
        return dict(self._rows("SELECT comparison_id, left_id FROM side WHERE annotator = ?", annotator))

    def history(self, annotator: str, after: int = 0) -> list[tuple[int, Event]]:
        """(number in the log, event) of what this annotator did, oldest first, from past the number `after`."""
        rows = self._rows("SELECT * FROM event WHERE +annotator = ? AND seq > ? ORDER BY seq", annotator, after)
        return [(row["seq"], Event.from_row(row)) for row in rows]

    def live_acts(self, session: str) -> list[tuple[str, str, str]]:
        """(event id, pair id, annotator) of what was said in this session and is not undone."""
        rows = self._rows("SELECT id, comparison_id, annotator FROM live WHERE session = ? ORDER BY seq", session)
        return [tuple(row) for row in rows]

    def undone_acts(self, session: str) -> list[tuple[str, str, str, str]]:
        """(event id, id of its undo, pair id, annotator) of what was undone in this session and still is."""
        rows = self._rows("SELECT undoes, id, comparison_id, annotator FROM event u WHERE kind = 'undo' AND session = ?"
                          " AND NOT EXISTS(SELECT 1 FROM event r WHERE r.undoes = u.id) ORDER BY seq", session)
        return [tuple(row) for row in rows]

    def labels(self) -> list[Label]:
        """What every annotator says now, skips included, in the order in which they said it; a ranking as one label for
        each of its pairs. Hidden repeats are in `repeats`; pairs of known outcome are left out (see `gold_labels`)."""
        return self._labels("WHERE l.round = 0 AND c.gold IS NULL")

    def repeats(self) -> list[Label]:
        """What annotators said when a pair was shown to them again, with the sides swapped."""
        return self._labels("WHERE l.round > 0")

    def gold_labels(self) -> list[tuple[Label, bool]]:
        """The labels of pairs whose better answer is known, and whether they are right."""
        gold = {pair.id: pair.gold for pair in self.comparisons() if pair.gold}
        labels = self._labels("WHERE l.round = 0 AND c.gold IS NOT NULL")
        return [(label, label.preferred == gold[label.comparison_id]) for label in labels if label.choice != "skip"]

    def standing(self) -> list[Event]:
        """The last act of every annotator on every pair or set that is not undone, without hidden repeats."""
        return [Event.from_row(row) for row in self._rows("SELECT * FROM current_label WHERE round = 0 ORDER BY seq")]

    def rankings(self) -> list[Event]:
        """Every ranking that stands, in the order in which they were made."""
        return [event for event in self.standing() if event.ranking]

    def _labels(self, condition: str) -> list[Label]:
        lengths = self._lengths()
        rows = self._rows("SELECT l.*, a.kind AS annotator_kind FROM current_label l JOIN annotator a ON a.name = l.annotator"
                          f" JOIN comparison c ON c.id = l.comparison_id {condition} ORDER BY l.seq")
        ranked = {row["comparison_id"] for row in rows if row["ranking"]}
        sets = {each.id: pairs_in(each) for each in self.comparisons() if each.id in ranked} if ranked else {}
        labels = []
        for row in rows:
            event = Event.from_row(row)
            label = Label(event.comparison_id, event.annotator, row["annotator_kind"], event.choice or "skip",
                          event.preferred, event.shown_order, lengths[event.comparison_id], event.shown_ms, event.at,
                          event.strength, event.flags, event.comment, event.probability)
            pairs = sets[event.comparison_id] if event.ranking else ()
            labels += [pair_label(pair, label, event.ranking) for pair in pairs] or [label]
        return labels

    def _lengths(self) -> dict[str, dict[str, int]]:
        lengths = {}
        for row in self._rows("SELECT comparison_id, id, length(text) AS characters FROM response"):
            lengths.setdefault(row["comparison_id"], {})[row["id"]] = row["characters"]
        return lengths

    def comparisons(self) -> list[Comparison]:
        """Every pair and ranked set of the store, in the order in which they were added."""
        answers = {}
        for row in self._rows("SELECT * FROM response ORDER BY comparison_id, ordinal"):
            answer = Response(row["text"], row["model"], json.loads(row["params"]))
            answers.setdefault(row["comparison_id"], []).append(answer)
        rows = self._rows("SELECT id, prompt, gold FROM comparison ORDER BY rowid")
        return [Comparison(json.loads(row["prompt"]), tuple(answers[row["id"]]), row["gold"]) for row in rows]

    def events(self) -> list[dict]:
        """The whole log, oldest first, one dict an event."""
        return [dict(row) for row in self._rows("SELECT * FROM event ORDER BY seq")]

    def rows(self, table: str) -> list[dict]:
        """One of TABLES, in the order in which its rows were added, without the numbers that SQLite gave them."""
        rows = self._rows(f"SELECT * FROM {table} ORDER BY rowid")
        return [{name: value for name, value in dict(row).items() if name != "seq"} for row in rows]

    def columns(self, table: str) -> dict[str, tuple[str, bool]]:
        """{name: (TEXT, INTEGER or REAL, whether a row has to have it)} of the columns that `rows` gives."""
        rows = self._rows(f"PRAGMA table_info({table})")
        return {row["name"]: (row["type"], bool(row["notnull"] or row["pk"]) and row["dflt_value"] is None)
                for row in rows if row["name"] != "seq"}

    def add_rows(self, rows: Iterable[tuple[str, dict]]) -> list[bool]:
        """Add (table, row as `rows` gives it), all or none, and return which were new: a row whose key is there stays as
        it is. Raises StoreError for a row that does not fit, whose place is the error's `place`."""
        new = []
        with self._transaction() as connection:
            for table, row in rows:
                before = connection.total_changes
                try:
                    connection.execute(f"INSERT INTO {table}({', '.join(row)}) VALUES(:{', :'.join(row)}) ON CONFLICT DO NOTHING", row)
                except sqlite3.Error as error:
                    error.place = len(new)
                    raise
                new.append(connection.total_changes > before)
        return new
