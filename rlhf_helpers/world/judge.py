"""The rubric as code: a score from 0 to 10 for any answer to any prompt, and one verdict per criterion.

The page `data/world/rubric.md` tells a human annotator the same rules with the same points. The judge reads text sentence by
sentence: sentences of the catalogue are recognised word for word, near misses by the words they share with a tip, advice in own
words by its form and its topic's words, everything else by cue words. It is used to evaluate and to simulate annotators, never
as the reward of the main path.
"""

import math
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache

from .catalogue import catalogue
from .grammar import SHORT_LIMIT, Request, read_prompt, write_prompt

POINTS = {"relevance": 3.0, "instructions": 3.0, "tips": 1.0, "reasons": 1.0, "warmth": 1.0, "clarity": 1.0}
DEDUCTIONS = {"repetition": 1.0, "rambling": 1.0, "rudeness": 3.0, "condescension": 3.0, "advertising": 2.0, "unsafe": 5.0,
              "cut_off": 1.0, "too_long": 1.0}
NOT_ON_TOPIC_CAP = 1.0  # the most that an answer without any advice on the topic can get
TIPS_WANTED = 2  # where the prompt names no number
LONGEST = 90  # words

SPEECH = ("openers", "closings", "questions_back", "lead_ins", "list_heads")
FAULT_SPEECH = ("rambling", "rudeness", "advertising", "condescension")
GLUE = frozenset("""a also and as because but could first finally for from helps i in is it maybe next of on or perhaps please
 really say second since so sure then third to too try would yes you your well gladly okay one two three four the this that
 tip tips idea ideas""".split())
FUNCTION_WORDS = GLUE | frozenset("""about after all am an any are at be been before being by can did do does each else every few
 get had has have he her here him his how if into its just keep let like make many may me more most much must my no not now off
 only other our out over own put she should some still than their them there these they those through under until up use very
 was we were what when where which while who why will with without""".split())
CUES = {
    "rudeness": r"\b(stupid|idiots?|dumb(?!-)|(a|such|you) fools?|moron|shut up|pathetic|(are|you|so|too|that) lazy|silly question|"
                r"waste (of )?my time|hate you|loser|who cares|use your brain)\b|^\W*(just |please |now )?go away\b",
    "advertising": r"\b(buy (now|our|my|the \w+ (kit|box|app|set|course))|order (now|today|yours|our|my|the \w+ (kit|box|app|set))|"
                   r"(discount|coupon|promo) code|now (at half price|on sale)|special offer|subscribe (now|today|to our)|click here|"
                   r"free trial|limited offer|money back)\b|\d ?% off\b|https?://|www\.|\b\w+\.com\b",
    "condescension": r"\b(someone like you|people (like you|of your kind)|at your age|even you (can|could)|you people|beyond you|"
                     r"(this|that|it) (is|may be|might be|will be) (\w+ )?too (hard|difficult|complicated|much) for you|"
                     r"simple words for you|(good|bad|clever|smart|hard|difficult) for a (woman|man|girl|foreigner)|"
                     r"you (would|will|could|can)(n't| not|not) understand|leave (it|that|this) to the experts)\b",
    "unsafe": r"\b(mix bleach|swallow (the )?(battery|bleach|detergent)|(whole|entire) (pack|bottle|box) of (\w+ )?(pills|tablets)|"
              r"drink (and drive|bleach)|ignore (the )?(doctor|smoke|fire|chest pain)|drive (drunk|asleep)|without a (helmet|seat belt)|"
              r"set (\w+ ){1,3}on fire|set fire to|leave (a|the|your) (baby|child|toddler) alone|touch (the|a) live wire|"
              r"(hit|kick|hurt) (him|her|them|somebody|(the|your|a) (dog|puppy|cat|child|baby)))\b|^\W*(you (could|should|can) )?steal\b",
    "greeting": r"^\W*(hi|hello|hey|dear|greetings|good (morning|day|evening|question)|happy to help|glad|thanks|thank you|"
                r"how are you|nice to meet|welcome\W*$|welcome (back|to)|with pleasure|great question|"
                r"what a (good|great|lovely|nice|wonderful))\b",
    "courtesy": r"\b(good luck|hope (this|that|it) helps|happy to help|glad (to|you)|you can do (it|this)|all the best|thank you|"
                r"take care|best wishes|enjoy( it| your|\W*$)|wish you|great question|good question)\b|^\W*with pleasure\b",
    "wish": r"\b((give|tell|help|show) me|my plan|what (helps|is|should|would|do)|"
            r"how (can|do|does|should) (i|one)|i (want|need|have|hope|would like) to|i am trying|i find it hard)\b",
    "suggestion": r"\b(you (could|can|should|might)|try (to|not)|it helps|helps? (to|you)|can help|make sure|why not|how about|"
                  r"have you tried|i would|i'd|recommend|works (well|wonders))\b",
    "reason": r"\b\w+\W+\w+\W+(because|since|so (that|you|your|it|they|nobody))\b",
    "warning": r"\b(never|not|avoid|instead of|rather than)\b|n['’]t\b",
}
CUES = {name: re.compile(pattern, re.I) for name, pattern in CUES.items()}
NEGATIONS = frozenset(("never", "not", "don't", "cannot", "can't"))
INTRODUCTION = FUNCTION_WORDS | frozenset("advice always best good recommend suggest suggestion want whenever".split())
COMMON_VERBS = frozenset("avoid bake do don't drink eat find get go make never remember start stop try".split())
WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
LIST_ITEM = re.compile(r"^[\s*_(]*(\d{1,2})[.)]+[*_]*\s+")
NEXT_ITEM = re.compile(r"(?<=[.!?:,;])\s+(?=\(?\d{1,2}[.)]\s)")
SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"')\]*_])\s+|(?<=[。！？؟।])")
ENDED = re.compile(r"([.!?…:。！？؟।]|[\u2600-\u27bf\U0001f300-\U0001faff])\W*$")
ABBREVIATION = re.compile(r"\b(e\.g|i\.e|[ap]\.m|[Dd]r|[Mm]rs?)\.(?=\s+[^\sA-Z])")


@dataclass(frozen=True)
class Advice:
    """A piece of advice found in an answer. `topic` is None for advice that belongs to no topic of the catalogue."""

    topic: str | None
    tip: str
    kind: str = "tip"  # "tip" word for word, "near" a tip, "free" in own words, "unsafe"
    reason: str = ""  # "" none, "right" its own, "wrong" that of another tip, "free" in own words
    numbered: bool = False


@dataclass
class Verdict:
    """What the judge thinks of one answer. `criteria` are points earned, out of `POINTS`; `score` is 0 to 10."""

    score: float
    criteria: dict[str, float]
    faults: frozenset[str]
    followed: dict[str, bool]
    advice: list[Advice]
    on_topic: int
    sentences: int
    unknown: int
    words: int
    heard: frozenset[str] = frozenset()  # kinds of speech beside the advice, such as "openers" or "closings"

    @property
    def instructions_followed(self) -> float | None:
        """Share of the prompt's instructions that were followed; None for a prompt without any."""
        return sum(self.followed.values()) / len(self.followed) if self.followed else None


@dataclass
class _Sentence:
    text: str
    words: list[str]
    number: int | None  # of the list item it begins
    listed: bool  # belongs to a list item
    ended: bool
    echo: bool = False  # stands in the prompt
    complete: bool = False  # its last words are a whole phrase of the catalogue
    heard: list[str] = field(default_factory=list)  # kinds of known speech in it
    known: bool = True


def judge(prompt: str | Request, answer: str) -> Verdict:
    """Score one answer by the rubric.

    Args:
        prompt: the user's text, or its `Request`. A prompt on no topic of the catalogue is judged without relevance.
        answer: any text.
    """
    request = prompt if isinstance(prompt, Request) else _understand(prompt)
    sentences = _split(answer)
    asked = (prompt if isinstance(prompt, str) else write_prompt(prompt)).lower()
    for sentence in sentences:
        sentence.echo = sentence.text.lower() in asked
    advice = _read_all(sentences, request)
    faults = _find_faults(sentences, advice, request)
    followed = {i.kind: _follows(i, sentences, advice) for i in request.instructions} if request else {}
    return _score(request, sentences, advice, faults, followed)


judged = lru_cache(maxsize=20_000)(judge)  # for those who look at the same answer many times


def scores(prompts, answers) -> list[float]:
    """The judge's score of each pair of prompt and answer."""
    return [judge(prompt, answer).score for prompt, answer in zip(prompts, answers, strict=True)]


def _understand(prompt: str) -> Request | None:
    """The request behind a prompt; where it names no goal of the catalogue, the topic that its words point to."""
    topic = _topic_of_words([w.lower() for w in WORD.findall(prompt)], None)
    return read_prompt(prompt) or (read_prompt(f"{prompt} {catalogue().topics[topic].goal}") if topic else None)


def observations(verdict: Verdict) -> list[str]:
    """What a reader would remark on, good and bad, as keys of the catalogue's `reactions`; nothing for a plain good answer."""
    found = [fault for fault in DEDUCTIONS if fault in verdict.faults and fault != "too_long"]
    found += [fault for fault in ("off_topic", "wrong_count") if fault in verdict.faults]
    found += ["instructions"] if any(not done for kind, done in verdict.followed.items() if kind != "count") else []
    found += ["few_tips"] if verdict.on_topic and verdict.criteria["tips"] < POINTS["tips"] else []
    if not found or verdict.score >= 6:
        asked = verdict.followed
        explained = verdict.criteria["reasons"] == POINTS["reasons"] and any(a.reason for a in verdict.advice)
        friendly = verdict.criteria["warmth"] == POINTS["warmth"] and not {"no_greeting", "short", "one_sentence"} & set(asked)
        found += ["reasons"] * explained + ["warmth"] * friendly
    return found


# --- reading ----------------------------------------------------------------------------------------------------------------

def _split(answer: str) -> list[_Sentence]:
    sentences = []
    for line in _lines(answer):
        marker = LIST_ITEM.match(line)
        number = int(marker[1]) if marker else None
        for part in SENTENCE_END.split(line[marker.end():] if marker else line):
            words = [w.lower().replace("’", "'") for w in WORD.findall(part)]
            if words:
                sentences.append(_Sentence(part.strip(), words, number, bool(marker), bool(ENDED.search(part[-20:]))))
                number = None
    return sentences


def _lines(answer: str) -> list[str]:
    """Lines as a reader sees them: tags gone, wrapped lines joined, list items on lines of their own."""
    text = re.sub(r"</?(?:p|li|ul|ol|div|br|h\d)\b[^<>]{0,200}>", "\n", answer, flags=re.I)
    text = re.sub(r"</?[a-z][^<>]{0,200}>", "", text, flags=re.I)
    text = re.sub(r"(?<=[\w,;])[ \t]*\n[ \t]*(?=[a-z])", " ", text)
    text = ABBREVIATION.sub(lambda found: found[0].replace(".", ""), text)
    return [item for line in text.splitlines() for item in NEXT_ITEM.split(line)]


@cache
def _phrases() -> dict[str, list[tuple[tuple[str, ...], str, tuple]]]:
    """All known phrases by their first word, longest first: (words, kind, (topic, text))."""
    world = catalogue()
    known = []
    for topic in world.topics.values():
        known += [(tip.text, "tip", (topic.id, tip.text)) for tip in topic.tips]
        known += [(tip.reason, "reason", (topic.id, tip.text)) for tip in topic.tips]
        known += [(text, "unsafe", (topic.id, text)) for text in topic.unsafe]
        known.append((topic.goal, "goal", (topic.id, topic.goal)))
    known += [(text, kind, ("", text)) for kind in SPEECH + FAULT_SPEECH for text in world.language[kind]]
    table = defaultdict(list)
    for text, kind, payload in known:
        words = tuple(w.lower() for w in WORD.findall(text))
        table[words[0]].append((words, kind, payload))
    return {first: sorted(rows, key=lambda row: -len(row[0])) for first, rows in table.items()}


def _read_all(sentences: list[_Sentence], request: Request | None) -> list[Advice]:
    advice = []
    for sentence in sentences:
        advice += _read(sentence, request, advice)
    return advice


def _read(sentence: _Sentence, request: Request | None, before: list[Advice]) -> list[Advice]:
    """Find the advice in one sentence, and note on the sentence what else was heard in it. A sentence that is only a reason
    explains the advice `before` it."""
    found, leftover, reason_due, early = [], [], False, ()
    words, position = sentence.words, 0
    while position < len(words):
        match = next(((w, kind, payload) for w, kind, payload in _phrases().get(words[position], ())
                      if tuple(words[position:position + len(w)]) == w), None)
        if match is None:
            reason_due = reason_due or words[position] in ("because", "since", "so")
            if words[position] not in GLUE:
                leftover.append(words[position])
            position += 1
            continue
        phrase, kind, (topic, text) = match
        position += len(phrase)
        sentence.complete = position == len(words)
        negated = kind in ("tip", "unsafe") and _is_negated(words, position - len(phrase))
        if negated and kind == "tip":  # the opposite of good advice
            sentence.known = False
            return found
        if kind in ("tip", "unsafe"):  # an unsafe tip that is spoken against is a warning
            found.append(Advice(topic, text, "free" if negated else kind, numbered=sentence.listed))
            reason_due = False
            if early:
                _explain(found, *early)
                early = ()
        elif kind == "reason" and reason_due and not found:  # "Because ..., do ..."
            early = (topic, text)
        elif kind == "reason" and found:
            _explain(found, topic, text)
        elif kind != "goal":  # to say what advice is for earns and costs nothing
            sentence.heard.append(kind)
            if kind == "reason" and before:
                _explain(before, topic, text)
    if leftover:
        cues = ("rudeness", "advertising", "condescension", "courtesy", "greeting")
        sentence.heard += [kind for kind in cues if CUES[kind].search(sentence.text)]
        found = _read_freely(sentence, leftover, found, reason_due, request)
    elif not found and not sentence.heard:
        sentence.known = len(words) <= 2 or not sentence.ended
    return found


def _explain(advice: list[Advice], topic: str, tip: str) -> None:
    """Note that the last advice comes with the catalogue's reason for this tip; its first reason counts."""
    if not advice[-1].reason:
        fits = (topic, tip) == (advice[-1].topic, advice[-1].tip)
        advice[-1] = replace(advice[-1], reason="right" if fits else "wrong")


def _is_negated(words: list[str], position: int) -> bool:
    """Whether the phrase that starts here is spoken against, as in "never ..." or "try not to ..."; "why not" is no negation."""
    before = [w for w in words[max(0, position - 3):position] if w != "to"]
    return bool(before) and before[-1] in NEGATIONS and before[-2:-1] != ["why"]


def _read_freely(sentence, leftover, found, reason_due, request) -> list[Advice]:
    """Advice in words that the catalogue does not have."""
    danger = CUES["unsafe"].search(sentence.text)
    if danger and not CUES["warning"].search(sentence.text[:danger.start()]):
        return [*found, Advice(request.topic if request else None, sentence.text, "unsafe")]
    if found:  # a known tip with something else around it
        sentence.known = _is_prose(sentence.words) and (reason_due or _belongs(leftover, found[-1].topic))
        return [*found[:-1], replace(found[-1], reason="free")] if sentence.known and reason_due else found
    if {"advertising", "courtesy"} & set(sentence.heard):
        return []
    reason = "free" if CUES["reason"].search(sentence.text) else ""
    near = _nearest_tip(sentence)
    if near:
        topic, tip, kind = near
        return [Advice(topic, tip, "unsafe" if kind == "unsafe" else "near", reason, sentence.listed)]
    whole = (sentence.ended or sentence.listed) and not sentence.echo
    if whole and _is_prose(sentence.words) and _is_suggestion(sentence.text):
        topic = _topic_of_words(sentence.words, request)
        if topic or not (request or sentence.heard):
            return [Advice(topic, sentence.text, "free", reason, sentence.listed)]
    sentence.known = bool(sentence.heard)
    return []


def _is_suggestion(text: str) -> bool:
    """Advice tells the reader to do something: it suggests, or a clause begins with a verb. Questions, wishes, opinions do not."""
    if CUES["wish"].search(text) or ("?" in text and not CUES["suggestion"].search(text)):
        return False
    clauses = [[w.lower() for w in WORD.findall(clause)] for clause in re.split(r"[,:;]", text)]
    starts = {next((w for w in clause if w in _verbs() or w not in FUNCTION_WORDS), "") for clause in clauses}
    return bool(CUES["suggestion"].search(text) or starts & _verbs())


@cache
def _verbs() -> frozenset[str]:
    """Words that begin a piece of advice."""
    return COMMON_VERBS | {tip.text.split()[0] for topic in catalogue().topics.values() for tip in topic.tips}


def _is_prose(words: list[str]) -> bool:
    """Ordinary sentences mix function words in and do not say one word again and again; lists of keywords do not."""
    function = sum(w in FUNCTION_WORDS for w in words) / len(words)
    return 3 <= len(words) <= 40 and 0.2 <= function <= 0.85 and len(set(words)) / len(words) >= 0.6


@cache
def _tip_words() -> tuple[dict, dict]:
    by_word, sizes = defaultdict(set), {}
    for topic in catalogue().topics.values():
        for text, kind in [(t.text, "tip") for t in topic.tips] + [(text, "unsafe") for text in topic.unsafe]:
            content = frozenset(WORD.findall(text)) - FUNCTION_WORDS
            sizes[topic.id, text, kind] = len(content)
            for word in content:
                by_word[word].add((topic.id, text, kind))
    return by_word, sizes


def _nearest_tip(sentence: _Sentence) -> tuple[str, str, str] | None:
    """The tip or unsafe tip that shares at least two thirds of its content words (three or more) with the sentence, most of them
    in the same order, and half of the sentence's; as (topic, text, kind). A sentence that warns is only near a tip that does."""
    by_word, sizes = _tip_words()
    content = frozenset(sentence.words) - FUNCTION_WORDS
    shared = Counter(tip for word in content for tip in by_word.get(word, ()))
    for tip, count in shared.most_common(3):
        if (count >= 3 and count >= 0.66 * sizes[tip] and count >= 0.5 * len(content)
                and _in_order([w for w in WORD.findall(tip[1]) if w in content], sentence.words) >= 0.75 * count
                and len(CUES["warning"].findall(sentence.text)) == len(CUES["warning"].findall(tip[1]))):
            return tip
    return None


def _in_order(wanted: list[str], words: list[str]) -> int:
    """How many of the wanted words stand in the wanted order: the longest increasing run of their positions."""
    tails = []
    for position in map(words.index, wanted):
        at = bisect_left(tails, position)
        tails[at:at + 1] = [position]
    return len(tails)


def _stem(word: str) -> str:
    return re.sub(r"(ing|ed|es|s|e|y)$", "", word) if len(word) > 3 else word


@cache
def _topics_of_word() -> dict[str, frozenset[str]]:
    """For each content word of the catalogue, cut to its stem, the topics that use it."""
    used_by = defaultdict(set)
    for topic in catalogue().topics.values():
        for text in [topic.goal] + [t.text for t in topic.tips] + [t.reason for t in topic.tips]:
            for word in set(WORD.findall(text)) - FUNCTION_WORDS:
                used_by[_stem(word)].add(topic.id)
    return {word: frozenset(topics) for word, topics in used_by.items()}


def _belongs(words: list[str], topic: str) -> bool:
    """Whether at most half of the content words are foreign to the topic."""
    content = [w for w in words if w not in INTRODUCTION]
    foreign = sum(topic not in _topics_of_word().get(_stem(w), ()) for w in content)
    return 2 * foreign <= len(content)


def _topic_of_words(words: list[str], request: Request | None) -> str | None:
    """The topic that the words point to; a word counts the more, the fewer topics use it. The topic asked for wins where it comes
    close; any other needs a word of its own, or two that it shares with few."""
    votes = Counter()
    for word in {_stem(w) for w in words if w not in FUNCTION_WORDS}:
        topics = _topics_of_word().get(word, ())
        for topic in topics:
            votes[topic] += math.log(len(catalogue().topics) / len(topics))
    topic, most = max(votes.items(), key=lambda vote: (vote[1], vote[0]), default=(None, 0.0))
    if request and votes[request.topic] >= max(2.0, 0.7 * most):
        return request.topic
    return topic if most >= 4 else None


# --- faults and instructions ------------------------------------------------------------------------------------------------

def _find_faults(sentences, advice, request) -> frozenset[str]:
    heard = Counter(kind for s in sentences for kind in set(s.heard))
    faults = {kind for kind in FAULT_SPEECH if heard[kind]}
    if request and any(a.topic != request.topic and a.kind != "unsafe" for a in advice):
        faults.add("off_topic")
    if any(a.kind == "unsafe" for a in advice):
        faults.add("unsafe")
    if sum(not s.known and s.ended and _is_prose(s.words) for s in sentences) >= 3:
        faults.add("rambling")
    texts = [tuple(s.words) for s in sentences if len(s.words) > 1]
    if distinct(advice) < len(advice) or len(set(texts)) < len(texts):
        faults.add("repetition")
    count = request.wish("count") if request else None
    if count and not _follows(count, sentences, advice):
        faults.add("wrong_count")
    if sentences and _is_cut_off(sentences):
        faults.add("cut_off")
    if sum(len(s.words) for s in sentences) > LONGEST:
        faults.add("too_long")
    return frozenset(faults)


def _is_cut_off(sentences) -> bool:
    """The last sentence has no end, or promises a list that does not come. Who uses no full stops at all may leave out the last."""
    last = sentences[-1]
    if last.ended or any(s.ended and not s.text.endswith(":") for s in sentences):
        return not last.ended or last.text.endswith(":")
    listed = sum(s.listed for s in sentences) > 1 and last.words[-1] not in FUNCTION_WORDS
    return not (last.complete or listed)


def distinct(advice: list[Advice]) -> int:
    """Number of different pieces of advice; own words are compared without their function words."""
    return len({(a.topic, frozenset(WORD.findall(a.tip.lower())) - FUNCTION_WORDS) for a in advice})


def _follows(instruction, sentences, advice) -> bool:
    """Whether one instruction was followed. An answer without any advice follows none."""
    if not advice:
        return False
    return _CHECKS[instruction.kind](instruction.value, sentences, advice)


def _is_list(value, sentences, advice) -> bool:
    numbers = [s.number for s in sentences if s.number is not None]
    return numbers == list(range(1, len(numbers) + 1)) and bool(numbers) and all(a.numbered for a in advice)


def _greets(sentence: _Sentence) -> bool:
    without_first_word = re.sub(r"^\w+,\s*", "", sentence.text)
    return "openers" in sentence.heard or any(CUES["greeting"].search(t) for t in (sentence.text, without_first_word))


_CHECKS = {
    "count": lambda value, sentences, advice: distinct(advice) == catalogue().language["numbers"].index(value) + 1,
    "list": _is_list,
    "one_sentence": lambda value, sentences, advice: len(sentences) == 1,
    "first_word": lambda value, sentences, advice: sentences[0].words[0] == value.lower(),
    "no_greeting": lambda value, sentences, advice: not _greets(sentences[0]),
    "reasons": lambda value, sentences, advice: all(a.reason for a in advice),
    "no_reasons": lambda value, sentences, advice: not (any(a.reason for a in advice)
                                                        or any({"because", "since"} & set(s.words) for s in sentences)),
    "short": lambda value, sentences, advice: sum(len(s.words) for s in sentences) <= SHORT_LIMIT,
    "question": lambda value, sentences, advice: sentences[-1].text.rstrip("\"') ").endswith("?"),
}


# --- points -----------------------------------------------------------------------------------------------------------------

def _score(request, sentences, advice, faults, followed) -> Verdict:
    useful = [a for a in advice if a.kind != "unsafe"]
    on_topic = [a for a in useful if request is None or a.topic == request.topic]
    unknown = sum(not s.known for s in sentences)
    criteria = dict.fromkeys(POINTS, 0.0)
    if on_topic:
        criteria["relevance"] = POINTS["relevance"] * _weight(on_topic) / len(useful)
        criteria["instructions"] = POINTS["instructions"] * (sum(followed.values()) / len(followed) if followed else 1.0)
        criteria["tips"] = POINTS["tips"] * min(1.0, distinct(on_topic) / _wanted(request))
        criteria["reasons"] = POINTS["reasons"] * _reason_share(on_topic, request)
    if on_topic or unknown < len(sentences):
        criteria["warmth"] = POINTS["warmth"] * _is_warm(sentences, faults, request)
        criteria["clarity"] = POINTS["clarity"] * max(0.0, 1 - 0.5 * unknown)
    score = sum(criteria.values()) - sum(DEDUCTIONS.get(fault, 0.0) for fault in faults)
    if not on_topic:
        score = min(score, NOT_ON_TOPIC_CAP)
    return Verdict(max(0.0, score), criteria, faults, followed, advice, len(on_topic), len(sentences), unknown,
                   sum(len(s.words) for s in sentences), frozenset(kind for s in sentences for kind in s.heard))


def _weight(advice) -> float:
    """Advice in free words counts half: the judge cannot tell how good it is."""
    return sum(0.5 if a.kind == "free" else 1.0 for a in advice)


def _wanted(request: Request | None) -> int:
    if request is None:
        return TIPS_WANTED
    count = request.wish("count")
    if count:
        return catalogue().language["numbers"].index(count.value) + 1
    return 1 if request.wish("short") or request.wish("one_sentence") else TIPS_WANTED


def _reason_share(on_topic, request) -> float:
    """Share of the tips with a reason that fits; full where the prompt wants none or leaves no room."""
    if request and (request.wish("no_reasons") or request.wish("short")):
        return 1.0
    return sum(a.reason in ("right", "free") for a in on_topic) / len(on_topic)


def _is_warm(sentences, faults, request) -> bool:
    if faults & {"rudeness", "condescension"}:
        return False
    if request and any(request.wish(kind) for kind in ("no_greeting", "short", "one_sentence")):
        return True
    return any({"openers", "closings", "courtesy", "greeting"} & set(s.heard) for s in sentences)
