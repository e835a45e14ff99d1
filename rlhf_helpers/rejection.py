"""Best-of-n, the baseline that needs no training, and rejection sampling, which learns it: the policy imitates its own best answers."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .models import load_policy, load_tokenizer, rewards, sample
from .profiles import OnlineDPO, RejectionSampling
from .rewards import Reward, finite, reward_of
from .sft import train_sft


def best_of_n(policy, reward_model, tokenizer, prompts: list[str], n: int, *, seed: int = 0, max_new_tokens: int = 96) -> list[str]:
    """For each prompt, the one of n sampled answers that the reward model likes best."""
    answers = sample(policy, tokenizer, prompts * n, seed=seed, max_new_tokens=max_new_tokens).texts
    scores = rewards(reward_model, tokenizer, prompts * n, answers)
    best = [max(range(k, len(answers), len(prompts)), key=scores.__getitem__) for k in range(len(prompts))]
    return [answers[k] for k in best]


def centred(values: np.ndarray, groups: Sequence) -> np.ndarray:
    """Each row less the mean of its group (the answers to the same prompt)."""
    values, groups = np.asarray(values, float), np.unique(groups, return_inverse=True)[1]
    means = np.stack([np.bincount(groups, column) for column in values.reshape(len(values), -1).T], 1) / np.bincount(groups)[:, None]
    return values - means[groups].reshape(values.shape)


def furthest_above(prompts: list[str], answers: list[str], above: np.ndarray, allowed: np.ndarray, share: float) -> list[dict]:
    """The share of the answers that is furthest `above` the mean of its prompt, as instructions (`prompt`, `completion`); none twice.

    Answers that are not `allowed` count for the share, but are never chosen.
    """
    order = [k for k in np.argsort(-above, kind="stable") if allowed[k]][:max(1, int(share * len(answers)))]
    unique = dict.fromkeys((prompts[k], answers[k]) for k in order)
    return [{"prompt": prompt, "completion": answer} for prompt, answer in unique]


def asked_in_rounds(prompts: list[str], plan: RejectionSampling | OnlineDPO) -> list[list[str]]:
    """What the policy is asked in each round of a plan: other prompts each time, each as often as it needs answers.

    Raises ValueError if there are too few prompts.
    """
    if len(prompts) < plan.rounds * plan.prompts:
        raise ValueError(f"there are {len(prompts)} prompts for {plan.rounds} rounds of {plan.prompts}: give at least "
                         f"{plan.rounds * plan.prompts}")
    return [prompts[number * plan.prompts:(number + 1) * plan.prompts] * plan.answers for number in range(plan.rounds)]


def imitate_best(start: str | Path, reward: str | Path | Reward, prompts: list[str], folder: str | Path, plan: RejectionSampling,
                 seed: int = 0, max_new_tokens: int = 96) -> list[int]:
    """Rejection sampling: the policy in `start` answers, the best answers by a reward are imitated, and again, `plan.rounds` times.

    Best-of-n, learned, as for Llama 2 before its PPO (Touvron et al., 2023, arXiv:2307.09288, 3.2.3) and in RAFT (Dong et al., 2023,
    arXiv:2304.06767). Best is what is furthest above the mean of its prompt; an answer that was cut off is never imitated.

    Returns:
        how many answers were imitated in each round.
    """
    tokenizer, scored, policy, imitated = load_tokenizer(start), reward if callable(reward) else reward_of(reward), start, []
    for number, asked in enumerate(asked_in_rounds(prompts, plan)):
        said = sample(load_policy(policy), tokenizer, asked, seed=1000 * seed + number, max_new_tokens=max_new_tokens)
        above = centred(finite(scored, asked, said.texts), asked)
        best = furthest_above(asked, said.texts, above, np.array(said.finished), plan.best)
        train_sft(policy, best, folder, plan.training, seed + number, title=f"Imitating {len(best)} answers, round {number + 1}")
        policy = folder
        imitated.append(len(best))
    return imitated
