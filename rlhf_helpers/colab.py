"""Makes a Colab runtime ready for the notebooks; called by their first cell, there only.

Colab brings most packages, already loaded in part. Exchanging those under a running kernel is what breaks notebooks
there ("numpy.dtype size changed", widgets that stay empty). So only what is missing or too old is installed, what must
not change is held, and if a package in use was exchanged after all, the reader is told to restart, and why.
"""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
HELD = ("numpy", "torch", "ipywidgets")
NOT_NEEDED_THERE = ("jupyterlab", "nbclient", "papermill", "nbval", "pytest", "pytest-timeout", "hypothesis", "ruff")


def prepare():
    """Install what the series lacks here and say so; print nothing if all is there. Raise RuntimeError if pip fails."""
    lacking = [str(requirement) for requirement in requirements() if not good_enough(requirement)]
    if not lacking:
        return
    print("Installing", ", ".join(lacking), flush=True)
    before = versions_in_use()
    held = [f"{name}=={installed(name)}" for name in HELD if installed(name)]
    install(lacking + held)
    exchanged = {name: installed(name) for name, version in before.items() if installed(name) != version}
    if exchanged:
        print(
            "Please restart once: Runtime > Restart session, then run this notebook from the top. The reason: "
            + ", ".join(f"{name} {before[name]} is in use and was replaced by {new}" for name, new in exchanged.items())
        )


def requirements():
    """Return the requirements of requirements.txt that the notebooks need here and that may change here."""
    lines = (line.partition("#")[0].strip() for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines())
    found = [Requirement(line) for line in lines if line]
    return [requirement for requirement in found if requirement.name not in HELD + NOT_NEEDED_THERE]


def installed(name):
    """Return the installed version of a package as text, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def good_enough(requirement):
    """Tell whether a package is installed and at least as new as required; newer than the upper bound is let be."""
    version = installed(requirement.name)
    least = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
    return version is not None and all(Version(version) >= bound for bound in least)


def versions_in_use():
    """Return the versions of all packages of which this process has already loaded a module."""
    packages = metadata.packages_distributions()
    names = {name for module, names in packages.items() if module in sys.modules for name in names}
    return {name: installed(name) for name in sorted(names)}


def install(wanted):
    done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", *wanted], capture_output=True, text=True)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(f"pip could not install {', '.join(wanted)}. Its last lines:\n{last}")
