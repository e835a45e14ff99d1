"""The data files that pass between the stages, one JSON object a line (JSONL), in TRL's vocabulary.

    instruction    prompt, completion, source (human, generated, imported), topic
    prompt         prompt
    candidate set  prompt, responses: two or more of {id, text, model, settings}
    preference     prompt, chosen, rejected, annotator, strength
    judgement      prompt, completion, label (true for good), as TRL's KTO takes it
    ranking        prompt, ranking (groups of texts, the best first; a group is a tie), annotator

A `prompt`, `completion`, `chosen` or `rejected` is a text, or a list of {"role", "content"} messages (the
conversational form, which the models are trained on); one row keeps to one form. Further fields are kept as they are.

Readers check every row and say file, line, field and fix of all that is wrong; writers check too, and write to a file
beside the old one before they put it in its place, so that a file is always either the old one or the new one.
"""
import difflib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROLES = ("system", "user", "assistant")
SOURCES = ("human", "generated", "imported")
SPEAKER = {"prompt": "user", "completion": "assistant", "chosen": "assistant", "rejected": "assistant"}
PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a data file: where, what, and what to do. `field` is empty for a whole line."""

    file: str
    line: int
    field: str
    what: str
    fix: str

    def __str__(self) -> str:
        place = f'{self.file}, line {self.line}' + (f', field "{self.field}"' if self.field else "")
        return f"{place}: {self.what}. Fix: {self.fix}."


class BadData(ValueError):
    """A data file holds rows that cannot be used; `problems` has every one of them, the message the first ten."""

    def __init__(self, problems: list[Problem], advice: str = ""):
        self.problems = problems
        super().__init__("\n".join(filter(None, [_summary(problems), advice])))


class Rows(list):
    """The good rows of a file: a list of dicts, with the `problems` of the rows that were left out."""

    def __init__(self, rows: Iterable[dict] = (), problems: Iterable[Problem] = ()):
        super().__init__(rows)
        self.problems = list(problems)


def _summary(problems: list[Problem]) -> str:
    lines = [str(problem) for problem in problems[:PROBLEMS_SHOWN]]
    if len(problems) > PROBLEMS_SHOWN:
        lines.append(f"... and {len(problems) - PROBLEMS_SHOWN} more of {len(problems)} problems.")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# Two forms of the same: plain text and messages

def as_messages(value: str | list[dict], role: str) -> list[dict]:
    """The conversational form of a text said by `role`; messages come back as they are."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def as_text(value: str | list[dict]) -> str:
    """The words of a text or of messages, for reading: one message alone, several with their roles in front."""
    if isinstance(value, str):
        return value
    if len(value) == 1:
        return value[0]["content"]
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in value)


def to_conversational(row: dict) -> dict:
    """A copy of an instruction, prompt, candidate set or preference with messages wherever it had plain text."""
    return row | {field: as_messages(row[field], role) for field, role in SPEAKER.items() if field in row}


def to_plain(row: dict) -> dict:
    """A copy with texts instead of messages. Raises ValueError where a field has several messages or another speaker,
    because a text cannot hold them."""
    for field, what, _ in _not_plain(row):
        raise ValueError(f'field "{field}" {what}: keep the conversational form for this row')
    return row | {field: as_text(row[field]) for field in SPEAKER if field in row}


# ---------------------------------------------------------------------------------------------------------------------
# Checks: each yields (field, what is wrong, how to mend it)

Fault = tuple[str, str, str]


def _text(field: str, value: object, may_be_blank: bool = False) -> Iterator[Fault]:
    if not isinstance(value, str):
        yield field, f"is {_kind(value)}, not text", "put the text in quotes"
    elif not may_be_blank and not value.strip():
        yield field, "is empty", "write the text, or delete the row"
    elif any("\ud800" <= character <= "\udfff" for character in value):
        yield field, "holds half of a character (a lone surrogate)", "write the text again as UTF-8"


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), "text")


def _said(row: dict, field: str, may_be_blank: bool = False) -> Iterator[Fault]:
    """A field that holds what its speaker says, as text or as messages that end with that speaker's."""
    value = row.get(field, "missing")                  # a missing field has its own fault
    if not isinstance(value, list):
        yield from _text(field, value, may_be_blank)
    elif not value:
        yield field, "is an empty list", 'give at least one {"role", "content"} message'
    else:
        faults = [fault for place, message in enumerate(value)
                  for fault in _message(f"{field}[{place}]", message, may_be_blank)]
        yield from faults
        if not faults and value[-1]["role"] != SPEAKER[field]:
            yield field, f"ends with a message by the {value[-1]['role']}", f"end with one by the {SPEAKER[field]}"


def _message(field: str, message: object, may_be_blank: bool) -> Iterator[Fault]:
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        yield field, 'is not a message with "role" and "content"', 'write {"role": "user", "content": "..."}'
        return
    if message["role"] not in ROLES:
        yield f"{field}.role", f"is {message['role']!r}", f"use one of {', '.join(ROLES)}"
    yield from _text(f"{field}.content", message["content"], may_be_blank)


def _one_form(row: dict) -> Iterator[Fault]:
    said = [field for field in SPEAKER if isinstance(row.get(field), str | list)]
    if len({type(row[field]) for field in said}) > 1:
        yield (" and ".join(said), "mix plain text and messages",
               "use one form in a row (formats.to_conversational makes messages of both)")


def _check_prompt(row: dict) -> Iterator[Fault]:
    yield from _said(row, "prompt")


def _check_instruction(row: dict) -> Iterator[Fault]:
    yield from _said(row, "prompt")
    yield from _said(row, "completion")
    yield from _one_form(row)
    yield from _text("topic", row.get("topic", "missing"), may_be_blank=True)
    if row.get("source", "human") not in SOURCES:
        yield "source", f"is {row['source']!r}", f"use one of {', '.join(SOURCES)}"


def _check_candidates(row: dict) -> Iterator[Fault]:
    yield from _said(row, "prompt")
    responses = row.get("responses", [{}, {}])
    if not isinstance(responses, list) or len(responses) < 2:
        yield "responses", "is not a list of two or more", "sample at least two responses for each prompt"
    elif "responses" in row:
        for place, response in enumerate(responses):
            yield from _response(f"responses[{place}]", response)
        ids = [str(response.get("id")) for response in responses if isinstance(response, dict)]
        if len(set(ids)) < len(ids):
            yield "responses", "have the same id twice", "give each response of a prompt its own id"


def _response(field: str, response: object) -> Iterator[Fault]:
    if not isinstance(response, dict):
        yield field, f"is {_kind(response)}, not an object", "write id, text, model and settings"
        return
    for name, what, fix in _missing(response, ("id", "text", "model", "settings")):
        yield f"{field}.{name}", what, fix
    yield from _text(f"{field}.id", response.get("id", "missing"))
    yield from _text(f"{field}.text", response.get("text", ""), may_be_blank=True)
    yield from _text(f"{field}.model", response.get("model", "missing"))
    if not isinstance(response.get("settings", {}), dict):
        yield f"{field}.settings", f"is {_kind(response['settings'])}, not an object", "write {} if there are none"


def _check_preference(row: dict) -> Iterator[Fault]:
    yield from _said(row, "prompt")
    yield from _said(row, "chosen", may_be_blank=True)       # a model may answer with nothing, and lose for it
    yield from _said(row, "rejected", may_be_blank=True)
    yield from _one_form(row)
    yield from _text("annotator", row.get("annotator", "missing"))
    strength = row.get("strength", 1.0)
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 1:
        yield "strength", f"is {strength!r}", "give the winner's share of the votes, above 0 and at most 1"
    if "chosen" in row and row["chosen"] == row.get("rejected"):
        yield "rejected", 'is the same as "chosen"', "delete the row: it prefers nothing"


def _check_judgement(row: dict) -> Iterator[Fault]:
    yield from _said(row, "prompt")
    yield from _said(row, "completion", may_be_blank=True)
    yield from _one_form(row)
    if not isinstance(row.get("label", True), bool):
        yield "label", f"is {row['label']!r}", "write true for a good answer, false for a bad one"


def _check_ranking(row: dict) -> Iterator[Fault]:
    yield from _said(row, "prompt")
    yield from _text("annotator", row.get("annotator", "missing"))
    groups = row.get("ranking", [["missing"], ["too"]])
    if not isinstance(groups, list) or not all(isinstance(group, list) and group for group in groups):
        yield "ranking", "is not a list of lists", 'write [["the best"], ["second", "as good as the second"]]'
    else:
        for place, group in enumerate(groups):
            for text in group:
                yield from _text(f"ranking[{place}]", text, may_be_blank=True)


def _missing(row: dict, fields: Iterable[str]) -> Iterator[Fault]:
    for field in fields:
        if field not in row:
            near = difflib.get_close_matches(field, row, n=1)
            yield field, "is missing", f'rename "{near[0]}"' if near and near[0] != field else "add it"


CHECKS = {
    "prompts": (("prompt",), _check_prompt),
    "instructions": (("prompt", "completion", "source", "topic"), _check_instruction),
    "candidates": (("prompt", "responses"), _check_candidates),
    "preferences": (("prompt", "chosen", "rejected", "annotator", "strength"), _check_preference),
    "judgements": (("prompt", "completion", "label"), _check_judgement),
    "rankings": (("prompt", "ranking", "annotator"), _check_ranking),
}


def _faults(row: object, form: str) -> list[Fault]:
    if not isinstance(row, dict):
        return [("", f"is {_kind(row)}, not an object", "write one {...} object a line")]
    fields, check = CHECKS[form]
    return [*_missing(row, fields), *check(row)]


def _not_plain(row: dict) -> Iterator[Fault]:
    for field, role in SPEAKER.items():
        if not isinstance(row.get(field, ""), str) and [message["role"] for message in row[field]] != [role]:
            yield field, f"is more than one message by the {role}, which plain text cannot hold", "write one message, or delete the row"


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing

def _lines(path: Path) -> list[tuple[int, bytes, bool]]:
    """(number, line, whether it has a line end) of every line that is not blank; a byte-order mark is dropped."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Check the name, or run the notebook that makes it.")
    lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [(number, line, number < len(lines)) for number, line in enumerate(lines, 1) if line.strip()]


def _parse(line: bytes, finished: bool) -> tuple[object, list[Fault]]:
    try:
        return json.loads(line.decode("utf-8"), parse_constant=_no_such_number), []
    except UnicodeDecodeError:
        what, fix = "is not UTF-8 text", "save the file as UTF-8"
    except RecursionError:
        what, fix = "is nested too deeply", "delete the line"
    except ValueError as error:
        what, fix = f"is not valid JSON ({error})", "mend or delete the line"
        if not finished:
            what, fix = "is cut off: whatever wrote it was stopped half-way", "delete the line, or write its row again"
    return None, [("", what, fix)]


def _no_such_number(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def parsed_lines(path: str | Path) -> Iterator[tuple[int, object, list[Fault], bool]]:
    """(number, content, faults of its JSON, whether it has a line end) of every line of a JSONL file that is not blank."""
    for number, line, finished in _lines(Path(path)):
        yield number, *_parse(line, finished), finished


def _read(path: str | Path, form: str, bad: str) -> Rows:
    if bad not in ("raise", "keep_good"):
        raise ValueError(f'bad={bad!r} is not known: use "raise" or "keep_good"')
    rows = Rows()
    for number, row, faults, _ in parsed_lines(path):
        faults = faults or _faults(row, form)
        rows.problems += [Problem(str(path), number, *fault) for fault in faults]
        if not faults:
            rows.append(row)
    report_problems(rows, bad)
    return rows


def report_problems(rows: Rows, bad: str) -> None:
    """Raise BadData for the problems of rows that were read, or with `bad="keep_good"` print them."""
    if not rows.problems:
        return
    count = len({problem.line for problem in rows.problems})
    if bad == "raise":
        advice = f'{count} bad and {len(rows)} good rows. bad="keep_good" goes on with the good ones.'
        raise BadData(rows.problems, advice)
    print(_summary(rows.problems), f"Left out {count} bad rows, kept {len(rows)} good ones.", sep="\n")


def _write(path: str | Path, rows: Iterable[dict], form: str) -> None:
    rows = list(rows)
    _check(rows, form, str(path), "Nothing was written.")
    atomic_write_text(path, "".join(_json(path, row) + "\n" for row in rows))


def _check(rows: Iterable[dict], form: str, name: str, advice: str = "") -> None:
    problems = [Problem(name, number, *fault) for number, row in enumerate(rows, 1) for fault in _faults(row, form)]
    if problems:
        raise BadData(problems, advice)


def _json(path: str | Path, value: object, **layout) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **layout)
    except (TypeError, ValueError) as error:
        reason = f"{error}. JSON holds text, finite numbers, lists and objects."
        raise ValueError(f"{path} was not written: {reason}") from error


def read_prompts(path: str | Path, bad: str = "raise") -> Rows:
    """The prompts of a file. `bad="raise"` raises BadData that lists every bad row, after reading all;
    `bad="keep_good"` prints that list and returns the good rows (`.problems` has the list)."""
    return _read(path, "prompts", bad)


def read_instructions(path: str | Path, bad: str = "raise") -> Rows:
    """The instructions of a file; `bad` as in `read_prompts`."""
    return _read(path, "instructions", bad)


def read_candidates(path: str | Path, bad: str = "raise") -> Rows:
    """The candidate sets of a file; `bad` as in `read_prompts`."""
    return _read(path, "candidates", bad)


def read_preferences(path: str | Path, bad: str = "raise") -> Rows:
    """The preferences of a file; `bad` as in `read_prompts`."""
    return _read(path, "preferences", bad)


def read_judgements(path: str | Path, bad: str = "raise") -> Rows:
    """The judgements of single answers of a file; `bad` as in `read_prompts`."""
    return _read(path, "judgements", bad)


def read_rankings(path: str | Path, bad: str = "raise") -> Rows:
    """The rankings of a file; `bad` as in `read_prompts`."""
    return _read(path, "rankings", bad)


def plain_rows(path: str | Path, read: Callable[[str | Path], Rows]) -> list[dict]:
    """The rows of a file, as one of the readers above gives them, in plain text. Raises BadData for rows that it cannot hold."""
    rows = [(number, row) for (number, *_), row in zip(parsed_lines(path), read(path))]
    problems = [Problem(str(path), number, *fault) for number, row in rows for fault in _not_plain(row)]
    if problems:
        raise BadData(problems)
    return [to_plain(row) for _, row in rows]


def write_prompts(path: str | Path, rows: Iterable[dict]) -> None:
    """Replace `path` by these prompts, whole or not at all. Raises BadData, and writes nothing, if a row is bad."""
    _write(path, rows, "prompts")


def write_instructions(path: str | Path, rows: Iterable[dict]) -> None:
    """Replace `path` by these instructions, as `write_prompts` does."""
    _write(path, rows, "instructions")


def write_candidates(path: str | Path, rows: Iterable[dict]) -> None:
    """Replace `path` by these candidate sets, as `write_prompts` does."""
    _write(path, rows, "candidates")


def write_preferences(path: str | Path, rows: Iterable[dict]) -> None:
    """Replace `path` by these preferences, as `write_prompts` does."""
    _write(path, rows, "preferences")


def write_judgements(path: str | Path, rows: Iterable[dict]) -> None:
    """Replace `path` by these judgements, as `write_prompts` does."""
    _write(path, rows, "judgements")


def write_rankings(path: str | Path, rows: Iterable[dict]) -> None:
    """Replace `path` by these rankings, as `write_prompts` does."""
    _write(path, rows, "rankings")


def check_candidates(rows: Iterable[dict], name: str = "candidates") -> None:
    """Raise BadData, naming the row's place, if a candidate set that did not come from a file is bad."""
    _check(rows, "candidates", name)


def check_preferences(rows: Iterable[dict], name: str = "preferences") -> None:
    """Raise BadData, naming the row's place, if a preference that did not come from a file is bad."""
    _check(rows, "preferences", name)


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, whole or not at all. Raises ValueError for what JSON cannot hold, such as NaN."""
    atomic_write_text(path, _json(path, value, indent=2) + "\n")


def read_json(path: str | Path, fix: str = "mend the file, or make it again") -> object:
    """The content of a JSON file. Raises FileNotFoundError, or BadData that names the line, with what to do (`fix`)."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file. Check the name, or run the notebook that makes it.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_no_such_number)
    except (ValueError, RecursionError) as error:
        what = "is nested too deeply" if isinstance(error, RecursionError) else f"is not valid JSON ({error})"
        raise BadData([Problem(str(path), getattr(error, "lineno", 1), "", what, fix)]) from error


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to a new file in the same folder, flush it to the disk, then put it in the place of `path`.
    Whoever reads `path` sees the old text or the new, never half; an error leaves the old file and no litter."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with aside.open("xb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
