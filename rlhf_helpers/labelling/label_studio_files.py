"""Files from Label Studio and for it, without a server: exports in any of its forms, and lists of prompts with two answers."""
from pathlib import Path

from ..formats import BadData, Problem, check_candidates, read_json
from .importing import table_reader
from .label_studio_annotations import PAIRWISE, Audit, Layout, layout_of, parsed, record_tasks
from .store import LabelStore

AGAIN = "export the project again as JSON, JSON_MIN or CSV"


def import_export(store: LabelStore, path: str | Path, configuration: str | Path = PAIRWISE) -> Audit:
    """Save what an export (JSON, JSON_MIN, CSV or TSV) says in the store, and return what became of each annotation (print it).

    `configuration` is the file with the labelling configuration of the project: it says what left and right are. Importing a file
    again, in this form or another, or pulling the project later, adds nothing twice. JSON_MIN and CSV hold no skips. Raises BadData
    if the file is no export, ValueError if the configuration does not compare answers, StoreError from the store.
    """
    path, audit = Path(path), Audit()
    layout = layout_of(Path(configuration).read_text(encoding="utf-8"))
    tasks = _list(path) if path.suffix.lower() == ".json" else _table(path)
    problems = [Problem(str(path), number, name, f"is {task[name]!r:.40}, which no export has there", AGAIN)
                for number, task in enumerate(tasks, 1) for name, fits in (("id", int | str | None), ("annotations", list | None))
                if not isinstance(task.get(name), fits)]
    if problems:
        raise BadData(problems)
    if not all("annotations" in task for task in tasks):
        tasks = _tasks(tasks, layout)
    record_tasks(store, tasks, layout, f"Label Studio file {path.name}", audit)
    return audit


def read_answer_pairs(path: str | Path) -> list[dict]:
    """Candidate sets from a JSON list of {"prompt", "answer1", "answer2"}, as tutorials on Label Studio have it: for a labelling
    session, or to be pushed. Raises BadData that names the row."""
    rows = _list(Path(path))
    lacking = [Problem(str(path), number, name, "is missing", "add it") for number, row in enumerate(rows, 1)
               for name in ("prompt", "answer1", "answer2") if name not in row]
    if lacking:
        raise BadData(lacking)
    candidates = [{"prompt": row["prompt"], "responses": [
        {"id": name, "text": row[name], "model": Path(path).name, "settings": {}} for name in ("answer1", "answer2")]} for row in rows]
    check_candidates(candidates, str(path))
    return candidates


def _list(path: Path) -> list[dict]:
    rows = read_json(path, AGAIN)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise BadData([Problem(str(path), 1, "", "is not a list of objects", AGAIN)])
    return rows


def _table(path: Path) -> list[dict]:
    with table_reader(path, delimiter="\t" if path.suffix.lower() == ".tsv" else ",") as reader:
        rows = list(reader)
    if not rows or "annotation_id" not in rows[0]:
        raise BadData([Problem(str(path), 1, "annotation_id", "is missing", AGAIN)])
    return rows


def _tasks(rows: list[dict], layout: Layout) -> list[dict]:
    """The rows of JSON_MIN or of a table, each an annotation or a task without one, as tasks with annotations that JSON would have."""
    tasks = {}
    for place, row in enumerate(rows):
        task = tasks.setdefault(row.get("id") or f"row {place + 1}", {"id": row.get("id"), "data": row, "annotations": []})
        if row.get("annotation_id"):
            task["annotations"].append(_annotation(row, layout))
    return list(tasks.values())


def _annotation(row: dict, layout: Layout) -> dict:
    said = {name: parsed(row.get(name)) for name in (layout.control, *layout.verdicts)}
    results = [{"from_name": name, "value": value[0] if isinstance(value, list) and len(value) == 1 else {"choices": [value]}}
               for name, value in said.items() if value]
    return {"id": row["annotation_id"], "completed_by": row.get("annotator"), "result": results,
            **{name: row.get(name) for name in ("created_at", "updated_at", "lead_time")}}
