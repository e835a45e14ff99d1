"""First cell and badges come from one setting; the first cell runs as on Colab, with a fake Colab and a fake pip."""

import json
import subprocess
import sys
import types
from importlib import metadata
from types import SimpleNamespace

import nbformat
import pytest
from packaging.requirements import Requirement

from rlhf_helpers import bootstrap, colab
from rlhf_helpers.bootstrap import ROOT, badges, dress, first_cell

NOTEBOOKS = sorted((ROOT / "notebooks").rglob("[0-9][0-9]_*.ipynb"))


def test_one_setting_gives_the_badges_and_the_clone(monkeypatch):
    monkeypatch.setattr(bootstrap, "home", lambda: ("someone/series", "next"))
    assert "https://mybinder.org/v2/gh/someone/series/next?urlpath=lab/tree/notebooks/05_x.ipynb" in badges("05_x")
    assert "https://colab.research.google.com/github/someone/series/blob/next/notebooks/05_x.ipynb" in badges("05_x")
    assert "-b next https://github.com/someone/series /content/series" in first_cell()
    assert len(first_cell().splitlines()) <= 12


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_agree_with_the_setting(path):
    name = path.relative_to(ROOT / "notebooks").with_suffix("").as_posix()
    cells = nbformat.read(path, as_version=4).cells
    advice = "run: python -m rlhf_helpers.bootstrap"
    assert badges(name) in cells[0].source, advice
    assert next(cell for cell in cells if cell.cell_type == "code").source == first_cell(), advice


def test_readme_agrees_with_the_setting():
    found = bootstrap.BADGES.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found == [badges("00_start_here")]


def test_dressing_a_notebook_adds_then_replaces(monkeypatch):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_markdown_cell("# Title\nText"), nbformat.v4.new_code_cell("print(1)")]
    dress(notebook, "00_x")
    once = json.dumps(notebook)
    assert notebook.cells[0].source == f"# Title\n\n{badges('00_x')}\n\nText"
    assert [cell.source for cell in notebook.cells[1:]] == [first_cell(), "print(1)"]
    dress(notebook, "00_x")
    assert json.dumps(notebook) == once
    monkeypatch.setattr(bootstrap, "home", lambda: ("someone/series", "next"))
    dress(notebook, "00_x")
    assert len(notebook.cells) == 3 and "someone/series" in notebook.cells[0].source + notebook.cells[1].source
    assert "HumanSignal" not in notebook.cells[0].source + notebook.cells[1].source


def test_dressing_needs_a_title():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1")])
    with pytest.raises(ValueError, match="00_x: its first cell has to be a text cell"):
        dress(notebook, "00_x")


@pytest.mark.parametrize("below", [".", "solutions"])
def test_the_first_cell_elsewhere_only_sets_the_path(tmp_path, monkeypatch, below):
    (tmp_path / "rlhf_helpers").mkdir()
    (tmp_path / "notebooks" / "solutions").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / below)
    monkeypatch.setattr(sys, "path", ["somewhere"])
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing may be started"))
    exec(first_cell(), {})
    assert sys.path == [str(tmp_path), "somewhere"]


def test_the_first_cell_on_colab_clones_once_and_prepares(tmp_path, monkeypatch):
    """The cell itself, with /content moved to a temporary folder and `git clone` replaced."""
    cell = first_cell().replace("/content/", f"{tmp_path.as_posix()}/content/")
    calls = []

    def clone(command, check):
        calls.append(command)
        for name in ("rlhf_helpers", "notebooks"):
            (tmp_path / "content" / "RLHF" / name).mkdir(parents=True)

    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    monkeypatch.setattr(sys, "path", ["somewhere"])
    monkeypatch.setattr(subprocess, "run", clone)
    monkeypatch.setattr(colab, "prepare", lambda: calls.append("prepare"))
    monkeypatch.chdir(tmp_path)
    exec(cell, {})
    monkeypatch.chdir(tmp_path)
    exec(cell, {})
    assert [call[:5] if call != "prepare" else call for call in calls] == [
        ["git", "clone", "-q", "--depth", "1"],
        "prepare",
        "prepare",
    ]
    assert sys.path[0] == str(tmp_path / "content" / "RLHF")


@pytest.fixture
def pip(monkeypatch):
    """A Colab with its versions of August 2026; installing brings the lower bounds. Return what pip was told."""
    versions = {
        "numpy": "2.1.3",
        "torch": "2.11.0+cu128",
        "ipywidgets": "7.7.1",
        "datasets": "4.0.0",
        "pyarrow": "18.1.0",
    }
    for requirement in colab.requirements():
        versions.setdefault(requirement.name, "999")
    del versions["trl"]
    told = []

    def run(command, **_):
        told.extend(command[5:])
        for wanted in map(Requirement, command[5:]):
            versions[wanted.name] = next(b.version for b in wanted.specifier if b.operator in (">=", "=="))
        versions["pyarrow"] = "26.0.1"
        return SimpleNamespace(returncode=0)

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"pyarrow": ["pyarrow"], "trl": ["trl"]})
    monkeypatch.setattr(subprocess, "run", run)
    return told


def test_colab_installs_only_what_is_missing_or_too_old(pip, monkeypatch, capsys):
    for module in ("pyarrow", "trl"):  # other tests of this process may have loaded them
        monkeypatch.delitem(sys.modules, module, raising=False)
    colab.prepare()
    assert [Requirement(wanted).name for wanted in pip if "==" not in wanted] == ["trl", "datasets"]
    assert {"numpy==2.1.3", "torch==2.11.0+cu128", "ipywidgets==7.7.1"} < set(pip)
    assert "restart" not in capsys.readouterr().out
    pip.clear()
    colab.prepare()
    assert pip == [] and capsys.readouterr().out == ""


def test_colab_says_once_that_it_must_restart_and_why(pip, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", types.ModuleType("pyarrow"))
    colab.prepare()
    said = capsys.readouterr().out
    assert said.count("restart once") == 1 and "pyarrow 18.1.0 is in use and was replaced by 26.0.1" in said
    colab.prepare()
    assert capsys.readouterr().out == ""


def test_colab_never_asks_for_what_it_must_not_change():
    names = {requirement.name for requirement in colab.requirements()}
    assert {"trl", "datasets", "transformers"} <= names
    assert names.isdisjoint({"ipywidgets", "numpy", "torch", "jupyterlab", "pytest"})


def test_a_failing_pip_is_explained(pip, monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="noise\nERROR: No matching distribution found for trl")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match="pip could not install trl.*\n.*\n.*No matching distribution"):
        colab.prepare()
