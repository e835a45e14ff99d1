"""One prompt, the answers of several models side by side, and a judgement that goes into the label store."""
from collections.abc import Callable, Mapping

from .records import responses_of
from .session import BadAct, LabellingSession, Shown
from .store import FROM_CHAT, LabelStore, Response


class Chat:
    """What `annotator` asks of all `models` ({name: function from a prompt to an answer}), blind until it is judged.

    Two answers are compared and three to nine ranked, through a LabellingSession on `store`; models that give the very same
    answer share it. The votes test the models, so exports for training leave them out and count them. Raises ValueError
    unless there are two to nine models.
    """

    def __init__(self, models: Mapping[str, Callable[[str], str]], store: LabelStore, annotator: str = "me", blind: bool = True):
        if not 2 <= len(models) <= 9:
            raise ValueError(f"{len(models)} models: a chat compares two to nine")
        self.models, self.store, self.annotator, self.blind = dict(models), store, annotator, blind
        self.session: LabellingSession | None = None
        self.last: Shown | None = None

    def ask(self, prompt: str, tell: Callable[[str], None] = lambda text: None) -> LabellingSession | None:
        """Let every model answer; `tell` hears how far that is. Returns the session to judge them in, None if all said the
        same. Raises BadAct for an empty prompt, and whatever a model raises."""
        if not prompt.strip():
            raise BadAct("the prompt is empty: write something to ask")
        texts = {}
        for number, (name, model) in enumerate(self.models.items(), 1):
            tell(f"Answer {number} of {len(self.models)} ...")
            texts[name] = model(prompt)
        answers = responses_of(texts, FROM_CHAT)
        self.session = self.last = None
        if len(answers) == 1:
            only = Response(answers[0]["text"], answers[0]["model"])
            self.last = Shown("", prompt, (only,))
        else:
            self.session = LabellingSession(self.store, [{"prompt": prompt, "responses": answers}], self.annotator,
                                            task="rank" if len(answers) > 2 else "pairs")
            self.last = self.session.first
        return self.session

    def titles(self, shown: Shown | None, reveal: bool) -> list[str] | None:
        """Headings of the answers: with the models' names if they are to be known, else None for the usual ones."""
        if shown is None or (self.blind and not reveal):
            return None
        return [f"{number}: {answer.model}" for number, answer in enumerate(shown.answers, 1)]

    def status(self) -> str:
        """What to do now, in a sentence."""
        if self.last is None:
            return "Write a prompt and press Ask."
        if self.session is None:
            return "All models gave the same answer, so there is nothing to compare."
        if self.session.current is None:
            return "Saved. You see now who said what; ask something else."
        return "Which is better?" if len(self.last.answers) == 2 else "Which is the best, which the next?"
