// The face of a labelling session. Python says what to show (the trait `state`); this file draws it, and sends acts.
//
// An act leaves here with an id of its own and waits in the browser's storage until Python says that it is on the disk, so
// neither a dead kernel nor a reloaded page loses it: the next view of the same store and annotator sends it again.
// Text by models and people is only ever set as textContent.

const TOO_QUICK_MS = 400; // the second half of a double press; nobody has read a pair in that time
const SLOW_MS = 1500; // after this long without an answer, say that the act is waiting
const FLAG_KEYS = ["qwer", "asdf"];

const HELP = {
  pairs: [
    ["1  2", "left, right is better"], ["3  4", "both good, both bad"], ["5", "skip, with a reason"],
    ["x  c", "slightly, clearly better (before 1 or 2)"], ["q w e r", "flag the left answer"],
    ["a s d f", "flag the right answer"], ["z", "undo, as often as you like"], ["n", "write a note; Esc leaves it"],
    ["h", "this help"],
  ],
  rank: [
    ["1 to 9", "the best answer, then the next best ..."], ["=", "the next number is as good as the last"],
    ["Backspace", "take the last number back"], ["Enter", "save the ranking"], ["0", "skip, with a reason"],
    ["z", "undo, as often as you like"], ["n", "write a note; Esc leaves it"], ["h", "this help"],
  ],
};

function make(tag, className = "", text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

function button(text, key, onClick, className = "") {
  const element = make("button", `rl-button ${className}`, text, { type: "button" });
  if (key) element.append(make("kbd", "", key, { "aria-hidden": "true" }));
  element.addEventListener("click", onClick);
  return element;
}

function toggle(text, key, onChange, className = "") {
  const element = button(text, key, () => press(element.getAttribute("aria-pressed") !== "true"), className);
  const press = (on) => {
    element.setAttribute("aria-pressed", String(on));
    onChange(on);
  };
  element.setAttribute("aria-pressed", "false");
  return element;
}

const pressed = (element) => element.getAttribute("aria-pressed") === "true";

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is not there on plain http
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// What waits in the browser. Storage may be full or forbidden (private windows, sandboxed frames): then the page alone remembers.
class Kept {
  constructor(name) {
    this.name = name;
    this.value = null;
    this.failed = false; // whether the storage lacks what was set last
  }
  get(otherwise) {
    if (this.failed) return this.value ?? otherwise;
    try {
      return JSON.parse(localStorage.getItem(this.name)) ?? otherwise;
    } catch {
      return this.value ?? otherwise;
    }
  }
  set(value) {
    this.value = value;
    try {
      if (value === null) localStorage.removeItem(this.name);
      else localStorage.setItem(this.name, JSON.stringify(value));
      this.failed = false;
    } catch {
      this.failed = true; // `value` has it
    }
  }
}

class View {
  constructor(model, el) {
    this.model = model;
    this.state = model.get("state");
    this.outbox = new Kept(`rlhf-acts:${this.state.box}`);
    this.drafts = new Kept(`rlhf-draft:${this.state.box}`);
    this.sent = null; // id of the act that Python has to answer now
    this.order = [];
    this.cards = [];
    this.build(el);
    this.draw();
    if (this.outbox.get([]).length) this.flush(true);
  }

  // ---- building, once

  build(el) {
    this.root = make("div", "rl-root", "", { role: "group", tabindex: "0" });
    this.status = make("span", "rl-status", "", { role: "status", "aria-live": "polite" });
    this.bar = make("progress", "rl-bar", "", { "aria-label": "pairs saved" });
    this.helpButton = button("Keys", "h", () => this.open(this.help, this.helpButton));
    this.help = make("dl", "rl-panel rl-help");
    const head = make("div", "rl-head");
    head.append(this.status, this.bar, make("span", "rl-ask-focus", "Click here to use the keys"), this.helpButton);
    this.chat = this.buildChat();
    this.prompt = make("div", "rl-text rl-prompt", "", { dir: "auto" });
    this.promptBox = make("section", "rl-prompt-box", "", { "aria-label": "prompt" });
    this.promptBox.append(make("h3", "rl-title", "Prompt"), this.prompt);
    this.answers = make("div", "rl-answers");
    this.said = make("div", "rl-order", "", { "aria-live": "polite" });
    this.acts = make("div", "rl-row rl-acts");
    this.reasons = make("div", "rl-panel rl-row", "", { role: "group", "aria-label": "why skip?" });
    this.alert = make("div", "rl-alert", "", { role: "alert" });
    this.again = make("div", "rl-row");
    this.again.append(button("Try again", "", () => this.flush(true), "rl-main"), button("Give this act up", "", () => this.giveUp()));
    this.details = this.buildDetails();
    this.figures = make("ul", "rl-figures", "", { "aria-label": "your work so far" });
    this.hint = make("p", "rl-hint");
    this.root.append(head, this.help, this.chat, this.promptBox, this.answers, this.said, this.details, this.acts, this.reasons,
      this.alert, this.again, this.figures, this.hint);
    for (const hidden of [this.help, this.reasons, this.again]) hidden.hidden = true;
    // JupyterLab sees a key after us, so stopPropagation would do; Notebook 7 sees it before us and looks for this attribute on
    // the element with the focus. Shortcuts with Ctrl, such as saving the notebook, go through.
    for (const name of ["keydown", "keyup", "focusin", "focusout"]) this.root.addEventListener(name, (event) =>
      event.target.toggleAttribute("data-lm-suppress-shortcuts", !(event.ctrlKey || event.metaKey)));
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.root.addEventListener("click", (event) => this.onClick(event), true);
    el.append(this.root);
    this.buildActs();
  }

  buildDetails() {
    this.strengths = this.state.strengths.map((name, place) =>
      toggle(name, "xc"[place], (on) => {
        if (on) this.strengths[1 - place].setAttribute("aria-pressed", "false"); // one of the two, or none
        this.keepDraft();
      }));
    this.strengthBox = make("div", "rl-row", "", { role: "group", "aria-label": "how much better?" });
    this.strengthBox.append(make("span", "rl-label", "How much better? (if you like)"), ...this.strengths);
    this.note = make("textarea", "rl-note", "", { rows: "1", placeholder: "Note (n)", "aria-label": "note", dir: "auto" });
    this.note.addEventListener("input", () => this.keepDraft());
    const details = make("div", "rl-details");
    details.append(this.strengthBox, this.note);
    return details;
  }

  buildChat() {
    const chat = make("div", "rl-chat");
    this.question = make("textarea", "rl-note", "", { rows: "2", placeholder: "Ask all models the same thing (Enter)", "aria-label": "your prompt", dir: "auto" });
    this.askButton = button("Ask", "", () => this.question.value.trim() && this.act("ask", { prompt: this.question.value }), "rl-main");
    chat.append(this.question, this.askButton);
    return chat;
  }

  buildActs() {
    this.kind = this.state.kind;
    const choose = (choice) => () => this.act("choose", { choice });
    this.undoButton = button("Undo", "z", () => this.act("undo"));
    this.skipButton = button("Skip ...", this.kind === "rank" ? "0" : "5", () => this.open(this.reasons, this.skipButton));
    this.byKey = { h: this.helpButton, "?": this.helpButton, z: this.undoButton, [this.kind === "rank" ? "0" : "5"]: this.skipButton };
    const common = [this.skipButton, this.undoButton];
    if (this.kind === "rank") {
      this.saveButton = button("Save ranking", "Enter", () => this.act("rank", { groups: this.order, confirmed: true }), "rl-main");
      this.keepButton = button("Keep the order shown", "", () =>
        this.act("rank", { groups: this.cards.map((_, place) => [place + 1]), confirmed: this.confirming === this.state.shown.id }));
      this.clearButton = button("Start over", "", () => this.setOrder([]));
      this.equalButton = toggle("Next is equal", "=", () => {});
      this.byKey["="] = this.equalButton;
      this.acts.replaceChildren(this.saveButton, this.equalButton, this.clearButton, this.keepButton, ...common);
    } else {
      const choices = [["Left is better", "left"], ["Right is better", "right"], ["Both good", "tie_good"], ["Both bad", "tie_bad"]];
      this.choices = choices.map(([text, choice], place) => button(text, String(place + 1), choose(choice), place < 2 ? "rl-main" : ""));
      this.choices.forEach((element, place) => { this.byKey[place + 1] = element; });
      this.strengths.forEach((element, place) => { this.byKey["xc"[place]] = element; });
      this.acts.replaceChildren(...this.choices, ...common);
    }
    this.reasons.replaceChildren(make("span", "rl-label", "Skip, because"), ...this.state.reasons.map((reason, place) =>
      button(reason, String(place + 1), () => this.act("skip", { reason }))), button("Cancel", "Esc", () => this.close()));
    this.help.replaceChildren(...HELP[this.kind].flatMap(([keys, what]) => [make("dt", "", keys), make("dd", "", what)]));
    this.root.setAttribute("aria-label", this.kind === "rank" ? "rank the answers" : "compare two answers");
  }

  buildCards(number) {
    this.cards = Array.from({ length: number }, (_, place) => {
      const card = { box: make("section", "rl-card"), title: make("h3", "rl-title"), text: make("div", "rl-text", "", { dir: "auto" }) };
      card.flags = this.state.flags.map((flag, which) => {
        const key = this.kind === "pairs" ? FLAG_KEYS[place][which] : "";
        const element = toggle(flag, key, () => this.keepDraft(), "rl-flag");
        if (key) this.byKey[key] = element;
        return element;
      });
      card.flagRow = make("div", "rl-row rl-flags", "", { role: "group" });
      card.flagRow.append(make("span", "rl-label", "Flag:"), ...card.flags);
      card.place = button("", "", () => this.place(place + 1));
      if (this.kind === "rank") card.flagRow.prepend(card.place);
      card.box.append(card.title, card.text, card.flagRow);
      return card;
    });
    this.answers.replaceChildren(...this.cards.map((card) => card.box));
  }

  // ---- drawing

  draw() {
    const { shown, kind } = this.state;
    const hadFocus = this.root.contains(document.activeElement);
    const isNew = this.drawn !== (shown?.id ?? null) || this.done !== this.state.done;
    if (kind !== this.kind) {
      this.buildActs();
      this.cards = [];
    }
    if (isNew) this.drawShown(shown);
    this.chat.hidden = !this.state.chat;
    this.status.textContent = this.state.text;
    this.bar.max = this.state.goal || 1;
    this.bar.value = Math.min(this.state.saved, this.state.goal);
    this.bar.hidden = Boolean(this.state.chat);
    this.drawFigures();
    this.drawBusy();
    if (hadFocus && !this.root.contains(document.activeElement)) this.root.focus({ preventScroll: true });
    if (hadFocus && isNew && this.root.getBoundingClientRect().top < 0) this.root.scrollIntoView({ block: "start" });
  }

  drawShown(shown) {
    this.drawn = shown?.id ?? null;
    this.done = this.state.done;
    this.close();
    if ((shown?.answers.length ?? 0) !== this.cards.length) this.buildCards(shown?.answers.length ?? 0);
    this.prompt.textContent = shown?.prompt ?? "";
    this.promptBox.hidden = !shown;
    this.cards.forEach((card, place) => {
      card.title.textContent = shown.titles[place];
      card.text.textContent = shown.answers[place];
      card.flagRow.setAttribute("aria-label", `flags of ${shown.titles[place]}`);
    });
    this.confirming = null;
    this.restoreDraft();
    this.drawnAt = performance.now();
  }

  drawFigures() {
    this.figures.replaceChildren(...this.state.figures.map(({ name, value, hint }) => {
      const item = make("li", hint ? "rl-odd" : "", "");
      item.append(make("span", "rl-label", name), " ", make("b", "", value));
      return item;
    }));
    this.hint.textContent = this.state.figures.map((figure) => figure.hint).filter(Boolean).join(" ");
  }

  drawBusy() {
    const waiting = this.outbox.get([]).length > 0;
    const idle = !waiting && !this.state.done && Boolean(this.state.shown);
    for (const element of [...(this.choices ?? []), ...(this.kind === "rank" ? [this.keepButton, this.equalButton, this.clearButton] : []), this.skipButton])
      this.disable(element, !idle);
    if (this.kind === "rank") this.disable(this.saveButton, !idle || this.order.flat().length < this.cards.length);
    for (const card of this.cards) {
      for (const element of [card.place, ...card.flags]) this.disable(element, !idle);
      card.flagRow.hidden = this.state.done;
    }
    this.disable(this.undoButton, waiting || !this.state.can_undo);
    this.disable(this.askButton, waiting || this.state.working);
    this.acts.hidden = !this.state.shown && !this.state.can_undo;
    this.details.hidden = !this.state.shown || this.state.done;
    this.strengthBox.hidden = this.kind === "rank";
    this.root.classList.toggle("rl-waiting", waiting);
  }

  // A disabled button would lose the focus, and the next key would go to the notebook; so it only says that it is.
  disable(element, off) {
    element.setAttribute("aria-disabled", String(Boolean(off)));
  }

  // An alert stays until the next act: the answer to the act before must not wipe it away.
  say(text, alert = false) {
    (alert ? this.alert : this.status).textContent = text;
  }

  // ---- panels, drafts, ranking

  open(panel, opener) {
    const opening = panel.hidden;
    this.close();
    panel.hidden = !opening;
    if (opening && panel === this.reasons) panel.querySelector("button").focus();
  }

  close() {
    const inside = this.reasons.contains(document.activeElement);
    this.reasons.hidden = this.help.hidden = true;
    if (inside) this.root.focus({ preventScroll: true });
  }

  extras() {
    return {
      flags: this.cards.map((card) => this.state.flags.filter((_, which) => pressed(card.flags[which]))),
      note: this.note.value.trim(),
      strength: this.kind === "pairs" ? this.state.strengths.find((_, place) => pressed(this.strengths[place])) ?? null : null,
    };
  }

  keepDraft() {
    if (this.drawn) this.drafts.set({ pair: this.drawn, order: this.order, ...this.extras() });
  }

  restoreDraft() {
    const kept = this.drafts.get(null);
    const draft = kept && kept.pair === this.drawn ? kept : { flags: [], note: "", strength: null, order: [] };
    this.cards.forEach((card, place) => card.flags.forEach((element, which) =>
      element.setAttribute("aria-pressed", String((draft.flags[place] ?? []).includes(this.state.flags[which])))));
    this.note.value = draft.note;
    this.strengths.forEach((element, place) => element.setAttribute("aria-pressed", String(this.state.strengths[place] === draft.strength)));
    this.drawOrder(draft.order);
  }

  place(number) {
    const rest = this.order.map((group) => group.filter((other) => other !== number)).filter((group) => group.length);
    if (pressed(this.equalButton) && rest.length) rest[rest.length - 1].push(number);
    else rest.push([number]);
    this.setOrder(rest);
  }

  setOrder(order) {
    this.drawOrder(order);
    this.keepDraft();
    this.drawBusy();
  }

  drawOrder(order) {
    this.order = order;
    this.equalButton?.setAttribute("aria-pressed", "false");
    this.said.hidden = this.kind !== "rank" || !this.state.shown || this.state.done;
    this.said.textContent = order.length ? `Your order, best first: ${order.map((group) => group.join(" = ")).join("  >  ")}`
      : "Type or press the numbers, the best answer first; = makes the next one equal to the last.";
    this.cards.forEach((card, place) => {
      const rank = order.findIndex((group) => group.includes(place + 1));
      card.box.classList.toggle("rl-placed", rank >= 0);
      card.place.textContent = rank >= 0 ? `Place ${rank + 1}` : "Next best";
      if (this.kind === "rank") card.place.append(make("kbd", "", String(place + 1), { "aria-hidden": "true" }));
    });
  }

  // ---- acts

  act(kind, what = {}) {
    const { shown, done, can_undo } = this.state;
    if (kind === "undo" ? !can_undo : kind !== "ask" && (!shown || done)) return;
    const ms = Math.round(performance.now() - this.drawnAt);
    if (kind !== "ask" && kind !== "undo" && ms < TOO_QUICK_MS)
      return this.say("That press came too soon after the answers appeared (a double press?), so it was not taken.", true);
    const about = kind === "ask" || kind === "undo" ? {} : { ms, ...this.extras() };
    this.outbox.set([...this.outbox.get([]), { act: kind, id: newId(), pair: done ? null : shown?.id ?? null, ...about, ...what }]);
    this.close();
    this.say("", true);
    this.flush(false);
  }

  flush(resent) {
    const [next] = this.outbox.get([]);
    if (!next) return;
    this.again.hidden = true;
    this.sent = next.id;
    this.say("Saving ...");
    this.drawBusy();
    setTimeout(() => this.sent === next.id && !this.state.working && this.say(
      "Not saved yet: the kernel does not answer. Your act waits in this browser; if the kernel was restarted, run this cell again."), SLOW_MS);
    try {
      this.model.send({ ...next, resent });
    } catch {
      // no kernel: the act waits, as the message will say
    }
  }

  onState() {
    this.state = this.model.get("state");
    const { id, kind, text } = this.state.answer;
    const mine = this.outbox.get([]).some((act) => act.id === id);
    if (mine && kind !== "failed") this.outbox.set(this.outbox.get([]).filter((act) => act.id !== id));
    if (mine && kind === "saved") this.drafts.set(null);
    if (id === this.sent) this.sent = null;
    this.draw();
    if (!mine) return;
    if (kind === "failed") this.say("Not saved.");
    if (kind !== "saved") this.say(text, true);
    this.again.hidden = kind !== "failed";
    this.confirming = kind === "confirm" ? this.drawn : null;
    if (kind !== "failed") this.flush(true);
  }

  giveUp() {
    this.outbox.set(this.outbox.get([]).slice(1));
    this.again.hidden = true;
    this.say("", true);
    this.say(this.state.text);
    this.draw();
  }

  onClick(event) {
    if (!event.target.closest("[aria-disabled=true]")) return;
    event.stopPropagation();
    if (this.outbox.get([]).length) this.say("The last act is not saved yet, so this press was not taken.", true);
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    event.stopPropagation(); // else the notebook takes x for "cut this cell"
    if (event.isComposing) return;
    const typing = ["INPUT", "TEXTAREA"].includes(event.target.tagName);
    if (event.key === "Escape") {
      this.close();
      if (typing) this.root.focus({ preventScroll: true });
    }
    if (event.target === this.question && event.key === "Enter" && !event.shiftKey && !event.repeat) {
      event.preventDefault();
      if (this.question.value.trim()) this.root.focus({ preventScroll: true }); // so that the next key is a verdict
      return this.askButton.click();
    }
    if (typing || event.repeat || event.key === "Tab") return;
    if (this.onPlainKey(event.key.toLowerCase(), event.target.tagName === "BUTTON")) event.preventDefault();
  }

  onPlainKey(key, onButton) {
    if (key === "n" && !this.details.hidden) this.note.focus();
    else if (!this.reasons.hidden && /^[1-9]$/.test(key)) this.reasons.querySelectorAll("button")[key - 1]?.click();
    else if (this.kind === "rank" && /^[1-9]$/.test(key)) this.cards[key - 1]?.place.click();
    else if (this.kind === "rank" && key === "backspace") this.setOrder(this.order.map((group, place) =>
      place === this.order.length - 1 ? group.slice(0, -1) : group).filter((group) => group.length));
    else if (this.kind === "rank" && key === "enter" && !onButton) this.saveButton.click();
    else if (this.byKey[key]) this.byKey[key].click();
    else return false;
    return true;
  }
}

export default {
  render({ model, el }) {
    const view = new View(model, el);
    const onState = () => view.onState();
    model.on("change:state", onState);
    return () => model.off("change:state", onState);
  },
};
