"""From the store to files that trainers read, each with an account, kept beside the file, of what it could not hold.

| function | one row is | what it cannot hold |
|---|---|---|
| `export_preferences` | a pair with a winner, for the reward model and DPO | ties, skips, even votes, strength, flags, tests |
| `export_kto` | an answer and whether it is good, for TRL's KTO | skips, answers judged both ways, tests |
| `export_rankings` | a set as one annotator ranked it | labels of pairs, tests |
| `export_dataset` | a preference, in a folder that `datasets.load_dataset` reads, with a card | as `export_preferences` |
| `export_table` | a label, as CSV for spreadsheets | acts that were undone or changed |
| `log.export_log` | a row of the store: everything | nothing |

Tests are pairs with a known better answer, which test the annotator, and what was asked in a chat, which tests the models: a
model that is trained on its own test can no longer be tested with it.
"""
import csv
import io
import json
from collections import Counter, defaultdict
from pathlib import Path

from ..formats import as_messages, as_text, atomic_write_text, to_plain, write_json, write_judgements, write_preferences, write_rankings
from .agreement import Majority, majority
from .store import STRENGTHS, Comparison, Label, LabelStore, Response, pairs_in

REASONS = {"not labelled": "not labelled", "skip": "only skipped", "tie_good": "both good", "tie_bad": "both bad",
           "tie": "equal in a ranking", None: "votes split evenly", "gold": "test of attention", "chat": "test of the models in a chat"}
COLUMNS = ("pair", "group", "annotator", "kind", "prompt", "left", "right", "choice", "strength", "left flags",
           "right flags", "comment", "seconds", "probability", "left model", "right model", "at")
GUARDED = ("=", "+", "-", "@", "\t", "\r", "'")     # a cell that begins so gets an apostrophe, else a spreadsheet may calculate it


def export_preferences(store: LabelStore, path: str | Path, human_first: bool = True, plain: bool = False) -> dict:
    """Write one preference a pair to `path`, and beside it the audit that is returned (`*.audit.json`). Messages, or
    with `plain` texts (prompts of several messages cannot be: ValueError).

    The verdict with the most votes decides; with `human_first`, wherever a person gave a verdict only persons vote.
    `strength` is the winner's share of the votes, `annotator` the names of those who chose it, joined by " + ". Pairs of
    a ranked set share a `group`. What makes no preference is counted in the audit:
    {"pairs", "kept", "kept_by_person", "dropped": {reason: count}, "labels": {"human", "simulated", "skips"},
    "not in the file": {what persons said beyond the choice: count}}.
    """
    rows, audit = _preferences(store, human_first)
    write_preferences(path, [to_plain(row) for row in rows] if plain else rows)
    return _with_audit(path, audit)


def export_kto(store: LabelStore, path: str | Path, human_first: bool = True) -> dict:
    """Write `prompt`, `completion` and `label` (true for good) for each answer that was judged, as TRL's KTOTrainer
    takes it: the winner of a pair is good and the loser bad, of a tie both are what the tie says. An answer to which
    pairs say different things is what most of them say. Audit: {"answers", "kept", "good", "dropped": {reason: count}}.
    """
    comparisons = store.comparisons()
    pairs = {pair.id: pair for each in comparisons if not each.is_test for pair in pairs_in(each)}
    said: dict[tuple[str, str], list[bool]] = defaultdict(list)
    answers: dict[tuple[str, str], tuple[Comparison, Response]] = {}
    for pair in pairs.values():
        answers |= {(json.dumps(pair.messages), answer.id): (pair, answer) for answer in pair.responses}
    labels = [label for label in store.labels() if label.comparison_id in pairs]
    for pair_id, verdict in majority(_voting(labels, human_first)).items():
        for answer in pairs[pair_id].responses:
            good = {"tie_good": True, "tie_bad": False}.get(verdict.verdict, verdict.verdict == answer.id)
            if verdict.verdict not in (None, "tie"):
                said[json.dumps(pairs[pair_id].messages), answer.id].append(good)
    even = {key for key, votes in said.items() if 2 * sum(votes) == len(votes)}
    rows = [{"prompt": pair.messages, "completion": as_messages(answer.text, "assistant"),
             "label": 2 * sum(said[key]) > len(said[key])}
            for key, (pair, answer) in answers.items() if key in said and key not in even]
    write_judgements(path, rows)
    tests = {(json.dumps(each.messages), answer.id) for each in comparisons if each.is_test for answer in each.responses} - set(answers)
    return _with_audit(path, {"answers": len(answers) + len(tests), "kept": len(rows), "good": sum(row["label"] for row in rows),
                              "dropped": {"no verdict": len(answers) - len(said), "judged both ways": len(even), "test": len(tests)}})


def export_rankings(store: LabelStore, path: str | Path) -> dict:
    """Write `prompt`, `ranking` (groups of texts, the best first; a group is a tie), `annotator` and `group` of every
    ranking. Audit: {"sets", "kept", "dropped": {"not ranked": sets without one, "test": rankings in a chat}}."""
    rankings = store.rankings()
    among = {event.comparison_id for event in rankings}
    sets = {each.id: each for each in store.comparisons() if not each.is_test and (len(each.responses) > 2 or each.id in among)}
    ranked = [event for event in rankings if event.comparison_id in sets]
    texts = {(each.id, answer.id): answer.text for each in sets.values() for answer in each.responses}
    rows = [{"prompt": sets[event.comparison_id].messages, "annotator": event.annotator, "group": event.comparison_id,
             "ranking": [[texts[event.comparison_id, answer] for answer in group] for group in event.ranking]}
            for event in ranked]
    write_rankings(path, rows)
    return _with_audit(path, {"sets": len(sets), "kept": len(rows), "dropped": {
        "not ranked": len(set(sets) - among), "test": len(rankings) - len(ranked)}})


def export_table(store: LabelStore, path: str | Path) -> dict:
    """Write every standing label, skips too, as a CSV with COLUMNS in UTF-8 that spreadsheets recognise. Text that a
    spreadsheet would take for a formula gets an apostrophe in front. Audit: {"labels", "kept", "dropped"}."""
    pairs = {pair.id: pair for each in store.comparisons() for pair in [each, *pairs_in(each)]}
    labels = store.labels()
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in _table_row(label, pairs[label.comparison_id]).items()}
                     for label in labels if len(label.shown_order) == 2)
    atomic_write_text(path, "\ufeff" + file.getvalue())
    sets = sum(len(label.shown_order) > 2 for label in labels)
    return _with_audit(path, {"labels": len(labels), "kept": len(labels) - sets, "dropped": {"skipped sets": sets}})


def export_dataset(store: LabelStore, folder: str | Path, human_first: bool = True, held_out: float = 0.1) -> dict:
    """Make a folder as on the Hugging Face Hub, `data/train.jsonl`, `data/test.jsonl` and a card, for
    `datasets.load_dataset(folder)`. All pairs of a prompt are in the same part. Returns the audit, also in the folder.
    Raises FileExistsError if the folder is not empty."""
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder}: the folder is not empty, and an export overwrites nothing. Choose another name.")
    rows, audit = _preferences(store, human_first)
    prompts = sorted({as_text(row["prompt"]) for row in rows})
    every = round(1 / held_out) if held_out else len(prompts) + 1
    test = set(prompts[every - 1::every])
    rows = [{"group": None} | row for row in rows]
    parts = {"train": [row for row in rows if as_text(row["prompt"]) not in test],
             "test": [row for row in rows if as_text(row["prompt"]) in test]}
    parts = {name: part for name, part in parts.items() if part}          # `datasets` fails on an empty file
    for name, part in parts.items():
        write_preferences(folder / "data" / f"{name}.jsonl", part)
    write_json(folder / "audit.json", audit)
    atomic_write_text(folder / "README.md", _card(audit, {name: len(part) for name, part in parts.items()}))
    return audit


def _with_audit(path: str | Path, audit: dict) -> dict:
    write_json(Path(path).with_suffix(".audit.json"), audit)
    return audit


def _preferences(store: LabelStore, human_first: bool) -> tuple[list[dict], dict]:
    comparisons = sorted(store.comparisons(), key=lambda each: not each.from_chat)
    pairs = {pair.id: pair for each in comparisons for pair in pairs_in(each)}           # a candidate stays one if a chat has it too
    labels = store.labels()
    voting = _voting(labels, human_first)
    verdicts, groups = majority(voting), {label.comparison_id: label.group for label in labels if label.group}
    skips = {label.comparison_id for label in labels if label.choice == "skip"}
    skipped = {pair.id for each in comparisons for pair in pairs_in(each) if skips & {each.id, pair.id}}
    reasons = {pair.id: _reason(pair, verdicts, skipped) for pair in pairs.values()}
    kept = [pair for pair in pairs.values() if reasons[pair.id] == ""]
    dropped = Counter(reasons.values())
    persons = {label.comparison_id for label in voting if label.kind == "person"}
    audit = {"pairs": len(pairs), "kept": len(kept), "kept_by_person": sum(pair.id in persons for pair in kept),
             "dropped": {reason: dropped[reason] for reason in REASONS.values()}, "labels": _counts(labels),
             "not in the file": _beyond(labels)}
    return [_preference(pair, verdicts[pair.id]) | ({"group": groups[pair.id]} if pair.id in groups else {})
            for pair in kept], audit


def _voting(labels: list[Label], human_first: bool) -> list[Label]:
    by_pair = defaultdict(list)
    for label in labels:
        if label.choice != "skip":
            by_pair[label.comparison_id].append(label)
    voting = []
    for given in by_pair.values():
        persons = [label for label in given if label.kind == "person"]
        voting += persons if human_first and persons else given
    return voting


def _reason(pair: Comparison, verdicts: dict[str, Majority], skipped: set[str]) -> str:
    """Why the pair makes no preference; empty when it does."""
    if pair.is_test:
        return REASONS["gold" if pair.gold else "chat"]
    if pair.id not in verdicts:
        return REASONS["skip" if pair.id in skipped else "not labelled"]
    return REASONS.get(verdicts[pair.id].verdict, "")


def _preference(pair: Comparison, verdict: Majority) -> dict:
    chosen, rejected = sorted(pair.responses, key=lambda response: response.id != verdict.verdict)
    return {"prompt": pair.messages, "chosen": as_messages(chosen.text, "assistant"),
            "rejected": as_messages(rejected.text, "assistant"),
            "annotator": " + ".join(verdict.voters), "strength": verdict.share}


def _counts(labels: list[Label]) -> dict[str, int]:
    said = Counter(label.kind for label in labels if label.choice != "skip")
    skips = sum(label.choice == "skip" for label in labels)
    return {"human": said["person"], "simulated": said["simulated"], "skips": skips}


def _beyond(labels: list[Label]) -> dict[str, int]:
    return {"strengths": sum(label.strength is not None for label in labels),
            "flags": sum(len(flags) for label in labels for flags in label.flags.values()),
            "comments": sum(bool(label.comment) for label in labels)}


def _table_row(label: Label, pair: Comparison) -> dict:
    left, right = sorted(pair.responses, key=lambda answer: label.shown_order.index(answer.id))
    choice = {left.id: "left", right.id: "right"}.get(label.preferred, label.choice)
    strength = {grade: name for name, grade in STRENGTHS.items()}.get(label.strength, label.strength)
    row = (pair.id, label.group, label.annotator, label.kind, as_text(pair.prompt), left.text, right.text, choice, strength,
           ", ".join(label.flags.get(left.id, ())), ", ".join(label.flags.get(right.id, ())), label.comment,
           None if label.shown_ms is None else label.shown_ms / 1000, label.probability, left.model, right.model, label.at)
    return dict(zip(COLUMNS, row, strict=True))


def _cell(value: object) -> object:
    return "'" + value if isinstance(value, str) and value.startswith(GUARDED) else value


def _card(audit: dict, parts: dict[str, int]) -> str:
    dropped = "\n".join(f"* {reason}: {count}" for reason, count in audit["dropped"].items() if count) or "* nothing"
    files = "\n".join(f"  - {{split: {name}, path: data/{name}.jsonl}}" for name in parts)
    return f"""---
configs:
- config_name: default
  data_files:
{files}
---
# Preferences between answers

{sum(parts.values())} preferences from {audit["pairs"]} pairs; {audit["kept_by_person"]} of them were decided by persons. All
pairs of a prompt are in the same part. Columns: `prompt`, `chosen`, `rejected` (messages), `annotator` (who chose so),
`strength` (the winner's share of the votes), `group` (the ranked set that a pair comes from, if any).

Pairs that are not here, and why:
{dropped}
"""
