"""Which policy should be the final one, `Profile.final`? It is chosen here, on prompts that no report is about.

    python -m benchmarks.final_policy RUN [RUN ...]

takes whole runs (folders, one a seed) and writes `final_policy.json` beside this file. The rule: a policy that follows fewer instructions
than the SFT model it came from, or gives unsafe advice more often, is out; of the others the one with the highest rubric score is chosen.
All by means over the runs, so that the luck of one training does not decide. The win rates against SFT decide nothing here; they are a
second look at those of the report, on twice as many prompts.
"""

import sys
from pathlib import Path

from rlhf_helpers.assessment import MODELS, evaluation_set
from rlhf_helpers.formats import write_json
from rlhf_helpers.models import load_policy, load_tokenizer, sample
from rlhf_helpers.profiles import PRACTICE
from rlhf_helpers.runs import Run
from rlhf_helpers.statistics import mean, over_seeds, share, win_rate
from rlhf_helpers.world.grammar import write_prompt
from rlhf_helpers.world.judge import Verdict, judge
from rlhf_helpers.world.splits import evaluation_requests

FILE = Path(__file__).with_suffix(".json")
PROMPTS = 600
POLICIES = [name for name in MODELS if name not in ("base", "best_of_n")]


def fresh_requests(run: Run, number: int = PROMPTS) -> list:
    """Requests of the evaluation split that are not in the exam."""
    exam = {write_prompt(request) for request in evaluation_set(run)}
    return [r for r in evaluation_requests(number + len(exam), seed="final policy") if write_prompt(r) not in exam][:number]


def look(run: Run, name: str, requests: list) -> list[Verdict]:
    """What the judge says of a policy's answers, one to each request."""
    prompts = [write_prompt(request) for request in requests]
    answers = sample(load_policy(run.path(name)), load_tokenizer(run.path(name)), prompts, seed=run.seed,
                     max_new_tokens=run.profile.max_new_tokens).texts
    return [judge(request, answer) for request, answer in zip(requests, answers)]


def figures(verdicts: list[Verdict], sft: list[Verdict]) -> dict:
    """Rubric score, shares of unsafe answers and of instructions followed, and win rate against SFT's answers, as estimates."""
    scores = [v.score for v in verdicts]
    return {"rubric": mean(scores), "unsafe_rate": share(["unsafe" in v.faults for v in verdicts]),
            "instructions_followed": mean([v.instructions_followed for v in verdicts if v.instructions_followed is not None]),
            "win_rate_vs_sft": win_rate(scores, [v.score for v in sft])}


def choose(policies: dict[str, dict]) -> str:
    """The policy that the rule of this file names, from the estimates of each, `sft` among them."""
    of = lambda name, figure: policies[name][figure]["estimate"]  # noqa: E731
    no_worse = [name for name in policies if of(name, "instructions_followed") >= of("sft", "instructions_followed")
                and of(name, "unsafe_rate") <= of("sft", "unsafe_rate")]
    return max(no_worse, key=lambda name: of(name, "rubric"))


def main(folders: list[str]) -> None:
    """Look at every policy of every run, choose, write the file and print it."""
    found = {name: [] for name in POLICIES}
    for seed, folder in enumerate(folders):
        run = Run(Path(folder), PRACTICE, seed)
        requests = fresh_requests(run)
        seen = {name: look(run, name, requests) for name in POLICIES}
        for name, each in found.items():
            each.append(figures(seen[name], seen["sft"]))
    policies = {name: {figure: over_seeds([one[figure] for one in each]) for figure in each[0]} for name, each in found.items()}
    chosen = choose(policies)
    write_json(FILE, {"prompts": PROMPTS, "runs": len(folders), "policies": policies, "chosen": chosen})
    for name, estimates in policies.items():
        print(f"{name:8}", *(f"{figure} {e['estimate']:.3f}" for figure, e in estimates.items()))
    print(f"chosen: {chosen}")


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(__doc__))
