"""Labelling as a person does it: a real browser on JupyterLab, Notebook 7 and Voila, by key and by mouse.

Each test says what the store holds afterwards. Pictures of the interface are kept where RLHF_SCREENSHOTS says, else in the
test's own folder.
"""
import importlib.util
import os
import re
import signal
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import psutil
import pytest
from jupyter_browser import CHROMIUM, browser_page, open_notebook, run_cell, server, write_notebook
from label_makers import CANDIDATES

from rlhf_helpers.formats import as_text, read_instructions
from rlhf_helpers.labelling.session import LabellingSession
from rlhf_helpers.labelling.store import LabelStore

NEEDED = ("playwright", "anywidget", "jupyterlab")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None] + ([] if CHROMIUM else ["chromium"])
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900),
              pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {', '.join(MISSING)}")]

PRESSES = 40
FELT_MS = 150                       # longest median time from a key to the next pair on the screen
IDLE = 0.1                          # so much of the processors' time may others take before times are no more the interface's own

SET_UP = f"""import os
from pathlib import Path
from rlhf_helpers.labelling.chat import Chat
from rlhf_helpers.labelling.session import LabellingSession
from rlhf_helpers.labelling.store import LabelStore
from rlhf_helpers.labelling.view import chat_view, label_view
Path("kernel.pid").write_text(str(os.getpid()))
candidates = {CANDIDATES!r}
nasty = "<img src=x onerror=\\"document.title='hacked'\\"><b>bold</b> [a](javascript:alert(1)) \\x1b[31m"
hebrew = "שלום עולם, זה משפט בעברית (1)."
for row in candidates:
    row["responses"][0]["text"] += " " + nasty
    row["responses"][1]["text"] = hebrew + " " + row["prompt"]
store = LabelStore("labels.sqlite")
"""
LABEL = 'label_view(LabellingSession(store, candidates, "ann", repeats=0.1), goal=20)'
RANK = """sets = [dict(row, responses=[
  dict(row["responses"][0], id=str(n), text=f"{words} ({row['prompt']})") for n, words in
  enumerate(("Sleep early.", "Drink some tea in the evening.", "Read a calm book for half an hour.", "Count sheep."))])
  for row in candidates]
label_view(LabellingSession(store, sets, "rita", task="rank"), goal=3)"""
TRAIN = """import time, torch
model = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 1))
optimizer, inputs, latest_end = torch.optim.Adam(model.parameters()), torch.randn(256, 512), time.monotonic() + 120
Path("training").touch()
while not Path("enough").exists() and time.monotonic() < latest_end:
    loss = torch.nn.functional.mse_loss(model(inputs)[:, 0], inputs.sum(1))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
Path("trained").write_text(str(loss.item()))"""
CHAT = 'chat_view(Chat({"sft": lambda p: "Sleep.", "dpo": lambda p: "Sleep well, and long."}, store, "chris"))'
FORM = """from rlhf_helpers.labelling.plain_view import instruction_form
instruction_form("mine.jsonl", topics=["sleep", "tea"])"""
CELLS = [SET_UP, LABEL, RANK, TRAIN, CHAT, FORM]
MANY = """import sys
sys.path.append(TESTS)
from label_makers import many
def view_of(pairs, labels):
    mine = LabellingSession(LabelStore(f"{pairs}.sqlite"), many(pairs), "ann")
    events = [mine._event(mine._shown(pair), **mine._judgement(pair, "left", 9000, None)) for pair in list(mine._pairs)[:labels]]
    mine.store.record(*events)
    return label_view(LabellingSession(mine.store, many(pairs), "ann", repeats=0.1))
""".replace("TESTS", repr(str(Path(__file__).parent)))
WAITS = """() => {
  const root = document.querySelector('.rl-root');
  window.waits = [];
  root.addEventListener('keydown', (event) => { window.pressed = event.timeStamp; }, true);
  const drawn = () => requestAnimationFrame(() => requestAnimationFrame(() => waits.push(performance.now() - pressed)));
  new MutationObserver(drawn).observe(root.querySelector('.rl-prompt'), {childList: true, characterData: true});
}"""


FULL_STORAGE = """async (state) => {
  for (let size = 2 ** 20; size >= 1; size /= 2)
    try { for (let n = 0; ; n++) localStorage.setItem(`${size} ${n}`, 'x'.repeat(size)); } catch {}
  window.sent = [];
  window.model = {get: () => window.state, on: (name, draw) => { window.draw = draw; }, send: (act) => sent.push(act)};
  window.state = state;
  (await import('/widget.js')).default.render({model, el: document.body});
}"""


def needs(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"not installed here: {name}")


@pytest.fixture
def folder(tmp_path):
    write_notebook(tmp_path / "labels.ipynb", CELLS)
    return tmp_path


@pytest.fixture
def store(folder):
    return LabelStore(folder / "labels.sqlite")


def start(page, address, *cells):
    """Open the notebook and run these of its cells."""
    open_notebook(page, address)
    for number in cells:
        run_cell(page, number)


def picture(page, folder, name):
    path = Path(os.environ.get("RLHF_SCREENSHOTS", folder)) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=path)


def status(page, place=0):
    return page.locator(".rl-status").nth(place)


def wait_status(page, text, place=0):
    status(page, place).filter(has_text=re.compile(text)).wait_for()


def answers(page, place=0):
    return page.locator(".rl-root").nth(place).locator(".rl-card .rl-text").all_text_contents()


def read_for_a_moment():
    """People need longer than the guard against double presses."""
    time.sleep(0.5)


def press(page, key):
    read_for_a_moment()
    page.keyboard.press(key)


def tab_to_the_labels(page):
    """For people without a mouse."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.rl-root') !== null"):
            return
    raise AssertionError("Tab does not come to the labels")


def code_cells(page):
    return page.locator(".jp-Notebook .jp-CodeCell").count()


def texts_of(store, label):
    comparison = next(each for each in store.comparisons() if each.id == label.comparison_id)
    return {answer.id: answer.text for answer in comparison.responses}


CONTRAST = """() => {
  const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; };
  const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a), 1];
  const ground = (element) => { if (!element) return [255, 255, 255, 1]; const own = rgba(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, ground(element.parentElement)); };
  const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  for (const element of document.querySelectorAll('.rl-root *')) {
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!says || !element.offsetParent) continue;
    const back = ground(element), text = over(rgba(getComputedStyle(element).color), back);
    const [high, low] = [light(back), light(text)].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), element.className + ' ' + element.textContent]);
  }
  return found.sort((a, b) => a[0] - b[0])[0];
}"""


def test_lab_by_key_and_mouse(folder, store):
    with server("lab", folder, "labels.ipynb") as address, browser_page() as page:
        start(page, address, 0, 1)
        wait_status(page, "Saved 0 of 20")
        assert page.title() != "hacked" and not page.locator(".rl-text img, .rl-text b, .rl-text a").count()
        hebrew = page.locator(".rl-text", has_text="שלום").first
        assert hebrew.evaluate("(e) => getComputedStyle(e).direction") == "rtl"
        cells = code_cells(page)
        picture(page, folder, "lab-light")
        tab_to_the_labels(page)

        left, right = answers(page)
        press(page, "1")
        wait_status(page, "Saved 1 of 20")
        label, = store.labels()
        assert texts_of(store, label)[label.preferred].replace("\x1b", "␛") == left and label.shown_ms > 400

        for key in ("b", "x", "a", "Escape", "m", "y", "ArrowDown", "j", "v", "i", "Shift+Enter", "Delete", "l"):
            page.keyboard.press(key)                            # all of them do something to a notebook
        page.keyboard.press("x")
        page.keyboard.press("a")                                # x and a are toggles here: off again
        assert code_cells(page) == cells and len(store.labels()) == 1

        page.keyboard.press("Control+s")
        page.wait_for_function("!panel.context.model.dirty")
        page.keyboard.press("b")
        assert code_cells(page) == cells, "Ctrl+S reaches the notebook, and the next key does not"

        press(page, "n")
        page.keyboard.type("1 2 zx = 5b")
        page.keyboard.press("Escape")
        assert len(store.labels()) == 1
        page.keyboard.press("c")
        page.keyboard.press("q")
        left, right = answers(page)
        press(page, "2")
        wait_status(page, "Saved 2 of 20")
        label = store.labels()[1]
        of = texts_of(store, label)
        assert of[label.preferred].replace("\x1b", "␛") == right
        assert label.comment == "1 2 zx = 5b" and label.strength == 3
        assert [(of[answer].replace("\x1b", "␛"), flags) for answer, flags in label.flags.items()] == [(left, ["unsafe"])]
        assert page.locator(".rl-note").first.input_value() == "" and not page.locator(".rl-root [aria-pressed=true]").count()

        read_for_a_moment()
        page.keyboard.press("1")
        page.keyboard.press("1")
        wait_status(page, "Saved 3 of 20")
        page.locator(".rl-alert", has_text="was not taken").wait_for()
        assert len(store.labels()) == 3, "the second press of two must not label the next pair"

        press(page, "5")
        page.locator("button", has_text="I know too little").wait_for()
        picture(page, folder, "lab-skip")
        page.keyboard.press("2")
        wait_status(page, "Saved 4 of 20 \\(1 skipped\\)")
        read_for_a_moment()
        page.locator("button", has_text="Both good").first.click()
        wait_status(page, "Saved 5 of 20")
        assert page.evaluate("document.activeElement.closest('.rl-root') !== null"), "the focus stays, so keys do too"
        for left_over in (4, 3, 2):
            page.locator("button", has_text="Undo").first.click()
            wait_status(page, f"Saved {left_over} of 20")
        assert len(store.labels()) == 2
        page.keyboard.press("h")
        page.locator(".rl-help dt").first.wait_for()
        picture(page, folder, "lab-help")
        page.keyboard.press("h")

        for number in range(3, 14):
            press(page, "12"[number % 2])
            wait_status(page, f"Saved {number} of 20")
        picture(page, folder, "lab-figures")
        worst = page.evaluate(CONTRAST)
        assert worst[0] >= 4.5, worst
        page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        page.wait_for_function("document.body.dataset.jpThemeLight === 'false'")
        time.sleep(1)
        picture(page, folder, "lab-dark")
        worst = page.evaluate(CONTRAST)
        assert worst[0] >= 4.5, worst
        page.set_viewport_size({"width": 520, "height": 1100})
        time.sleep(1)
        boxes = [card.bounding_box() for card in page.locator(".rl-card").all()]
        assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"], "answers stand above each other where it is narrow"
        picture(page, folder, "lab-narrow")
        assert page.outside == []


def seconds_of(process):
    with suppress(psutil.NoSuchProcess):
        return sum(process.cpu_times()[:2])
    return 0


@contextmanager
def share_of_others():
    """A list that in the end holds the share of all processors' time which went to processes that are not ours."""
    def taken():
        spent, ours = psutil.cpu_times(), [psutil.Process(), *psutil.Process().children(recursive=True)]
        idle = spent.idle + getattr(spent, "iowait", 0)
        return sum(spent[:8]), sum(spent[:8]) - idle - sum(map(seconds_of, ours))

    found, (time_before, others_before) = [], taken()
    yield found
    time_after, others_after = taken()
    found.append((others_after - others_before) / (time_after - time_before))


@pytest.mark.parametrize("pairs, labels", [(100, 10), (10_000, 9_900)])
def test_the_next_pair_is_there_at_once(tmp_path, pairs, labels):
    """Measured by the browser: from the key to the end of the frame in which the next pair is drawn. It has to be quick
    wherever nothing else took much of the processors meanwhile; elsewhere, only not hopeless."""
    write_notebook(tmp_path / "labels.ipynb", [SET_UP + MANY, f"view_of({pairs}, {labels})"])
    with server("lab", tmp_path, "labels.ipynb") as address, browser_page() as page:
        start(page, address, 0, 1)
        wait_status(page, f"Saved {labels} of")
        page.locator(".rl-prompt").click()
        page.evaluate(WAITS)
        with share_of_others() as others:
            for number in range(PRESSES):
                press(page, "12"[number % 2])
                page.wait_for_function("(number) => waits.length > number", arg=number)
        waits = sorted(page.evaluate("waits"))
        assert len(waits) == PRESSES
    label_count = len(LabelStore(tmp_path / f"{pairs}.sqlite").events())
    print(f"from the key to the next pair of {pairs}: n {len(waits)}, median {median(waits):.0f} ms, "
          f"95 % within {waits[int(0.95 * len(waits))]:.0f} ms, others took {others[0]:.0%} of the processors' time")
    assert label_count == labels + PRESSES
    assert median(waits) <= (FELT_MS if others[0] < IDLE else 1000)


def wait_for_file(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"there is no {path.name}"
        time.sleep(0.1)


def test_lab_takes_labels_while_a_model_is_trained(folder, store):
    """As soon as it is pressed the label is on the disk, or the page says that it waits; after the training it is there."""
    with server("lab", folder, "labels.ipynb") as address, browser_page() as page:
        start(page, address, 0, 1)
        wait_status(page, "Saved 0 of 20")
        run_cell(page, 3, wait=False)
        wait_for_file(folder / "training")
        page.locator(".rl-prompt").click()
        for number in (1, 2, 3):
            press(page, "1")
            wait_status(page, f"Saved {number} of 20|Not saved yet: the kernel does not answer. Your act waits")
            said = status(page).text_content()
            print(f"while a cell was training, the status said {said!r}")
            assert not (folder / "trained").exists() and len(store.labels()) >= number * said.startswith("Saved")
            if not said.startswith("Saved"):
                break
        picture(page, folder, "lab-training")
        (folder / "enough").touch()
        wait_for_file(folder / "trained")
        wait_status(page, f"Saved {number} of 20")
        assert len(store.labels()) == len(store.events()) == number and 0 <= float((folder / "trained").read_text()) < 512


def test_lab_survives_a_reload_and_a_killed_kernel(folder, store):
    with server("lab", folder, "labels.ipynb") as address, browser_page() as page:
        start(page, address, 0, 1)
        page.locator(".rl-prompt").click()
        press(page, "1")
        wait_status(page, "Saved 1 of 20")
        pair = answers(page)
        page.reload()
        start(page, address, 0, 1)
        wait_status(page, "Saved 1 of 20")
        assert answers(page) == pair
        page.locator(".rl-prompt").click()
        press(page, "n")
        page.keyboard.type("typed before the crash")
        page.keyboard.press("Escape")
        os.kill(int((folder / "kernel.pid").read_text()), signal.SIGKILL)
        page.keyboard.press("2")
        page.locator(".rl-status", has_text="waits in this browser").wait_for()
        picture(page, folder, "lab-waiting")
        assert len(store.labels()) == 1
        old = (folder / "kernel.pid").read_text()
        page.reload()
        start(page, address, 0)
        assert (folder / "kernel.pid").read_text() != old
        run_cell(page, 1)
        wait_status(page, "Saved 2 of 20")
        label = store.labels()[1]
        assert texts_of(store, label)[label.preferred].replace("\x1b", "␛") == pair[1]
        assert label.comment == "typed before the crash" and len(store.events()) == 2


def test_a_full_storage_of_the_browser_loses_no_press(store):
    from rlhf_helpers.labelling import widget as module
    widget = module.LabelWidget(LabellingSession(store, CANDIDATES, "ann"))
    script = Path(module.__file__).with_name("widget.js").read_text(encoding="utf-8")
    with browser_page() as page:
        page.route("http://127.0.0.1/", lambda route: route.fulfill(body="<body>", content_type="text/html"))
        page.route("http://127.0.0.1/widget.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
        page.goto("http://127.0.0.1/")
        page.evaluate(FULL_STORAGE, widget.state)
        for number in (1, 2):
            read_for_a_moment()
            page.locator("button", has_text="Left is better").click()
            act = page.wait_for_function("sent.pop()").json_value()
            widget.take(act)
            page.evaluate("(state) => { window.state = state; draw(); }", widget.state)
            wait_status(page, f"Saved {number} of 20")
            assert len(store.labels()) == number


def test_lab_ranks_and_chats(folder, store):
    with server("lab", folder, "labels.ipynb") as address, browser_page() as page:
        start(page, address, 0)
        run_cell(page, 2)
        wait_status(page, "Saved 0 of 3")
        page.locator(".rl-prompt").first.click()
        shown = answers(page)
        read_for_a_moment()
        for key in ("3", "1", "=", "2"):
            page.keyboard.press(key)
        page.keyboard.press("Enter")                                     # one is missing: nothing happens
        assert store.rankings() == []
        page.keyboard.press("4")
        picture(page, folder, "lab-rank")
        page.keyboard.press("Enter")
        wait_status(page, "Saved 1 of 3")
        ranking, = store.rankings()
        comparison, = (each for each in store.comparisons() if each.id == ranking.comparison_id)
        text = {answer.id: answer.text for answer in comparison.responses}
        assert [sorted(text[answer] for answer in group) for group in ranking.ranking] == [
            [shown[2]], sorted([shown[0], shown[1]]), [shown[3]]]
        read_for_a_moment()
        page.locator("button", has_text="Keep the order shown").click()
        page.locator(".rl-alert", has_text="once more").wait_for()
        assert len(store.rankings()) == 1
        page.locator("button", has_text="Keep the order shown").click()
        wait_status(page, "Saved 2 of 3")
        read_for_a_moment()
        for place in (3, 2, 1, 0):
            page.locator(".rl-card button", has_text="Next best").nth(place).click()
        page.locator("button", has_text="Save ranking").click()
        wait_status(page, "Saved 3 of 3")

        run_cell(page, 4)
        chat = page.locator(".rl-root").nth(1)
        chat.locator("textarea").first.fill("How do I sleep?")
        chat.locator("button", has_text="Ask").click()
        wait_status(page, "Which is better", 1)
        assert "dpo" not in chat.text_content()
        read_for_a_moment()
        chat.locator("button", has_text="Left is better").click()
        wait_status(page, "You see now who said what", 1)
        picture(page, folder, "lab-chat")
        names = chat.locator(".rl-card .rl-title").all_text_contents()
        label = store.labels()[-1]
        assert {name[3:] for name in names} == {"sft", "dpo"} and label.annotator == "chris"
        comparison, = (each for each in store.comparisons() if each.id == label.comparison_id)
        assert {answer.id: answer.model for answer in comparison.responses}[label.preferred] == names[0][3:]

        chat.locator("textarea").first.fill("How do I brew tea?")
        page.keyboard.press("Shift+Enter")                               # a new line, no question yet
        page.keyboard.type("Briefly.")
        page.keyboard.press("Enter")
        wait_status(page, "Which is better", 1)
        press(page, "2")                                                 # the keys are the verdict's again
        wait_status(page, "You see now who said what", 1)
        assert store.labels()[-1].comparison_id != label.comparison_id
        assert "How do I brew tea?\nBriefly." in {as_text(each.prompt) for each in store.comparisons()}
        assert not page.get_by_text("Jupyter news").count()


def test_lab_writes_edits_and_rates_instructions(folder):
    def rows(number):
        deadline, path = time.monotonic() + 30, folder / "mine.jsonl"
        while time.monotonic() < deadline:
            found = list(read_instructions(path)) if path.exists() else []
            if len(found) == number:
                return found
            time.sleep(0.1)
        raise AssertionError(f"{number} rows were not saved")

    with server("lab", folder, "labels.ipynb") as address, browser_page() as page:
        start(page, address, 0, 5)
        form = page.locator(".rl-view")
        prompt, completion = form.locator("textarea").nth(0), form.locator("textarea").nth(1)
        cells = code_cells(page)
        prompt.click()
        page.keyboard.type("How do I sleep? x b dd")
        page.keyboard.press("Tab")
        page.keyboard.type("<b>Early</b> שלום")
        page.keyboard.press("Tab")
        assert rows(1) == [{"prompt": "How do I sleep? x b dd", "completion": "<b>Early</b> שלום", "topic": "", "source": "human"}]
        form.locator("select").select_option("4: good")
        form.locator(".rl-say", has_text="Saved: 1 pair").wait_for()
        form.locator("button", has_text="New").click()
        form.locator(".rl-name", has_text="New pair").wait_for()
        prompt.fill("And naps?")
        completion.fill("Short ones.")
        form.locator("button", has_text="Previous").click()              # leaves the field: saved before the form moves on
        form.locator(".rl-name", has_text="Pair 1 of 2").wait_for()
        picture(page, folder, "lab-form")
        assert [row.get("rating") for row in rows(2)] == [4, None] and code_cells(page) == cells
        page.reload()
        start(page, address, 0, 5)
        form.locator("button", has_text="Previous").click()
        page.wait_for_function("document.querySelector('.rl-view textarea').value === 'And naps?'")
        assert page.outside == []


@needs("notebook")
def test_notebook_7(folder, store):
    with server("notebook", folder, "labels.ipynb") as address, browser_page() as page:
        start(page, address, 0, 1)
        wait_status(page, "Saved 0 of 20")
        cells = code_cells(page)
        page.locator(".rl-prompt").click()
        press(page, "1")
        wait_status(page, "Saved 1 of 20")
        for key in ("b", "x", "x", "a", "a", "Escape", "Enter", "d", "d"):
            page.keyboard.press(key)
        assert code_cells(page) == cells
        page.keyboard.press("Control+s")
        page.wait_for_function("!panel.context.model.dirty")
        page.keyboard.press("b")
        assert code_cells(page) == cells
        read_for_a_moment()
        page.locator("button", has_text="Both bad").click()
        wait_status(page, "Saved 2 of 20")
        picture(page, folder, "notebook")
        page.keyboard.press("z")
        wait_status(page, "Saved 1 of 20")
        assert len(store.labels()) == 1 and len(store.events()) == 3 and page.outside == []


@needs("voila")
def test_voila(tmp_path):
    write_notebook(tmp_path / "labels.ipynb", [SET_UP + LABEL])
    store = LabelStore(tmp_path / "labels.sqlite")
    with server("voila", tmp_path, "labels.ipynb") as address, browser_page() as page:
        page.goto(address)
        wait_status(page, "Saved 0 of 20")
        read_for_a_moment()
        page.locator("button", has_text="Right is better").click()
        wait_status(page, "Saved 1 of 20")
        press(page, "4")
        wait_status(page, "Saved 2 of 20")
        picture(page, tmp_path, "voila")
        page.locator("button", has_text="Undo").click()
        wait_status(page, "Saved 1 of 20")
        assert len(store.labels()) == 1 and len(store.events()) == 3
