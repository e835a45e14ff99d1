"""run.py without a network and without a real environment: what it refuses, what it repairs, and what it starts."""

import ast
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

import run
from rlhf_helpers.labelling.session import LabellingSession
from rlhf_helpers.labelling.store import LabelStore
from rlhf_helpers.world.annotators import ANNOTATORS

THERE = SimpleNamespace(free=10**12)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Move run.py's folder to a temporary one with two notebooks, room on its disk, and no need to look for PyTorch."""
    for name, value in {"ROOT": "", "NOTEBOOKS": "notebooks", "RUNS": "runs", "VENV": ".venv",
                        "LABEL_STUDIO_VENV": ".venv-label-studio", "COLAB_VENV": ".venv-colab", "TRL112_VENV": ".venv-trl112"}.items():
        monkeypatch.setattr(run, name, tmp_path / value)
    monkeypatch.setattr(run, "REQUIREMENTS", tmp_path / "requirements.txt")
    (tmp_path / "requirements.txt").write_text("papermill\n")
    (tmp_path / "notebooks").mkdir()
    for name in ("00_start_here", "03_supervised_fine_tuning"):
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text("{}")
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: THERE)
    monkeypatch.setattr(run, "torch_arguments", lambda: [run.TORCH])
    return tmp_path


@pytest.fixture
def steps(place, monkeypatch):
    """The steps taken, by title; the first one makes the file that stands for the environment's Python."""
    taken = []

    def step(title, command, venv):
        taken.append(title)
        if command[1:3] == ["-m", "venv"]:
            python = run.Path(command[3]) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
            python.parent.mkdir(parents=True)
            python.touch()

    monkeypatch.setattr(run, "step", step)
    return taken


@pytest.fixture
def started(steps, monkeypatch):
    """The commands that would have been started."""
    commands = []
    monkeypatch.setattr(run, "run_child", lambda command, settings: commands.append([*map(str, command)]) or 0)
    return commands


def test_the_file_parses_on_python_3_6():
    ast.parse(run.Path(run.__file__).read_text(encoding="utf-8"), feature_version=(3, 6))


def test_it_uses_the_standard_library_only():
    tree = ast.parse(run.Path(run.__file__).read_text(encoding="utf-8"))
    plain = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    parts = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert plain | parts <= sys.stdlib_module_names


def test_an_old_python_is_told_before_anything_else(started, monkeypatch, capsys):
    monkeypatch.setattr(run.sys, "version_info", (3, 10, 13))
    assert run.main(["nonsense"]) == 1
    assert "This is Python 3.10; the series needs Python 3.11 or newer" in capsys.readouterr().err
    assert started == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "required"),
        (["train"], "invalid choice"),
        (["tutorial", "--only", "07"], "there is no notebook 07; there are 00, 03"),
        (["tutorial", "--from", "x"], "there is no notebook x; there are 00, 03"),
        (["refresh", "03", "5"], "there is no notebook 5; there are 00, 03"),
        (["tutorial", "--only", "00", "--from", "03"], "not allowed with"),
        (["tutorial", "--seed", "-1"], "is not a whole number"),
        (["tutorial", "--only", ""], "there is no notebook ''; there are 00, 03"),
        (["tutorial", "--run", "../outside"], "is no folder name"),
        (["tutorial", "--run", "mine\n"], "is no folder name"),
        (["tutorial", "--run", "test"], "test is the folder that `run.py test` empties; choose another name"),
        (["bench", "--run", "Refresh"], "Refresh is the folder that `run.py refresh` empties"),
        (["test", "--fast"], "unknown: --fast"),
        (["test", "--quick", "--label-studio"], "not allowed with"),
    ],
)
def test_wrong_arguments_are_named_before_the_set_up(started, steps, capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        run.main(arguments)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert started == steps == []


def test_arguments_reach_the_series(started):
    assert run.main(["tutorial", "--from", "3", "--seed", "2", "--run", "mine"]) == 0
    assert started[0][1:] == ["-m", "rlhf_helpers.series", "tutorial", "--from", "3", "--seed", "2", "--run", "mine"]
    options = run.parse(["tutorial", "--from", "3"])
    assert (options.start, options.only, options.seed, options.run) == ("03", None, 0, None)
    assert options.profile == "practice"


def test_lab_opens_the_first_notebook_and_passes_options_on(started, place):
    run.main(["lab", "--no-browser", "--port=9999"])
    assert started[0][1:3] == ["-m", "jupyterlab"]
    assert f"--ServerApp.root_dir={place}" in started[0]
    assert "--LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb" in started[0]
    assert started[0][-2:] == ["--no-browser", "--port=9999"]


def test_lab_asks_nobody_whether_it_may_fetch_news(monkeypatch):
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "mine")
    first, *others = run.lab_environment()["JUPYTER_CONFIG_PATH"].split(os.pathsep)
    assert others == ["mine"] and "announcements" in Path(first, "labconfig", "page_config.json").read_text()


def test_the_environment_is_made_once(started, steps):
    run.main(["refresh"])
    assert steps == ["Making the environment in .venv", "Installing PyTorch", "Installing the other packages"]
    run.main(["refresh"])
    assert len(steps) == 3 and len(started) == 2


def test_the_tests_with_the_widgets_of_colab_have_a_python_of_their_own(started, steps, place):
    for _ in range(2):
        assert run.main(["test", "--colab"]) == 0
    assert steps == ["Making the environment in .venv-colab", "Installing the widgets of Colab"]
    assert all(command[0].startswith(str(place / ".venv-colab")) and command[-2:] == run.COLAB_TESTS for command in started)


def test_bench_gets_a_python_with_trl_1_12_and_its_options(started, steps, place):
    for _ in range(2):
        assert run.main(["bench", "--run", "mine", "--seeds", "5"]) == 0
    assert steps[3:] == ["Making the environment in .venv-trl112", "Installing PyTorch for it", "Installing TRL 1.12"]
    assert started[0][1:4] == ["-m", "benchmarks.bench", "--trl112"] and started[0][4].startswith(str(place / ".venv-trl112"))
    assert started[0][5:] == ["--run", "mine", "--seeds", "5"]


def test_what_only_some_tests_need_is_installed_once_and_only_for_them(started, steps, monkeypatch):
    monkeypatch.setattr(run, "run_tests", lambda python, everything: 0)
    assert run.main(["test", "--quick"]) == 0 and len(steps) == 3
    assert run.main(["test"]) == run.main(["test", "--all"]) == 0
    assert steps[3:] == ["Installing what the tests with a browser need"]


def test_label_studio_is_installed_once_and_only_when_asked_for(started, steps):
    for _ in range(2):
        assert run.main(["test", "--label-studio"]) == 0
    assert steps[4:] == ["Making the environment in .venv-label-studio", "Installing Label Studio"]
    assert [command[1:] for command in started] == [["-m", "pytest", "-rs", run.SERVER_TESTS]] * 2
    assert (run.Path(run.__file__).parent / run.SERVER_TESTS).exists()


@pytest.mark.parametrize("damage", ["no stamp", "other requirements", "no python"])
def test_a_half_made_or_old_environment_is_made_again(started, steps, place, damage, capsys):
    run.main(["refresh"])
    leftover = place / ".venv" / "leftover"
    leftover.touch()
    if damage == "no stamp":
        (place / ".venv" / "made_from.txt").unlink()
    elif damage == "other requirements":
        (place / "requirements.txt").write_text("papermill\ntrl\n")
    else:
        shutil.rmtree(place / ".venv" / ("Scripts" if os.name == "nt" else "bin"))
    run.main(["refresh"])
    assert len(steps) == 6 and not leftover.exists()
    assert "unfinished or out of date" in capsys.readouterr().out


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (run.SetupError("pip failed"), 1)])
def test_a_set_up_that_stops_leaves_no_stamp(started, steps, place, monkeypatch, stop, code):
    whole = run.step

    def step(title, command, venv):
        whole(title, command, venv)
        if title == "Installing the other packages":
            raise stop

    monkeypatch.setattr(run, "step", step)
    assert run.main(["refresh"]) == code
    assert not (place / ".venv" / "made_from.txt").exists() and started == []
    monkeypatch.setattr(run, "step", whole)
    assert run.main(["refresh"]) == 0 and len(started) == 1


def test_without_ensurepip_there_is_one_line_to_run(started, steps, monkeypatch, capsys):
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else THERE)
    assert run.main(["refresh"]) == 1
    assert f"sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in capsys.readouterr().err
    assert steps == []


@pytest.mark.parametrize(("cuda", "free", "enough"), [(0, 2.9, 0), (0, 3.1, 1), (1, 9.9, 0), (1, 10.1, 1)])
def test_a_full_disk_is_seen_before_the_download(started, steps, place, monkeypatch, capsys, cuda, free, enough):
    monkeypatch.setattr(run, "has_cuda", lambda: bool(cuda))
    monkeypatch.setattr(run.shutil, "disk_usage", lambda path: SimpleNamespace(free=free * 1e9))
    assert run.main(["refresh"]) == 1 - enough
    assert (f"has {free} GB free" in capsys.readouterr().err) != enough
    assert (place / ".venv").exists() == enough


def test_the_environment_in_use_is_not_deleted(started, steps, place, monkeypatch, capsys):
    (place / ".venv").mkdir()
    monkeypatch.setattr(run.sys, "prefix", str(place / ".venv"))
    assert run.main(["refresh"]) == 1
    assert "deactivate" in capsys.readouterr().err and (place / ".venv").exists()


def test_a_step_keeps_a_log_and_explains_its_failure(place, capsys):
    (place / ".venv").mkdir()
    run.step("Counting", [sys.executable, "-c", "print('WARNING: noise'); print('one')"], run.VENV)
    with pytest.raises(run.SetupError) as failed:
        run.step("Breaking", [sys.executable, "-c", "print('ERROR: no such package'); raise SystemExit(1)"], run.VENV)
    assert "Breaking failed." in str(failed.value) and "ERROR: no such package" in str(failed.value)
    assert "WARNING" not in str(failed.value)
    assert (place / ".venv" / "install.log").read_text().startswith("WARNING: noise\none\n")
    assert "Counting: " in capsys.readouterr().out


def test_a_disk_that_fills_during_the_download_is_named(place):
    (place / ".venv").mkdir()
    text = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    with pytest.raises(run.SetupError, match="Installing: the disk is full"):
        run.step("Installing", [sys.executable, "-c", f"print({text!r}); raise SystemExit(1)"], run.VENV)


def test_other_trouble_with_the_disk_is_no_traceback(started, steps, place, capsys):
    (place / "requirements.txt").unlink()
    assert run.main(["refresh"]) == 1
    assert "requirements.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("system", "nvidia", "answers", "expected"),
    [
        ("Darwin", False, False, [run.TORCH]),
        ("Windows", True, False, [run.TORCH]),
        ("Linux", True, True, [run.TORCH]),
        ("Linux", False, True, [run.TORCH + "+cpu", "--index-url", run.CPU_INDEX]),
        ("Linux", False, False, [run.TORCH + "+cpu"]),
    ],
)
def test_linux_without_a_gpu_never_gets_cuda(monkeypatch, system, nvidia, answers, expected):
    monkeypatch.setattr(run.platform, "system", lambda: system)
    monkeypatch.setattr(run.shutil, "which", lambda name: name if nvidia else None)
    monkeypatch.setattr(run, "answers", lambda address: answers)
    assert run.torch_arguments() == expected


def test_where_there_is_no_cpu_build_the_ways_out_are_named(place):
    (place / ".venv").mkdir()
    text = f"ERROR: No matching distribution found for {run.TORCH}+cpu"
    with pytest.raises(run.SetupError, match=r"newer than 3\.14[\s\S]*whl/cpu reachable[\s\S]*PIP_FIND_LINKS"):
        run.step("Installing PyTorch", [sys.executable, "-c", f"print({text!r}); raise SystemExit(1)"], run.VENV)


def test_a_server_that_does_not_answer_is_no_error():
    assert run.answers("http://127.0.0.1:9/") is False


def test_children_get_a_quiet_environment(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    settings = run.environment()
    assert settings["OMP_NUM_THREADS"] == settings["MALLOC_ARENA_MAX"] == "1" and settings["PYTHONPATH"] == str(run.ROOT)
    assert "MPLBACKEND" not in settings and "HF_HUB_OFFLINE" not in settings
    assert run.environment(threads=2)["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert run.environment(offline=True, threads=2)["OMP_NUM_THREADS"] == "4"
    assert run.environment(offline=True)["HF_HUB_OFFLINE"] == "1"


def test_what_a_person_waits_for_gets_two_threads_and_what_is_measured_one(steps, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(run, "THREADS", 2)
    threads = []
    monkeypatch.setattr(run, "run_child", lambda command, settings: threads.append(settings["OMP_NUM_THREADS"]) or 0)
    for arguments in (["tutorial"], ["refresh"], ["lab"], ["bench"], ["test", "--quick"]):
        assert run.main(arguments) == 0
    assert threads == ["2", "2", "2", "1", "1"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has paths of another form")
@pytest.mark.parametrize(("given", "meant"), [("mine", "mine"), ("../b", "../b"), ("", "/series/runs"), ("/else", "/else")])
def test_where_runs_lie_does_not_depend_on_a_childs_folder(monkeypatch, tmp_path, given, meant):
    monkeypatch.setattr(run, "RUNS", run.Path("/series/runs"))
    monkeypatch.setenv("RLHF_RUNS", given)
    monkeypatch.chdir(tmp_path)
    assert run.environment()["RLHF_RUNS"] == os.path.abspath(tmp_path / meant)
    monkeypatch.delenv("RLHF_RUNS")
    assert run.environment()["RLHF_RUNS"] == "/series/runs"


def test_a_letter_that_the_console_lacks_is_no_error():
    code = ("import sys, run; sys.stdout.reconfigure(encoding='cp1252', errors='strict')\n"
            "run.ready_environment = lambda: sys.executable; run.add_to_environment = lambda *_: None\n"
            "run.run_tests = lambda python, _: run.stream([python, '-c', 'print(\"left \u2192 right\")'], run.environment())[0]\n"
            "sys.exit(run.main(['test']))")
    done = subprocess.run([sys.executable, "-c", code], cwd=run.ROOT, capture_output=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [b"left", b"?", b"right"], b"")


def persons_work(folder, what):
    """Put into a run's folder what a person made, or what only looks like it."""
    folder.mkdir(parents=True)
    if what == "instructions":
        (folder / "my_instructions.jsonl").write_text("{}\n")
    elif what in ("damaged", "empty"):
        (folder / "labels.sqlite").write_bytes(b"SQLite format 3\0 and then rubbish" * (what == "damaged"))
    else:
        store = LabelStore(folder / "labels_2.sqlite")
        session = LabellingSession(store, [{"prompt": "Hi?", "responses": [
            {"id": text, "text": text, "model": "sft", "settings": {}} for text in ("yes", "no")]}], "me")
        if what == "person":
            session.choose(session.current.pair_id, "left")
        else:
            session.finish(fill_with=ANNOTATORS, per_pair=3)
        store.close()


@pytest.mark.parametrize("what", ["instructions", "person", "damaged"])
def test_a_persons_work_is_not_deleted(place, monkeypatch, capsys, what):
    monkeypatch.setenv("RLHF_RUNS", str(place / "runs"))
    monkeypatch.setattr(run, "ready_environment", lambda: sys.executable)
    monkeypatch.setattr(run, "add_to_environment", lambda *_: None)
    persons_work(place / "runs" / "test", what)
    before = {path.name: path.read_bytes() for path in (place / "runs" / "test").iterdir()}
    assert run.main(["test"]) == 1
    name = next(iter(before))
    assert f"{place / 'runs' / 'test'} has to be emptied, but {name} may be a person's work: rename" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (place / "runs" / "test").iterdir()} == before


@pytest.mark.parametrize("what", ["simulated", "empty"])
def test_what_the_tests_made_themselves_is_deleted(place, what):
    persons_work(place / "runs" / "test", what)
    run.empty(place / "runs" / "test")
    run.empty(place / "runs" / "test")
    assert not (place / "runs" / "test").exists()


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("failing", ["none", "tests", "notebooks", "test --label-studio", "test --colab"])
def test_all_kinds_of_tests_run_and_any_can_fail(place, monkeypatch, capsys, failing, everything):
    """The files pytest.py and run.py in the folder stand for the real ones; they tell what they were started with."""
    stand_in = (
        "import os, sys\n"
        "print(*sys.argv[1:], os.environ.get('HF_HUB_OFFLINE'), os.environ.get('RLHF_RUN'))\n"
        f"failed = f'{{\" \".join(sys.argv[1:])}} '.startswith({failing!r} + ' ')\n"
        "print('=====', 'failed' if failed else 'passed', '=====', flush=True)\n"
        "sys.exit(failed)\n"
    )
    (place / "pytest.py").write_text(stand_in)
    (place / "run.py").write_text(stand_in)
    monkeypatch.delenv("RLHF_RUNS", raising=False)
    (place / "runs" / "test" / "old").mkdir(parents=True)
    kinds = {"notebooks": "notebooks", "helpers": "tests"}
    if everything:
        kinds.update({"label-studio": "test --label-studio", "colab": "test --colab"})
    assert run.run_tests(sys.executable, everything) == (failing in kinds.values())
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == " ".join(["notebooks", *run.NBVAL, "1", "test"])
    assert printed[2].startswith(f"tests -rs --ignore={run.SERVER_TESTS} 1")
    expected = [(name + ":", "failed" if what == failing else "passed") for name, what in kinds.items()]
    assert [tuple(line.split()) for line in printed[-len(kinds):]] == expected
    assert not (place / "runs" / "test").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_no_child_outlives_it(place):
    """The real script, stopped while its set-up runs: a file venv.py in the way of the module makes that last."""
    shutil.copy(run.__file__, place / "run.py")
    (place / "venv.py").write_text(
        "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(99)"
    )
    script = subprocess.Popen([sys.executable, "run.py", "refresh"], cwd=place, stdout=subprocess.DEVNULL)
    while not (place / "pid").exists() or not (place / "pid").read_text():
        assert script.poll() is None
        time.sleep(0.05)
    script.terminate()
    assert script.wait(timeout=20) == 143
    assert not psutil.pid_exists(int((place / "pid").read_text()))


def test_exit_codes_are_those_of_the_child(place):
    assert run.run_child([sys.executable, "-c", "raise SystemExit(7)"], run.environment()) == 7
    assert run.shell_code(-9) == 137
