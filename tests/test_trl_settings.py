"""Every keyword that the package gives to TRL exists in the installed TRL, and every profile makes valid configs.

TRL renames settings between versions; these tests find that in a second, without training anything.
"""

import ast
import inspect
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
import trl
from transformers import TrainingArguments

from rlhf_helpers import dpo, rewards, rl, sft, stages
from rlhf_helpers.profiles import PROFILES, ReinforcementLearning, Training
from rlhf_helpers.training import trainer_settings

SOURCES = sorted(Path(stages.__file__).parent.rglob("*.py"))
ANY_TRAINING = Training(learning_rate=1e-3, batch_size=8)


def allowed(name: str) -> set[str]:
    """The parameters of a TRL class; `trainer_class` and `config_class` stand for both online methods."""
    if name in ("trainer_class", "config_class"):
        kinds = [pair[name == "config_class"] for pair in rl.METHODS.values()]
    else:
        kinds = [getattr(trl, name)]
    return set.intersection(*(set(inspect.signature(kind).parameters) for kind in kinds))


def calls(path: Path) -> list[tuple[str, ast.Call, ast.FunctionDef]]:
    """Calls of a TRL config or trainer, with the function around each."""
    found = []
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
            name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if name in ("trainer_class", "config_class") or (name.endswith(("Config", "Trainer")) and hasattr(trl, name)):
                found.append((name, node, function))
    return found


CALLS = [(path.stem, *call) for path in SOURCES for call in calls(path)]


def test_the_calls_are_found():
    assert {name for _, name, *_ in CALLS} >= {
        "SFTConfig", "SFTTrainer", "RewardConfig", "RewardTrainer", "DPOConfig", "DPOTrainer", "trainer_class", "config_class"}


@pytest.mark.parametrize("module, name, call, function", CALLS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_keyword_given_to_trl_exists(module, name, call, function):
    given = {keyword.arg for keyword in call.keywords if keyword.arg}
    if any(keyword.arg is None for keyword in call.keywords):  # **settings, made by trainer_settings in the same function
        made = [node for node in ast.walk(function) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "trainer_settings"]
        assert made, f"{module}.{function.name} gives {name} keywords that this test cannot see"
        more = {keyword.arg for node in made for keyword in node.keywords}
        assert more <= set(inspect.signature(trainer_settings).parameters) | allowed(name)
        given |= trainer_settings("out", 0, ANY_TRAINING).keys()
    assert given <= allowed(name), f"{name} of TRL {trl.__version__} does not know {sorted(given - allowed(name))}"


def test_the_shared_settings_are_those_of_every_config():
    for name in ("SFTConfig", "RewardConfig", "DPOConfig", "GRPOConfig", "RLOOConfig"):
        assert trainer_settings("out", 0, ANY_TRAINING).keys() <= allowed(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_everything_is_32_bit_and_on_the_cpu(tmp_path):
    settings = trainer_settings(tmp_path, 3, ANY_TRAINING)
    assert settings["bf16"] is False and settings["use_cpu"] is True and settings["activation_checkpointing"] is False
    config = trl.SFTConfig(**settings)
    assert config.device.type == "cpu" and not config.bf16 and not config.fp16 and not config.gradient_checkpointing
    assert config.report_to == [] and config.seed == 3
    with pytest.raises(ValueError, match="bf16"):  # the trap that this answers to; if it is gone, so may the setting be
        trl.SFTConfig(str(tmp_path))


class Configured(Exception):
    """Stops a training function once its config has been made."""


@pytest.fixture
def configs(monkeypatch):
    """Run the stage functions up to the making of the trainer, and collect the configs that they would train with."""
    made = []

    def stop(*, args, **rest):
        made.append(args)
        raise Configured

    for module, name in ((sft, "SFTTrainer"), (rewards, "RewardTrainer"), (dpo, "DPOTrainer")):
        monkeypatch.setattr(module, name, stop)
    for method, (_, config) in rl.METHODS.items():
        monkeypatch.setitem(rl.METHODS, method, (stop, config))
    return made


@pytest.mark.parametrize("shrink", [lambda profile: profile, stages.brief], ids=["whole", "brief"])
@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_every_profile_makes_valid_configs(profile, shrink, configs, tiny, tmp_path):
    profile = shrink(profile)
    instructions = [{"prompt": "Hello", "completion": "Hello."}] * 4
    pairs = [{"prompt": "Hello", "chosen": "Hello.", "rejected": "No."}] * 4
    plans = {field.name: getattr(profile, field.name) for field in fields(profile)}
    for name, plan in plans.items():
        if not isinstance(plan, Training | ReinforcementLearning):
            continue
        with pytest.raises(Configured):
            match name:
                case "sft":
                    sft.train_sft(tiny, instructions, tmp_path, plan)
                case "reward_model":
                    rewards.train_reward_model(tiny, pairs, tmp_path, plan)
                case "dpo":
                    dpo.train_dpo(tiny, pairs, tmp_path, plan, profile.dpo_beta)
                case _ if name in rl.METHODS:
                    rl.train_policy(name, tiny, tiny, ["Hello"], tmp_path, plan, max_new_tokens=profile.max_new_tokens)
        config = configs[-1]
        assert isinstance(config, TrainingArguments)
        assert config.learning_rate == plan.learning_rate
        assert config.per_device_train_batch_size * config.gradient_accumulation_steps == plan.batch_size
        if isinstance(plan, ReinforcementLearning):
            assert plan.batch_size % plan.generations == 0 and plan.generations >= 2
            assert config.generation_batch_size == plan.batch_size and config.num_generations == plan.generations
            assert config.max_steps == plan.steps > 0 and config.beta == plan.beta > 0
            assert config.disable_dropout and config.max_completion_length == profile.max_new_tokens
        else:
            assert config.train_sampling_strategy == "sequential"  # the rows come in the order that length_grouped gave them


def test_a_batch_that_generations_do_not_divide_is_refused(configs, tiny, tmp_path):
    plan = replace(PROFILES["quick"].grpo, batch_size=10, generations=4)
    with pytest.raises(ValueError, match="divisible"):
        rl.train_policy("grpo", tiny, tiny, ["Hello"], tmp_path, plan)
