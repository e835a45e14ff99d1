#!/usr/bin/env python3
"""The one entry point of the series: it makes its own environment beside it, then does what you ask.

    python3 run.py tutorial     run the notebooks in order and print a table of what each took and found
    python3 run.py lab          open JupyterLab at notebook 00
    python3 run.py test         run the tests of the helper package and of the notebooks (--quick: only the former;
                                --label-studio: those that need a Label Studio server, which it installs beside the
                                rest, 1 GB; --colab: those of the labelling views with the old widgets that Colab has,
                                0.5 GB; --all: all of these, as continuous integration does)
    python3 run.py refresh      run the notebooks again and write their outputs into them
    python3 run.py bench        measure speed side by side with TRL 1.16, TRL 1.12 (installed beside the rest, 1.5 GB) and
                                transformers, half an hour; the table goes to benchmarks/latest.md (--quick: a short trial)

On Windows say `py run.py ...`. It needs Python 3.11 or newer and nothing else. The file uses the standard library only,
and still parses on Python 3.6, so that an old Python gets a message and not a SyntaxError.
"""

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent
NOTEBOOKS = ROOT / "notebooks"
RUNS = ROOT / "runs"
REQUIREMENTS = ROOT / "requirements.txt"
VENV = ROOT / ".venv"
LABEL_STUDIO_VENV = ROOT / ".venv-label-studio"
COLAB_VENV = ROOT / ".venv-colab"
TRL112_VENV = ROOT / ".venv-trl112"

OLDEST_PYTHON = (3, 11)
TORCH = "torch==2.13.0"
LABEL_STUDIO = "label-studio==1.23.2"
COLAB = [  # the widgets of Colab as of August 2026 (googlecolab/backend-info), and what the tests of the labels need besides
    "ipywidgets==7.7.1", "anywidget==0.9.21", "ipython==7.34.0", "ipykernel==6.17.1", "traitlets==5.7.1",
    "pandas<3", "scipy", "scikit-learn", "evalica<0.5", "crowd-kit<2", "psutil", "pytest>=9,<10", "pytest-timeout<3",
]
TRL112 = ["trl==1.12.*", "transformers>=5.24,<5.25", "datasets<6", "accelerate<2"]    # the last TRL with a PPO trainer
BROWSER = ["playwright>=1.65,<2", "notebook>=7.5,<8", "voila>=0.5.13,<0.6"]    # for the tests with a browser, beside a Chromium
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
THREADS = min(2, os.cpu_count() or 1)  # where a person waits; the groups of tests share the cores, so each has one
FREE_BYTES_NEEDED = 3 * 10**9
FREE_BYTES_NEEDED_WITH_CUDA = 10 * 10**9
SERVER_TESTS = "tests/test_label_studio_server.py"
COLAB_TESTS = ["tests/test_label_views.py", "tests/test_labelling.py"]
NBVAL = ["--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=900", "--timeout=0",
         "--ignore=notebooks/solutions"]    # these would take longer than all else; `refresh --solutions` runs them


class SetupError(Exception):
    """What stops the set-up, and what to do about it."""


# --- the commands -----------------------------------------------------------------------------------------------------


def main(arguments=None):
    arguments = sys.argv[1:] if arguments is None else arguments
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(errors="replace")  # a console may lack a letter that a child prints
    try:
        check_python(sys.version_info)
        options = parse(arguments)
        if options.command == "test" and options.colab:
            old = install_beside(COLAB_VENV, "the widgets of Colab", COLAB)
            return run_child([str(old), "-m", "pytest", "-m", "not slow"] + COLAB_TESTS, environment(offline=True))
        python = ready_environment()
        if options.command == "test" and not options.quick:
            add_to_environment(python, "what the tests with a browser need", BROWSER)
        if options.command == "test" and options.label_studio:
            install_beside(LABEL_STUDIO_VENV, "Label Studio", [LABEL_STUDIO])
            return run_child([str(python), "-m", "pytest", "-rs", SERVER_TESTS], environment(offline=True))
        if options.command == "test" and options.quick:
            return run_child([str(python), "-m", "pytest", "tests", "-m", "not chain"], environment(offline=True))
        if options.command == "test":
            return run_tests(python, options.all)
        if options.command == "lab":
            return run_child(lab_command(python, options.extra), lab_environment())
        if options.command == "bench":
            old = install_beside(TRL112_VENV, "TRL 1.12", TRL112, torch=True)
            return run_child([str(python), "-m", "benchmarks.bench", "--trl112", str(old)] + arguments[1:], environment())
        return run_child([str(python), "-m", "rlhf_helpers.series"] + arguments, environment(threads=THREADS))
    except (SetupError, OSError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command starts again.", file=sys.stderr)
        return 130


def parse(arguments):
    """Read the command line; `rlhf_helpers.series` does it with this too. The options after `lab` are JupyterLab's."""
    top = argparse.ArgumentParser(prog="run.py", description="Run the RLHF series.")
    commands = top.add_subparsers(dest="command", metavar="tutorial | lab | test | refresh | bench")
    commands.required = True
    tutorial = commands.add_parser("tutorial", help="run the notebooks in order")
    which = tutorial.add_mutually_exclusive_group()
    which.add_argument("--only", metavar="NN", type=notebook_number, help="run this notebook alone")
    which.add_argument("--from", metavar="NN", type=notebook_number, dest="start", help="start at this notebook")
    tutorial.add_argument("--seed", metavar="N", type=seed, default=0, help="seed of everything random (default 0)")
    tutorial.add_argument("--profile", metavar="NAME", default="practice", help="model and sizes (default practice)")
    tutorial.add_argument("--run", metavar="NAME", type=run_name, help="folder in runs/ (default: the profile's name)")
    commands.add_parser(
        "lab", help="open JupyterLab at notebook 00; options are passed on to it, for example --no-browser"
    )
    test = commands.add_parser("test", help="run all tests")
    some = test.add_mutually_exclusive_group()
    some.add_argument("--quick", action="store_true", help="only the tests of the helper package")
    some.add_argument("--label-studio", action="store_true", help="only those with a Label Studio server, installed first (1 GB)")
    some.add_argument("--colab", action="store_true", help="only those of the labelling views, with Colab's widgets, installed first")
    some.add_argument("--all", action="store_true", help="all of these, as continuous integration does")
    refresh = commands.add_parser("refresh", help="run the notebooks and write their outputs into them")
    refresh.add_argument("numbers", metavar="NN", nargs="*", type=notebook_number, help="only these notebooks")
    refresh.add_argument("--solutions", action="store_true", help="only the solutions of their exercises")
    bench = commands.add_parser("bench", help="measure speed side by side with TRL and transformers")
    bench.add_argument("--run", metavar="NAME", type=run_name, help="folder in runs/ with the models (default practice)")
    bench.add_argument("--seeds", metavar="N", type=seed, default=5, help="trainings of each method (default 5)")
    bench.add_argument("--quick", action="store_true", help="a trial with little of everything; nothing is kept")
    options, extra = top.parse_known_args(arguments)
    if extra and options.command != "lab":
        top.error("unknown: " + " ".join(extra))
    options.extra = extra
    return options


def notebook_number(text):
    numbers = sorted(path.name[:2] for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not text or text.zfill(2) not in numbers:
        raise argparse.ArgumentTypeError(f"there is no notebook {text or repr(text)}; there are {', '.join(numbers)}")
    return text.zfill(2)


def seed(text):
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 4294967295")
    return int(text)


def run_name(text):
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no folder name; use letters, digits, - and _")
    if text.lower() in ("test", "refresh"):
        raise argparse.ArgumentTypeError(f"{text} is the folder that `run.py {text.lower()}` empties; choose another name")
    return text


def empty(folder):
    """Delete the folder of a run that is made anew; raise SetupError if a file in it may be a person's work."""
    for path in sorted(folder.glob("*")):
        if path.name == "my_instructions.jsonl" or path.suffix == ".sqlite" and has_labels_of_a_person(path):
            raise SetupError(f"{folder} has to be emptied, but {path.name} may be a person's work: rename the folder, then try again.")
    shutil.rmtree(str(folder), ignore_errors=True)


def has_labels_of_a_person(path):
    import sqlite3
    try:
        with closing(sqlite3.connect(str(path))) as store:
            query = "SELECT 1 FROM event e JOIN annotator a ON a.name = e.annotator WHERE a.kind = 'person'"
            return store.execute("SELECT 1 FROM sqlite_master").fetchone() and store.execute(query).fetchone()
    except sqlite3.Error:
        return True  # locked or damaged: it may have some


def lab_command(python, extra):
    page = "".join(f"/tree/notebooks/{path.name}" for path in NOTEBOOKS.glob("00_*.ipynb"))
    options = [f"--ServerApp.root_dir={ROOT}", f"--LabApp.default_url=/lab{page}"]
    return [str(python), "-m", "jupyterlab"] + options + extra


def lab_environment():
    """That of every child, and binder/labconfig/, which keeps JupyterLab from asking whether it may fetch news."""
    settings = environment(threads=THREADS)
    before = [settings["JUPYTER_CONFIG_PATH"]] if settings.get("JUPYTER_CONFIG_PATH") else []
    return dict(settings, JUPYTER_CONFIG_PATH=os.pathsep.join([str(ROOT / "binder")] + before))


def run_tests(python, everything=False):
    """Run the tests of the notebooks, of the helpers and, if wanted, the others side by side; all but the first keep
    their output to themselves until the end."""
    pytest = [str(python), "-m", "pytest"]
    settings = environment(offline=True)
    this_run = dict(settings, RLHF_RUN="test", RLHF_PROFILE="practice", RLHF_SEED="0")
    empty(Path(settings["RLHF_RUNS"]) / "test")
    jobs = {"helpers": (pytest + ["tests", "-rs", "--ignore=" + SERVER_TESTS], settings)}
    if everything:
        jobs.update({option: ([sys.executable, str(ROOT / "run.py"), "test", "--" + option], environment())
                     for option in ("label-studio", "colab")})
    with ExitStack() as stack:
        outputs = {name: stack.enter_context(tempfile.TemporaryFile()) for name in jobs}
        children = {}
        for name, (command, own) in jobs.items():
            children[name] = subprocess.Popen(command, stdout=outputs[name], stderr=outputs[name], cwd=str(ROOT), env=own)
            stack.callback(stop, children[name])
        code, summary = stream(pytest + ["notebooks"] + NBVAL, this_run)
        codes, summaries = [code], {"notebooks": summary}
        for name, child in children.items():
            codes.append(child.wait())
            outputs[name].seek(0)
            text = outputs[name].read().decode("utf-8", "replace")
            print(text)
            summaries[name] = last_line(text)
    print("\n".join("{:<14}{}".format(name + ":", said) for name, said in summaries.items()))
    return 1 if any(codes) else 0


# --- the children -----------------------------------------------------------------------------------------------------


def environment(offline=False, threads=1):
    """The environment variables of every child: threads, no network in tests, no bars a learner can't use."""
    settings = dict(os.environ)
    settings.pop("MPLBACKEND", None)
    settings.setdefault("OMP_NUM_THREADS", str(threads))
    settings.setdefault("MALLOC_ARENA_MAX", "1")  # else glibc keeps a pool of freed memory for each thread
    settings["RLHF_RUNS"] = os.path.abspath(settings.get("RLHF_RUNS") or str(RUNS))  # else a notebook's folder would be its place
    settings.update(
        PYTHONPATH=str(ROOT),
        PYTHONUTF8="1",
        TOKENIZERS_PARALLELISM="false",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        TRL_EXPERIMENTAL_SILENCE="1",
    )
    if offline:
        settings["HF_HUB_OFFLINE"] = "1"
    return settings


def run_child(command, settings):
    """Run a command and return its exit code. Ctrl-C reaches the child by itself, and the child says what to do."""
    child = subprocess.Popen(command, cwd=str(ROOT), env=settings)
    try:
        while True:
            try:
                return shell_code(child.wait())
            except KeyboardInterrupt:
                continue
    finally:
        stop(child)


def stream(command, settings):
    """Run a command, pass its output on as it comes, and return its exit code and its last line."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=str(ROOT), env=settings)
    seen = b""
    try:
        for chunk in iter(lambda: os.read(child.stdout.fileno(), 65536), b""):
            sys.stdout.write(chunk.decode("utf-8", "replace"))
            sys.stdout.flush()
            seen = (seen + chunk)[-4000:]
        return shell_code(child.wait()), last_line(seen.decode("utf-8", "replace"))
    finally:
        stop(child)


def stop(child):
    if child.poll() is None:
        child.terminate()
        child.wait()


def shell_code(code):
    return code if code >= 0 else 128 - code


def last_line(text):
    lines = text.split("\n")
    return next((line.strip("= \r") for line in reversed(lines) if line.strip()), "no output")


# --- the environment --------------------------------------------------------------------------------------------------


def check_python(version):
    if tuple(version[:2]) < OLDEST_PYTHON:
        raise SetupError(
            f"This is Python {version[0]}.{version[1]}; the series needs Python {'.'.join(map(str, OLDEST_PYTHON))} or "
            "newer.\nInstall one from https://www.python.org/downloads/ or your system's packages and call it by its "
            "name, for example:\n    python3.12 run.py tutorial"
        )


def ready_environment():
    """Return the Python of the environment in .venv; make it first if it is missing, half made or out of date."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = VENV / "made_from.txt"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes() + TORCH.encode()).hexdigest()
    if not (python.exists() and stamp.exists() and stamp.read_text() == wanted):
        make_environment(python)
        stamp.write_text(wanted)
    return python


def make_environment(python):
    check_this_computer()
    if VENV.exists():
        print("The environment in .venv is unfinished or out of date: making it again.")
        shutil.rmtree(str(VENV))
    VENV.mkdir()
    step("Making the environment in .venv", [sys.executable, "-m", "venv", str(VENV)], VENV)
    step("Installing PyTorch", pip(python) + torch_arguments(), VENV)
    step("Installing the other packages", pip(python) + ["--requirement", str(REQUIREMENTS)], VENV)


def add_to_environment(python, name, packages):
    """Install into .venv what most people need not have, unless it is there."""
    stamp, wanted = VENV / "added.txt", " ".join(packages)
    if not (stamp.exists() and stamp.read_text() == wanted):
        step("Installing " + name, pip(python) + packages, VENV)
        stamp.write_text(wanted)


def install_beside(venv, name, packages, torch=False):
    """Make an environment for packages that do not go with ours, PyTorch first if wanted, unless it is there; return its Python."""
    stamp, wanted = venv / "made_from.txt", " ".join(packages + [TORCH] * torch)
    python = venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (stamp.exists() and stamp.read_text() == wanted):
        shutil.rmtree(str(venv), ignore_errors=True)
        venv.mkdir()
        step("Making the environment in " + venv.name, [sys.executable, "-m", "venv", str(venv)], venv)
        if torch:
            step("Installing PyTorch for it", pip(python) + torch_arguments(), venv)
        step("Installing " + name, pip(python) + ["--no-compile"] + packages, venv)       # most of it is never imported
        stamp.write_text(wanted)
    return python


def pip(python):
    return [str(python), "-m", "pip", "install", "--disable-pip-version-check"]


def check_this_computer():
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        line = f"sudo apt install python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise SetupError(f"This Python cannot make environments. Run this, then try again:\n    {line}")
    if Path(sys.prefix).resolve() == VENV.resolve():
        raise SetupError(".venv has to be made again, but is in use. Run `deactivate`, then try again.")
    needed = FREE_BYTES_NEEDED_WITH_CUDA if has_cuda() else FREE_BYTES_NEEDED
    free = shutil.disk_usage(str(ROOT)).free
    if free < needed:
        raise SetupError(
            f"The disk of {ROOT} has {free / 1e9:.1f} GB free, and the environment needs about {needed / 1e9:.0f} GB. "
            "Make room, then try again."
        )


def has_cuda():
    return platform.system() == "Linux" and shutil.which("nvidia-smi") is not None


def torch_arguments():
    """What pip installs as PyTorch.

    On Linux without an NVIDIA GPU it is the CPU build by its full name, from PyTorch's own server if that answers: so
    pip can never choose the CUDA build, gigabytes of download. (pip's --dry-run is no way to find out; it downloads.)
    """
    if platform.system() != "Linux" or has_cuda():
        return [TORCH]
    return [TORCH + "+cpu"] + (["--index-url", CPU_INDEX] if answers(CPU_INDEX + "/torch/") else [])


def answers(address):
    try:
        with urllib.request.urlopen(address, timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def step(title, command, venv):
    """Run one step of making an environment with its output in a log; show how long it takes, and explain a failure."""
    log = venv / "install.log"
    started = time.time()
    live = sys.stdout.isatty()
    with log.open("ab") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=str(ROOT), env=environment())
    try:
        while child.poll() is None:
            if live:
                print(f"\r{title} ... {time.time() - started:.0f} s", end="", flush=True)
            time.sleep(0.2)
    finally:
        stop(child)
    line = f"{title}: {time.time() - started:.0f} s"
    print(f"\r{line:<79}" if live else line, flush=True)
    if child.returncode:
        raise SetupError(explanation(title, log))


def explanation(title, log):
    text = log.read_text(encoding="utf-8", errors="replace")
    if "No space left on device" in text or "not enough space on the disk" in text:
        return f"{title}: the disk is full, or that of {tempfile.gettempdir()}. Make room, then try again."
    if f"No matching distribution found for {TORCH}" in text:
        return (
            f"pip found no {TORCH} for Python {sys.version_info[0]}.{sys.version_info[1]} here. One of these helps:"
            "\n  * If this Python is newer than 3.14, call an older one, for example: python3.12 run.py tutorial"
            f"\n  * Make {CPU_INDEX} reachable. Without an NVIDIA GPU only the CPU build is taken."
            f"\n  * Put the wheel of {TORCH}+cpu in a folder and set the variable PIP_FIND_LINKS to that folder."
            f"\nThe whole log: {log}"
        )
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING")]
    last = "\n    ".join(lines[-6:])
    return f"{title} failed. Its last lines:\n    {last}\nThe whole log: {log}\nThe same command starts again."


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no child outlives this
    sys.exit(main())
