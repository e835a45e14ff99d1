"""A run folder holds whole artifacts only, says what is wrong with a damaged one, and makes a missing one on the spot."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from rlhf_helpers import assessment, personal, runs, stages
from rlhf_helpers.formats import BadData
from rlhf_helpers.profiles import PROFILES, get_profile
from rlhf_helpers.runs import ARTIFACTS, DamagedArtifact, UnknownStage, open_run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Runs go to a temporary folder, with profile `quick` and seed 0, and no name set."""
    for name, value in {"RLHF_RUNS": str(tmp_path), "RLHF_PROFILE": "quick", "RLHF_SEED": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RLHF_RUN", raising=False)
    return tmp_path


# --- opening ------------------------------------------------------------------------------------------------------------------

def test_a_new_run_records_what_made_it(place):
    run = open_run()
    assert run.folder == place / "quick" and run.seed == 0 and run.profile is PROFILES["quick"]
    record = json.loads((place / "quick" / "run.json").read_text())
    assert record["profile"]["name"] == "quick" and record["profile"]["grpo"]["steps"] == run.profile.grpo.steps
    assert record["profile"]["base_model"] == "base_model", "no path of this computer in the record"
    assert record["seed"] == 0 and record["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "transformers", "trl", "datasets"} <= record["libraries"].keys()


def test_the_name_comes_from_the_call_then_the_environment_then_the_profile(place, monkeypatch):
    assert open_run().folder.name == "quick"
    monkeypatch.setenv("RLHF_RUN", "mine")
    assert open_run().folder.name == "mine"
    assert open_run("other").folder.name == "other"


def test_the_same_run_opens_again_and_another_profile_or_seed_does_not(place, monkeypatch):
    open_run("mine").keep("figure", 3)
    assert open_run("mine").kept("figure") == 3
    monkeypatch.setenv("RLHF_SEED", "1")
    with pytest.raises(ValueError, match="'mine' was made with profile quick and seed 0, not quick and 1: .* another name"):
        open_run("mine")
    monkeypatch.setenv("RLHF_SEED", "0")
    monkeypatch.setenv("RLHF_PROFILE", "practice")
    with pytest.raises(ValueError, match="'mine' was made with profile quick and seed 0, not practice and 0"):
        open_run("mine")


def test_a_run_of_another_base_model_does_not_open_again(place):
    open_run("mine")
    record = json.loads((place / "mine" / "run.json").read_text())
    assert len(record["base"]) == 16
    (place / "mine" / "run.json").write_text(json.dumps(record | {"base": "0" * 16}))
    with pytest.raises(ValueError, match="'mine' was made with another base model .*git checkout data/base_model.*another name.*"
                                         r"Keep labels\*\.sqlite and my_instructions\.jsonl"):
        open_run("mine")


@pytest.mark.parametrize("damage", ["missing", "half", "pointer"])
def test_a_run_does_not_open_without_a_whole_base_model(place, tiny, tmp_path, monkeypatch, damage):
    """Neither a new one, which nothing is written of, nor an old one, which is not blamed."""
    base = shutil.copytree(tiny, tmp_path / "base_model")
    monkeypatch.setitem(PROFILES, "quick", replace(PROFILES["quick"], base_model=str(base)))
    open_run("old")
    weights = base / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    if damage != "missing":
        weights.write_bytes(whole[: len(whole) // 2] if damage == "half" else b"version https://git-lfs.github.com/spec/v1\n")
    for name in ("old", "new"):
        with pytest.raises(DamagedArtifact, match=r"base_model.*git checkout data/base_model.*python -m rlhf_helpers\.base_model") as error:
            open_run(name)
        assert "another base model" not in str(error.value)
    assert not (place / "new").exists()
    weights.write_bytes(whole)
    open_run("old"), open_run("new")
    shutil.rmtree(base)
    with pytest.raises(DamagedArtifact, match="there is no base model in base_model: get it again"):
        open_run("old")


def test_a_relative_folder_of_runs_is_the_same_from_everywhere(monkeypatch, tmp_path):
    for name, value in {"RLHF_RUNS": "mine/runs", "RLHF_PROFILE": "quick", "RLHF_SEED": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    for below in ("notebooks", "notebooks/solutions"):
        (tmp_path / below).mkdir()
        monkeypatch.chdir(tmp_path / below)
        assert open_run("a").folder == tmp_path / "mine" / "runs" / "a"
    monkeypatch.setenv("RLHF_RUNS", "")
    assert open_run("a").folder == tmp_path / "runs" / "a"


def test_an_unknown_profile_is_refused_with_the_list(place, monkeypatch):
    monkeypatch.setenv("RLHF_PROFILE", "gpt9")
    with pytest.raises(KeyError, match=f"no profile 'gpt9'; choose one of: {', '.join(PROFILES)}"):
        open_run()
    assert list(place.iterdir()) == []


def test_a_seed_that_is_no_number_is_refused(place, monkeypatch):
    monkeypatch.setenv("RLHF_SEED", "lucky")
    with pytest.raises(ValueError, match="RLHF_SEED is 'lucky'.*whole number"):
        open_run()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null", "5", "[1]", '{"seed": 0}', '{"profile": {}, "seed": 0}'])
def test_a_damaged_record_is_named_with_what_to_do(place, content):
    open_run("mine")
    (place / "mine" / "run.json").write_text(content)
    with pytest.raises(DamagedArtifact, match=r"mine/run\.json .*another name.*or delete run\.json if they were quick and 0\. "
                                              r"Keep labels\*\.sqlite and my_instructions\.jsonl of that folder: they are a person's"):
        open_run("mine")
    assert (place / "mine" / "run.json").read_text() == content


# --- stages -------------------------------------------------------------------------------------------------------------------

def test_an_unknown_stage_is_refused_with_the_list(tiny_run):
    for ask in (tiny_run.path, tiny_run.has, lambda stage: stages.need(tiny_run, stage)):
        with pytest.raises(UnknownStage) as error:
            ask("ppo2")
        assert str(error.value) == f"no stage 'ppo2'; choose one of: base, {', '.join(ARTIFACTS)}"


def test_every_stage_has_a_maker_and_a_notebook():
    assert set(stages.MAKERS) == set(ARTIFACTS)
    for _, notebook in ARTIFACTS.values():
        assert notebook[:2].isdigit()


@pytest.mark.parametrize("stage", ARTIFACTS)
def test_an_empty_artifact_is_named_with_its_notebook(tiny_run, stage):
    path, notebook = tiny_run.path(stage), ARTIFACTS[stage][1]
    assert not tiny_run.has(stage)
    path.touch() if path.suffix else path.mkdir()
    with pytest.raises(DamagedArtifact, match=f"mine/{path.name} is damaged.*delete it and run notebook {notebook} again"):
        tiny_run.has(stage)
    with pytest.raises(DamagedArtifact):
        stages.need(tiny_run, stage)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_a_model_folder_without_config_or_weights_is_damaged(tiny_run, tiny, lost):
    shutil.copytree(tiny, tiny_run.path("sft"))
    assert tiny_run.has("sft")
    (tiny_run.path("sft") / lost).unlink()
    with pytest.raises(DamagedArtifact, match="mine/sft is damaged.*03_supervised_fine_tuning"):
        tiny_run.has("sft")


@pytest.mark.parametrize("name, damage", [
    ("model.safetensors", lambda whole: whole[: len(whole) // 2]), ("model.safetensors", lambda whole: whole + b"more"),
    ("model.safetensors", lambda whole: whole[:100]), ("model.safetensors", lambda whole: b""),
    ("model.safetensors", lambda whole: b"<html>404</html>"), ("model.safetensors", lambda whole: (2).to_bytes(8, "little") + b"[]"),
    ("config.json", lambda whole: whole[: len(whole) // 2]), ("config.json", lambda whole: b"{}"), ("config.json", lambda whole: b"5"),
    ("tokenizer.json", lambda whole: b""), ("tokenizer.json", None)])
def test_a_model_that_is_not_whole_is_not_handed_on(tiny_run, tiny, name, damage):
    shutil.copytree(tiny, tiny_run.path("sft"))
    assert tiny_run.has("sft", closely=True) and stages.need(tiny_run, "sft") == tiny_run.path("sft")
    path = tiny_run.path("sft") / name
    path.unlink() if damage is None else path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedArtifact, match="mine/sft is damaged or incomplete: delete it and run notebook 03_supervised_fine_tuning"):
        stages.need(tiny_run, "sft")


@pytest.mark.parametrize("stage", ["instructions", "candidates", "preferences"])
def test_a_file_of_blank_lines_is_damaged(tiny_run, stage):
    tiny_run.path(stage).write_text("\n \n")
    with pytest.raises(DamagedArtifact, match=f"mine/{stage}.jsonl is damaged.*{ARTIFACTS[stage][1]}"):
        tiny_run.has(stage)


def test_a_row_that_plain_text_cannot_hold_is_named_with_its_line(tiny_run):
    talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    said = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected", "completion")}
    preference = {"chosen": said["chosen"], "rejected": said["rejected"], "annotator": "me", "strength": 1.0}
    instruction = {"completion": said["completion"], "source": "human", "topic": ""}
    for stage, row, use in [("preferences", preference, stages.preference_rows), ("instructions", instruction, stages.make_sft)]:
        rows = [row | {"prompt": prompt} for prompt in (talk[1:], talk)]
        tiny_run.path(stage).write_text("\n\n".join(map(json.dumps, rows)))
        with pytest.raises(BadData, match=rf'{stage}\.jsonl, line 3, field "prompt": is more than one message by the user, .*Fix: '):
            use(tiny_run)
        tiny_run.path(stage).write_text(json.dumps(rows[0]))
    assert [row["prompt"] for row in stages.preference_rows(tiny_run)] == ["Hello"]


def test_a_folder_where_a_file_should_be_is_damaged(tiny_run):
    tiny_run.path("preferences").mkdir()
    with pytest.raises(DamagedArtifact, match="04_human_comparisons"):
        tiny_run.has("preferences")


# --- building -----------------------------------------------------------------------------------------------------------------

class Fault(Exception):
    """An error in the middle of a stage."""


@pytest.mark.parametrize("error", [Fault, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("stage", ["instructions", "sft"])
def test_an_error_while_building_leaves_the_old_artifact(tiny_run, tiny, stage, error):
    path = tiny_run.path(stage)
    write(path, stage, tiny, "old")
    answers = tiny_run.answers_path(stage)
    answers.write_text("the old model's")
    before = contents(path)
    with pytest.raises(error):
        with tiny_run.building(stage) as aside:
            write(aside, stage, tiny, "new")
            assert contents(path) == before
            raise error
    assert contents(path) == before and answers.read_text() == "the old model's"
    assert tiny_run.has(stage)


@pytest.mark.parametrize("stage", ["instructions", "sft"])
def test_what_was_built_takes_the_old_ones_place_and_ends_its_answers(tiny_run, tiny, stage):
    path = tiny_run.path(stage)
    for what in ("old", "new"):
        tiny_run.answers_path(stage).write_text("another model's")
        with tiny_run.building(stage) as aside:
            assert aside.parent == path.parent and aside != path and not aside.exists()
            write(aside, stage, tiny, what)
        assert contents(path) == what and not aside.exists()
        assert not tiny_run.answers_path(stage).exists()


@pytest.mark.parametrize("stage, ends", [("sft", True), ("reward_model", True), ("dpo", False)])
def test_what_best_of_n_chose_ends_with_the_model_or_the_reward_model_behind_it(tiny_run, tiny, stage, ends):
    chosen = tiny_run.answers_path("best_of_n")
    chosen.write_text("chosen")
    with tiny_run.building(stage) as aside:
        write(aside, stage, tiny, "new")
    assert chosen.exists() is not ends


def test_half_of_a_first_artifact_is_never_there(tiny_run, tiny):
    with pytest.raises(Fault), tiny_run.building("sft") as aside:
        write(aside, "sft", tiny, "half")
        assert not tiny_run.has("sft")
        raise Fault
    assert not tiny_run.has("sft")
    with tiny_run.building("sft") as aside:  # the next attempt starts afresh
        assert not aside.exists()
        write(aside, "sft", tiny, "whole")
    assert tiny_run.has("sft") and sorted(p.name for p in tiny_run.folder.iterdir()) == ["answers", "sft"]


def test_building_nothing_is_an_error_that_leaves_the_old_artifact(tiny_run, tiny):
    write(tiny_run.path("sft"), "sft", tiny, "old")
    with pytest.raises(FileNotFoundError):
        with tiny_run.building("sft"):
            pass
    assert tiny_run.has("sft") and contents(tiny_run.path("sft")) == "old"


def test_a_kill_while_building_leaves_the_old_artifact(tiny_run, tiny):
    """The process dies without a chance to clean up, as with a full memory or a lost battery."""
    path = tiny_run.path("instructions")
    path.write_text("old")
    code = f"""
import os, pathlib, signal
from rlhf_helpers.runs import Run
with Run(pathlib.Path({str(tiny_run.folder)!r}), None, 0).building("instructions") as aside:
    aside.write_text("half")
    os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    with tiny_run.building("instructions") as aside:
        aside.write_text("new")
    assert path.read_text() == "new" and not aside.exists()


def write(path, stage, model, what):
    """Something whole in the place of a stage's artifact: a file, or the model's folder with a note in it."""
    if not ARTIFACTS[stage][0].endswith((".jsonl", ".sqlite")):
        shutil.copytree(model, path)
        path = path / "note.txt"
    path.write_text(what)


def contents(path):
    return path.read_text() if path.is_file() else (path / "note.txt").read_text()


# --- need ---------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def makers(monkeypatch, tiny):
    """Makers that only note with which run they were called, and leave something whole."""
    calls = []

    def maker(stage):
        def make(run, method=stage):
            calls.append((method, run))
            with run.building(method) as aside:
                write(aside, method, tiny, "made")
        return make

    for stage in stages.MAKERS:
        monkeypatch.setitem(stages.MAKERS, stage, maker(stage))
    return calls


@pytest.mark.parametrize("stage", ARTIFACTS)
def test_need_makes_a_quick_one_and_says_so_and_finds_it_the_next_time(tiny_run, makers, stage, capsys):
    path = stages.need(tiny_run, stage)
    assert path == tiny_run.path(stage) and tiny_run.has(stage)
    (made, small), = makers
    assert made == stage and small.folder == tiny_run.folder and small.seed == tiny_run.seed
    assert small.profile == stages.brief(tiny_run.profile)
    said = capsys.readouterr().out
    assert said.startswith(f"{stage}: not made in this run yet; making a quick one") and said.count("\n") == 1
    assert stages.need(tiny_run, stage) == path and len(makers) == 1
    assert capsys.readouterr().out == f"{stage}: found ({path.name})\n"


def test_brief_is_a_third_and_stays_valid():
    whole, small = get_profile("practice"), stages.brief(get_profile("practice"))
    assert small.instructions == whole.instructions // 3 and small.comparison_prompts == whole.comparison_prompts // 3
    assert small.later_comparison_prompts == whole.later_comparison_prompts // 3
    assert small.grpo == replace(whole.grpo, steps=whole.grpo.steps // 3)
    assert small.ppo == replace(whole.ppo, steps=whole.ppo.steps // 3)
    assert small.evaluation_prompts == whole.evaluation_prompts, "figures stay comparable"
    assert stages.brief(small) == small, "the stages that a quick stage needs are made as quick as it, not quicker still"
    tiniest = stages.brief(replace(get_profile("quick"), instructions=3))
    assert tiniest.grpo.steps >= 2 and tiniest.instructions >= 2


def test_need_finds_the_base_model(tiny_run, tiny, capsys):
    assert stages.need(tiny_run, "base") == tiny
    assert capsys.readouterr().out == f"base: found ({tiny.name})\n"


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_missing_or_damaged_base_model_is_named_with_its_command(tiny_run, tmp_path, damage, capsys):
    folder = tmp_path / "base_model"
    if damage == "empty":
        folder.mkdir()
    run = replace(tiny_run, profile=replace(tiny_run.profile, base_model=str(folder)))
    with pytest.raises(DamagedArtifact, match=r"base_model.*python -m rlhf_helpers\.base_model"):
        stages.need(run, "base")
    assert "found" not in capsys.readouterr().out


def test_a_base_model_of_the_hub_is_left_to_transformers(tiny_run):
    run = replace(tiny_run, profile=replace(tiny_run.profile, base_model="EleutherAI/gpt-j-6b"))
    assert stages.need(run, "base").as_posix() == "EleutherAI/gpt-j-6b"


# --- figures ------------------------------------------------------------------------------------------------------------------

def test_what_is_kept_comes_back(tiny_run):
    assert tiny_run.kept("curve") is None and tiny_run.kept("curve", []) == []
    tiny_run.keep("curve", {"steps": [1, 2], "loss": [0.5, None], "name": "größer"})
    assert tiny_run.kept("curve") == {"steps": [1, 2], "loss": [0.5, None], "name": "größer"}
    with pytest.raises(ValueError, match=r"curve\.json was not written"):
        tiny_run.keep("curve", {"loss": float("nan")})
    assert tiny_run.kept("curve")["name"] == "größer"
    (tiny_run.folder / "curve.json").write_text('{"half')
    with pytest.raises(BadData, match=r"curve\.json, line 1"):
        tiny_run.kept("curve")


def test_main_figures_add_up(tiny_run, capsys):
    tiny_run.main_figure("01_baseline_model", "rubric 4.1")
    tiny_run.main_figure("03_supervised_fine_tuning", "rubric 6.0")
    tiny_run.main_figure("01_baseline_model", "rubric 4.2")
    assert tiny_run.kept("figures") == {"01_baseline_model": "rubric 4.2", "03_supervised_fine_tuning": "rubric 6.0"}
    assert capsys.readouterr().out.splitlines()[0] == "main figure: rubric 4.1"


# --- the real path on the tiny model ------------------------------------------------------------------------------------------

@pytest.mark.timeout(120)
def test_asking_for_the_last_stages_makes_all_before_them(tiny_run, tiny_chat_run, capsys, monkeypatch):
    """`need` on an empty run folder, with real trainers on the tiny model: every artifact is made once, in order."""
    monkeypatch.setattr(personal, "MINIMUM", 5)  # of two answers of the tiny model, mostly neither is preferred
    run = tiny_chat_run
    stages.need(run, "grpo_2")
    stages.need(run, "ppo")
    stages.need(run, "dpo_2")
    stages.need(run, "personal")
    said = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "making a quick one" in line]
    assert said[0] == "grpo_2" and said[-1] == "personal" and len(said) == len(set(said))
    assert set(said) == set(ARTIFACTS) - {"rloo", "labels", "labels_2"}
    assert all(run.has(stage) for stage in ARTIFACTS if stage != "rloo")
    training, held_out = stages.preferences(run)
    assert training and held_out and not {r["prompt"] for r in training} & {r["prompt"] for r in held_out}
    assert not [p.name for p in run.folder.iterdir() if ".part" in p.name or ".tmp" in p.name]


# --- a light start ------------------------------------------------------------------------------------------------------------

LIGHT = ["rlhf_helpers.formats", "rlhf_helpers.labelling.session", "rlhf_helpers.world.judge", "rlhf_helpers.notebook"]


@pytest.mark.parametrize("module", LIGHT)
def test_data_labels_and_judge_start_without_the_heavy_libraries(module):
    code = f"import sys, {module}; print([m for m in ('torch', 'transformers', 'trl', 'datasets', 'pandas', 'scipy') if m in sys.modules])"
    quickest = 9.0
    for _ in range(3):  # a busy computer may be slow once
        started = time.monotonic()
        done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
        assert done.stdout == "[]\n"
        quickest = min(quickest, time.monotonic() - started)
        if quickest < 1:
            break
    assert quickest < 1


def test_the_stages_start_without_torch():
    code = "import sys, rlhf_helpers.stages; print([m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_default_runs_folder_is_the_series_own():
    assert runs.RUNS.name == "runs" and (runs.RUNS.parent / "rlhf_helpers").is_dir()


# --- answers --------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("content", ["", "{", "[1]\n", '{"prompt": "another prompt", "answer": "Hi."}\n'])
def test_kept_answers_that_are_damaged_or_to_other_prompts_are_sampled_anew(tiny_run, content):
    tiny_run.answers_path("base").write_text(content)
    first = assessment.answers_of(tiny_run, "base", pairs=False)
    assert len(first) == tiny_run.profile.evaluation_prompts
    answers = assessment.answers_of(tiny_run, "base")
    assert len(answers) == len(assessment.evaluation_set(tiny_run)) and answers[: len(first)] == first
    assert assessment.answers_of(tiny_run, "base", pairs=False) == first
    assert assessment.answers_of(tiny_run, "base") == answers
    tiny_run.answers_path("best_of_n").write_text(content)
    with pytest.raises(DamagedArtifact, match="best_of_n.*06_reinforcement_learning"):
        assessment.answers_of(tiny_run, "best_of_n")
