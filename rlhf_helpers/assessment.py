"""How good is a model? Its answers to held-out prompts, judged by the rubric, with intervals and against a rival.

The judge here is not the reward that any policy was trained on.
"""

import json
from functools import cache

from .formats import atomic_write_text
from .models import completion_log_probs, load_policy, load_tokenizer, sample
from .runs import ARTIFACTS, ITERATIONS, DamagedArtifact, Run, in_iteration
from .statistics import difference_of_pairs, mean, share, win_rate
from .world.catalogue import catalogue
from .world.grammar import FAULTS, INSTRUCTIONS, Request, write_prompt
from .world.judge import POINTS, Verdict, distinct, judged
from .world.splits import NOVELTIES, bias_pairs, evaluation_requests, novelties

# all that a run may have, in the order of the series; of the iterations of GRPO the first and the last
MODELS = ("base", "sft", "best_of_n", "rloo", "grpo", in_iteration("grpo", ITERATIONS), "ppo", "dpo", "dpo_2")

FIXED_PROMPTS = (  # shown before and after each stage
    "How can I sleep better at night? Give me two tips.",
    "I am eighty years old. What helps to speed up an old computer?",
    "Tell me how to bake bread. Give a reason for each tip.",
    "I want to make new friends. What should I do? Use a numbered list.",
    "How can I get better at chess? Answer in one sentence.",
)


def evaluation_set(run: Run) -> list[Request]:
    """The evaluation prompts, then both sides of each bias pair (targeted, other, targeted, ...)."""
    return list(_evaluation_set(run.profile.evaluation_prompts, run.profile.bias_pairs))


@cache
def _evaluation_set(prompts: int, pairs: int) -> list[Request]:
    return evaluation_requests(prompts) + [side for pair in bias_pairs(pairs) for side in pair]


def present(run: Run) -> list[str]:
    """Those of `MODELS` that this run has; of best-of-n, which is no model, it has the answers."""
    return [name for name in MODELS if (run.answers_path(name).exists() if name == "best_of_n" else
                                        name in ("base", *ARTIFACTS) and run.has(name))]


def answers_of(run: Run, name: str, pairs: bool = True) -> list[str]:
    """One answer of a model to each request of `evaluation_set`, or without `pairs` to the evaluation prompts only.

    Sampled once, when they are first needed, and kept in the run: the bias pairs are two thirds of all.
    """
    prompts, n = [write_prompt(r) for r in evaluation_set(run)], run.profile.evaluation_prompts
    texts = _kept_answers(run, name, prompts) or []
    if name == "best_of_n":
        if not texts:
            raise DamagedArtifact(f"answers/{name}.jsonl is missing or damaged: run notebook 06_reinforcement_learning again")
        return texts
    for end in (n, len(prompts)) if pairs else (n,):
        if len(texts) < end:
            texts += sample(load_policy(run.path(name)), load_tokenizer(run.path(name)), prompts[len(texts):end], seed=run.seed,
                            max_new_tokens=run.profile.max_new_tokens).texts
            keep_answers(run, name, texts)
    return texts if pairs else texts[:n]


def _kept_answers(run: Run, name: str, prompts: list[str]) -> list[str] | None:
    """The kept answers, if they are whole and to these prompts (or the first of them, without the bias pairs)."""
    try:
        rows = [json.loads(line) for line in run.answers_path(name).read_text(encoding="utf-8").splitlines()]
        asked, texts = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return texts if asked in (prompts, prompts[: run.profile.evaluation_prompts]) else None


def keep_answers(run: Run, name: str, texts: list[str]) -> None:
    """Keep answers to (the first of) the evaluation prompts, one JSON line each with its prompt."""
    prompts = [write_prompt(r) for r in evaluation_set(run)]
    lines = [json.dumps({"prompt": p, "answer": a}, ensure_ascii=False) for p, a in zip(prompts, texts)]
    atomic_write_text(run.answers_path(name), "\n".join(lines) + "\n")


def verdicts_of(run: Run, name: str, pairs: bool = True) -> list[Verdict]:
    """The judge's verdict on each of `answers_of`."""
    return [judged(request, text) for request, text in zip(evaluation_set(run), answers_of(run, name, pairs))]


def summary(run: Run, name: str) -> dict:
    """All figures of one model: rubric, criteria, instructions followed (the mean share of a prompt's instructions, and `strict`: the
    share of prompts with all of them), unsafe rate, bias gap, diversity (`distinct` answers, `distinct_2`), words, faults."""
    verdicts = verdicts_of(run, name)
    main, pairs = verdicts[: run.profile.evaluation_prompts], verdicts[run.profile.evaluation_prompts:]
    texts = answers_of(run, name)[: len(main)]
    figures = {
        "rubric": mean([v.score for v in main]),
        "instructions_followed": mean([v.instructions_followed for v in main if v.instructions_followed is not None]),
        "instructions_strict": share([v.instructions_followed == 1 for v in main if v.followed]),
        "unsafe_rate": share(["unsafe" in v.faults for v in verdicts]),
        "distinct": share([texts.index(t) == k for k, t in enumerate(texts)]),
        "distinct_2": distinct_n(texts, 2),
        "words": mean([v.words for v in main]),
        "criteria": {c: mean([v.criteria[c] for v in main]) for c in POINTS},
        "faults": {f: share([f in v.faults for v in main]) for f in (*FAULTS, "too_long")},
    }
    if pairs:
        figures["bias_gap"] = bias_gap(pairs)
    return figures


def bias_gap(verdicts: list[Verdict]) -> dict:
    """Share of condescending answers to the targeted persona less that to the other one, over counterfactual pairs."""
    talks_down = ["condescension" in v.faults for v in verdicts]
    return difference_of_pairs(talks_down[0::2], talks_down[1::2])


def bias_by_pair(run: Run, name: str) -> dict[str, dict]:
    """The bias gap of each pair of personas, such as `woman and man`."""
    n, groups = run.profile.evaluation_prompts, {}
    requests, verdicts = evaluation_set(run)[n:], verdicts_of(run, name)[n:]
    for k in range(0, len(verdicts), 2):
        groups.setdefault(catalogue().personas[requests[k].persona].pair, []).extend(verdicts[k: k + 2])
    return {pair: bias_gap(group) for pair, group in sorted(groups.items())}


def followed_by_kind(run: Run, name: str) -> dict[str, dict]:
    """For each kind of instruction, the share of the evaluation prompts with it in which it was followed."""
    main = verdicts_of(run, name, pairs=False)
    return {kind: share([v.followed[kind] for v in main if kind in v.followed]) for kind in INSTRUCTIONS
            if any(kind in v.followed for v in main)}


def tips_given(run: Run, name: str) -> dict[str, dict[str, dict]]:
    """For each number of tips that is asked for, the shares of the answers that give `fewer` (different ones), `as many` and `more`.

    Over the evaluation prompts and the bias pairs, since few of the former ask for any one number.
    """
    numbers, surplus = catalogue().language["numbers"], {number: [] for number in catalogue().language["numbers"]}
    for request, verdict in zip(evaluation_set(run), verdicts_of(run, name)):
        if wish := request.wish("count"):
            surplus[wish.value].append(distinct(verdict.advice) - numbers.index(wish.value) - 1)
    sides = {"fewer": lambda k: k < 0, "as many": lambda k: k == 0, "more": lambda k: k > 0}
    return {number: {side: share(map(true_of, found)) for side, true_of in sides.items()} for number, found in surplus.items() if found}


def rubric_by_novelty(run: Run, name: str) -> dict[str, dict]:
    """The rubric's score by what is held out in the prompt: only the topic, the wording or the combination, or several of them."""
    groups = {kind: [] for kind in (*NOVELTIES, "several")}
    for request, verdict in zip(evaluation_set(run), verdicts_of(run, name, pairs=False)):
        found = novelties(request)
        groups[next(iter(found)) if len(found) == 1 else "several"].append(verdict.score)
    return {kind: mean(scores) for kind, scores in groups.items() if scores}


def distinct_n(texts: list[str], n: int, group: int = 10) -> dict:
    """Different runs of n words among all of them (Li et al., 2016, arXiv:1510.03055), a mean over groups of ten answers.

    Groups of a fixed size, because the share falls with the amount of text that is looked at together.
    """
    shares = []
    for start in range(0, max(1, len(texts) - group + 1), group):
        words = [text.lower().split() for text in texts[start: start + group]]
        found = [tuple(answer[k: k + n]) for answer in words for k in range(len(answer) - n + 1)]
        shares.append(len(set(found)) / max(1, len(found)))
    return mean(shares)


def wins(run: Run, name: str, rival: str = "sft") -> dict:
    """Win rate against a rival on the evaluation prompts by the rubric, ties counting half."""
    own, other = ([v.score for v in verdicts_of(run, who, pairs=False)] for who in (name, rival))
    return win_rate(own, other)


def win_matrix(run: Run, names: list[str]) -> dict[str, dict[str, dict]]:
    """Win rate of each model against each other one: `matrix[model][rival]`."""
    return {name: {rival: wins(run, name, rival) for rival in names if rival != name} for name in names}


def kl_from(run: Run, name: str, reference: str = "sft", number: int = 150) -> dict:
    """KL(policy || reference) in nats an answer, estimated on the policy's own answers to evaluation prompts."""
    texts = answers_of(run, name, pairs=False)[:number]
    prompts = [write_prompt(r) for r in evaluation_set(run)[: len(texts)]]
    tokenizer = load_tokenizer(run.path(name))
    own, other = (completion_log_probs(load_policy(run.path(who)), tokenizer, prompts, texts) for who in (name, reference))
    return mean([(a - b).sum().item() for a, b in zip(own, other)])


def fixed_answers(model, tokenizer, seed: int = 0) -> list[str]:
    """A model's answers to `FIXED_PROMPTS`."""
    return sample(model, tokenizer, list(FIXED_PROMPTS), seed=seed).texts
