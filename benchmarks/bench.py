"""Speed, side by side: `run.py bench` calls this with the Python of an environment that has TRL 1.12.

    python -m benchmarks.bench --trl112 PYTHON [--run NAME] [--seeds 5] [--quick]

The run (default: the one that the environment names) has to have its SFT model, reward model, instructions and preferences; what lacks
is made first. Measured are, one process and one thread at a time: CPU seconds and answers that PPO, GRPO and RLOO need from the SFT
model to a target of the rubric (`policies`, `trl112_ppo`); tokens a second of our sampling and of `transformers.generate`
(`sampling_speed`); how the stages grow (`growth`); and what the run's notebooks took, if `run.py tutorial` has run them.

Writes `latest.json` and the table `latest.md` beside this file, and adds a line to `history.jsonl`; with a GPU the files are named
`gpu.json` and `gpu.md`. A ratio that is more than 20 % worse than in the last line for such a machine is named. What has been measured
is kept in `unfinished.json`: the same command takes up a run that was stopped.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config, GPTJConfig

from benchmarks import growth, sampling_speed
from benchmarks.bench_table import METHODS, history_line, markdown, ratios, worse
from rlhf_helpers.formats import read_json, write_json
from rlhf_helpers.models import DEVICE, count_weights, load_policy, load_tokenizer, sample
from rlhf_helpers.profiles import ProximalPolicyOptimisation, ReinforcementLearning
from rlhf_helpers.runs import Run, fingerprint, open_run
from rlhf_helpers.series import memory_now, memory_peak
from rlhf_helpers.stages import need, rl_prompts
from rlhf_helpers.world.grammar import write_prompt
from rlhf_helpers.world.judge import judge
from rlhf_helpers.world.splits import evaluation_requests

HERE = Path(__file__).parent
GAIN = 0.5  # points of the rubric above the SFT model: the target
HELD_OUT = 64  # prompts
ONCE = ("grpo", "rloo")  # trained with the first seed only: beside TRL's own they show what less padding saves
EVERY = 48  # answers between two looks at the held-out prompts


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="run.py bench", description=__doc__.splitlines()[0])
    parser.add_argument("--trl112", type=Path, help="the Python of an environment with TRL 1.12; without it that row is missing")
    parser.add_argument("--run", help="name of the run, as in run.py tutorial")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a trial of the command: little of everything, nothing written here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    run = open_run(options.run)
    for stage in ("instructions", "sft", "preferences", "reward_model"):
        need(run, stage)
    with TemporaryDirectory() as aside:
        folder, name = Path(aside) if options.quick else HERE, "gpu" if DEVICE == "cuda" else "latest"
        bench = Bench(run, range(1 if options.quick else options.seeds), options.trl112, folder / "unfinished.json", options.quick)
        found = bench.measure()
        history = folder / "history.jsonl"
        lines = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()] if history.exists() else []
        for line in worse(found, lines):
            print(line)
        write_json(folder / f"{name}.json", found)
        with history.open("a", encoding="utf-8") as file:
            file.write(json.dumps(history_line(found)) + "\n")
        table = markdown(found)
        (folder / f"{name}.md").write_text(table, encoding="utf-8")
        bench.kept.unlink()
    print(table)


class Bench:
    """All measurements on one run; each is kept in a file as soon as it is there."""

    def __init__(self, run: Run, seeds, trl112: Path | None, kept: Path, quick: bool = False):
        self.run, self.seeds, self.trl112, self.kept, self.quick = run, list(seeds), trl112, kept, quick
        self.held_out = [write_prompt(request) for request in evaluation_requests(8 if quick else HELD_OUT, "bench")]
        self.methods = [name for name in METHODS if trl112 or name != "trl112_ppo"]
        old = read_json(kept) if kept.exists() else {}
        self.rows = old if old.get("setting") == self.setting() else {"setting": self.setting()}

    def setting(self) -> dict:
        """What the figures depend on: models (a hash of their weights), plans, target, machine and versions."""
        plans = {name: asdict(self.plan(name)) for name in self.methods}
        return {"models": {stage: fingerprint(self.run.path(stage)) for stage in ("sft", "reward_model")}, "plans": plans, "gain": GAIN,
                "held_out": len(self.held_out), "machine": machine(),
                "libraries": {name: version(name) for name in ("torch", "transformers", "trl")}}

    def plan(self, method: str) -> ReinforcementLearning | ProximalPolicyOptimisation:
        """The profile's; of RLOO and GRPO with three times the steps, as they end before the target, and without answers only sampled."""
        plan = getattr(self.run.profile, METHODS[method][0])
        if isinstance(plan, ReinforcementLearning):
            plan = replace(plan, steps=3 * plan.steps, sampled=0)
        return replace(plan, steps=2, batch_size=8) if self.quick else plan

    def measure(self) -> dict:
        """Everything, or what lacks of it, and the table's figures."""
        began = time.strftime("%H:%M")
        start = self.once("start", self.start_level)
        runs = [(method, seed) for seed in self.seeds for method in self.methods  # in turn, so that a busy hour is no method's own,
                if method not in ONCE or seed == self.seeds[0]]
        for method, seed in runs:
            self.once(f"{method} {seed}", lambda: self.training(method, seed, start))  # noqa: B023
        self.once("sampling", self.sampling)
        little = dict(sizes={name: (4, 8) for name in growth.SIZES}, repeats=2) if self.quick else {}
        self.once("by rows", lambda: growth.by_rows(self.run, **little))
        self.once("by weights", lambda: growth.by_weights(self.run, **little))
        if DEVICE == "cuda":
            self.once("shapes", self.shapes)
        rows = self.rows
        found = {"commit": commit(), "date": str(date.today()), "setting": rows["setting"], "start": start, "target": start + GAIN,
                 "policies": [rows[f"{method} {seed}"] for method, seed in runs], "sampling": rows["sampling"],
                 "growth": rows["by rows"] + rows["by weights"], "shapes": rows.get("shapes", {}),
                 "notebooks": self.run.kept("notebooks", {}),
                 "began": began, "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None}
        return {"ratios": ratios(found), **found}

    def once(self, name: str, measure):
        if name not in self.rows:
            cpu = time.process_time()
            self.rows[name] = measure()
            write_json(self.kept, self.rows)
            print(f"{name}: done, {time.process_time() - cpu:.0f} CPU s in this process", flush=True)
        return self.rows[name]

    def start_level(self) -> float:
        """The SFT model's rubric, points, on the held-out prompts: the mean of eight answers to each."""
        model, tokenizer = load_policy(self.run.path("sft")), load_tokenizer(self.run.path("sft"))
        texts = sample(model, tokenizer, self.held_out * 8, seed=99, max_new_tokens=self.run.profile.max_new_tokens).texts
        return round(float(np.mean([judge(p, text).score for p, text in zip(self.held_out * 8, texts)])), 3)

    def training(self, method: str, seed: int, start: float) -> dict:
        """The row of one training, in a process of its own; with its peak memory in 10^6 bytes."""
        with TemporaryDirectory() as folder:
            job, out = Path(folder) / "job.json", Path(folder) / "row.json"
            write_json(job, {
                "method": method, "sft": str(self.run.path("sft")), "reward_model": str(self.run.path("reward_model")),
                "plan": asdict(self.plan(method)), "max_new_tokens": self.run.profile.max_new_tokens, "held_out": self.held_out,
                "every": EVERY, "target": start + GAIN, "start": start, "out": str(out), "seed": seed,
                "prompts": rl_prompts(replace(self.run, seed=seed))})
            python, module = (self.trl112, "trl112_ppo") if method == "trl112_ppo" else (sys.executable, "policies")
            peak = watched([str(python), "-m", f"benchmarks.{module}", str(job)], Path(folder) / "said.txt")
            return read_json(out) | {"peak_rss_mb": peak}

    def sampling(self, dtype=torch.float32) -> list[dict]:
        """Both ways of sampling, with the prompts of one GRPO step in groups and as many different ones."""
        path, plan = self.run.path("sft"), self.plan("grpo")
        model, tokenizer, limit = load_policy(path).to(dtype), load_tokenizer(path), self.run.profile.max_new_tokens
        rows, prompts = [], rl_prompts(self.run)
        for group in (plan.generations, 1):
            asked = prompts[:plan.batch_size // group]
            speeds = sampling_speed.compare(path, model, tokenizer, asked, group, 2 if self.quick else 7, limit)
            rows.append({"answers": plan.batch_size, "group": group, "ours": speeds.ours, "theirs": speeds.theirs,
                         "same_greedy_text": sampling_speed.same_greedy_text(model, tokenizer, asked, limit),
                         **sampling_speed.profiled(model, tokenizer, asked, group, limit)})
        return rows

    def shapes(self, configs: dict | None = None, dtype=torch.bfloat16) -> dict:
        """For models drawn at random, of a known model's shape: sampling, and three steps of each method, or why it failed."""
        found = {}
        for name, config in (configs or {"GPT-2": GPT2Config(), "GPT-J": GPTJConfig()}).items():
            with TemporaryDirectory() as folder:
                run = untrained(self.run, config, Path(folder), dtype)
                other = Bench(run, [0], self.trl112, Path(folder) / "kept.json", self.quick)
                found[name] = {"weights": count_weights(load_policy(run.path("sft"))), "sampling": other.sampling(dtype),
                               "policies": [other.attempt(method) for method in other.methods]}
        return found

    def attempt(self, method: str) -> dict:
        """A few steps towards a target that nothing reaches; a model too large for the GPU gives a row that says so."""
        try:
            return self.training(method, 0, start=100.0)
        except RuntimeError as problem:
            return {"method": method, "failed": str(problem).splitlines()[-1]}


def untrained(run: Run, config, folder: Path, dtype) -> Run:
    """A run whose SFT and reward model are drawn at random in this shape, three steps long. Tokens are those of the given run."""
    torch.manual_seed(0)
    for stage, kind in (("sft", AutoModelForCausalLM), ("reward_model", AutoModelForSequenceClassification)):
        tokenizer = load_tokenizer(run.path(stage))
        config.pad_token_id, config.eos_token_id, config.bos_token_id = tokenizer.pad_token_id, *2 * [tokenizer.eos_token_id]
        config.num_labels = 1
        kind.from_config(config, dtype=dtype).save_pretrained(folder / stage)
        tokenizer.save_pretrained(folder / stage)
    plans = {name: replace(getattr(run.profile, name), steps=3) for name in ("ppo", "grpo", "rloo")}
    return Run(folder, replace(run.profile, **plans), run.seed)


def watched(command: list[str], said: Path) -> float:
    """Run a command to its end; the most memory that it had, in 10^6 bytes. Raises RuntimeError with its last lines if it fails."""
    with said.open("wb") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=HERE.parent)
    peak, process = 0, psutil.Process(child.pid)
    while child.poll() is None:
        peak = max(peak, memory_peak(process) or memory_now(process))
        time.sleep(0.5)
    if child.returncode:
        raise RuntimeError(f"{command[2]} failed:\n" + "\n".join(said.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]))
    return round(peak / 1e6, 1)


def machine() -> dict:
    """The class of this machine: processor or GPU, cores and threads; nothing that names it."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    return {"processor": cpu, "cores": os.cpu_count(), "threads": 1, "gpu": torch.cuda.get_device_name() if DEVICE == "cuda" else None}


def commit() -> str:
    """The commit that was measured, with a + if the files differ from it."""
    said = [subprocess.run(["git", *words.split()], cwd=HERE, capture_output=True, text=True).stdout.strip()
            for words in ("rev-parse --short HEAD", "status --porcelain --untracked-files=no")]
    return said[0] + ("+" if said[1] else "")


if __name__ == "__main__":
    main()
