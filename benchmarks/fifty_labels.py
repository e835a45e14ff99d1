"""Fifty labels of one's own, measured: writes `fifty_labels.json` beside this file.

    python benchmarks/fifty_labels.py RUN [RUN ...] [--tastes courteous terse] [--seeds 0 1 2 3 4 5] [--parts curve policy] [--out FILE]

RUN is the folder of a finished run (candidates, SFT model and reward model are read, nothing in it is changed). Of several runs, the first
seed takes the first, the second the second, and so on in turn: how well a taste is learned depends on the models it starts from. Each row
(one taste, one seed) is written as soon as it is measured, and not measured again by a later call, unless the models or the settings of
`personal` have changed since. Whoever changes its code deletes the file.

Every figure is on held-out prompts, other ones for each seed, by the simulated person's own opinion without noise; the taste's reward
never judges. A pair is clear if this person would say the same again nine times in ten. Intervals: bootstrap over seeds, then prompts.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlhf_helpers import personal  # noqa: E402
from rlhf_helpers.formats import as_text, atomic_write_text, read_json  # noqa: E402
from rlhf_helpers.models import load_policy, load_reward_model, load_tokenizer, sample  # noqa: E402
from rlhf_helpers.profiles import PRACTICE  # noqa: E402
from rlhf_helpers.rewards import shuffled  # noqa: E402
from rlhf_helpers.runs import Run  # noqa: E402
from rlhf_helpers.statistics import share  # noqa: E402
from rlhf_helpers.world.annotators import TASTES  # noqa: E402
from rlhf_helpers.world.grammar import write_prompt  # noqa: E402
from rlhf_helpers.world.judge import judge  # noqa: E402
from rlhf_helpers.world.splits import evaluation_requests  # noqa: E402

PROMPTS = 120  # held out, for each seed
LABELS = 50
CURVE = (25, 50, 100, 200)
RESAMPLES = 2000
EMPTY = 3  # an answer of fewer words says nothing


class Bench:
    """One run under test, with what several rows need read once."""

    def __init__(self, folder: Path):
        self.run = Run(folder, PRACTICE, 0)
        self.tokenizer = load_tokenizer(self.run.path("sft"))
        self.reward_model = load_reward_model(self.run.path("reward_model"))
        self.held_out = cache(self._held_out)

    def candidates(self):
        """Prompts and reading of the candidates that `personalise` reads too."""
        rows, reading = personal.read_candidates_of(self.run)
        return [as_text(row["prompt"]) for row in rows for _ in row["responses"]], reading

    def answers(self, model: Path, prompts: list[str], seed: int) -> list[str]:
        return sample(load_policy(model), self.tokenizer, prompts, seed=seed, max_new_tokens=self.run.profile.max_new_tokens).texts

    def _held_out(self, seed: int):
        """Prompts, and two answers of the SFT model to each with their reading: (prompts, answers, reading)."""
        prompts = [write_prompt(r) for r in evaluation_requests(PROMPTS, f"fifty {seed}")]
        answers = self.answers(self.run.path("sft"), prompts * 2, 1000 + seed)
        return prompts, answers, personal.read_answers(self.reward_model, self.tokenizer, prompts * 2, answers)

    def accuracy(self, name: str, taste: personal.Taste, seed: int) -> list[bool]:
        """For each clear pair of held-out answers, whether the taste's reward has it in this person's order."""
        person, (prompts, answers, reading) = TASTES[name], self.held_out(seed)
        felt = np.array([person.felt_quality(judge(p, a)) for p, a in zip(prompts * 2, answers)]).reshape(2, -1)
        given = taste.rewards(reading).reshape(2, -1)
        clear = np.abs(felt[0] - felt[1]) >= person.noise * np.log(9)
        return [int(right) for right in ((given[0] > given[1]) == (felt[0] > felt[1]))[clear]]

    def taste(self, labels: list[dict]) -> personal.Taste:
        return personal.learn_taste(*personal.read_labels(self.reward_model, self.tokenizer, labels), *self.candidates())

    def curve(self, name: str, seed: int) -> dict:
        """Accuracy of the taste's reward from some labels, and from the same ones turned by a coin; nothing is trained."""
        row = {}
        for number in CURVE:
            labels = personal.simulated_labels(self.run, name, number, seed)
            chosen, rejected, shortest = personal.read_labels(self.reward_model, self.tokenizer, labels)
            turned = np.array([one["chosen"] != coin["chosen"] for one, coin in zip(labels, shuffled(labels, seed))])
            by_coin = exchanged(chosen, rejected, turned), exchanged(rejected, chosen, turned)
            learned, random = (personal.learn_taste(*pair, shortest, *self.candidates()) for pair in ((chosen, rejected), by_coin))
            row[str(number)] = {"right": self.accuracy(name, learned, seed), "counts": learned.counts,
                                "random_right": self.accuracy(name, random, seed), "random_counts": random.counts}
        return row

    def policy(self, name: str, seed: int) -> dict:
        """Train the policy of one person, or the control, and look at its answers to the held-out prompts."""
        labels = None if name == "control" else personal.simulated_labels(self.run, name, LABELS, seed)
        with tempfile.TemporaryDirectory() as folder:
            outcome = personal.personalise(self.run, labels, seed, Path(folder) / "personal")
            answers = self.answers(Path(folder) / "personal", self.held_out(seed)[0], 2000 + seed)
        return looks(name, self.held_out(seed)[0], answers) | {
            "seconds": outcome.seconds, "counts": outcome.taste.counts, "compared": outcome.compared}


class Benches:
    """The runs under test; `benches[seed]` is the one that this seed takes."""

    def __init__(self, folders: list[Path]):
        self.each = [Bench(folder) for folder in folders]

    def __getitem__(self, seed: int) -> Bench:
        return self.each[seed % len(self.each)]

    def fingerprint(self) -> str:
        """Of the models and of the settings: rows measured with others do not count."""
        weights = [(bench.run.path(stage) / "model.safetensors").read_bytes() for bench in self.each for stage in ("sft", "reward_model")]
        return hashlib.sha256(b"".join([*weights, repr(sorted(settings().items())).encode()])).hexdigest()[:16]


def settings() -> dict:
    """All that `personal` can be set to, by name; its dicts are catalogues that it imports."""
    return {name: value for name, value in vars(personal).items() if name.isupper() and not isinstance(value, dict)}


def looks(name: str, prompts: list[str], answers: list[str]) -> dict[str, list]:
    """What is told of each answer: rubric and words; whether it is the first of its wording; a person's felt quality and liking."""
    verdicts = [judge(p, a) for p, a in zip(prompts, answers)]
    found = {"rubric": [v.score for v in verdicts], "words": [v.words for v in verdicts],
             "new": [int(answers.index(text) == k) for k, text in enumerate(answers)]}
    if person := TASTES.get(name):
        found |= {"felt": [person.felt_quality(v) for v in verdicts], "liking": [person.liking(v) for v in verdicts]}
    return {what: [round(value, 3) for value in values] for what, values in found.items()}


def exchanged(one: personal.Reading, other: personal.Reading, where: np.ndarray) -> personal.Reading:
    """`one` with the rows of `other` in the marked places."""
    parts = (np.where(where[(...,) + (None,) * (a.ndim - 1)], b, a) for a, b in zip(vars(one).values(), vars(other).values()))
    return personal.Reading(*parts)


# --- from rows to figures ------------------------------------------------------------------------------------------------------

def over(groups: list[np.ndarray], figure=lambda values: values.mean(0)) -> dict:
    """A figure of values that come in groups (seeds), with a bootstrap that draws groups first and then values within them."""
    dice, n = np.random.default_rng(0), len(groups)
    drawn = [figure(np.concatenate([groups[g][dice.integers(len(groups[g]), size=len(groups[g]))] for g in dice.integers(n, size=n)]))
             for _ in range(RESAMPLES)]
    pooled = np.concatenate(groups)
    return {"estimate": float(figure(pooled)), "low": float(np.quantile(drawn, 0.025)), "high": float(np.quantile(drawn, 0.975)),
            "n": len(pooled)}


def kept(values: np.ndarray) -> float:
    """Mean of the first column in parts of that of the second."""
    return values[:, 0].mean() / values[:, 1].mean()


def figures(benches: Benches, rows: dict, name: str) -> dict:
    """All figures of one taste from the rows of its seeds."""
    found = {"wins": [], "rubric": [], "empty": [], "distinct": [], "seconds": [], "before": [], "after": []}
    seeds = [seed for seed in range(100) if f"policy {name} {seed}" in rows and f"policy control {seed}" in rows]
    for seed in seeds:
        own, control = rows[f"policy {name} {seed}"], rows[f"policy control {seed}"]
        prompts, before, _ = benches[seed].held_out(seed)
        sft = looks(name, prompts, before[: len(prompts)])
        found["wins"].append((np.sign(np.subtract(own["felt"], sft["felt"]).round(3)) + 1) / 2)
        found["rubric"].append(np.column_stack([own["rubric"], control["rubric"]]))
        found["empty"] += [words < EMPTY for words in own["words"]]
        found["distinct"] += [bool(new) for new in own["new"]]
        found["seconds"].append(np.array([own["seconds"]]))
        found["before"].append(np.array(sft["liking"]))
        found["after"].append(np.array(own["liking"]))
    curve = {seed: rows[f"curve {name} {seed}"] for seed in range(100) if f"curve {name} {seed}" in rows}
    right = lambda n, what: over([np.array(row[n][what], dtype=float) for row in curve.values()])  # noqa: E731
    result = {"seeds": len(seeds)}
    if curve:
        result |= {"reward_model_accuracy": right(str(LABELS), "right"), "reward_model_seeds": len(curve)}
    if seeds:
        result |= {"win_rate": over(found["wins"]), "rubric_kept": over(found["rubric"], kept), "empty_rate": share(found["empty"]),
                   "distinct": share(found["distinct"]), "seconds": over(found["seconds"]),
                   "liking_before": over(found["before"]), "liking_after": over(found["after"])}
    if curve:
        result["by_labels"] = {str(n): {"reward_model_accuracy": right(str(n), "right"),
                                        "taste_counts": share([row[str(n)]["counts"] for row in curve.values()])} for n in CURVE}
        result["random_labels"] = {"reward_model_accuracy": right(str(LABELS), "random_right"),
                                   "taste_counts": share([row[str(LABELS)]["random_counts"] for row in curve.values()])}
    return result


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    options.add_argument("--tastes", nargs="*", choices=list(TASTES), default=list(TASTES))
    options.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4, 5])
    options.add_argument("--parts", nargs="*", choices=["curve", "policy"], default=["curve", "policy"],
                         help="accuracy by number of labels; policies, which take most of the time")
    options.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = options.parse_args()
    benches = Benches(options.runs)
    known = read_json(options.out) if options.out.exists() else {}
    rows = known.get("rows", {}) if known.get("measured_with") == benches.fingerprint() else {}
    todo = [(part, name, seed) for part in options.parts for seed in options.seeds
            for name in (["control"] if part == "policy" else []) + options.tastes]
    for kind, name, seed in todo:
        key = f"{kind} {name} {seed}"
        if key not in rows:
            started = time.process_time()
            if kind == "curve":
                rows[key] = benches[seed].curve(name, seed)
            else:
                rows[key] = benches[seed].policy(name, seed)
            write(benches, rows, options.out)
            print(f"{key}: {time.process_time() - started:.0f} CPU s", flush=True)
    write(benches, rows, options.out)


def write(benches: Benches, rows: dict, out: Path) -> None:
    """Write all figures that the rows give so far, and the rows themselves."""
    names = [name for name in TASTES if any(key.split()[1] == name for key in rows)]
    tastes = {name: figures(benches, rows, name) for name in names}
    found = {"measured_with": benches.fingerprint(), "settings": {name: repr(value) for name, value in sorted(settings().items())},
             "runs": len(benches.each), "labels": LABELS, "prompts_a_seed": PROMPTS,
             "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "threads": 1}, "tastes": tastes}
    lines = ",\n".join(f"    {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())  # a line a row: numbers in thousands
    atomic_write_text(out, json.dumps(found, indent=2).removesuffix("\n}") + f',\n  "rows": {{\n{lines}\n  }}\n}}\n')


if __name__ == "__main__":
    main()
