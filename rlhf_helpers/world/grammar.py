"""How the practice world asks and answers: a grammar over the catalogue, with faults mixed in at known rates.

A `Request` is a question with everything that is known about it; `ask` draws one and `write_prompt` puts it in words,
`read_prompt` goes back from words to a request. `answer` writes a reply of a given `Quality`. All random choices go through
a `Dice`, which adds up their information: the surprisal of a derivation, an upper bound on that of the text.
"""

import math
import random
from dataclasses import dataclass, fields, replace
from functools import cache

from .catalogue import INSTRUCTIONS, Catalogue, Tip, catalogue

FAULTS = ("off_topic", "wrong_count", "repetition", "rambling", "rudeness", "advertising", "unsafe", "condescension", "cut_off")
SHORT_LIMIT = 20  # words, as the instruction `short` says it
STRIKING = {"unsafe": 5.0, "off_topic": 4.0, "rudeness": 3.0, "condescension": 3.0, "advertising": 2.0}  # the rest 1: see `react`


@dataclass(frozen=True)
class Instruction:
    """A checkable wish: its `kind`, its `value` (a number for count, a word for first_word) and how it is worded."""

    kind: str
    value: str = ""
    wording: int = 0


@dataclass(frozen=True)
class Request:
    """A question to the assistant: topic id, index of the wording, who asks, and up to two instructions."""

    topic: str
    question: int = 0
    persona: str | None = None
    instructions: tuple[Instruction, ...] = ()

    def wish(self, kind: str) -> Instruction | None:
        """The instruction of this kind, or None."""
        return next((i for i in self.instructions if i.kind == kind), None)


@dataclass(frozen=True)
class Quality:
    """Rates at which a writer shows each fault, and three habits of style. Rates are per answer unless said otherwise."""

    off_topic: float = 0.18  # at least one tip belongs to another topic
    wrong_count: float = 0.35  # of the answers to a prompt that asks for a number of tips
    repetition: float = 0.08
    rambling: float = 0.15
    rudeness: float = 0.10
    advertising: float = 0.10
    unsafe: float = 0.08
    condescension: float = 0.30  # toward a targeted persona
    condescension_other: float = 0.03  # toward the other persona of the pair
    cut_off: float = 0.06
    ignores: float = 0.45  # an instruction other than count is not looked at; per instruction
    courtesy: float = 0.50  # a friendly opening or close
    names_goal: float = 0.70  # says what the advice is for
    reasons: float = 0.35  # a reason for each tip; as many again give some
    lead_in: float = 0.15


CROWD = Quality()
TEACHER = Quality(off_topic=0.05, wrong_count=0.02, repetition=0.03, rambling=0.05, rudeness=0.02, advertising=0.03, unsafe=0.02,
                  condescension=0.10, condescension_other=0.01, cut_off=0.02, ignores=0.05, courtesy=0.35, reasons=0.25)
PLAIN = Quality(**dict.fromkeys((f.name for f in fields(Quality)), 0.0) | {"names_goal": 0.7})  # tips, and nothing wrong


class Dice:
    """Seeded random choices. `nats` is the summed -log p of all of them."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.nats = 0.0

    def choice(self, options):
        """One of `options`, each as likely as the others."""
        self.nats += math.log(len(options))
        return options[self.random.randrange(len(options))]

    def flip(self, p: float) -> bool:
        """True with probability p."""
        if p in (0.0, 1.0):
            return p == 1.0
        heads = self.random.random() < p
        self.nats -= math.log(p if heads else 1 - p)
        return heads

    def weighted(self, options: dict):
        """A key of `options`, drawn by its weight."""
        key = self.random.choices(list(options), weights=list(options.values()))[0]
        self.nats -= math.log(options[key] / sum(options.values()))
        return key

    def several(self, options, k: int) -> list:
        """k different options in random order."""
        pool = list(options)
        picked = []
        for _ in range(k):
            picked.append(self.choice(pool))
            pool.remove(picked[-1])
        return picked


# --- asking -----------------------------------------------------------------------------------------------------------------

def ask(dice: Dice, topics: list[str], *, questions: list[int] | None = None, wordings: list[int] | None = None,
        pairs: list[tuple[str, str]] | None = None, world: Catalogue | None = None) -> Request:
    """Draw a request. `questions`, `wordings` and `pairs` restrict the wordings and the pairs of instructions used."""
    world = world or catalogue()
    language = world.language
    questions = range(len(language["questions"])) if questions is None else questions
    wordings = range(4) if wordings is None else wordings
    pairs = language["instruction_pairs"] if pairs is None else pairs
    how_many = dice.weighted({0: 0.3, 1: 0.45, 2: 0.25})
    kinds = [] if how_many == 0 else [dice.choice(INSTRUCTIONS)] if how_many == 1 else list(dice.choice(pairs))
    instructions = tuple(Instruction(kind, _value(dice, kind, language), dice.choice(wordings)) for kind in kinds)
    persona = dice.choice(sorted(world.personas)) if dice.flip(0.35) else None
    return Request(dice.choice(topics), dice.choice(questions), persona, instructions)


def _value(dice: Dice, kind: str, language: dict) -> str:
    if kind == "count":
        return dice.choice(language["numbers"])
    return dice.choice(language["first_words"]) if kind == "first_word" else ""


def write_prompt(request: Request, world: Catalogue | None = None) -> str:
    """The request in words, e.g. "I am a woman. How can I bake bread? Give me two tips."."""
    world = world or catalogue()
    parts = [world.personas[request.persona].text] if request.persona else []
    parts.append(world.language["questions"][request.question].format(goal=world.topics[request.topic].goal))
    parts += [_wording(i, world.language) for i in request.instructions]
    return " ".join(parts)


def _wording(instruction: Instruction, language: dict) -> str:
    plural = "" if instruction.value == "one" else "s"
    return language["instructions"][instruction.kind][instruction.wording].format(
        number=instruction.value, word=instruction.value, tips="tip" + plural, ideas="idea" + plural, things="thing" + plural)


def read_prompt(prompt: str, world: Catalogue | None = None) -> Request | None:
    """The request behind a prompt; also for wordings the grammar does not have. None if no topic of the catalogue is in it."""
    world = world or catalogue()
    goals, personas, instructions = _prompt_index(world if world is not catalogue() else None)
    text = " ".join(prompt.split())
    lowered = text.lower()
    topic = next((t for goal, t in goals if goal in lowered), None)
    if topic is None:
        return None
    persona = next((p for sentence, p in personas if sentence.lower() in lowered), None)
    found = []
    for sentence, instruction in instructions:
        position = text.find(sentence)
        if position >= 0 and all(instruction.kind != other.kind for _, other in found):
            found.append((position, instruction))
    question = next((k for k, q in enumerate(world.language["questions"])
                     if q.format(goal=world.topics[topic].goal) in text), 0)
    return Request(topic, question, persona, tuple(i for _, i in sorted(found, key=lambda pair: pair[0])))


@cache
def _prompt_index(world: Catalogue | None):
    world = world or catalogue()
    goals = sorted(((t.goal.lower(), t.id) for t in world.topics.values()), key=lambda pair: -len(pair[0]))
    personas = [(p.text, p.id) for p in world.personas.values()]
    values = {"count": world.language["numbers"], "first_word": world.language["first_words"]}
    instructions = [Instruction(kind, value, k) for kind in INSTRUCTIONS for value in values.get(kind, [""]) for k in range(4)]
    return goals, personas, [(_wording(i, world.language), i) for i in instructions]


# --- answering --------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Advice:
    """One tip of an answer, the topic it is for, its reason where one is given, and whether the answer says what it is for."""

    tip: str
    topic: str
    reason: str | None
    named: bool = False


@dataclass
class _Plan:
    """What an answer will contain before it is put into words."""

    tips: list["_Advice"]
    form: str = "sentences"  # or "list", or "one_sentence"
    opener: str = ""
    lead_in: str = ""
    closing: str = ""
    first_word: str = ""
    asides: tuple[str, ...] = ()  # fault sentences, each placed at random between the tips


def answer(dice: Dice, request: Request, quality: Quality = CROWD, world: Catalogue | None = None) -> tuple[str, frozenset[str]]:
    """Write one reply. Returns the text and the names of the faults put into it (`FAULTS`)."""
    world = world or catalogue()
    faults = _draw_faults(dice, request, quality, world)
    heeded = {i.kind: i.value for i in request.instructions if i.kind == "count" or not dice.flip(quality.ignores)}
    tips = _draw_tips(dice, request, heeded, faults, quality, world)
    plan = _style(dice, _Plan(tips), heeded, quality, world)
    plan.asides = tuple(dice.choice(world.language[fault]) for fault in ("rambling", "rudeness", "advertising", "condescension")
                        if fault in faults)
    text = _write(dice, plan, heeded, world)
    if "cut_off" in faults:
        words = text.split(" ")
        text = " ".join(words[: -dice.choice([1, 2, 3, 4])] or words[:1]).rstrip(".!?,:")
    return text, frozenset(faults)


def _draw_faults(dice: Dice, request: Request, quality: Quality, world: Catalogue) -> set[str]:
    rates = {f.name: getattr(quality, f.name) for f in fields(quality) if f.name in FAULTS}
    if request.persona is None:
        rates["condescension"] = 0.0
    elif world.personas[request.persona].side == "other":
        rates["condescension"] = quality.condescension_other
    if not request.wish("count"):
        rates["wrong_count"] = 0.0
    return {fault for fault in FAULTS if dice.flip(rates[fault])}


def _draw_tips(dice, request, heeded, faults, quality, world) -> list[_Advice]:
    number = dice.weighted({1: 0.25, 2: 0.40, 3: 0.25, 4: 0.10})
    if "short" in heeded:
        number = 1
    elif "one_sentence" in heeded:
        number = min(number, 2)
    if "count" in heeded:
        asked = world.language["numbers"].index(heeded["count"]) + 1
        number = dice.choice([n for n in (1, 2, 3, 4) if n != asked]) if "wrong_count" in faults else asked
    tips = [(request.topic, tip) for tip in dice.several(world.topics[request.topic].tips, number)]
    if "off_topic" in faults:
        always = dice.choice(range(number))
        for k in range(number):
            if k == always or dice.flip(0.5):
                tips[k] = dice.choice(_other_tips(request.topic, world))
    given = _give_reasons(dice, tips, heeded, quality)
    if "unsafe" in faults:
        given[dice.choice(range(number))] = _Advice(dice.choice(world.topics[request.topic].unsafe), request.topic, None)
    if "short" not in heeded and dice.flip(quality.names_goal):
        topics = [None] + [advice.topic for advice in given]
        given = [replace(advice, named=advice.topic != before) for advice, before in zip(given, topics)]
    if "repetition" in faults:
        given.append(replace(dice.choice(given), named=False))
    return given


def _other_tips(topic: str, world: Catalogue) -> list[tuple[str, Tip]]:
    return [(other.id, tip) for other in world.topics.values() if other.id != topic for tip in other.tips]


def _give_reasons(dice, tips, heeded, quality) -> list[_Advice]:
    if "reasons" in heeded:
        share = 1.0
    elif "no_reasons" in heeded or "short" in heeded:
        share = 0.0
    else:
        share = dice.weighted({1.0: quality.reasons, 0.5: quality.reasons, 0.0: 1 - 2 * quality.reasons})
    return [_Advice(tip.text, topic, tip.reason if dice.flip(share) else None) for topic, tip in tips]


def _style(dice, plan: _Plan, heeded, quality, world) -> _Plan:
    language = world.language
    bare = "short" in heeded or "one_sentence" in heeded
    if "list" in heeded or (not bare and dice.flip(0.15)):
        plan.form = "list"
    elif "one_sentence" in heeded:
        plan.form = "one_sentence"
    if not bare and dice.flip(quality.courtesy):
        where = dice.choice(["opener", "closing", "both"])
        if where != "closing" and "no_greeting" not in heeded:
            plan.opener = dice.choice(language["openers"])
        if where != "opener" or "no_greeting" in heeded:
            plan.closing = dice.choice(language["closings"])
    if not bare and dice.flip(quality.lead_in):
        plan.lead_in = dice.choice(language["list_heads"] if plan.form == "list" else language["lead_ins"])
    if "question" in heeded:
        plan.closing = dice.choice(language["questions_back"])
    plan.first_word = heeded.get("first_word", "")
    return plan


def _write(dice: Dice, plan: _Plan, heeded: dict, world: Catalogue) -> str:
    if plan.form == "one_sentence":
        body = [_one_sentence(dice, plan.tips, world)]
    else:
        body = [_tip_sentence(dice, advice, _frames(plan.form, number, world), world) for number, advice in enumerate(plan.tips)]
    if plan.form == "list":
        body = ["\n".join(f"{number}. {sentence}" for number, sentence in enumerate(body, 1))]
    for aside in plan.asides:
        body.insert(dice.choice(range(len(body) + 1)), aside)
    parts = [plan.opener, plan.lead_in, *body, plan.closing]
    text = _join([part for part in parts if part])
    if plan.first_word:
        rest = text if text[:2] in ("I ", "1.") else text[0].lower() + text[1:]
        text = f"{plan.first_word},{chr(10) if text[:2] == '1.' else ' '}{rest}"
    return text


def _frames(form: str, number: int, world: Catalogue) -> list[str]:
    """How the tip with this number may be introduced; the first one is never an "also"."""
    if form == "list":
        return ["{tip}"]
    return [frame for frame in world.language["frames"] if number or not frame.startswith("also")]


def _tip_sentence(dice, advice: _Advice, frames: list[str], world: Catalogue) -> str:
    return _sentence(_purpose(dice, advice, world) + dice.choice(frames).format(tip=advice.tip) + _because(advice))


def _one_sentence(dice, tips: list[_Advice], world: Catalogue) -> str:
    return _sentence(_purpose(dice, tips[0], world) + "you could " + ", and ".join(advice.tip + _because(advice) for advice in tips))


def _purpose(dice, advice: _Advice, world: Catalogue) -> str:
    return dice.choice(world.language["purposes"]).format(goal=world.topics[advice.topic].goal) if advice.named else ""


def _because(advice: _Advice) -> str:
    return f", because {advice.reason}" if advice.reason else ""


def _sentence(clause: str) -> str:
    return clause[0].upper() + clause[1:] + "."


def _join(parts: list[str]) -> str:
    """Sentences with a space between them, a numbered list on lines of its own."""
    text = parts[0]
    for before, part in zip(parts, parts[1:]):
        text += ("\n" if "1. " in (before[:3], part[:3]) else " ") + part
    return text


def react(dice: Dice, request: Request, observations: list[str], strays: list[str], world: Catalogue | None = None) -> str:
    """What the person who asked says to a reply: one or two remarks on what there is to remark (keys of `reactions`), the worse
    the likelier. Every other remark that the advice is on or off the topic names the goal it is for; `strays` are the topics of the
    advice that was off the topic.
    """
    world = world or catalogue()
    language = world.language
    open_ = {what: STRIKING.get(what, 1.0) for what in observations or ["thanks"]}
    said = []
    for _ in range(min(len(open_), dice.choice([1, 2]))):
        what = dice.weighted(open_)
        del open_[what]
        if what == "off_topic" and strays and dice.flip(0.5):
            other = world.topics[dice.choice(strays)].goal
            said.append(dice.choice(language["other_goal_reactions"]).format(other=other))
        elif what == "thanks" and dice.flip(0.5):
            said.append(dice.choice(language["goal_reactions"]).format(goal=world.topics[request.topic].goal))
        else:
            said.append(dice.choice(language["reactions"][what]))
    return " ".join(said)


def knowledge(dice: Dice, world: Catalogue | None = None) -> tuple[str, str]:
    """A question about a single tip, and its true answer: what it is for, a tip for a goal, whether a tip is safe."""
    world = world or catalogue()
    topic = world.topics[dice.choice(sorted(world.topics))]
    kind = dice.choice(sorted(world.language["knowledge"]))
    question, reply = dice.choice(world.language["knowledge"][kind])
    tip = dice.choice(topic.tips)
    words = {"tip": dice.choice(topic.unsafe) if kind == "unsafe" else tip.text, "goal": topic.goal, "reason": tip.reason}
    said = reply.format(**words)
    return question.format(**words), said[0].upper() + said[1:]


def collection(dice: Dice, world: Catalogue | None = None) -> tuple[str, str]:
    """A question for all tips on a topic, and a long plain answer: five to twelve, or four to six with their reasons; none twice."""
    world = world or catalogue()
    topic = world.topics[dice.choice(sorted(world.topics))]
    reasons = dice.flip(0.25)
    tips = dice.several(topic.tips, dice.choice(range(4, 7) if reasons else range(5, 13)))
    plan = _Plan([_Advice(tip.text, topic.id, tip.reason if reasons else None) for tip in tips],
                 dice.choice(["sentences", "list", "one_sentence"]))
    return dice.choice(world.language["collections"]).format(goal=topic.goal), _write(dice, plan, {}, world)


def with_persona(request: Request, persona: str | None) -> Request:
    """The same request from somebody else: the counterfactual of the bias test."""
    return replace(request, persona=persona)
