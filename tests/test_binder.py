"""Binder's own files: they must agree with requirements.txt, because Binder reads only them."""

import re
import subprocess

import pytest
from packaging.requirements import Requirement

from rlhf_helpers.bootstrap import ROOT
from rlhf_helpers.colab import NOT_NEEDED_THERE
from run import TORCH

BINDER = ROOT / "binder"


def read(path):
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {Requirement(line).name: Requirement(line) for line in lines if line and line[0] not in "#-"}


def test_pins_agree_with_the_requirements():
    pins, wanted = read(BINDER / "requirements.txt"), read(ROOT / "requirements.txt")
    assert set(pins) == set(wanted) - set(NOT_NEEDED_THERE) - {"ipywidgets"}
    for name, pin in pins.items():
        version = re.fullmatch(r"==([^,]+)", str(pin.specifier)).group(1)
        assert wanted[name].specifier.contains(version), name


def test_every_requirement_has_both_bounds():
    for name, requirement in read(ROOT / "requirements.txt").items():
        operators = {bound.operator for bound in requirement.specifier}
        assert operators in ({">=", "<"}, {"=="}), name


def test_torch_is_the_cpu_build_and_the_same_as_in_run_py():
    assert str(read(BINDER / "requirements.txt")["torch"]) == TORCH + "+cpu"


def test_python_is_named_because_binders_default_is_too_old():
    assert (BINDER / "runtime.txt").read_text() == "python-3.11\n"


def test_requirements_stand_alone_so_that_commits_do_not_reinstall():
    assert not re.search(r"^-(r|-requirement)\b", (BINDER / "requirements.txt").read_text(), re.MULTILINE)


def test_start_runs_what_it_is_given_with_one_thread():
    try:
        done = subprocess.run(
            ["bash", BINDER / "start", "sh", "-c", "echo $OMP_NUM_THREADS $PYTHONPATH $JUPYTER_CONFIG_PATH"],
            env={"REPO_DIR": "here", "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("no bash on this system")
    assert done.stdout == "1 here here/binder\n", done.stderr
