"""The same round trips as with the stand-in, against a real Label Studio server on this computer, and labels made in its web page.

`python3 run.py test --label-studio` installs the server; another one can be named in RLHF_LABEL_STUDIO, the path of its command.
The first start migrates a database for a minute or two; a copy of it is kept beside the command for the next time.
"""
import os
import shutil
import socket
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests
from jupyter_browser import CHROMIUM
from label_studio_round_trip import Annotator, candidates, check_pairs, check_ranking, check_scores, choose, prefer, rank, tasks_of

from rlhf_helpers.label_studio import LabelStudio, LabelStudioError
from rlhf_helpers.labelling.label_studio_annotations import PAIRWISE, RANKING
from rlhf_helpers.labelling.label_studio_files import import_export
from rlhf_helpers.labelling.store import LabelStore, Response
from run import LABEL_STUDIO, LABEL_STUDIO_VENV

COMMAND = shutil.which(os.environ.get("RLHF_LABEL_STUDIO", LABEL_STUDIO_VENV / "bin" / "label-studio"))
USER, PASSWORD, LEGACY = "ann@example.invalid", "a password for tests", "0123456789abcdef0123456789abcdef01234567"
SECONDS_TO_START = 900
SUBMIT, TEXT = "[data-testid=bottombar-submit-button]", ".lsf-richtext__line"
CAN_UNDO = "[data-testid=bottombar-undo-button]:not([disabled])"
pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(SECONDS_TO_START + 300),
              pytest.mark.skipif(not COMMAND, reason="no Label Studio here; `python3 run.py test --label-studio` installs it")]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """A running server with one user, that speaks to nobody outside, on a database of its own."""
    folder, migrated = tmp_path_factory.mktemp("label_studio"), Path(COMMAND).parent / f"{LABEL_STUDIO}.migrated.sqlite3"
    database = folder / "label_studio.sqlite3"
    if migrated.exists():
        shutil.copy(migrated, database)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"COLLECT_ANALYTICS": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "", "LATEST_VERSION_CHECK": "false"}
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("LABEL_STUDIO", "PYTHON"))} | quiet | {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder), "LABEL_STUDIO_USERNAME": USER, "LABEL_STUDIO_PASSWORD": PASSWORD,
        "LABEL_STUDIO_USER_TOKEN": LEGACY, "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true"}
    with (folder / "log.txt").open("wb") as log:
        server = subprocess.Popen([COMMAND, "start", "--internal-host", "127.0.0.1", "--port", str(port), "--no-browser"],
                                  stdout=log, stderr=log, env=settings, cwd=folder)
        try:
            _wait(f"http://127.0.0.1:{port}", server, folder / "log.txt")
            if not migrated.exists():
                with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(migrated)) as copy:
                    source.backup(copy)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(address, server, log):
    for _ in range(SECONDS_TO_START):
        try:
            if requests.get(f"{address}/health", timeout=5).ok:
                return
        except requests.RequestException:
            pass
        assert server.poll() is None, f"the server ended at once: {log.read_text(errors='replace')[-2000:]}"
        time.sleep(1)
    pytest.fail(f"the server did not start in {SECONDS_TO_START} s: {log.read_text(errors='replace')[-2000:]}")


@pytest.fixture
def annotator(address, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_URL", address)
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", LEGACY)
    return Annotator(address, {"Authorization": f"Token {LEGACY}"})


def test_pairs_go_round(annotator, tmp_path):
    check_pairs(annotator, tmp_path, "pairs")


def test_rankings_go_round(annotator, tmp_path):
    check_ranking(annotator, tmp_path, "rankings")


@pytest.mark.parametrize("ranking", [False, True])
def test_scores_become_predictions(annotator, tmp_path, ranking):
    check_scores(annotator, tmp_path, f"scores {ranking}", ranking)


def test_more_tasks_than_a_page_holds(annotator, store):
    server = LabelStudio()
    project = server.project("many")
    assert (server.push(project, store, candidates(230)), server.push(project, store, candidates(231))) == (230, 1)
    numbers = [task["id"] for task in tasks_of(server, project)]
    assert len(set(numbers)) == 231 and numbers == sorted(numbers)


def test_personal_tokens_and_a_server_that_allows_no_others(annotator, store, monkeypatch):
    personal = annotator.call("POST", "/api/token/")["token"]
    annotator.call("POST", "/api/jwt/settings", json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": False,
                                                      "api_token_ttl_days": 30})
    try:
        with pytest.raises(LabelStudioError, match="refuses the token .*legacy token authentication has been disabled"):
            LabelStudio().project("pairs with a personal token")
        monkeypatch.setenv("LABEL_STUDIO_API_KEY", personal)
        server = LabelStudio()
        project = server.project("pairs with a personal token")
        server._token.access = server._token.access[:-4] + "AAAA"    # one that the server refuses, as it does those that have run out
        assert server.push(project, store, candidates(2)) == 2
    finally:
        restored = requests.post(f"{annotator.address}/api/jwt/settings", timeout=60,
                                 headers={"Authorization": f"Bearer {server._token.access}"},
                                 json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": True, "api_token_ttl_days": 30})
        restored.raise_for_status()


def facts(store):
    return sorted((label.comparison_id, label.verdict, label.annotator, label.shown_order, label.at) for label in store.labels())


@pytest.mark.parametrize("ranking", [False, True])
def test_every_export_says_the_same_as_the_pull(annotator, tmp_path, store, ranking):
    """JSON, JSON_MIN, CSV and TSV of one project: the same labels, and together nothing twice."""
    server = LabelStudio()
    project = server.project(f"exports {ranking}", ranking)
    server.push(project, store, candidates(8, answers=3 if ranking else 2))
    tasks = tasks_of(server, project)
    for place, task in enumerate(tasks[:7]):
        if ranking:
            order = sorted(item["id"] for item in task["data"]["answers"])
            annotator.judge(task["id"], rank(order), choose(("ordered", "tie_good", "tie_bad")[place % 3], "verdict"))
        else:
            annotator.judge(task["id"], [prefer("left"), prefer("right"), choose("tie_good"), choose("tie_bad")][place % 4])
    server.pull(project, store)
    wanted = facts(store)
    together, configuration = LabelStore(tmp_path / "together.sqlite"), RANKING if ranking else PAIRWISE
    for form, ending in (("JSON", "json"), ("JSON_MIN", "json"), ("CSV", "csv"), ("TSV", "tsv")):
        path, alone = tmp_path / f"{form}.{ending}", LabelStore(tmp_path / f"{form}.sqlite")
        content = requests.get(f"{annotator.address}/api/projects/{project}/export", headers=annotator.headers, timeout=60,
                               params={"exportType": form, "download_all_tasks": "true"})
        path.write_bytes(content.content)
        for into in (alone, together):
            audit = import_export(into, path, configuration)
            assert (audit.labels, audit.dropped) == (7, []), audit
            assert facts(into) == wanted
    assert len(together.events()) == len(store.events()) == len(wanted)


# ---------------------------------------------------------------------------------------------------------------------
# The web page

@pytest.fixture
def page(address):
    """A page of a real browser in which the user is logged in; it may speak to this computer only."""
    playwright = pytest.importorskip("playwright.sync_api", reason="not installed here: playwright")
    if not CHROMIUM:
        pytest.skip("not installed here: chromium")
    with playwright.sync_playwright() as tool:
        with logged_in(tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]), address) as page:
            yield page


@contextmanager
def logged_in(browser, address):
    page, outside = browser.new_page(viewport={"width": 1400, "height": 1000}), []
    page.route(lambda url: not url.startswith((address, "data:", "blob:")),
               lambda route: (outside.append(route.request.url), route.abort()))
    page.set_default_timeout(120_000)
    page.goto(f"{address}/user/login")
    page.fill("input[name=email]", USER)
    page.fill("input[name=password]", PASSWORD)
    page.press("input[name=password]", "Enter")
    page.wait_for_url(lambda url: "login" not in url, wait_until="commit")
    yield page
    browser.close()
    assert outside == []


def open_task(page, address, project, task):
    page.goto(f"{address}/projects/{project}/data?task={task['id']}")
    page.locator(SUBMIT).wait_for()
    page.locator(TEXT, has_text=task["data"]["prompt"]).first.wait_for()
    page.wait_for_load_state("networkidle")                  # until then the page may begin the judgement anew
    page.wait_for_timeout(2000)


def until_taken(page, act):
    """Do it, and again if the page did not listen yet: it has taken an act when there is something to undo."""
    for _ in range(10):
        act()
        for _ in range(20):
            if page.locator(CAN_UNDO).count():
                return
            page.wait_for_timeout(500)
    raise AssertionError("the page does not listen")


def submit(page, annotator, task):
    """Press the button and wait until the server has it."""
    page.locator(SUBMIT).click()
    for _ in range(120):
        if found := annotator.call("GET", f"/api/tasks/{task['id']}/")["annotations"]:
            return found[0]
        page.wait_for_timeout(500)
    raise AssertionError("the page saved nothing")


ROWS = [{"prompt": f"How do I sleep better, {name}?",
         "responses": [{"id": text, "text": f"{text} ({name})", "model": "m", "settings": {}} for text in ("Early.", "Late.", "Never.")]}
        for name in ("Ann", "Bob", "Eve")]


def test_pairs_judged_in_the_page_come_out_as_chosen(annotator, page, store):
    check_pairs_in_the_page(annotator, page, store)


def test_a_ranking_made_in_the_page_counts_once_it_is_confirmed(annotator, page, store):
    check_ranking_in_the_page(annotator, page, store)


def check_pairs_in_the_page(annotator, page, store):
    server = LabelStudio()
    project = server.project("pairs in the page")
    server.push(project, store, [row | {"responses": row["responses"][:2]} for row in ROWS])
    left, right, bad = tasks_of(server, project)
    wanted = {left["id"]: left["data"]["left"], right["id"]: right["data"]["right"]}
    for task in (left, right):
        open_task(page, annotator.address, project, task)
        until_taken(page, page.locator(TEXT, has_text=wanted[task["id"]]).click)
        submit(page, annotator, task)
    open_task(page, annotator.address, project, bad)
    until_taken(page, lambda: page.keyboard.press("b"))
    submit(page, annotator, bad)
    audit = server.pull(project, store)
    assert (audit.labels, audit.dropped) == (3, []), audit
    assert [label.verdict for label in store.labels()] == [*(Response(text).id for text in wanted.values()), "tie_bad"]
    assert all(label.shown_ms for label in store.labels())


def check_ranking_in_the_page(annotator, page, store):
    server = LabelStudio()
    project = server.project("a ranking in the page", ranking=True)
    server.push(project, store, ROWS[:1])
    (task,) = tasks_of(server, project)
    open_task(page, annotator.address, project, task)
    page.locator(SUBMIT).click()
    page.get_by_text("Say that this is your order").wait_for()                  # refused: nobody has said that the order is meant
    page.keyboard.press("Escape")
    assert annotator.call("GET", f"/api/tasks/{task['id']}/")["annotations"] == []
    first, second, third = (item["id"] for item in task["data"]["answers"])
    page.locator(f"[data-rbd-drag-handle-draggable-id='{first}']").focus()
    for key in ("Space", "ArrowDown", "Space"):
        page.keyboard.press(key)
        page.wait_for_timeout(1000)                                             # the list moves
    page.get_by_text("This is my order").click()
    submit(page, annotator, task)
    audit = server.pull(project, store)
    assert (audit.labels, audit.dropped) == (1, []), audit
    order = [second, first, third]
    labels = store.labels()
    assert [label.preferred for label in labels] == [min(label.shown_order, key=order.index) for label in labels] and len(labels) == 3
