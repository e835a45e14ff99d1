"""From files of others into the store: preferences, unpaired judgements, rankings, tables, dataset folders.

Imported judgements are labels like all others, of event kind `import`; their sides are not known, so the order in which
they are kept is by hash. Importing a file again adds nothing. Every function returns an audit, {"rows", "added", "known"
(in the store before), "dropped": {reason: count}}, and raises BadData, with file, line, field and fix, for bad rows;
`bad="keep_good"` prints those and goes on with the others.
"""
import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..formats import BadData, Problem, Rows, as_text, read_judgements, read_preferences, read_rankings, report_problems
from .export import COLUMNS, GUARDED
from .store import FLAGS, STRENGTHS, Comparison, Event, LabelStore, Response

REQUIRED = ("prompt", "left", "right", "choice", "annotator")
CHOICES = ("left", "right", "tie_good", "tie_bad", "tie", "skip")


@dataclass
class _Found:
    """What a file says: comparisons, who says what of them, and what had to be left out."""

    rows: int = 0
    said: list[tuple[Comparison, str, dict]] = field(default_factory=list)
    dropped: Counter = field(default_factory=Counter)


def import_preferences(store: LabelStore, path: str | Path, kind: str = "person", bad: str = "raise") -> dict:
    """Add `prompt`, `chosen`, `rejected`, `annotator`, `strength`, plain or messages. Names joined by " + " are several
    annotators, who all said so; shares of votes below 1 are dropped, because nobody knows who else said what."""
    found = _Found()
    for row in read_preferences(path, bad):
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
        for row in read_preferences(path, bad):
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
    right flags, comment, seconds, left model and right model where there are such columns. Pairs that are equal in a
    ranking are dropped (import the ranking)."""
    found = _Found()
    for row in _read_table(Path(path), bad):
        found.rows += 1
        if row["choice"] == "tie":
            found.dropped["equal in a ranking"] += 1
        else:
            found.said.append(_from_table(row))
    return _add(store, found, kind)


# ---------------------------------------------------------------------------------------------------------------------
# Rows to labels

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
    for name in sorted({name for _, name, _ in found.said}):
        store.add_annotator(name, kind)
    store.add_comparisons(pair for pair, _, _ in found.said)
    added = store.record(*(_event(*said) for said in found.said))
    return {"rows": found.rows, "added": added, "known": len(found.said) - added, "dropped": dict(found.dropped)}


def _event(comparison: Comparison, annotator: str, what: dict) -> Event:
    order = tuple(sorted(answer.id for answer in comparison.responses))
    said = f"{comparison.id} {annotator} {what.get('choice')} {what.get('preferred')} {what.get('ranking')}"
    same_again = hashlib.sha256(said.encode()).hexdigest()[:32]
    return Event(**{"kind": "import", "shown_order": order} | what, comparison_id=comparison.id, annotator=annotator,
                 session="import", ui="import", id=same_again)


# ---------------------------------------------------------------------------------------------------------------------
# Reading tables

def _read_table(path: Path, bad: str) -> Rows:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Check the name, or export a table first.")
    try:
        reader = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        return _checked_table(path, reader, bad)
    except UnicodeDecodeError as error:
        raise BadData([Problem(str(path), 1, "", "is not UTF-8 text", "save the file as CSV UTF-8")]) from error
    except csv.Error as error:
        raise BadData([Problem(str(path), reader.line_num, "", f"is not valid CSV ({error})", "close the quotes")]) from error


def _checked_table(path: Path, reader: csv.DictReader, bad: str) -> Rows:
    missing = [name for name in REQUIRED if name not in (reader.fieldnames or ())]
    if missing:
        raise BadData([Problem(str(path), 1, name, "is missing", "add a column of this name") for name in missing])
    rows, line = Rows(), 2
    for row in reader:
        row = {name: _text(value) for name, value in row.items() if name in COLUMNS}
        faults = list(_table_faults(row))
        rows.problems += [Problem(str(path), line, *fault) for fault in faults]
        if not faults:
            rows.append(row)
        line = reader.line_num + 1
    report_problems(rows, bad)
    return rows


def _text(cell: str | None) -> str:
    """What `export_table` was given for a cell: without the apostrophe that kept a spreadsheet from calculating it."""
    return cell[1:] if cell and cell[0] == "'" and cell[1:].startswith(GUARDED) else cell or ""


def _table_faults(row: dict) -> Iterator[tuple[str, str, str]]:
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
    if row.get("seconds") and not row["seconds"].replace(".", "", 1).isdecimal():
        yield "seconds", f"is {row['seconds']!r}", "write a number such as 7.5, or nothing"
