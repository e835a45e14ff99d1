"""From files of others into the store: preferences, unpaired judgements, rankings, tables, dataset folders.

Imported judgements are labels like all others, of event kind `import`; their sides are not known, so the order in which
they are kept is by hash. Of what an annotator says of a pair, the last row stands; importing a file again adds nothing.
Every function returns an audit, {"rows", "added", "known" (what the annotator says in the store already), "dropped":
{reason: count}}, and raises BadData, with file, line, field and fix, for bad rows; `bad="keep_good"` prints those and
goes on with the others.
"""
import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..formats import BadData, Problem, Rows, as_text, parsed_lines, read_judgements, read_preferences, read_rankings, report_problems
from .export import COLUMNS, GUARDED
from .store import FLAGS, STRENGTHS, Comparison, Event, LabelStore, Response

REQUIRED = ("prompt", "left", "right", "choice", "annotator")
CHOICES = ("left", "right", "tie_good", "tie_bad", "tie", "skip")
KINDS = ("person", "simulated")


@dataclass
class _Found:
    """What a file says: comparisons, who says what of them, what had to be left out, and annotators' kinds where it has them."""

    rows: int = 0
    said: list[tuple[Comparison, str, dict]] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)
    kinds: dict[str, str] = field(default_factory=dict)


def import_preferences(store: LabelStore, path: str | Path, kind: str = "person", bad: str = "raise") -> dict:
    """Add `prompt`, `chosen`, `rejected`, `annotator`, `strength`, plain or messages. Names joined by " + " are several
    annotators, who all said so; shares of votes below 1 are dropped, because nobody knows who else said what."""
    found = _Found()
    for row in _preferences(path, bad):
        _preference(found, row)
    return _add(store, found, kind)


def import_dataset(store: LabelStore, folder: str | Path, kind: str = "person", bad: str = "raise") -> dict:
    """Add the preferences of all JSON Lines files in a dataset folder, such as `export_dataset` makes. Raises
    FileNotFoundError if it has none."""
    files = sorted([*Path(folder).rglob("*.jsonl")])
    if not files:
        raise FileNotFoundError(f"{folder}: no *.jsonl in this folder. A dataset of other files becomes one by "
                                "datasets.load_dataset(folder)['train'].to_json('data/train.jsonl').")
    found = _Found()
    for path in files:
        for row in _preferences(path, bad):
            _preference(found, row)
    return _add(store, found, kind)


def import_kto(store: LabelStore, path: str | Path, annotator: str, kind: str = "person", bad: str = "raise") -> dict:
    """Add `prompt`, `completion`, `label`: the first good answer to a prompt beats its first bad one, and so on. Answers
    without a counterpart are dropped."""
    by_prompt, found = defaultdict(lambda: ([], [])), _Found()
    for row in read_judgements(path, bad):
        found.rows += 1
        by_prompt[str(row["prompt"])][not row["label"]].append(row)
    for good, worse in by_prompt.values():
        found.dropped["no counterpart"] += abs(len(good) - len(worse))
        for one, other in zip(good, worse):
            _preference(found, {"prompt": one["prompt"], "chosen": one["completion"], "rejected": other["completion"],
                                "annotator": annotator, "strength": 1}, counted=True)
    return _add(store, found, kind)


def import_rankings(store: LabelStore, path: str | Path, kind: str = "person", bad: str = "raise") -> dict:
    """Add `prompt`, `ranking` (groups of texts, best first) and `annotator`."""
    found = _Found()
    for row in read_rankings(path, bad):
        found.rows += 1
        groups = tuple(tuple(Response(text).id for text in group) for group in row["ranking"])
        answers = tuple(Response(text, "imported") for group in row["ranking"] for text in group)
        ids = {answer.id for answer in answers}
        if 2 <= len(ids) == len(answers) <= 9:
            found.said.append((Comparison(row["prompt"], answers), row["annotator"], {"ranking": groups}))
        else:
            found.dropped["not two to nine different answers"] += 1
    return _add(store, found, kind)


def import_table(store: LabelStore, path: str | Path, kind: str = "person", bad: str = "raise") -> dict:
    """Add the labels of a CSV file with the columns prompt, left, right, choice and annotator; strength, left flags,
    right flags, comment, seconds, left model and right model where there are such columns, and kind (person or
    simulated) in place of the parameter. Pairs that are equal in a ranking are dropped (import the ranking)."""
    found = _Found()
    for row in _read_table(Path(path), bad):
        found.rows += 1
        if row["choice"] == "tie":
            found.dropped["equal in a ranking"] += 1
        else:
            found.said.append(_from_table(row))
            found.kinds[row["annotator"]] = row.get("kind", kind)
    return _add(store, found, kind)


# ---------------------------------------------------------------------------------------------------------------------
# Rows to labels

def _preferences(path: str | Path, bad: str) -> Rows:
    """The preferences of a file, each by annotators with a name."""
    rows = read_preferences(path, bad)
    nameless = [row for row in rows if not all(name.strip() for name in row["annotator"].split(" + "))]
    if nameless:
        problems = [Problem(str(path), number, "annotator", f"is {row['annotator']!r}, where a name is missing beside the +",
                            "write the name, or delete the +")
                    for number, row, _, _ in parsed_lines(path) if row in nameless]
        rows = Rows((row for row in rows if row not in nameless), problems)
        report_problems(rows, bad)
    return rows


def _preference(found: _Found, row: dict, counted: bool = False) -> None:
    found.rows += not counted
    chosen, rejected = Response(as_text(row["chosen"]), "imported"), Response(as_text(row["rejected"]), "imported")
    if chosen.id == rejected.id:
        found.dropped["the same text on both sides"] += 1
        return
    if row["strength"] < 1:
        found.dropped["share of votes (not the preference)"] += 1
    for name in row["annotator"].split(" + "):
        found.said.append((Comparison(row["prompt"], (chosen, rejected)), name, {"choice": "prefer", "preferred": chosen.id}))


def _from_table(row: dict) -> tuple[Comparison, str, dict]:
    left, right = (Response(row[side], row.get(f"{side} model") or "imported") for side in ("left", "right"))
    preferred = {"left": left.id, "right": right.id}.get(row["choice"])
    choice = None if row["choice"] == "skip" else "prefer" if preferred else row["choice"]
    flags = {answer.id: row[f"{side} flags"].split(", ") for side, answer in (("left", left), ("right", right))
             if row.get(f"{side} flags")}
    what = {"choice": choice, "preferred": preferred, "flags": flags, "shown_order": (left.id, right.id),
            "strength": STRENGTHS.get(row.get("strength")), "comment": row.get("comment") or None,
            "shown_ms": round(1000 * float(row["seconds"])) if row.get("seconds") else None}
    return Comparison(row["prompt"], (left, right)), row["annotator"], what | ({"kind": "skip"} if choice is None else {})


def _add(store: LabelStore, found: _Found, kind: str) -> dict:
    last = {(comparison.id, name): (comparison, name, what) for comparison, name, what in found.said}
    if len(last) < len(found.said):
        found.dropped["said again further down"] = len(found.said) - len(last)
    standing = {(event.comparison_id, event.annotator): event for event in store.standing()}
    new = [said for key, said in last.items() if not _stands(standing.get(key), said[2])]
    for name in sorted({name for _, name, _ in found.said}):
        store.add_annotator(name, found.kinds.get(name, kind))
    store.add_comparisons(pair for pair, _, _ in found.said)
    added = store.record(*(_event(*said) for said in new))
    return {"rows": found.rows, "added": added, "known": len(last) - added, "dropped": dict(found.dropped)}


def _stands(event: Event | None, what: dict) -> bool:
    """Whether this is what the annotator says already. What the file has no room for is left as it is."""
    said = {"choice": None, "preferred": None, "ranking": None} | what
    names = ("choice", "preferred", "ranking", "strength", "flags", "comment")
    return event is not None and all(getattr(event, name) == said[name] for name in names if name in said)


def _event(comparison: Comparison, annotator: str, what: dict) -> Event:
    order = tuple(sorted(answer.id for answer in comparison.responses))
    return Event(**{"kind": "import", "shown_order": order} | what, comparison_id=comparison.id, annotator=annotator,
                 session="import", ui="import")


# ---------------------------------------------------------------------------------------------------------------------
# Reading tables

@contextmanager
def table_reader(path: Path, **form) -> Iterator[csv.DictReader]:
    """Reads the rows of a CSV file. Raises FileNotFoundError, or BadData if it is no such file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Check the name, or export a table first.")
    csv.field_size_limit(2**31 - 1)                              # 131,072 characters else, and an answer may be longer
    try:
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True, **form)
        yield reader
    except UnicodeDecodeError as error:
        line = 1 + error.object[:error.start].count(b"\n")
        raise BadData([Problem(str(path), line, "", "is not UTF-8 text", "save the file as CSV UTF-8")]) from error
    except csv.Error as error:
        raise BadData([Problem(str(path), reader.reader.line_num, "", f"is not valid CSV ({error})", "close the quotes")]) from error


def _read_table(path: Path, bad: str) -> Rows:
    with table_reader(path) as reader:
        return _checked_table(path, reader, bad)


def _checked_table(path: Path, reader: csv.DictReader, bad: str) -> Rows:
    missing = [name for name in REQUIRED if name not in (reader.fieldnames or ())]
    if missing:
        raise BadData([Problem(str(path), 1, name, "is missing", "add a column of this name") for name in missing])
    rows, line, kinds = Rows(), 2, {}
    for row in reader:
        row = {name: _text(value) for name, value in row.items() if name in COLUMNS}
        faults = list(_table_faults(row, kinds))
        rows.problems += [Problem(str(path), line, *fault) for fault in faults]
        if not faults:
            rows.append(row)
        line = reader.line_num + 1
    report_problems(rows, bad)
    return rows


def _text(cell: str | None) -> str:
    """What `export_table` was given for a cell: without the apostrophe that kept a spreadsheet from calculating it."""
    return cell[1:] if cell and cell[0] == "'" and cell[1:].startswith(GUARDED) else cell or ""


def _table_faults(row: dict, kinds: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    for name in ("prompt", "annotator"):
        if not row[name].strip():
            yield name, "is empty", "fill it in, or delete the row"
    if row["choice"] not in CHOICES:
        yield "choice", f"is {row['choice']!r}", f"use one of {', '.join(CHOICES)}"
    if row["left"] == row["right"]:
        yield "right", 'is the same as "left"', "delete the row: it compares nothing"
    if row.get("strength") and row["strength"] not in STRENGTHS:
        yield "strength", f"is {row['strength']!r}", f"use one of {', '.join(STRENGTHS)}, or nothing"
    for name in ("left flags", "right flags"):
        if unknown := set(filter(None, row.get(name, "").split(", "))) - set(FLAGS):
            yield name, f"has {', '.join(sorted(unknown))}", f"use {', '.join(FLAGS)}"
    if row.get("seconds") and not (row["seconds"].replace(".", "", 1).isdecimal() and float(row["seconds"]) < 1e9):
        yield "seconds", f"is {row['seconds']!r:.40}", "write a number such as 7.5, or nothing"
    if row.get("kind", "person") not in KINDS:
        yield "kind", f"is {row['kind']!r}", f"use one of {', '.join(KINDS)}"
    elif "kind" in row and kinds.setdefault(row["annotator"], row["kind"]) != row["kind"]:
        yield "kind", f"is {row['kind']}, and further up {row['annotator']!r} is {kinds[row['annotator']]}", "give each annotator one kind"
