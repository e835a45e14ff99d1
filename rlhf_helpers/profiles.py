"""A profile says which model and data a run uses, and how much of everything. Notebook code never asks which one it runs."""

from dataclasses import dataclass, replace
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "data"


@dataclass(frozen=True)
class Training:
    """How a model is trained: passes over the data, or a number of steps; learning rate; rows a step."""

    learning_rate: float
    batch_size: int
    epochs: float = 1.0
    steps: int = -1  # -1: as many as the epochs need


@dataclass(frozen=True)
class ReinforcementLearning:
    """One RL run: `steps` policy updates, each on `batch_size` answers, `generations` of them for the same prompt.

    `sampled` answers are drawn for each prompt and scored; only the `generations` whose rewards differ most are learned from.
    """

    steps: int
    batch_size: int
    generations: int
    learning_rate: float  # falls linearly to 0, so that the last steps average out the noise of the earlier ones
    beta: float  # weight of the KL penalty
    sampled: int = 0  # a multiple of `generations`; 0: as many


@dataclass(frozen=True)
class RejectionSampling:
    """Learning from one's own best answers: in each round, `answers` to each of `prompts` prompts; the `best` share of them is imitated."""

    rounds: int
    prompts: int
    answers: int
    best: float
    training: Training


@dataclass(frozen=True)
class OnlineDPO:
    """DPO on pairs of one's own: in each round, `answers` to each of `prompts` prompts, one in `one_in` taken from either end."""

    rounds: int
    prompts: int
    answers: int
    one_in: int
    training: Training  # in the first round; then less by the same amount from round to round


@dataclass(frozen=True)
class ProximalPolicyOptimisation:
    """One PPO run: `steps` rollouts of `batch_size` answers, each used for `epochs` passes of `minibatches` updates.

    The values are those of Huang et al. (2024, arXiv:2403.17031) where the size of the model does not ask for others.
    """

    steps: int
    batch_size: int  # answers a step, over all processes
    learning_rate: float  # falls linearly to 0
    beta: float  # weight of the KL penalty; the first one if `target_kl` is set
    target_kl: float | None = None  # nats an answer; None leaves beta fixed
    epochs: int = 4
    minibatches: int = 1
    discount: float = 1.0  # gamma
    trace: float = 0.95  # lambda of the generalised advantage estimate; 1 where the value function is young and answers are short
    clip: float = 0.2  # of the probability ratio
    value_clip: float = 0.2  # in units of the reward
    value_weight: float = 0.1
    whiten: bool = True  # give the advantages of a step mean 0 and variance 1
    stop_kl: float | None = 0.1  # nats a token between the policy of the rollout and the present one; beyond it the step's epochs end
    unfinished_score: float | None = -1.0  # in place of the reward of an answer that was cut off; None keeps the reward
    max_gradient: float = 1.0  # norm
    temperature: float = 1.0
    rows_at_once: int = 4  # in one pass through the model; fewer need less memory


@dataclass(frozen=True)
class Profile:
    """All settings of a run. `bars` says whether the notebooks' check cells raise, or only report (no bar was ever measured)."""

    name: str
    base_model: str
    instructions: int = 2000  # rows the teacher writes before filters
    sft: Training = Training(learning_rate=3e-4, batch_size=16, epochs=2.0)
    comparison_prompts: int = 1000
    counts: float = 0.4  # share of the prompts for comparisons and RL that must ask for a number of tips, where the SFT model errs most
    demanding: float = 0.5  # share of the prompts for RL, and for comparisons of its answers, that must have two instructions
    responses: int = 3  # sampled for each prompt; every two of them make a pair
    later_comparison_prompts: int = 200  # in the second iteration, two of the policy's answers and one of SFT to each
    reward_model: Training = Training(learning_rate=1.5e-4, batch_size=16)
    rloo: ReinforcementLearning = ReinforcementLearning(steps=10, batch_size=32, generations=4, learning_rate=8e-4, beta=0.05)
    grpo: ReinforcementLearning = ReinforcementLearning(
        steps=8, batch_size=64, generations=8, learning_rate=1e-3, beta=0.4, sampled=16)  # in each of the two iterations
    rejection: RejectionSampling = RejectionSampling(  # before the second GRPO
        rounds=4, prompts=64, answers=16, best=0.1, training=Training(learning_rate=6e-4, batch_size=16, epochs=4.0))
    ppo: ProximalPolicyOptimisation = ProximalPolicyOptimisation(
        steps=12, batch_size=48, learning_rate=1e-3, beta=0.03, epochs=2, trace=1.0,
        value_clip=10.0)  # as good as none: in so few steps the values have far to go
    dpo: Training = Training(learning_rate=4e-4, batch_size=32, steps=40)  # sees three fifths of the pairs
    dpo_beta: float = 0.2
    online_dpo: OnlineDPO = OnlineDPO(
        rounds=2, prompts=64, answers=16, one_in=8, training=Training(learning_rate=4e-4, batch_size=16, epochs=3.0))
    best_of: int = 4
    evaluation_prompts: int = 300
    bias_pairs: int = 320
    max_new_tokens: int = 96
    final: str = "grpo_2"  # the policy that the final bars are about: chosen on other prompts (`benchmarks/final_policy.py`)
    bars: bool = True
    brief: bool = False  # made smaller by `stages.brief`


PRACTICE = Profile(name="practice", base_model=str(DATA / "base_model"))
PROFILES = {p.name: p for p in (
    PRACTICE,
    replace(PRACTICE, name="quick", instructions=160, comparison_prompts=40, later_comparison_prompts=10,
            evaluation_prompts=24, bias_pairs=16, best_of=2, dpo=replace(PRACTICE.dpo, steps=4, batch_size=8),
            online_dpo=replace(PRACTICE.online_dpo, rounds=1, prompts=8),
            rloo=replace(PRACTICE.rloo, steps=3, batch_size=16), grpo=replace(PRACTICE.grpo, steps=3, batch_size=16),
            rejection=replace(PRACTICE.rejection, rounds=1, prompts=8),
            ppo=replace(PRACTICE.ppo, steps=3, batch_size=16), bars=False),
)}


def get_profile(name: str) -> Profile:
    """The profile of this name. Raises KeyError that lists the valid ones."""
    if name not in PROFILES:
        raise KeyError(f"no profile {name!r}; choose one of: {', '.join(PROFILES)}")
    return PROFILES[name]
