"""What Label Studio's annotations say, as acts for the label store.

Its editor and its interface for programs check little: an annotation may be empty, name a choice that does not exist, or hold the
order in which the answers happened to be shown. So each one is read by the labelling configuration it was made with; one that makes
no label is listed with the reason, and one that looks careless is kept and listed too. Of a ranking, every pair becomes a label.
"""
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

from ..formats import BadData, as_text, check_candidates
from .store import Comparison, Event, LabelStore, Response

CONFIGURATIONS = Path(__file__).resolve().parents[2] / "data" / "label_studio"
PAIRWISE, RANKING = CONFIGURATIONS / "pairwise.xml", CONFIGURATIONS / "ranking.xml"
TIES = {"tie_good": "tie_good", "tie_bad": "tie_bad", "tie": "tie_good", "both_good": "tie_good", "both_bad": "tie_bad"}
ORDERED = "ordered"                 # the choice in ranking.xml by which an annotator says that the order was meant
FASTEST_WORDS_A_SECOND = 10         # 600 words a minute, more than twice the usual pace of silent reading
UNSORTED = "_"                      # where Label Studio puts the answers that are in no bucket
LINES_SHOWN = 10


class NoLabel(ValueError):
    """An annotation, or a whole task, makes no label; the message is the reason."""


@dataclass(frozen=True)
class Layout:
    """What a labelling configuration asks for.

    `control` is the name of its Pairwise or Ranker, `compared` the first name that this is for, `fields` are the fields of a task's
    data with the answers: two from left to right, or one with the list to rank. `buckets` are the Ranker's, best first; `verdicts`
    the names of the Choices that offer a tie or ask if the order was meant, `confirms` whether one does the latter.
    """

    control: str
    compared: str
    fields: tuple[str, ...]
    buckets: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    confirms: bool = False

    @property
    def ranks(self) -> bool:
        return len(self.fields) == 1


@dataclass
class Audit:
    """What became of annotations: how many gave `labels`, were `skips`, were `withdrawn` because the server has them no more, or
    `restored` because it has them again; `dropped` and `suspects` have a line each, saying which and why. Suspects are among the
    labels."""

    tasks: int = 0
    labels: int = 0
    skips: int = 0
    withdrawn: int = 0
    restored: int = 0
    dropped: list[str] = field(default_factory=list)
    suspects: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.tasks} tasks: {self.labels} annotations with a label, {self.skips} skipped, {len(self.dropped)} without a "
                 f"label, {self.withdrawn} withdrawn, {self.restored} restored; {len(self.suspects)} of the labels look careless."]
        for title, found in (("No label", self.dropped), ("Look again", self.suspects)):
            lines += [f"{title}: {line}" for line in found[:LINES_SHOWN]]
            if len(found) > LINES_SHOWN:
                lines.append(f"{title}: {len(found) - LINES_SHOWN} more")
        return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------------------------
# The labelling configuration

def layout_of(configuration: str) -> Layout:
    """Read a labelling configuration (its XML). Raises ValueError if it is no comparison of answers."""
    try:
        tags = list(ElementTree.fromstring(configuration).iter())
    except ElementTree.ParseError as error:
        raise ValueError(f"the labelling configuration is not valid XML ({error}). Copy it again from the project's settings.") from None
    controls = [tag for tag in tags if tag.tag in ("Pairwise", "Ranker")]
    names = controls[0].get("toName", "").split(",") if len(controls) == 1 else []
    values = {tag.get("name"): tag.get("value", "") for tag in tags}
    fields = tuple(values.get(name.strip(), "").removeprefix("$") for name in names)
    if not all(fields) or len(fields) != {"Pairwise": 2, "Ranker": 1}.get(controls[0].tag if controls else ""):
        raise ValueError("the labelling configuration does not compare answers: it needs one <Pairwise> of two <Text>, or one <Ranker> "
                         f"of a <List>. Start from {PAIRWISE.name} or {RANKING.name} in data/label_studio.")
    offers = {tag.get("name"): {choice.get("alias") or choice.get("value") for choice in tag.iter("Choice")}
              for tag in tags if tag.tag == "Choices"}
    return Layout(controls[0].get("name"), names[0].strip(), fields,
                  buckets=tuple(bucket.get("name") for bucket in controls[0].iter("Bucket")),
                  verdicts=tuple(name for name, offer in offers.items() if offer & {*TIES, ORDERED}),
                  confirms=any(ORDERED in offer for offer in offers.values()))


# ---------------------------------------------------------------------------------------------------------------------
# Tasks

def candidate_set(data: object, layout: Layout) -> dict:
    """A task's data as a row of a candidate file, its answers in the order shown. Raises NoLabel if it holds no such thing."""
    data = data if isinstance(data, dict) else {}
    missing = [name for name in ("prompt", *layout.fields) if not data.get(name) and not isinstance(data.get(name), str)]
    if missing:
        raise NoLabel(f'the task has no field "{missing[0]}", which its configuration shows')
    items = data[layout.fields[0]] if layout.ranks else [{"id": name, "body": data[name]} for name in layout.fields]
    items = parsed(items) if layout.ranks else items
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise NoLabel(f'the field "{layout.fields[0]}" is not a list of answers')
    answers = [{"id": item.get("id"), "text": item.get("body", item.get("title")), "model": "unknown", "settings": {}} for item in items]
    row = {"prompt": parsed(data.get("messages")) or data["prompt"], "responses": answers}
    try:
        check_candidates([row])
    except BadData as error:
        raise NoLabel(f'"{error.problems[0].field}" {error.problems[0].what}') from None
    return row


def parsed(value: object) -> object:
    """What a text of JSON holds, such as a cell of a CSV file; anything else as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def record_tasks(store: LabelStore, tasks: Iterable[dict], layout: Layout, session: str, audit: Audit) -> set[str]:
    """Save what the annotations of these tasks say, count it in `audit`, and return the ids of its events.

    An annotation that was saved before is not saved again; one that was changed since then is a new act that replaces the old.
    Annotators are named after their number in Label Studio. Raises StoreError if it could not be saved.
    """
    comparisons, events = {}, []
    for task in tasks:
        audit.tasks += 1
        for annotation in task.get("annotations") or []:
            annotation = annotation if isinstance(annotation, dict) else {"id": annotation}      # some exports have numbers only
            try:
                found = _acts(task, annotation, layout, session)
            except NoLabel as reason:
                audit.dropped.append(f"{_place(task, annotation)}: {reason}")
                continue
            comparisons |= {pair.id: pair for pair, _ in found}
            events += [event for _, event in found]
            _count(task, annotation, layout, found, audit)
    for name in sorted({event.annotator for event in events}):
        store.add_annotator(name)
    store.add_comparisons(comparisons.values())
    store.record(*sorted(events, key=lambda event: event.at))        # of two by the same annotator, the later counts
    return {event.id for event in events}


def _place(task: dict, annotation: dict) -> str:
    return f"task {task.get('id', '?')}, annotation {annotation.get('id', '?')}"


def _acts(task: dict, annotation: dict, layout: Layout, session: str) -> list[tuple[Comparison, Event]]:
    """The acts of an annotation, one for each pair of answers that it speaks of."""
    row = candidate_set(task.get("data"), layout)
    answers = {answer["id"]: Response(answer["text"]) for answer in row["responses"]}
    skipped = bool(annotation.get("was_cancelled"))
    judged = _skips(answers) if skipped else _judgements(annotation.get("result"), answers, layout)
    seconds = None if layout.ranks else _seconds(annotation)         # of one pair in a ranking it is not known
    acts = []
    for pair, choice, preferred in judged:
        comparison = Comparison(row["prompt"], pair)
        acts.append((comparison, Event(
            "skip" if skipped else "label", comparison.id, _annotator(annotation), session, choice, preferred and preferred.id,
            tuple(answer.id for answer in pair), None if seconds is None else round(seconds * 1000),
            id=_event_id(annotation, comparison), at=_time(annotation))))
    if not acts:
        raise NoLabel("all answers are the same text" if len({a.id for a in answers.values()}) == 1 else "it ranks no two answers")
    return acts


def _annotator(annotation: dict) -> str:
    who = annotation.get("completed_by")
    who = who.get("id") if isinstance(who, dict) else who
    if who is None or not str(who).strip():
        raise NoLabel("it does not say who made it")
    return f"Label Studio user {who}"


def _seconds(annotation: dict) -> float | None:
    try:
        seconds = float(annotation.get("lead_time"))
    except (TypeError, ValueError):
        return None
    return seconds if 0 <= seconds < 1e9 else None                   # more the store cannot hold


def _time(annotation: dict) -> str:
    """When it was last changed, in UTC."""
    try:
        at = datetime.fromisoformat(annotation.get("updated_at") or annotation.get("created_at"))
    except (TypeError, ValueError):
        raise NoLabel("it does not say when it was made") from None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="milliseconds")


def _event_id(annotation: dict, comparison: Comparison) -> str:
    """The same for the same state of an annotation, from whichever file or server it comes; numbers alone repeat on other servers."""
    parts = [str(annotation.get("id")), annotation.get("created_at"), _time(annotation), comparison.id]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


# ---------------------------------------------------------------------------------------------------------------------
# Results

Judged = tuple[tuple[Response, Response], str | None, Response | None]      # the pair as shown, the choice, who was preferred


def _pairs(answers: dict[str, Response]) -> Iterator[tuple[str, str]]:
    """The ids of every two answers with different texts, in the order shown."""
    return (pair for pair in combinations(answers, 2) if answers[pair[0]].id != answers[pair[1]].id)


def _skips(answers: dict[str, Response]) -> Iterator[Judged]:
    return (((answers[one], answers[other]), None, None) for one, other in _pairs(answers))


def _judgements(results: object, answers: dict[str, Response], layout: Layout) -> Iterator[Judged]:
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise NoLabel("its result is not a list of results")
    if not results:
        raise NoLabel("it was submitted empty")
    said = {str(result.get("from_name")): result.get("value") for result in results}
    verdict, groups = _verdict(said, layout), _groups(said.get(layout.control), answers, layout)
    if verdict in TIES and groups and not layout.ranks:
        raise NoLabel("it prefers one answer and says that both are alike")
    if verdict not in TIES and not groups:
        raise NoLabel("it chooses neither an answer nor a tie")
    if layout.confirms and verdict is None:
        raise NoLabel("its order was not confirmed, so it may be the order in which the answers were shown")
    place = {answer: number for number, group in enumerate(groups) for answer in group}
    for one, other in _pairs(answers):
        pair = answers[one], answers[other]
        if verdict in TIES:
            yield pair, TIES[verdict], None
        elif one in place and other in place:
            first = min(one, other, key=place.get)
            yield (pair, "tie_good", None) if place[one] == place[other] else (pair, "prefer", answers[first])


def _verdict(said: dict, layout: Layout) -> str | None:
    """The choice in those Choices that speak of ties; None if none was made."""
    chosen = [choice for name in layout.verdicts for choice in _choices(said.get(name))]
    unknown = [choice for choice in chosen if choice not in (*TIES, ORDERED)]
    if unknown or len(set(chosen)) > 1:
        raise NoLabel(f"it holds the unknown choice {unknown[0]!r}" if unknown else f"it says both {chosen[0]} and {chosen[1]}")
    return chosen[0] if chosen else None


def _choices(value: object) -> list:
    chosen = value.get("choices", []) if isinstance(value, dict) else []
    return chosen if isinstance(chosen, list) else [chosen]


def _groups(value: object, answers: dict[str, Response], layout: Layout) -> list[list[str]]:
    """The ids of the answers that the Pairwise or Ranker speaks of, in groups, best first; empty if it was not used."""
    if value is None:
        return []
    if not isinstance(value, dict):
        raise NoLabel(f"it holds the unknown value {value!r}")
    groups = _ranking(value.get("ranker"), layout) if layout.ranks else _selected(value.get("selected"), list(answers))
    ranked = [answer for group in groups for answer in group]
    if not all(isinstance(answer, str) and answer in answers for answer in ranked) or len(set(ranked)) < len(ranked):
        raise NoLabel(f"it ranks answers that the task does not have, or one twice: {ranked!r}")
    if not layout.buckets and len(ranked) < len(answers):
        raise NoLabel(f"it ranks {len(ranked)} of {len(answers)} answers")
    return groups


def _selected(side: object, shown: list[str]) -> list[list[str]]:
    if side not in ("left", "right"):
        raise NoLabel(f"it selects {side!r}, which is neither left nor right")
    return [[name] for name in (shown if side == "left" else shown[::-1])]


def _ranking(value: object, layout: Layout) -> list[list[str]]:
    """Groups from a Ranker: one answer each without buckets, one a bucket with them. Old versions saved a bare list."""
    columns = value if isinstance(value, dict) else {layout.control: value}
    known = layout.buckets or (layout.control,)
    if not set(columns) <= {*known, UNSORTED} or not all(isinstance(column, list) for column in columns.values()):
        raise NoLabel(f"its ranking is not of the form that the configuration makes: {value!r}")
    if layout.buckets:
        return [columns.get(bucket, []) for bucket in layout.buckets]
    return [[answer] for answer in columns.get(layout.control, [])]


def _count(task: dict, annotation: dict, layout: Layout, acts: list[tuple[Comparison, Event]], audit: Audit) -> None:
    if annotation.get("was_cancelled"):
        audit.skips += 1
        return
    audit.labels += 1
    row, seconds = candidate_set(task["data"], layout), _seconds(annotation)
    texts = [answer["text"] for answer in row["responses"]]
    words = sum(len(text.split()) for text in [as_text(row["prompt"]), *texts])
    doubts = []
    if seconds is not None and words > FASTEST_WORDS_A_SECOND * seconds:
        as_shown = layout.ranks and all(event.preferred == event.shown_order[0] for _, event in acts)
        doubts.append(f"{words} words in {seconds:.1f} s" + (", and the order is as shown" if as_shown else ""))
    if annotation.get("parent_prediction") is not None:
        doubts.append("the page had filled it in from a model's prediction")
    if not all(text.strip() for text in texts):
        doubts.append("an answer is empty")
    if len(set(texts)) < len(texts):
        doubts.append("two answers are the same text")
    audit.suspects += [f"{_place(task, annotation)}: {doubt}" for doubt in doubts]
