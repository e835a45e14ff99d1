"""The practice world's content: topics with tips and reasons, ways to ask, personas, and the sentences of each fault.

Everything is read from `data/world/` (see its README for the fields). The catalogue is the ground truth of the practice
world: the grammar writes with it, the judge reads with it.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..formats import parsed_lines

WORLD_FOLDER = Path(__file__).resolve().parents[2] / "data" / "world"
LANGUAGE_LISTS = ("questions", "numbers", "first_words", "openers", "closings", "questions_back", "lead_ins", "list_heads",
                  "purposes", "frames", "rambling", "rudeness", "advertising", "condescension", "collections", "goal_reactions",
                  "other_goal_reactions")
INSTRUCTIONS = ("count", "list", "one_sentence", "first_word", "no_greeting", "reasons", "no_reasons", "short", "question")
WORDINGS = 4  # of each instruction
MOST_TIPS = 12  # of one topic in one answer
SLOTS = {"questions": ("goal",), "purposes": ("goal",), "frames": ("tip",), "collections": ("goal",), "goal_reactions": ("goal",),
         "other_goal_reactions": ("other",)}  # what the grammar fills into the sentences: the first is needed, the others may be there
INSTRUCTION_SLOTS = {"count": ("number", "tips", "ideas", "things"), "first_word": ("word",)}


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
        for number, row, faults, _ in parsed_lines(path):
            where = f"{path.name} line {number}"
            for _, what, fix in faults:
                raise CatalogueError(f"{where} {what}; {fix}; write one topic a line")
            topic = _read_topic(where, row)
            if topic.id in topics:
                raise CatalogueError(f"{where}, field topic: {topic.id!r} is there twice; rename one")
            topics[topic.id], places[topic.id] = topic, where
    if not topics:
        raise CatalogueError(f"no topics found in {folder.name}/topics: restore the folder from the repository")
    _check_unique(topics, places)
    language = _read_json(folder / "language.json")
    _check_sentences(language)
    _check_instructions(language)
    personas = _read_personas(language.get("personas"))
    heldout = _read_json(folder / "splits.json")
    _check_heldout(heldout, topics, language)
    return Catalogue(topics, personas, language, heldout)


@cache
def catalogue() -> Catalogue:
    """The committed catalogue, read once."""
    return load_catalogue()


def _is_list_of(kind: type, value) -> bool:
    """A list that is not empty and holds nothing else, and no empty text."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, kind) and v != "" for v in value)


def _check_sentences(language: dict) -> None:
    for name in LANGUAGE_LISTS:
        if not _is_list_of(str, language.get(name)):
            raise CatalogueError(f"language.json, field {name}: needs a list of sentences")
        if name in SLOTS:
            _check_slots(name, language[name], SLOTS[name])
    if all(frame.startswith("also") for frame in language["frames"]):
        raise CatalogueError('language.json, field frames: needs one that does not start with "also", for the first tip')
    kinds = language.get("knowledge")
    if not isinstance(kinds, dict) or not kinds:
        raise CatalogueError("language.json, field knowledge: needs the questions and answers of each kind")
    for kind, pairs in kinds.items():
        if not _is_list_of(list, pairs) or not all(_is_list_of(str, pair) and len(pair) == 2 for pair in pairs):
            raise CatalogueError(f"language.json, field knowledge, {kind}: needs pairs of a question and an answer")
        for index, pair in enumerate(pairs):
            _check_slots(f"knowledge, {kind}[{index}]", pair, ("tip", "goal", "reason"), needed=False)


def _check_slots(field: str, sentences: list[str], slots: tuple[str, ...], needed: bool = True) -> None:
    """The sentences have no other {names} than the grammar fills in, and the first of these where it is `needed`."""
    for index, sentence in enumerate(sentences):
        rest = sentence
        for slot in slots:
            rest = rest.replace(f"{{{slot}}}", "")
        if "{" in rest or "}" in rest:
            names = ", ".join(f"{{{slot}}}" for slot in slots)
            fix = f"use no braces but {names}" if slots else "use no braces"
            raise CatalogueError(f"language.json, field {field}[{index}]: {sentence!r} has braces that nothing fills; {fix}")
        if slots and needed and f"{{{slots[0]}}}" not in sentence:
            raise CatalogueError(f"language.json, field {field}[{index}]: {sentence!r} needs {{{slots[0]}}}; write it in")


def _check_instructions(language: dict) -> None:
    instructions = language.get("instructions")
    if not isinstance(instructions, dict):
        raise CatalogueError("language.json, field instructions: needs the wordings of each kind of instruction")
    for kind in INSTRUCTIONS:
        wordings = instructions.get(kind)
        if not _is_list_of(str, wordings) or len(wordings) != WORDINGS:
            raise CatalogueError(f"language.json, field instructions, {kind}: needs {WORDINGS} wordings")
        _check_slots(f"instructions, {kind}", wordings, INSTRUCTION_SLOTS.get(kind, ()))
    pairs = language.get("instruction_pairs")
    if not _is_list_of(list, pairs) or not all(len(pair) == 2 and all(kind in INSTRUCTIONS for kind in pair) for pair in pairs):
        raise CatalogueError(f"language.json, field instruction_pairs: needs pairs of {', '.join(INSTRUCTIONS)}")
    if any(len(set(pair)) == 1 for pair in pairs) or len(set(map(frozenset, pairs))) < len(pairs):
        raise CatalogueError("language.json, field instruction_pairs: needs two different instructions in each pair, and no pair twice "
                             "(the order does not count); delete the others")


def _check_heldout(heldout: dict, topics: dict[str, Topic], language: dict) -> None:
    """What is held out is there, and leaves something to train on."""
    questions, pairs = range(len(language["questions"])), language["instruction_pairs"]
    for name, all_of_them, choices in (("topics", sorted(topics), sorted(topics)),
                                       ("questions", questions, f"0 to {len(questions) - 1}"),
                                       ("instruction_wordings", range(WORDINGS), f"0 to {WORDINGS - 1}"),
                                       ("instruction_pairs", pairs, "the instruction_pairs of language.json")):
        held = heldout.get(name)
        if not isinstance(held, list) or not held:
            raise CatalogueError(f"splits.json, field {name}: needs a list that is not empty")
        for index, value in enumerate(held):
            if type(value) is not type(all_of_them[0]) or value not in all_of_them:
                raise CatalogueError(f"splits.json, field {name}[{index}]: there is no {value!r}; choose from {choices}")
        if all(value in held for value in all_of_them):
            raise CatalogueError(f"splits.json, field {name}: leaves none for training; delete some")
    if all(pair in heldout["instruction_pairs"] for pair in pairs if "count" in pair):
        raise CatalogueError("splits.json, field instruction_pairs: leaves no pair with count for training; delete some")


def _read_personas(rows) -> dict[str, Persona]:
    if not _is_list_of(dict, rows):
        raise CatalogueError("language.json, field personas: needs a list of personas")
    for index, row in enumerate(rows):
        for field in ("id", "pair", "side", "text"):
            if not isinstance(row.get(field), str) or not row[field]:
                raise CatalogueError(f"language.json, field personas[{index}], {field}: needs a text")
        if row["id"] in [other["id"] for other in rows[:index]]:
            raise CatalogueError(f"language.json, field personas[{index}], id: {row['id']!r} is there twice; rename one")
    personas = [Persona(row["id"], row["pair"], row["side"], row["text"]) for row in rows]
    for persona in personas:
        sides = sorted(other.side for other in personas if other.pair == persona.pair)
        if sides != ["other", "targeted"]:
            raise CatalogueError(f"language.json, field personas, {persona.id}: the pair {persona.pair!r} needs two personas, "
                                 f"one with side targeted and one with side other; it has {sides}")
    return {persona.id: persona for persona in personas}


def _read_json(path: Path) -> dict:
    try:
        data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        content = json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        raise CatalogueError(f"{path.name} is missing: restore it from the repository") from None
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise CatalogueError(f"{path.name} line {line}: not UTF-8 text; save the file as UTF-8") from None
    except json.JSONDecodeError as problem:
        raise CatalogueError(f"{path.name} line {problem.lineno}: not JSON ({problem.msg}); mend the line") from None
    except (ValueError, RecursionError) as problem:  # a number with thousands of digits, a list in a list in a list ...
        raise CatalogueError(f"{path.name}: not JSON that can be read ({problem}); restore it from the repository") from None
    if not isinstance(content, dict):
        raise CatalogueError(f"{path.name}: needs an object with named fields; restore it from the repository")
    return content


def _read_topic(where: str, row: object) -> Topic:
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
    if len(tips) < MOST_TIPS:
        raise CatalogueError(f"{where}, field tips: there are {len(tips)}, and an answer may use {MOST_TIPS}; write more")
    return Topic(row["topic"], row["goal"], tuple(tips), tuple(row["unsafe"]))


def _check_unique(topics: dict[str, Topic], places: dict[str, str]) -> None:
    first_seen = {}
    for topic in topics.values():
        for text in [t.text for t in topic.tips] + [t.reason for t in topic.tips] + list(topic.unsafe):
            if text in first_seen:
                raise CatalogueError(f"{places[topic.id]}: {text!r} also stands in {first_seen[text]}; re-word one of them")
            first_seen[text] = places[topic.id]
