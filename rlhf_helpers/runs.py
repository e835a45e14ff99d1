"""A run: one folder in which all notebooks of a run keep what they make, under the same names everywhere.

Nothing half-written is ever taken for whole: an artifact is made under another name and renamed when it is done.
"""

import hashlib
import json
import os
import platform
import shutil
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from .formats import BadData, read_json, write_json
from .profiles import Profile, get_profile

RUNS = Path(__file__).resolve().parents[1] / "runs"
ARTIFACTS = {  # stage: (file or folder in the run, the notebook that makes it)
    "instructions": ("instructions.jsonl", "02_instruction_data"),
    "sft": ("sft", "03_supervised_fine_tuning"),
    "candidates": ("candidates.jsonl", "04_human_comparisons"),
    "labels": ("labels.sqlite", "04_human_comparisons"),
    "preferences": ("preferences.jsonl", "04_human_comparisons"),
    "reward_model": ("reward_model", "05_reward_model"),
    "rloo": ("rloo", "06_reinforcement_learning"),
    "grpo": ("grpo", "06_reinforcement_learning"),
    "ppo": ("ppo", "07_ppo"),
    "dpo": ("dpo", "08_direct_preference_optimisation"),
    "dpo_2": ("dpo_2", "08_direct_preference_optimisation"),
    "personal": ("personal", "11_your_fifty_labels"),
}
ITERATIONS = 2  # of comparisons, reward model and GRPO; what a later one makes bears its number: `grpo_2`


def in_iteration(stage: str, iteration: int) -> str:
    """What a stage is called in an iteration: `grpo`, `grpo_2`."""
    return stage if iteration == 1 else f"{stage}_{iteration}"


for _iteration in range(2, ITERATIONS + 1):
    for _stage in ("candidates", "labels", "preferences", "reward_model", "grpo"):
        _file = Path(ARTIFACTS[_stage][0])
        ARTIFACTS[in_iteration(_stage, _iteration)] = (in_iteration(_file.stem, _iteration) + _file.suffix, "06_reinforcement_learning")
    ARTIFACTS[in_iteration("rejection", _iteration)] = (in_iteration("rejection", _iteration), "06_reinforcement_learning")
KEEP = "Keep labels*.sqlite and my_instructions.jsonl of that folder: they are a person's work"
REBUILD_BASE = "get it again with `git checkout data/base_model`, or rebuild it with `python -m rlhf_helpers.base_model`"


class UnknownStage(KeyError):
    """No stage has this name; the message lists those that exist."""

    def __str__(self):
        return self.args[0]


class DamagedArtifact(RuntimeError):
    """Something in the run folder cannot be used; the message names it and the notebook that makes it again."""


@dataclass(frozen=True)
class Run:
    """A run folder with its profile and seed. Open one with `open_run`."""

    folder: Path
    profile: Profile
    seed: int

    def path(self, stage: str) -> Path:
        """Where the artifact of a stage lies or will lie; `base` is the profile's base model."""
        if stage == "base":
            return Path(self.profile.base_model)
        if stage not in ARTIFACTS:
            raise UnknownStage(f"no stage {stage!r}; choose one of: base, {', '.join(ARTIFACTS)}")
        return self.folder / ARTIFACTS[stage][0]

    def has(self, stage: str, closely: bool = False) -> bool:
        """Whether the artifact is there and whole. Raises DamagedArtifact if it is there and cannot be used.

        `closely` looks into the files of a model too: tokenizer, kind of model, and whether all weights are there.
        """
        path = self.path(stage)
        if not path.exists():
            return False
        if path.is_file():
            whole = bool(path.read_bytes().strip()) if path.suffix == ".jsonl" else path.stat().st_size > 0
        else:
            whole = (path / "config.json").exists() and any(path.glob("*.safetensors")) and (not closely or _is_model(path))
        if not whole:
            maker = f"run notebook {ARTIFACTS[stage][1]} again" if stage in ARTIFACTS else REBUILD_BASE
            raise DamagedArtifact(f"{path.parent.name}/{path.name} is damaged or incomplete: delete it and {maker}")
        return True

    @contextmanager
    def building(self, stage: str):
        """Gives a path to write the artifact to; when the block ends well, it takes the place of the old artifact."""
        path = self.path(stage)
        aside = path.with_name(f".{path.name}.part")
        _remove(aside)
        yield aside
        if not aside.exists():
            raise FileNotFoundError(f"{stage}: nothing was written to {aside}")
        take_place(aside, path)
        for name in (stage, "best_of_n") if stage in ("sft", "reward_model") else (stage,):
            self.answers_path(name).unlink(missing_ok=True)  # they were the old model's

    def answers_path(self, name: str) -> Path:
        """Where a model's answers to the evaluation prompts are kept."""
        return self.folder / "answers" / f"{name}.jsonl"

    def keep(self, name: str, value) -> None:
        """Keep figures of a notebook for later ones, as `<name>.json`."""
        write_json(self.folder / f"{name}.json", value)

    def kept(self, name: str, default=None):
        """What `keep` wrote under this name; the default if nothing was."""
        path = self.folder / f"{name}.json"
        return read_json(path) if path.exists() else default

    def main_figure(self, notebook: str, text: str) -> None:
        """The one figure that the closing table of `run.py tutorial` shows for a notebook."""
        self.keep("figures", {**self.kept("figures", {}), notebook: text})
        print(f"main figure: {text}")


def open_run(name: str | None = None) -> Run:
    """The run that the environment names, made if it is new.

    RLHF_PROFILE (practice), RLHF_SEED (0), RLHF_RUN (the profile's name) and RLHF_RUNS (the folder `runs`; a relative path starts where
    the series lies) are set by `run.py`.
    """
    profile = get_profile(os.environ.get("RLHF_PROFILE", "practice"))
    seed = _seed(os.environ.get("RLHF_SEED", "0"))
    folder = RUNS.parent / (os.environ.get("RLHF_RUNS") or RUNS) / (name or os.environ.get("RLHF_RUN") or profile.name)
    run = Run(folder, profile, seed)
    if not run.has("base", closely=True) and run.path("base").is_absolute():  # else a name on the Hub
        raise DamagedArtifact(f"there is no base model in {run.path('base').name}: {REBUILD_BASE}")
    (folder / "answers").mkdir(parents=True, exist_ok=True)
    made_with, base = _made_with(run), fingerprint(Path(profile.base_model))
    if made_with and made_with[:2] != (profile.name, seed):
        raise ValueError(f"run {folder.name!r} was made with profile {made_with[0]} and seed {made_with[1]}, not "
                         f"{profile.name} and {seed}: give the new run another name (--run NAME)")
    if made_with and made_with[2] != base:
        raise ValueError(f"run {folder.name!r} was made with another base model than the one there is now. If that is damaged, "
                         f"{REBUILD_BASE}; else give the new run another name (--run NAME). {KEEP}")
    settings = {k: v for k, v in asdict(profile).items() if k != "base_model"} | {"base_model": Path(profile.base_model).name}
    libraries = {name: version(name) for name in ("torch", "transformers", "trl", "datasets")}
    run.keep("run", {"profile": settings, "seed": seed, "base": base, "python": platform.python_version(), "libraries": libraries})
    return run


def _seed(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"RLHF_SEED is {text!r}; give a whole number") from None


def fingerprint(model: Path) -> str | None:
    """What tells a folder's weights from others; None for a model that is no such folder."""
    weights = model / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16] if weights.exists() else None


def _made_with(run: Run) -> tuple[str, int, str | None] | None:
    """Profile, seed and base model that an older `run.json` names."""
    if not (run.folder / "run.json").exists():
        return None
    try:
        record = run.kept("run")
        return record["profile"]["name"], record["seed"], record["base"]
    except (BadData, KeyError, TypeError):
        raise DamagedArtifact(f"{run.folder.name}/run.json does not say with which profile and seed the run was made: give the new run "
                              f"another name (--run NAME), or delete run.json if they were {run.profile.name} and {run.seed}. {KEEP}"
                              ) from None


def _is_model(folder: Path) -> bool:
    """Whether a folder has a tokenizer, a config that names the kind of model, and weights as long as their own headers say."""
    try:
        tokenizer = any(path.stat().st_size for path in folder.glob("tokenizer.*"))
        return tokenizer and "model_type" in read_json(folder / "config.json") and all(map(_has_all_weights, folder.glob("*.safetensors")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _has_all_weights(path: Path) -> bool:
    with path.open("rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
        header = json.loads(file.read(length)) if 0 < length <= size else {}
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    return 8 + length + max(ends, default=0) == size


def take_place(aside: Path, path: Path) -> None:
    """Rename what was made aside to `path`; what was there before, if anything, goes only when the new one stands."""
    old = path.with_name(f".{path.name}.old")
    _remove(old)
    if path.exists():
        os.replace(path, old)
    os.replace(aside, path)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
