"""What several tests share: tiny models in place of the real base model, and a run in a temporary folder."""

from dataclasses import replace

import pytest
from tiny import SHAPE, threads


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of a Llama of two layers that was shown a few dozen answers: small, and yet its answers end."""
    import torch

    from rlhf_helpers import base_model
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_model, "SHAPE", SHAPE)
        patch.setattr(base_model, "VOCABULARY", 420)
        patch.setattr(base_model, "SHARD", 40)
        tokenizer = base_model.train_tokenizer(seed=0)
        model = base_model.new_model(tokenizer, seed=0)
    chats = [[{"role": "user", "content": p}, {"role": "assistant", "content": c}] for p, c in threads(64)]
    ids = tokenizer.apply_chat_template(chats, padding=True, return_tensors="pt", return_dict=True)["input_ids"]
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(80):
        base_model.loss_of(model, ids[step % 4::4]).backward()
        adam.step()
        adam.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2(tiny, tmp_path_factory):
    """The folder of a random GPT-2 of two layers with the tiny tokenizer: its positions are learned, not rotary."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from rlhf_helpers.models import load_tokenizer
    folder, tokenizer = tmp_path_factory.mktemp("tiny_gpt2"), load_tokenizer(tiny)
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=256, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_reward_model(tiny, tmp_path_factory):
    """The folder of a reward model with a random head on the tiny model."""
    import torch

    from rlhf_helpers.models import load_reward_model, load_tokenizer
    folder = tmp_path_factory.mktemp("tiny_reward_model")
    torch.manual_seed(2)
    load_reward_model(tiny).save_pretrained(folder)
    load_tokenizer(tiny).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_run(tmp_path, monkeypatch, tiny):
    """A new run in a temporary folder whose base model is the tiny one, and with little of everything."""
    from rlhf_helpers.profiles import get_profile
    from rlhf_helpers.runs import Run
    profile = replace(get_profile("quick"), base_model=str(tiny), max_new_tokens=16)
    folder = tmp_path / "runs" / "mine"
    (folder / "answers").mkdir(parents=True)
    return Run(folder, profile, seed=0)


@pytest.fixture
def tiny_chat_run(tiny_run):
    """The same with just enough of everything for every stage to be made by its real trainer."""
    from rlhf_helpers.runs import Run
    profile = replace(tiny_run.profile, instructions=60, comparison_prompts=60, later_comparison_prompts=30, max_new_tokens=24,
                      grpo=replace(tiny_run.profile.grpo, steps=2, batch_size=8, generations=4),
                      ppo=replace(tiny_run.profile.ppo, steps=2, batch_size=8))
    return Run(tiny_run.folder, profile, tiny_run.seed)


@pytest.fixture
def no_swallowed_errors(caplog, request):
    """ipywidgets logs what a callback raises and goes on; here that fails the test."""
    yield
    swallowed = [record.getMessage() for record in caplog.get_records("call") if "Exception in" in record.getMessage()]
    assert bool(swallowed) == ("raises_in_callback" in request.fixturenames), swallowed


@pytest.fixture
def raises_in_callback():
    """For the test that wants an error in a callback."""


@pytest.fixture
def store(tmp_path):
    """An empty label store."""
    from rlhf_helpers.labelling.store import LabelStore
    return LabelStore(tmp_path / "labels.sqlite")
