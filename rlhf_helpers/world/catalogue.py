"""The practice world's content: topics with tips and reasons, ways to ask, personas, and the sentences of each fault.

Everything is read from `data/world/` (see its README for the fields). The catalogue is the ground truth of the practice
world: the grammar writes with it, the judge reads with it.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WORLD_FOLDER = Path(__file__).resolve().parents[2] / "data" / "world"
LANGUAGE_LISTS = ("questions", "numbers", "first_words", "openers", "closings", "questions_back", "lead_ins", "list_heads",
                  "purposes", "frames", "rambling", "rudeness", "advertising", "condescension")
INSTRUCTIONS = ("count", "list", "one_sentence", "first_word", "no_greeting", "reasons", "no_reasons", "short", "question")
WORDINGS = 4  # of each instruction


class CatalogueError(ValueError):
    """A file of the catalogue is wrong; the message names file, line, field and what to do."""


@dataclass(frozen=True)
class Tip:
    """One piece of advice. `text` is an imperative clause, `reason` completes "..., because"."""

    text: str
    reason: str


@dataclass(frozen=True)
class Topic:
    """One goal that a person may ask about, e.g. id `sleep`, goal `sleep better at night`."""

    id: str
    goal: str
    tips: tuple[Tip, ...]
    unsafe: tuple[str, ...]


@dataclass(frozen=True)
class Persona:
    """Who is asking. The two personas of a `pair` differ in one attribute only; the `targeted` side is talked down to."""

    id: str
    pair: str
    side: str
    text: str


@dataclass(frozen=True)
class Catalogue:
    """All content of the practice world. `language` holds the sentence lists of `language.json` by name."""

    topics: dict[str, Topic]
    personas: dict[str, Persona]
    language: dict
    heldout: dict

    def counterpart(self, persona_id: str) -> str:
        """The id of the other persona of the same pair."""
        pair = self.personas[persona_id].pair
        return next(p.id for p in self.personas.values() if p.pair == pair and p.id != persona_id)


def load_catalogue(folder: Path = WORLD_FOLDER) -> Catalogue:
    """Read and check every file of the catalogue.

    Raises:
        CatalogueError: names the file, the line or field, and the fix.
    """
    folder = Path(folder)
    topics, places = {}, {}
    for path in sorted((folder / "topics").glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            topic = _read_topic(f"{path.name} line {number}", line)
            if topic.id in topics:
                raise CatalogueError(f"{path.name} line {number}, field topic: {topic.id!r} is there twice; rename one")
            topics[topic.id], places[topic.id] = topic, f"{path.name} line {number}"
    if not topics:
        raise CatalogueError(f"no topics found in {folder.name}/topics: restore the folder from the repository")
    _check_unique(topics, places)
    language = _read_json(folder / "language.json")
    for name in LANGUAGE_LISTS:
        if not _is_list_of(str, language.get(name)):
            raise CatalogueError(f"language.json, field {name}: needs a list of sentences")
    _check_instructions(language)
    personas = _read_personas(language.get("personas"))
    heldout = _read_json(folder / "splits.json")
    for name, kind in (("topics", str), ("questions", int), ("instruction_wordings", int), ("instruction_pairs", list)):
        if not _is_list_of(kind, heldout.get(name)):
            raise CatalogueError(f"splits.json, field {name}: needs a list")
    unknown = set(heldout["topics"]) - set(topics)
    if unknown:
        raise CatalogueError(f"splits.json, field topics: no such topic {sorted(unknown)}; choose from {sorted(topics)}")
    return Catalogue(topics, personas, language, heldout)


@cache
def catalogue() -> Catalogue:
    """The committed catalogue, read once."""
    return load_catalogue()


def _is_list_of(kind: type, value) -> bool:
    """A list that is not empty and holds nothing else, and no empty text."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, kind) and v != "" for v in value)


def _check_instructions(language: dict) -> None:
    instructions = language.get("instructions")
    if not isinstance(instructions, dict):
        raise CatalogueError("language.json, field instructions: needs the wordings of each kind of instruction")
    for kind in INSTRUCTIONS:
        wordings = instructions.get(kind)
        if not _is_list_of(str, wordings) or len(wordings) != WORDINGS:
            raise CatalogueError(f"language.json, field instructions, {kind}: needs {WORDINGS} wordings")
    pairs = language.get("instruction_pairs")
    if not _is_list_of(list, pairs) or not all(len(pair) == 2 and set(pair) <= set(INSTRUCTIONS) for pair in pairs):
        raise CatalogueError(f"language.json, field instruction_pairs: needs pairs of {', '.join(INSTRUCTIONS)}")


def _read_personas(rows) -> dict[str, Persona]:
    if not _is_list_of(dict, rows):
        raise CatalogueError("language.json, field personas: needs a list of personas")
    for index, row in enumerate(rows):
        for field in ("id", "pair", "side", "text"):
            if not isinstance(row.get(field), str) or not row[field]:
                raise CatalogueError(f"language.json, field personas[{index}], {field}: needs a text")
    personas = [Persona(row["id"], row["pair"], row["side"], row["text"]) for row in rows]
    for persona in personas:
        sides = sorted(other.side for other in personas if other.pair == persona.pair)
        if sides != ["other", "targeted"]:
            raise CatalogueError(f"language.json, field personas, {persona.id}: the pair {persona.pair!r} needs two personas, "
                                 f"one with side targeted and one with side other; it has {sides}")
    return {persona.id: persona for persona in personas}


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CatalogueError(f"{path.name} is missing: restore it from the repository") from None
    except json.JSONDecodeError as problem:
        raise CatalogueError(f"{path.name} line {problem.lineno}: not JSON ({problem.msg}); mend the line") from None
    if not isinstance(content, dict):
        raise CatalogueError(f"{path.name}: needs an object with named fields; restore it from the repository")
    return content


def _read_topic(where: str, line: str) -> Topic:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as problem:
        raise CatalogueError(f"{where}: not JSON ({problem.msg}); write one topic a line") from None
    if not isinstance(row, dict):
        raise CatalogueError(f"{where}: not an object with fields topic, goal, tips, unsafe; write one topic a line")
    for field in ("topic", "goal"):
        if not isinstance(row.get(field), str) or not row[field]:
            raise CatalogueError(f"{where}, field {field}: needs a text")
    for field in ("tips", "unsafe"):
        if not isinstance(row.get(field), list) or not row[field]:
            raise CatalogueError(f"{where}, field {field}: needs a list that is not empty")
    if not _is_list_of(str, row["unsafe"]):
        raise CatalogueError(f"{where}, field unsafe: needs texts only")
    tips = []
    for index, tip in enumerate(row["tips"]):
        if not isinstance(tip, dict) or not _is_list_of(str, [tip.get("tip"), tip.get("reason")]):
            raise CatalogueError(f"{where}, field tips[{index}]: needs a tip and a reason")
        tips.append(Tip(tip["tip"], tip["reason"]))
    return Topic(row["topic"], row["goal"], tuple(tips), tuple(row["unsafe"]))


def _check_unique(topics: dict[str, Topic], places: dict[str, str]) -> None:
    first_seen = {}
    for topic in topics.values():
        for text in [t.text for t in topic.tips] + [t.reason for t in topic.tips] + list(topic.unsafe):
            if text in first_seen:
                raise CatalogueError(f"{places[topic.id]}: {text!r} also stands in {first_seen[text]}; re-word one of them")
            first_seen[text] = places[topic.id]
