"""How the processor's time of each stage grows with its rows, prompts and weights: small sizes, and the exponent of the power law."""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from scipy import stats
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_helpers.dpo import train_dpo
from rlhf_helpers.formats import read_instructions, to_plain
from rlhf_helpers.models import load_policy, load_tokenizer, sample
from rlhf_helpers.rewards import train_reward_model
from rlhf_helpers.rl import train_policy
from rlhf_helpers.runs import Run
from rlhf_helpers.sft import train_sft
from rlhf_helpers.stages import preferences, rl_prompts

SIZES = {"sft": (64, 128, 256), "sampling": (32, 64, 128), "reward_model": (32, 64, 128), "dpo": (32, 64, 128), "grpo": (4, 8, 16)}
COUNTED = {"sft": "instructions", "sampling": "prompts", "reward_model": "pairs", "dpo": "pairs", "grpo": "prompts"}
WIDTHS = (1, 2, 4)  # times half the width of the base model
REPEATS = 2


class Stages:
    """The stages, each with so many rows; `start` is the model that they start from."""

    def __init__(self, run: Run):
        self.profile, self.prompts, self.start = run.profile, rl_prompts(run), run.path("sft")
        self.instructions = [to_plain(row) for row in read_instructions(run.path("instructions"))]
        self.pairs = preferences(run)[0]

    def sft(self, rows: int, folder: Path) -> None:
        train_sft(self.start, self.instructions[:rows], folder, replace(self.profile.sft, epochs=1.0))

    def sampling(self, rows: int, folder: Path) -> None:
        sample(load_policy(self.start), load_tokenizer(self.start), self.prompts[:rows], max_new_tokens=self.profile.max_new_tokens)

    def reward_model(self, rows: int, folder: Path) -> None:
        train_reward_model(self.start, self.pairs[:rows], folder, self.profile.reward_model)

    def dpo(self, rows: int, folder: Path) -> None:
        train_dpo(self.start, self.pairs[:rows], folder, replace(self.profile.dpo, steps=-1), self.profile.dpo_beta)

    def grpo(self, rows: int, folder: Path) -> None:
        """The answers' reward comes from the same model with a head drawn at random: it costs the same."""
        plan = self.profile.grpo
        plan = replace(plan, batch_size=4 * plan.generations, steps=max(1, rows // 4))
        train_policy("grpo", self.start, self.start, self.prompts, folder, plan, max_new_tokens=self.profile.max_new_tokens)


def seconds(stage, rows: int) -> float:
    """CPU seconds of one stage, loading and saving included."""
    with TemporaryDirectory() as folder:
        began = time.process_time()
        stage(rows, Path(folder) / "model")
        return time.process_time() - began


def by_rows(run: Run, sizes: dict = SIZES, repeats: int = REPEATS) -> list[dict]:
    """Each stage at each of its sizes, after one run that is not counted."""
    stages, found = Stages(run), []
    for name, numbers in sizes.items():
        stage = getattr(stages, name)
        seconds(stage, numbers[0])
        found.append(power_law(name, COUNTED[name], [(n, seconds(stage, n)) for _ in range(repeats) for n in numbers]))
    return found


def by_weights(run: Run, sizes: dict = SIZES, widths=WIDTHS, repeats: int = REPEATS) -> list[dict]:
    """Each stage at its smallest size, from models drawn at random whose width is 1, 2 and 4 times half that of the base model."""
    stages, points = Stages(run), {name: [] for name in sizes}
    with TemporaryDirectory() as folder:
        for width in widths:
            stages.start, weights = random_model(run, width, Path(folder) / str(width))
            for name, numbers in sizes.items():
                points[name] += [(weights, seconds(getattr(stages, name), numbers[0])) for _ in range(repeats)]
    return [power_law(name, "weights", found) for name, found in points.items()]


def random_model(run: Run, width: float, folder: Path) -> tuple[Path, int]:
    """A folder with an untrained model of the base model's kind, and its number of weights."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(run.path("sft"))
    heads = config.num_attention_heads
    config.hidden_size, config.intermediate_size = config.hidden_size * width // 2, config.intermediate_size * width // 2
    config.num_attention_heads = config.num_key_value_heads = max(1, heads * width // 2)
    config.head_dim = config.hidden_size // config.num_attention_heads
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    load_tokenizer(run.path("sft")).save_pretrained(folder)
    return folder, model.num_parameters()


def power_law(stage: str, by: str, points: list[tuple[int, float]]) -> dict:
    """seconds = c size^exponent by least squares of the logarithms; the interval is Student's."""
    sizes, times = np.array(points, dtype=float).T
    line = stats.linregress(np.log(sizes), np.log(times))
    half = float(stats.t.ppf(0.975, len(points) - 2) * line.stderr)
    return {"stage": stage, "by": by, "points": [[int(n), round(float(t), 2)] for n, t in points],
            "exponent": {"estimate": float(line.slope), "low": float(line.slope) - half, "high": float(line.slope) + half,
                         "n": len(points)}}
