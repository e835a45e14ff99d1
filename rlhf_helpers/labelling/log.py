"""The whole store as text: one JSON object a line for every row of every table, for git, for reading, for another place.

`export_log` of an imported log is the same file again, byte for byte. A log may be brought into a store that has labels
already: what is there stays, what is new is added, so importing twice adds nothing.
"""
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from ..formats import CHECKS, BadData, Fault, Problem, atomic_write_text, parsed_lines
from .store import TABLES, Comparison, LabelStore, Response, StoreError

AGAIN = "export the log again"
HELD = {"TEXT": (str,), "INTEGER": (int,), "REAL": (int, float)}
Columns = dict[str, tuple[str, bool]]



def export_log(store: LabelStore, path: str | Path) -> dict[str, int]:
    """Write everything, undone acts too. Returns {table: rows}."""
    rows = {table: store.rows(table) for table in TABLES}
    lines = [json.dumps({"table": table} | row, ensure_ascii=False) for table in TABLES for row in rows[table]]
    atomic_write_text(path, "".join(line + "\n" for line in lines))
    return {table: len(of_one) for table, of_one in rows.items()}


def import_log(store: LabelStore, path: str | Path) -> dict:
    """Add the rows of a log to the store. A last line that is cut off, as a crash leaves it, is left out and reported.

    Returns the audit: {"added": {table: rows}, "known": rows that were there already, "left out": [problems]}. Raises
    BadData, with file, line, field and fix, and adds nothing, if any other line is bad: nothing that is in a store can be
    changed again, so it takes only what it can read.
    """
    rows, problems, torn = [], [], []
    columns = {table: store.columns(table) for table in TABLES}
    for number, row, faults, finished in parsed_lines(path):
        problem = [Problem(str(path), number, *fault) for fault in faults or _faults(row, columns)]
        (problems if finished or not faults else torn).extend(problem)
        if not problem:
            rows.append((number, row.pop("table"), row))
    rows.sort(key=lambda row: TABLES.index(row[1]))              # what others refer to first
    problems = problems or [Problem(str(path), *misfit) for misfit in _misfits(store, rows)]
    if problems:
        raise BadData(problems, "Nothing was imported.")
    try:
        new = store.add_rows([(table, row) for _, table, row in rows])
    except StoreError as error:
        if error.place is None:
            raise
        number, table, _ = rows[error.place]
        why = f"does not fit the table {table} ({error.__cause__})"
        raise BadData([Problem(str(path), number, "", why, AGAIN)], "Nothing was imported.") from error
    added = Counter(table for (_, table, _), is_new in zip(rows, new, strict=True) if is_new)
    return {"added": {table: added[table] for table in TABLES}, "known": new.count(False),
            "left out": [str(problem) for problem in torn]}


def _faults(row: object, columns: dict[str, Columns]) -> Iterator[Fault]:
    """What is wrong with a row by itself."""
    if not isinstance(row, dict) or row.get("table") not in TABLES:
        yield "table", "is not a table of the label store", f"use one of {', '.join(TABLES)}"
        return
    known = columns[row["table"]]
    faults = [(name, "is not the name of a column", AGAIN) for name in row if name not in (*known, "table")]
    for name, (kind, needed) in known.items():
        faults += _cell_faults(name, row.get(name), kind, needed)
    yield from faults
    if faults:
        return
    if row["table"] == "comparison":
        prompt = _parsed(row["prompt"])
        if isinstance(prompt, list):
            yield from CHECKS["prompts"][1]({"prompt": prompt})
        else:
            yield "prompt", "is not a JSON list of messages", AGAIN
    if row["table"] == "response":
        if not isinstance(_parsed(row["params"]), dict):
            yield "params", "is not a JSON object", AGAIN
        if row["id"] != Response(row["text"]).id:
            yield "id", "is not the id of this text", AGAIN


def _cell_faults(name: str, value: object, kind: str, needed: bool) -> Iterator[Fault]:
    if value is None:
        if needed:
            yield name, "is missing", AGAIN
    elif type(value) not in HELD[kind]:                          # true and false are no numbers
        yield name, f"is {type(value).__name__}, which a table cannot hold here", f"write {'text' if kind == 'TEXT' else 'a number'}"
    elif isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            yield name, "holds half of a character (a lone surrogate)", "write the text again as UTF-8"
    elif not -2**63 <= value < 2**63:
        yield name, "is too large a number", AGAIN


def _parsed(text: object) -> object:
    """What a text of JSON holds, None if it is no such text."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def _misfits(store: LabelStore, rows: list[tuple[int, str, dict]]) -> Iterator[tuple[int, str, str, str]]:
    """(line, field, what is wrong, fix) where rows do not go together with each other or with those of the store."""
    prompts, answers, kinds, touched = {}, defaultdict(dict), {}, {}
    there = [(0, table, row) for table in TABLES[:3] for row in store.rows(table)]
    for number, table, row in there + rows:
        if table == "comparison":
            prompts.setdefault(row["id"], row["prompt"])
            touched.setdefault(row["id"], number)
        elif table == "response":
            answers[row["comparison_id"]][row["id"]] = Response(row["text"])
            touched[row["comparison_id"]] = touched.get(row["comparison_id"]) or number
        elif table == "annotator" and kinds.setdefault(row["name"], row["kind"]) != row["kind"]:
            what = f'is {row["kind"]}, and "{row["name"]}" is {kinds[row["name"]]} in the store or further up'
            yield number, "kind", what, "import it into a store of its own, or give this annotator another name in every line"
        elif table == "event" and row["comparison_id"] in answers:
            yield from ((number, *fault) for fault in _event_faults(row, sorted(answers[row["comparison_id"]])))
    for comparison_id, number in touched.items():
        if number and comparison_id in prompts:
            found = tuple(answers[comparison_id].values())
            if len(found) < 2:
                yield number, "", f"is a comparison of {len(found)} answers, those in the store included", AGAIN
            elif Comparison(json.loads(prompts[comparison_id]), found).id != comparison_id:
                yield number, "", "belongs to a comparison whose id was made of another prompt or other answers", AGAIN


def _event_faults(row: dict, ids: list[str]) -> Iterator[Fault]:
    """What is wrong with an act on a comparison of the answers with these ids."""
    order, groups, flags = (_parsed(row.get(name, "[]")) for name in ("shown_order", "ranking", "flags"))
    if not _are(order, ids) and (order != [] or row["kind"] in ("label", "import")):
        yield "shown_order", "is not a JSON list of the ids of the answers", AGAIN
    if row.get("ranking") is not None and not (isinstance(groups, list) and all(isinstance(group, list) for group in groups)
                                               and _are([answer for group in groups for answer in group], ids)):
        yield "ranking", "is not JSON lists that hold the id of each answer once", AGAIN
    if flags != [] and not (isinstance(flags, dict) and set(flags) <= set(ids) and all(
            isinstance(each, list) and all(isinstance(flag, str) for flag in each) for each in flags.values())):
        yield "flags", "is not a JSON object of the ids of answers and lists of flags", AGAIN
    if row.get("choice") is not None and len(ids) > 2:
        yield "choice", f"is for two answers, and the comparison has {len(ids)}", AGAIN


def _are(value: object, ids: list[str]) -> bool:
    return isinstance(value, list) and sorted(value, key=str) == ids
