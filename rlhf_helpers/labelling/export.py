"""From the store to `preferences.jsonl`: one row a pair, and an account of every pair that did not become a row."""
from collections import Counter, defaultdict
from pathlib import Path

from ..formats import as_messages, write_json, write_preferences
from .agreement import Majority, majority
from .store import Comparison, Label, LabelStore

REASONS = ("not labelled", "only skipped", "both good", "both bad", "votes split evenly")


def export_preferences(store: LabelStore, path: str | Path, human_first: bool = True) -> dict:
    """Write one conversational preference a pair to `path`, and beside it the audit that is returned (`*.audit.json`).

    The verdict with the most votes decides; with `human_first`, wherever a person gave a verdict only persons vote.
    `strength` is the winner's share of the votes, `annotator` the names of those who chose it, joined by " + ".
    Ties, skips and even splits make no preference; the audit counts them:
    {"pairs", "kept", "kept_by_person", "dropped": {reason: count}, "labels": {"human", "simulated", "skips"}}.
    """
    labels = store.labels()
    voting = _voting(labels, human_first)
    verdicts = majority(voting)
    skipped = {label.comparison_id for label in labels if label.choice == "skip"}
    comparisons = store.comparisons()
    kept = [pair for pair in comparisons if _reason(pair, verdicts, skipped) is None]
    dropped = Counter(_reason(pair, verdicts, skipped) for pair in comparisons)
    persons = {label.comparison_id for label in voting if label.kind == "person"}
    audit = {"pairs": len(comparisons), "kept": len(kept), "kept_by_person": sum(pair.id in persons for pair in kept),
             "dropped": {reason: dropped[reason] for reason in REASONS}, "labels": _counts(labels)}
    write_preferences(path, [_preference(pair, verdicts[pair.id]) for pair in kept])
    write_json(Path(path).with_suffix(".audit.json"), audit)
    return audit


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


def _reason(pair: Comparison, verdicts: dict[str, Majority], skipped: set[str]) -> str | None:
    """Why the pair makes no preference; None when it does."""
    if pair.id not in verdicts:
        return "only skipped" if pair.id in skipped else "not labelled"
    reasons = {None: "votes split evenly", "tie_good": "both good", "tie_bad": "both bad"}
    return reasons.get(verdicts[pair.id].verdict)


def _preference(pair: Comparison, verdict: Majority) -> dict:
    chosen, rejected = sorted(pair.responses, key=lambda response: response.id != verdict.verdict)
    return {"prompt": pair.messages, "chosen": as_messages(chosen.text, "assistant"),
            "rejected": as_messages(rejected.text, "assistant"),
            "annotator": " + ".join(verdict.voters), "strength": verdict.share}


def _counts(labels: list[Label]) -> dict[str, int]:
    said = Counter(label.kind for label in labels if label.choice != "skip")
    skips = sum(label.choice == "skip" for label in labels)
    return {"human": said["person"], "simulated": said["simulated"], "skips": skips}
