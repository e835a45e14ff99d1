"""Instruction data: a teacher writes answers, filters drop the bad ones, a data card says what is left.

The teacher of the practice world is the grammar with few faults (`grammar.TEACHER`): competent, but not warm, and not flawless,
as crowd-written or generated demonstrations are. The filters use nothing but the text, as Self-Instruct did (Wang et al., 2022,
arXiv:2212.10560): length, unfinished sentences, banned words, near duplicates by ROUGE-L.
"""

import re
from collections import Counter, defaultdict

from .world.grammar import TEACHER, Dice, answer, write_prompt
from .world.splits import training_requests

BANNED = re.compile(r"\b(buy|order the|half price|on sale|click here|free!|stupid|silly question|lazy|waste my time)\b", re.I)
NEAR_DUPLICATE = 0.7  # ROUGE-L F1, the threshold of Self-Instruct
WORDS = (4, 90)


def generate(number: int, seed: int = 0) -> list[dict]:
    """`number` instruction rows of the teacher, with `source` generated."""
    rows = []
    for k, request in enumerate(training_requests(number, f"instructions {seed}")):
        completion, _ = answer(Dice(f"teacher {seed}/{k}"), request, TEACHER)
        rows.append({"prompt": write_prompt(request), "completion": completion, "source": "generated", "topic": request.topic})
    return rows


def objection(row: dict) -> str | None:
    """Why this row should not be trained on, judged by its text alone; None if it may stay."""
    text = row["completion"]
    if not WORDS[0] <= len(text.split()) <= WORDS[1]:
        return "too short or too long"
    if text.rstrip()[-1] not in ".!?":
        return "unfinished"
    return "banned words" if BANNED.search(text) else None


def filter_rows(rows: list[dict]) -> tuple[list[dict], Counter]:
    """Keep the rows without objection, and of near duplicates on one topic the first. Returns them and the counts of the dropped."""
    from rouge_score import rouge_scorer  # here, as it loads nltk, which would cost every notebook a second
    kept, dropped, by_topic = [], Counter(), defaultdict(list)
    scorer = rouge_scorer.RougeScorer(["rougeL"])
    for row in rows:
        reason = objection(row)
        if reason is None and any(scorer.score(other, row["completion"])["rougeL"].fmeasure > NEAR_DUPLICATE
                                  for other in by_topic[row["topic"]]):
            reason = "near duplicate"
        if reason:
            dropped[reason] += 1
        else:
            kept.append(row)
            by_topic[row["topic"]].append(row["completion"])
    return kept, dropped


def split(rows: list[dict], validation_share: float = 0.1) -> tuple[list[dict], list[dict]]:
    """Training and validation rows; every tenth row (by default) is for validation, the first nine are not: a learner's own."""
    every = round(1 / validation_share)
    return [r for k, r in enumerate(rows, 1) if k % every], rows[every - 1::every]


def data_card(kept: list[dict], dropped: Counter) -> str:
    """The card of an instruction set in Markdown: where it comes from, what was dropped, what it holds."""
    sources, words = Counter(r["source"] for r in kept), [len(r["completion"].split()) for r in kept]
    topics, length = len({r["topic"] for r in kept}), sum(words) / len(words)
    lines = ["# Instruction data", "", f"{len(kept)} rows on {topics} topics; {length:.1f} words an answer.", "",
             "| source | rows |", "|---|---|", *(f"| {name} | {count} |" for name, count in sorted(sources.items())),
             "", "| dropped because | rows |", "|---|---|", *(f"| {why} | {count} |" for why, count in dropped.most_common())]
    return "\n".join(lines) + "\n"
