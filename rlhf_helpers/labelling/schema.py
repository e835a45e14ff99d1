"""The tables of the label store, and the steps from older versions of them to this one."""

APPLICATION_ID = 0x524C4846         # "RLHF": how the file is told from any other SQLite file
VERSION = 2
TABLES = ("comparison", "response", "annotator", "side", "event")

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
