"""Real kernels run tiny notebooks in a temporary folder: what tutorial and refresh do if all is well, and if not."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import numpy as np
import psutil
import pytest
from PIL import Image

import run
from rlhf_helpers import series
from rlhf_helpers.bootstrap import ROOT

WHERE = "import os, pathlib; folder = pathlib.Path(os.environ['RLHF_RUNS'], os.environ['RLHF_RUN'])"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Let the series live in a temporary folder: its notebooks, and its runs beside them."""
    before = dict(os.environ)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(series, "NOTEBOOKS", tmp_path / "notebooks")
    os.environ["RLHF_RUNS"] = str(tmp_path / "runs")
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


def notebook(folder, name, *cells):
    """Write a notebook whose text cell is followed by these code cells."""
    path = folder / "notebooks" / f"{name}.ipynb"
    content = nbformat.v4.new_notebook()
    content.cells = [nbformat.v4.new_markdown_cell("# Title"), *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(content, path)
    return path


def outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return [output.text for cell in cells if cell.cell_type == "code" for output in cell.outputs]


def test_a_run_records_measures_and_reports(folder, capsys):
    first = notebook(
        folder,
        "00_start",
        WHERE,
        "block = bytearray(300_000_000)\ndel block",
        "print(pathlib.Path.cwd().name, *map(os.environ.get, ['RLHF_PROFILE', 'RLHF_SEED', 'OMP_NUM_THREADS']))",
        "_ = (folder / 'figures.json').write_text('{\"00_start\": \"rubric 4.1 of 10\"}')",
    )
    notebook(
        folder,
        "02_end",
        WHERE,
        "_ = (folder / 'report.json').write_text('{\"seed\": 3}'); _ = (folder / 'report.html').write_text('')",
        "import time; time.sleep(1.2)",
    )
    before = first.read_bytes()

    assert series.main(["tutorial", "--seed", "3", "--run", "mine"]) == 0

    mine = folder / "runs" / "mine"
    took = json.loads((mine / "notebooks.json").read_text())
    assert list(took) == ["00_start", "02_end"]
    assert took["00_start"]["peak_rss_mb"] > 310 > took["02_end"]["peak_rss_mb"] > 30
    assert 1.2 < took["02_end"]["seconds"] < 60
    assert json.loads((mine / "report.json").read_text()) == {"seed": 3, "notebooks": took}
    assert outputs(mine / "executed" / "00_start.ipynb") == ["notebooks practice 3 1\n"]
    assert first.read_bytes() == before
    printed = capsys.readouterr()
    assert "[1/2] 00_start ..." in printed.out
    assert "rubric 4.1 of 10" in printed.out.split("main figure")[1]
    assert printed.out.rstrip().endswith(str(mine / "report.html"))
    assert printed.err == ""


def test_a_failing_cell_ends_in_one_message_and_can_be_continued(folder, capsys):
    notebook(folder, "00_start", "print('here')")
    wrong = "x = 1\nraise ValueError('no labels\\nat all')"
    notebook(folder, "01_next", "print('so far')", "", wrong, "print('never')")

    assert series.main(["tutorial", "--run", "mine"]) == 1

    message = capsys.readouterr().err
    assert "01_next stopped in code cell 2 of 3: ValueError: no labels\n" in message
    assert "    x = 1\n    raise ValueError" in message
    assert "python3 run.py tutorial --profile practice --run mine --seed 0 --from 01" in message or os.name == "nt"
    assert "Traceback" not in message and "papermill" not in message
    copy = folder / "runs" / "mine" / "executed" / "01_next.ipynb"
    assert str(copy) in message and "so far" in copy.read_text()

    notebook(folder, "01_next", "print('repaired')")
    assert series.main(["tutorial", "--run", "mine", "--from", "01"]) == 0
    assert list(json.loads((folder / "runs" / "mine" / "notebooks.json").read_text())) == ["00_start", "01_next"]
    assert "00_start" not in capsys.readouterr().out


def test_a_kernel_that_dies_is_named_and_only_is_repeated(folder, capsys):
    notebook(folder, "04_labels", "import os; os._exit(9)")
    assert series.main(["tutorial", "--only", "4"]) == 1
    message = capsys.readouterr().err
    assert "04_labels stopped in code cell 1 of 1: DeadKernelError" in message
    assert "--only 04" in message


def test_a_damaged_notebook_is_named(folder, capsys):
    notebook(folder, "00_start").write_text("{")
    assert series.main(["tutorial"]) == 1
    assert "00_start stopped in code cell 0 of 0: NotJSONError" in capsys.readouterr().err


def test_an_unknown_profile_is_refused_with_the_list(folder, capsys):
    notebook(folder, "00_start", "1")
    assert series.main(["tutorial", "--profile", "gpt9"]) == 1
    assert "no profile 'gpt9'; choose one of: practice" in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_a_damaged_record_is_named(folder, capsys):
    notebook(folder, "00_start", "1")
    (folder / "runs" / "practice").mkdir(parents=True)
    (folder / "runs" / "practice" / "notebooks.json").write_text("{")
    assert series.main(["tutorial"]) == 1
    assert "notebooks.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name, content, said", [
    ("notebooks", "[]", "it holds no object"), ("figures", "[]", "it holds no object"), ("report", "[" * 100000, "recursion"),
    ("notebooks", '{"00_start_here": {}}', "00_start_here is not an object with the numbers seconds and peak_rss_mb"),
    ("notebooks", '{"00_start_here": {"seconds": "9", "peak_rss_mb": 9}}', "00_start_here is not an object")])
def test_a_damaged_record_is_named_before_the_first_notebook(folder, capsys, name, content, said):
    notebook(folder, "00_start", "1")
    (folder / "runs" / "practice").mkdir(parents=True)
    (folder / "runs" / "practice" / f"{name}.json").write_text(content)
    assert series.main(["tutorial"]) == 1
    printed = capsys.readouterr()
    assert f"{name}.json is damaged" in printed.err and said in printed.err and "Delete it" in printed.err
    assert "00_start ..." not in printed.out


def test_a_place_where_no_run_can_lie_is_one_sentence(folder, capsys):
    notebook(folder, "00_start", "1")
    (folder / "file").write_text("")
    os.environ["RLHF_RUNS"] = str(folder / "file" / "runs")
    assert series.main(["tutorial"]) == 1
    message = capsys.readouterr().err
    assert str(folder / "file") in message and "RLHF_RUNS" in message and "Traceback" not in message


def test_ctrl_c_between_two_notebooks_is_told_in_words(folder, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt
    notebook(folder, "00_start", "1")
    monkeypatch.setattr(series, "run_copy", lambda *_: None)
    monkeypatch.setattr(series, "save", interrupted)
    assert series.main(["tutorial"]) == 130
    assert "The same command starts again; `tutorial --from NN` goes on" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to one process")
def test_ctrl_c_while_the_libraries_load_is_told_in_words(tmp_path):
    """A file nbformat.py stands in the way of the library, so that the loading lasts."""
    (tmp_path / "nbformat.py").write_text(f"import pathlib, time; pathlib.Path({str(tmp_path / 'loads')!r}).touch(); time.sleep(99)")
    child = subprocess.Popen([sys.executable, "-m", "rlhf_helpers.series", "tutorial"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path), "RLHF_RUNS": str(tmp_path)},
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    until((tmp_path / "loads").exists)
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=60)[0].decode() == "\nStopped before the first notebook. The same command starts again.\n"
    assert child.returncode == 130


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send to one process")
def test_ctrl_c_stops_the_kernel_and_says_how_to_continue(folder):
    kernel = folder / "kernel"
    notebook(
        folder,
        "03_long",
        f"import os, pathlib, time; _ = pathlib.Path({str(kernel)!r}).write_text(str(os.getpid()))\ntime.sleep(100)",
    )
    program = (
        "import sys, pathlib, run; from rlhf_helpers import series\n"
        f"run.NOTEBOOKS = series.NOTEBOOKS = pathlib.Path({str(folder / 'notebooks')!r})\n"
        "sys.exit(series.main(['tutorial', '--run', 'mine']))"
    )
    command = [sys.executable, "-c", program]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT,
                             preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # a shell's background jobs ignore it
    until(lambda: kernel.exists() and kernel.read_text())
    child.send_signal(signal.SIGINT)
    printed = child.communicate(timeout=120)[0].decode()
    assert child.returncode == 130
    assert "Stopped in 03_long. To continue: python3 run.py tutorial" in printed and "--from 03" in printed
    assert "Traceback" not in printed
    until(lambda: not psutil.pid_exists(int(kernel.read_text())))


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


WIDGET = (
    "from IPython.display import display\n"
    "display({'application/vnd.jupyter.widget-view+json': {'model_id': 'x'}, 'text/plain': 'HBox()'}, raw=True)\n"
    "print('one'); print('two')"
)


def test_refresh_writes_clean_outputs(folder):
    path = notebook(folder, "00_start", WIDGET, "40 + 2")
    (folder / "notebooks" / "solutions").mkdir()
    solution = path.rename(folder / "notebooks" / "solutions" / "00_start.ipynb")
    path = notebook(folder, "00_start", WIDGET, "40 + 2")
    content = nbformat.read(path, as_version=4)
    content.metadata = {"widgets": {}, "kernelspec": {"name": "other", "display_name": "other"}, "papermill": {}}
    content.cells[1].metadata = {"tags": ["kept"], "execution": {"a": 1}}
    nbformat.write(content, path)
    leftover = folder / "runs" / "refresh" / "old"
    leftover.mkdir(parents=True)

    assert series.main(["refresh"]) == 0

    fresh = json.loads(path.read_text())
    assert fresh["metadata"]["kernelspec"]["name"] == "python3"
    assert set(fresh["metadata"]) == {"kernelspec", "language_info"}
    first, second = fresh["cells"][1:]
    assert first["metadata"] == {"tags": ["kept"]} and second["metadata"] == {}
    assert first["outputs"] == [{"name": "stdout", "output_type": "stream", "text": ["one\n", "two\n"]}]
    assert (first["execution_count"], second["execution_count"]) == (1, 2)
    assert second["outputs"][0]["data"] == {"text/plain": ["42"]}
    assert "42" in solution.read_text() and not leftover.exists()
    took = json.loads((folder / "runs" / "refresh" / "notebooks.json").read_text())
    assert list(took) == ["00_start"] and took["00_start"]["seconds"] > 0


def test_a_refresh_does_not_delete_a_persons_work(folder, capsys):
    path = notebook(folder, "00_start", "40 + 2")
    before, mine = path.read_bytes(), folder / "runs" / "refresh" / "my_instructions.jsonl"
    mine.parent.mkdir(parents=True)
    mine.write_text("{}\n")
    assert series.main(["refresh"]) == 1
    assert "my_instructions.jsonl may be a person's work: rename the folder" in capsys.readouterr().err
    assert mine.exists() and path.read_bytes() == before


def test_refresh_of_the_solutions_keeps_the_run_and_leaves_the_notebooks_alone(folder, capsys):
    (folder / "notebooks" / "solutions").mkdir()
    solutions = [notebook(folder, name, cell).rename(folder / "notebooks" / "solutions" / f"{name}_solutions.ipynb")
                 for name, cell in (("00_start", "40 + 2"), ("01_next", "1 / 0"))]
    path = notebook(folder, "00_start", "40 + 2")
    before = path.read_bytes()
    kept = folder / "runs" / "refresh" / "sft"
    kept.mkdir(parents=True)

    assert series.main(["refresh", "--solutions", "0"]) == 0
    assert "42" in solutions[0].read_text() and path.read_bytes() == before and kept.exists()

    assert series.main(["refresh", "--solutions"]) == 1
    assert "run.py refresh --solutions 01" in capsys.readouterr().err
    assert path.read_bytes() == before and kept.exists()


@pytest.mark.parametrize(
    ("cell", "said"), [("1 / 0", "ZeroDivisionError"), ("import sys; print('careful', file=sys.stderr)", "careful")]
)
def test_refresh_never_writes_a_notebook_that_failed_or_wrote_to_stderr(folder, capsys, cell, said):
    path = notebook(folder, "00_start", "print('fine')", cell)
    before = path.read_bytes()
    assert series.main(["refresh", "00"]) == 1
    message = capsys.readouterr().err
    assert said in message and "run.py refresh 00" in message
    assert path.read_bytes() == before
    assert [*(folder / "notebooks").iterdir()] == [path]


@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is counted in parts on Linux only")
def test_what_a_child_shares_with_its_parent_counts_once():
    code = "import os, sys; held = bytearray(os.urandom(1)) * 200_000_000; os.fork(); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        for _ in range(2):
            parent.stdout.readline()
        both = [psutil.Process(parent.pid), *psutil.Process(parent.pid).children()]
        sizes = [series.memory_now(process) for process in both]
        parent.stdin.close()
    assert len(both) == 2 and 200e6 < sum(sizes) < 250e6


def test_a_child_that_is_about_to_run_another_program_does_not_count_twice(monkeypatch):
    monkeypatch.setattr(series, "memory_now", lambda process: 900)
    monkeypatch.setattr(series, "age", {"kernel": 60, "worker": 1, "child": 0.2}.get)
    assert series.memory_together(["kernel", "child"]) == 900
    assert series.memory_together(["kernel", "worker", "child"]) == 1800


def test_shared_memory_is_looked_at_only_if_it_could_be_a_new_peak(monkeypatch):
    looks, held = [], {"now": 900.04e6}
    monkeypatch.setattr(series, "memory_together", lambda processes: looks.append(held["now"]) or 950e6)
    monkeypatch.setattr(series, "memory_peak", lambda process: 900.04e6)
    monkeypatch.setattr(series, "memory_at_most", lambda process: held["now"])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        watch = series.Watch("")
        watch._started = 0.0
        watch._measure()  # one kernel at its peak: what the system recorded says it all
        assert watch.peak_rss_mb == 900.0 and looks == []
        held["now"] = 1000e6  # as if a child had come
        watch._measure()
        child.stdin.close()
    assert watch.peak_rss_mb == 950.0 and looks == [1000e6]


def test_age_of_a_process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        process = psutil.Process(started.pid)
        young = series.age(process)
        started.stdin.close()
    assert -0.05 < young < 1 and series.age(psutil.Process()) > young


def test_a_picture_with_a_palette_looks_the_same_in_fewer_bytes():
    dice = np.random.default_rng(0)
    stripes = np.repeat(dice.integers(0, 255, (60, 3)), 40, 0).reshape(60, 40, 3).astype("uint8")
    plot = Image.fromarray(stripes).resize((400, 300), Image.Resampling.NEAREST)
    large, small = io.BytesIO(), io.BytesIO()
    plot.convert("RGBA").save(large, "PNG")
    small.write(base64.b64decode(series.with_palette(base64.b64encode(large.getvalue()).decode())))
    found = Image.open(small)
    assert found.size == plot.size and len(found.getcolors()) <= 128 and len(small.getvalue()) < len(large.getvalue())
    assert np.abs(np.asarray(found.convert("RGB"), float) - np.asarray(plot, float)).mean() < 3
