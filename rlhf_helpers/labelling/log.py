"""The whole store as text: one JSON object a line for every row of every table, for git, for reading, for another place.

`export_log` of an imported log is the same file again, byte for byte. A log may be brought into a store that has labels
already: what is there stays, what is new is added, so importing twice adds nothing.
"""
import json
from collections import Counter
from pathlib import Path

from ..formats import BadData, Problem, atomic_write_text, parsed_lines
from .store import TABLES, LabelStore, StoreError


def export_log(store: LabelStore, path: str | Path) -> dict[str, int]:
    """Write everything, undone acts too. Returns {table: rows}."""
    rows = {table: store.rows(table) for table in TABLES}
    lines = [json.dumps({"table": table} | row, ensure_ascii=False) for table in TABLES for row in rows[table]]
    atomic_write_text(path, "".join(line + "\n" for line in lines))
    return {table: len(of_one) for table, of_one in rows.items()}


def import_log(store: LabelStore, path: str | Path) -> dict:
    """Add the rows of a log to the store. A last line that is cut off, as a crash leaves it, is left out and reported.

    Returns the audit: {"added": {table: rows}, "known": rows that were there already, "left out": [problems]}. Raises
    BadData, with file, line, field and fix, and adds nothing, if any other line is bad.
    """
    rows, problems, torn = [], [], []
    for number, row, faults, finished in parsed_lines(path):
        problem = [Problem(str(path), number, *fault) for fault in faults or _faults(row)]
        (problems if finished or not faults else torn).extend(problem)
        if not problem:
            rows.append((number, row.pop("table"), row))
    if problems:
        raise BadData(problems, "Nothing was imported.")
    rows.sort(key=lambda row: TABLES.index(row[1]))              # what others refer to first
    try:
        new = store.add_rows([(table, row) for _, table, row in rows])
    except StoreError as error:
        if error.place is None:
            raise
        number, table, _ = rows[error.place]
        why = f"does not fit the table {table} ({error.__cause__})"
        raise BadData([Problem(str(path), number, "", why, "export the log again")], "Nothing was imported.") from error
    added = Counter(table for (_, table, _), is_new in zip(rows, new, strict=True) if is_new)
    return {"added": {table: added[table] for table in TABLES}, "known": new.count(False),
            "left out": [str(problem) for problem in torn]}


def _faults(row: object) -> list[tuple[str, str, str]]:
    if not isinstance(row, dict) or row.get("table") not in TABLES:
        return [("table", "is not a table of the label store", f"use one of {', '.join(TABLES)}")]
    return [(name, f"is {type(value).__name__}, which a table cannot hold", "write text, a number or null")
            for name, value in row.items() if not isinstance(value, str | int | float | None) or isinstance(value, bool)
            ] + [(name, "is not the name of a column", "export the log again") for name in row if not name.isidentifier()]
