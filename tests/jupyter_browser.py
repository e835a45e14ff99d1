"""A real notebook server on this computer and a real browser on it, for the tests of what people see and press."""
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
APPS = {"lab": ("jupyterlab", "LabApp", "lab/tree"), "notebook": ("notebook", "JupyterNotebookApp", "notebooks"),
        "voila": ("voila", "", "")}
READY = """async () => {
  for (let tries = 0; tries < 600 && !(window.jupyterapp?.restored); tries++) await new Promise((go) => setTimeout(go, 100));
  await jupyterapp.restored;
  const find = () => [...jupyterapp.shell.widgets('main')].find((w) => w.sessionContext && w.content && w.content.widgets);
  for (let tries = 0; tries < 600 && !find(); tries++) await new Promise((go) => setTimeout(go, 100));
  window.panel = find();
  await panel.context.ready; await panel.sessionContext.ready; await panel.sessionContext.session.kernel.info;
}"""
RUN = """async (index) => {
  panel.content.activeCellIndex = index;
  await jupyterapp.commands.execute('notebook:run-cell');
}"""


def write_notebook(path, cells):
    rows = [{"cell_type": "code", "id": f"cell{number}", "metadata": {}, "source": text, "outputs": [], "execution_count": None}
            for number, text in enumerate(cells)]
    spec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.write_text(json.dumps({"cells": rows, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server(kind, folder, notebook):
    """The address of the notebook on a server of this kind, which ends with the block."""
    module, app, place = APPS[kind]
    port, token = free_port(), secrets.token_hex(8)
    private = {name: str(folder / "jupyter" / name) for name in
               ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR",
                "JUPYTERLAB_WORKSPACES_DIR")}
    for path in private.values():
        Path(path).mkdir(parents=True, exist_ok=True)
    private["JUPYTER_CONFIG_PATH"] = str(ROOT / "binder")
    given = [f"--ServerApp.root_dir={folder}", f"--IdentityProvider.token={token}", "--ServerApp.allow_root=True",
             f"--{app}.expose_app_in_browser=True", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    if kind == "voila":
        given = [str(folder / notebook), f"--port={port}", "--show_tracebacks=True"]
    log = (folder / "server.log").open("w")
    process = subprocess.Popen([sys.executable, "-m", module, "--no-browser", *given], cwd=folder, stdout=log, stderr=log,
                               env=os.environ | private | {"PYTHONPATH": str(ROOT)}, start_new_session=True)
    address = f"http://127.0.0.1:{port}/" + (f"{place}/{notebook}?token={token}" if place else "")
    try:
        wait_for(f"http://127.0.0.1:{port}/" + (f"api?token={token}" if place else "static/nothing"), process, folder / "server.log")
        yield address
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, end)              # its own group: the server and its kernels
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    continue
        log.close()


def wait_for(address, process, log):
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5)
            return
        except urllib.error.HTTPError:
            return                                       # somebody answers
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")


@contextmanager
def browser_page(width=1280, height=1000):
    """A page of a new Chromium that reaches this computer only; `page.outside` lists what it tried to reach beyond."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(60_000)
        page.outside = []

        def only_here(route):
            if route.request.url.startswith(("http://127.0.0.1", "data:", "blob:")):
                return route.continue_()
            page.outside.append(route.request.url)
            return route.abort()
        page.route("**/*", only_here)
        yield page
        chromium.close()


def open_notebook(page, address):
    page.goto(address)
    page.evaluate(READY)


def run_cell(page, index, wait=True):
    page.evaluate(RUN if wait else RUN.replace("await jupyterapp.commands", "jupyterapp.commands"), index)
