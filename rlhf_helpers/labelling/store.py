"""Where judgements live: one SQLite file to which acts are only ever added.

Differs from "a table of labels" in that nothing is ever overwritten: undoing and changing one's mind are new events,
and what holds now is a view over all of them. The file is in rollback-journal mode with full synchronisation: slower
than a write-ahead log by a millisecond an act, but one file that can be copied, also on a network drive, and an act is
on the disk when `record` returns. Any thread and any number of notebooks may write at once.
"""
import hashlib
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import combinations
from pathlib import Path

from ..formats import as_messages

PATIENCE = 30                       # seconds to wait for another writer
APPLICATION_ID = 0x524C4846         # "RLHF": how the file is told from any other SQLite file
VERSION = 2
STRENGTHS = {"slightly": 1, "clearly": 3}         # of the four grades that the store has room for
BOTH = " + "                        # between the names of models that gave the very same answer
TABLES = ("comparison", "response", "annotator", "side", "event")
FLAGS = ("unsafe", "wrong", "off topic", "other")

VIEWS = (
    """CREATE VIEW IF NOT EXISTS live AS             -- what is not undone; undoing an undo brings it back
  SELECT e.* FROM event e WHERE e.kind IN ('label', 'skip', 'import') AND NOT EXISTS(
    SELECT 1 FROM event u WHERE u.undoes = e.id AND NOT EXISTS(SELECT 1 FROM event r WHERE r.undoes = u.id))""",
    """CREATE VIEW IF NOT EXISTS current_label AS    -- the last word of each annotator on each showing of each pair
  SELECT * FROM live l WHERE l.seq = (SELECT max(seq) FROM live m
    WHERE m.annotator = l.annotator AND m.comparison_id = l.comparison_id AND m.round = l.round)""")

# `source`, and in `event` `extra`, are for richer interfaces: a table with checks cannot gain them later without being
# rebuilt in every learner's file.
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS comparison(
  id         TEXT PRIMARY KEY,                    -- hash of the prompt and the sorted responses: order does not matter
  prompt     TEXT NOT NULL,                       -- JSON list of messages
  task       TEXT NOT NULL DEFAULT 'pairwise' CHECK(task IN ('pairwise', 'rank')),
  gold       TEXT,                                -- the response id expected in a test of attention
  source     TEXT NOT NULL DEFAULT '{{}}',
  created_at TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS response(
  comparison_id TEXT NOT NULL REFERENCES comparison(id),
  id            TEXT NOT NULL,                    -- hash of the text
  ordinal       INTEGER NOT NULL,                 -- the order in the candidate set, never the order on the screen
  text          TEXT NOT NULL,
  model         TEXT NOT NULL,                    -- never shown to an annotator
  params        TEXT NOT NULL,
  PRIMARY KEY(comparison_id, id)) STRICT;
CREATE TABLE IF NOT EXISTS annotator(
  name       TEXT PRIMARY KEY CHECK(trim(name) <> ''),
  kind       TEXT NOT NULL CHECK(kind IN ('person', 'simulated')),
  created_at TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS side(                  -- who stands on the left, fixed before the pair is first shown
  annotator     TEXT NOT NULL REFERENCES annotator(name),
  comparison_id TEXT NOT NULL,
  left_id       TEXT NOT NULL,
  PRIMARY KEY(annotator, comparison_id),
  FOREIGN KEY(comparison_id, left_id) REFERENCES response(comparison_id, id)) STRICT;
CREATE TABLE IF NOT EXISTS event(
  seq           INTEGER PRIMARY KEY AUTOINCREMENT,
  id            TEXT NOT NULL UNIQUE,             -- made by whoever acts, so that sending an act again changes nothing
  kind          TEXT NOT NULL CHECK(kind IN ('label', 'skip', 'flag', 'undo', 'note', 'import')),
  comparison_id TEXT NOT NULL REFERENCES comparison(id),
  annotator     TEXT NOT NULL REFERENCES annotator(name),
  session       TEXT NOT NULL,
  undoes        TEXT REFERENCES event(id),
  choice        TEXT CHECK(choice IN ('prefer', 'tie_good', 'tie_bad')),
  preferred     TEXT,                             -- response id
  strength      INTEGER CHECK(strength BETWEEN 1 AND 4),
  ranking       TEXT,                             -- JSON lists of response ids, best first; a list is a tie
  shown_order   TEXT NOT NULL DEFAULT '[]',       -- JSON response ids from left to right
  flags         TEXT NOT NULL DEFAULT '[]',       -- JSON object: response id to flags; [] if none
  comment       TEXT,
  shown_ms      INTEGER CHECK(shown_ms >= 0),     -- from the drawing of the pair to the act
  ui            TEXT NOT NULL DEFAULT '',
  ui_version    TEXT NOT NULL DEFAULT '',
  at            TEXT NOT NULL,                    -- UTC, ISO 8601
  extra         TEXT NOT NULL DEFAULT '{{}}',
  round         INTEGER NOT NULL DEFAULT 0,       -- 1 for a hidden repeat, with the sides swapped
  probability   REAL,                             -- with which this pair was picked to be shown next
  CHECK((kind = 'undo') = (undoes IS NOT NULL)),
  CHECK(kind <> 'label' OR choice IS NOT NULL OR ranking IS NOT NULL),
  CHECK((choice IS 'prefer') = (preferred IS NOT NULL)),
  FOREIGN KEY(comparison_id, preferred) REFERENCES response(comparison_id, id)) STRICT;
CREATE INDEX IF NOT EXISTS event_by_annotator ON event(annotator, comparison_id, seq);
CREATE INDEX IF NOT EXISTS event_by_undone ON event(undoes);
CREATE TRIGGER IF NOT EXISTS event_no_update BEFORE UPDATE ON event
  BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER IF NOT EXISTS event_no_delete BEFORE DELETE ON event
  BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER IF NOT EXISTS undo_own_event BEFORE INSERT ON event WHEN NEW.kind = 'undo' AND NOT EXISTS(
    SELECT 1 FROM event e WHERE e.id = NEW.undoes AND e.annotator = NEW.annotator
                            AND e.comparison_id = NEW.comparison_id)
  BEGIN SELECT RAISE(ABORT, 'an undo must name an earlier event of the same annotator and pair'); END;
{";".join(VIEWS)};
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
COMMIT;
"""

# What brings a file of the version before to this one, a statement each.
MIGRATIONS = {2: ("ALTER TABLE event ADD COLUMN round INTEGER NOT NULL DEFAULT 0",
                  "ALTER TABLE event ADD COLUMN probability REAL",
                  "DROP VIEW current_label", "DROP VIEW live", *VIEWS)}

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


def _hash(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Response:
    """One answer, with the model that gave it and its sampling settings."""

    text: str
    model: str = ""
    settings: dict = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        return _hash(self.text)


@dataclass(frozen=True)
class Comparison:
    """A prompt (text or messages) and two answers to it, or more of them to rank. The same answers have the same `id` in
    any order. `gold` is the id of the answer that has to win, if the pair is a test of attention."""

    prompt: str | list[dict]
    responses: tuple[Response, ...]
    gold: str | None = None

    @cached_property
    def messages(self) -> list[dict]:
        return as_messages(self.prompt, "user")

    @cached_property
    def id(self) -> str:
        said = [[message["role"], message["content"]] for message in self.messages]
        return _hash(json.dumps(said), *sorted(response.id for response in self.responses))


@dataclass(frozen=True)
class Event:
    """One act of one annotator on one pair or set. `id` is made here, or by whoever acted; recording an event again
    changes nothing. `strength` is from 1 to 4 (see STRENGTHS), `ranking` groups of response ids, best first, `flags`
    {response id: some of FLAGS}, `round` 1 for a hidden repeat."""

    kind: str
    comparison_id: str
    annotator: str
    session: str
    choice: str | None = None
    preferred: str | None = None
    shown_order: tuple[str, ...] = ()
    shown_ms: int | None = None
    undoes: str | None = None
    comment: str | None = None
    strength: int | None = None
    ranking: tuple[tuple[str, ...], ...] | None = None
    flags: dict[str, tuple[str, ...]] = field(default_factory=dict)
    round: int = 0
    probability: float | None = None
    ui: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    at: str = field(default_factory=_now)

    def row(self) -> dict:
        """The event as the table has it: lists and objects as JSON."""
        as_json = {name: json.dumps(getattr(self, name)) for name in ("shown_order", "flags")}
        return vars(self) | as_json | {"ranking": json.dumps(self.ranking) if self.ranking else None}

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> "Event":
        """The event of a row of the table."""
        ranking = tuple(map(tuple, json.loads(row["ranking"]))) if row["ranking"] else None
        parsed = {"shown_order": tuple(json.loads(row["shown_order"])), "flags": json.loads(row["flags"]) or {},
                  "ranking": ranking}
        return cls(**{name: row[name] for name in EVENT_FIELDS} | parsed)


EVENT_FIELDS = [item.name for item in fields(Event)]


@dataclass(frozen=True)
class Label:
    """What an annotator says of a pair now. `choice` is prefer, tie_good, tie_bad, tie (from a ranking) or skip;
    `shown_order` the response ids from left to right, `lengths` the number of characters of each; `kind` is the
    annotator's. `group` is the id of the ranked set that the pair comes from; such a pair has no `shown_ms` of its own."""

    comparison_id: str
    annotator: str
    kind: str
    choice: str
    preferred: str | None
    shown_order: tuple[str, ...]
    lengths: dict[str, int]
    shown_ms: int | None
    at: str
    strength: int | None = None
    flags: dict[str, list[str]] = field(default_factory=dict)
    comment: str | None = None
    probability: float | None = None
    group: str | None = None

    @property
    def verdict(self) -> str:
        """The response id that was preferred, else tie_good, tie_bad, tie or skip."""
        return self.preferred or self.choice


def pairs_in(comparison: Comparison) -> list[Comparison]:
    """The pairs of answers that a set holds; a pair holds itself."""
    if len(comparison.responses) == 2:
        return [comparison]
    return [Comparison(comparison.prompt, pair) for pair in combinations(comparison.responses, 2)]


def _pair_label(pair: Comparison, ranked: Label, groups: list[list[str]]) -> Label:
    place = {answer_id: number for number, group in enumerate(groups) for answer_id in group}
    first, second = sorted((answer.id for answer in pair.responses), key=place.get)
    preferred = first if place[first] < place[second] else None
    ids = (first, second)
    return replace(ranked, comparison_id=pair.id, choice="prefer" if preferred else "tie", preferred=preferred,
                   shown_order=tuple(answer_id for answer_id in ranked.shown_order if answer_id in ids), shown_ms=None,
                   lengths={answer.id: len(answer.text) for answer in pair.responses}, group=ranked.comparison_id,
                   flags={answer_id: flags for answer_id, flags in ranked.flags.items() if answer_id in ids})


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
        with self._clear_errors(path):
            copy = sqlite3.connect(path)
            try:
                self._connect().backup(copy)
            finally:
                copy.close()
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
        """Make `name` known as a "person" or "simulated". Raises StoreError if it is known as the other."""
        with self._transaction() as connection:
            connection.execute("INSERT INTO annotator VALUES(?, ?, ?) ON CONFLICT DO NOTHING", (name, kind, _now()))
            known = connection.execute("SELECT kind FROM annotator WHERE name = ?", (name,)).fetchone()[0]
        if known != kind:
            raise StoreError(f'{self.path}: the annotator "{name}" is {known} here, not {kind}. Choose another name.')

    def add_comparisons(self, comparisons: Iterable[Comparison]) -> None:
        """Add the pairs that are not in the store yet."""
        comparisons = list(comparisons)
        pairs = [(pair.id, json.dumps(pair.messages, ensure_ascii=False), "rank" if len(pair.responses) > 2 else "pairwise",
                  pair.gold, _now()) for pair in comparisons]
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

    def rankings(self) -> list[Event]:
        """Every ranking that stands, in the order in which they were made."""
        rows = self._rows("SELECT * FROM current_label WHERE ranking IS NOT NULL AND round = 0 ORDER BY seq")
        return [Event.from_row(row) for row in rows]

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
            labels += [_pair_label(pair, label, event.ranking) for pair in pairs] or [label]
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
