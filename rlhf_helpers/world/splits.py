"""Which prompts belong to training and which to evaluation.

Every prompt whose hash falls into one of sixteen classes is *reserved*: it stands in no corpus, instruction, comparison or RL
prompt. Evaluation prompts are reserved prompts that also hold something new: a topic, a wording or a pair of instructions
that the base model's corpus knows and that no later stage ever trains on (`data/world/splits.json`).
"""

import hashlib
from collections.abc import Iterator
from functools import partial

from .catalogue import catalogue
from .grammar import Dice, Request, ask, with_persona, write_prompt

NOVELTIES = ("topic", "wording", "combination")


def is_reserved(request: Request) -> bool:
    """True for the prompts kept for evaluation, about one in sixteen; the same for every persona that asks."""
    prompt = write_prompt(with_persona(request, None))
    return hashlib.sha256(prompt.encode()).digest()[0] % 16 == 0


def novelties(request: Request) -> frozenset[str]:
    """What of this request is held out: any of `NOVELTIES`."""
    held = catalogue().heldout
    found = set()
    if request.topic in held["topics"]:
        found.add("topic")
    if request.question in held["questions"] or any(i.wording in held["instruction_wordings"] for i in request.instructions):
        found.add("wording")
    if sorted(i.kind for i in request.instructions) in [sorted(pair) for pair in held["instruction_pairs"]]:
        found.add("combination")
    return frozenset(found)


def corpus_requests(seed: str) -> Iterator[Request]:
    """Endless requests for the base model's corpus: everything but the reserved prompts."""
    dice = Dice(f"corpus {seed}")
    topics = sorted(catalogue().topics)
    while True:
        request = ask(dice, topics)
        if not is_reserved(request):
            yield request


def training_requests(number: int, seed: int | str, counts: float = 0.0, demanding: float = 0.0) -> list[Request]:
    """Different requests for the stages after the base model: nothing reserved and nothing held out.

    `counts` is the share of them that must ask for a number of tips, `demanding` the share that must have two instructions; the others may.
    """
    world, held = catalogue(), catalogue().heldout
    topics = sorted(set(world.topics) - set(held["topics"]))
    questions = [k for k in range(len(world.language["questions"])) if k not in held["questions"]]
    wordings = [k for k in range(4) if k not in held["instruction_wordings"]]
    pairs = [p for p in world.language["instruction_pairs"] if p not in held["instruction_pairs"]]
    dice, found = Dice(f"training {seed}"), {}
    draw = partial(ask, dice, topics, questions=questions, wordings=wordings, pairs=pairs)
    while len(found) < number:
        a_count, two = counts > 0 and dice.flip(counts), demanding > 0 and dice.flip(demanding)
        request = draw()
        while a_count and not any(i.kind == "count" for i in request.instructions) or two and len(request.instructions) < 2:
            request = draw()
        if not is_reserved(request):
            found.setdefault(write_prompt(request), request)
    return list(found.values())


def evaluation_requests(number: int, seed: int | str = 0) -> list[Request]:
    """Different reserved requests, a third each with a new topic, a new wording and a new pair of instructions."""
    dice, found, topics = Dice(f"evaluation {seed}"), {}, sorted(catalogue().topics)
    held = catalogue().heldout
    while len(found) < number:
        novelty = NOVELTIES[len(found) % len(NOVELTIES)]
        request = ask(dice, held["topics"] if novelty == "topic" else topics,
                      pairs=held["instruction_pairs"] if novelty == "combination" else None)
        if novelty in novelties(request) and is_reserved(request):
            found.setdefault(write_prompt(request), request)
    return list(found.values())


def bias_pairs(number: int, seed: int | str = 0) -> list[tuple[Request, Request]]:
    """Pairs of requests that differ in one attribute of who asks: (targeted side, other side). Neither is ever trained on."""
    world, dice, found = catalogue(), Dice(f"bias {seed}"), {}
    targeted = sorted(p.id for p in world.personas.values() if p.side == "targeted")
    topics = sorted(catalogue().topics)
    while len(found) < number:
        persona = targeted[len(found) % len(targeted)]
        request = with_persona(ask(dice, topics), persona)
        if novelties(request) and is_reserved(request):
            found.setdefault(write_prompt(request), (request, with_persona(request, world.counterpart(persona))))
    return list(found.values())
