r"""Where a final answer is in a response: one named rule per place, and which of them counts.

`RULES` lists the rules of explicit statements. Their strength decides, then their place:

1. `tag`: `<answer>…</answer>`, `<|begin_of_box|>…`; nothing else counts then.
2. `line`: "Final answer: …", "#### …", "Answer: …", `\boxed{…}`: the last one.
3. `prose`: "the answer is …", "option B is correct": the last one. One in the last paragraph, after the
   last box, goes before that box.

Only what follows the last `</think>` is looked at. Weaker signs (a bare answer, a letter at the start, a number in the
last sentence) are read in `reading.py`, where nothing explicit is found.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rewards.verifying import phrases

MAX_STATEMENTS = 32  # of one rule that are looked at, from the end
_LONGEST_LETTER = 12  # characters of "**(B)**"
_NAMED_OPTION = re.compile(r"\W{0,4}[A-Z]\W{0,4}[.:] +\W{0,3}(?:yes|no|true|false)\b", re.IGNORECASE)  # "(B). No"


@dataclass(frozen=True)
class Place:
    """A stated answer, still dressed: where it begins and ends, and the rule that found it."""

    start: int
    end: int
    text: str
    rule: str


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, or the line's end.

    Example:
        >>> first_sentence("B. BECAUSE it is."), first_sentence("3.5 m. Not 3."), first_sentence("St. Louis. Yes.")
        ('B', '3.5 m', 'St. Louis')
    """
    text = text.lstrip()
    for match in phrases.SENTENCE_END.finditer(text):
        before = text[: match.start()]
        if match[0] == "." and phrases.ABBREVIATION.search(before[-8:]) and match.end() < len(text):
            continue
        if before.strip():
            return before.strip()
    return text.strip()


def last_sentence(text: str) -> str:
    """The last sentence of the last line that is not empty.

    Example:
        >>> last_sentence("It is 3.5 m.\\nSo we add. That makes 7.")
        'That makes 7'
    """
    line = text.rstrip().rpartition("\n")[2].strip()
    rest = line
    for _ in range(200):
        sentence = first_sentence(rest)
        after = rest[rest.find(sentence) + len(sentence) :].lstrip(".!?。！；？ \"'”*_)")
        if not after:
            return sentence.strip()
        rest = after
    return rest


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and content of every `\boxed{…}` whose brace closes, innermost ones only, and of `\boxed 7`.

    Example:
        >>> [content for _, _, content in boxes(r"\boxed{1} and \boxed{\{2\}} or \fbox{\boxed{3}}")]
        ['1', '\\{2\\}', '3']
    """
    stack: list[tuple[int, int] | None] = []
    found: list[tuple[int, int, str]] = []
    for token in phrases.BOX.finditer(text):
        if token[0] == "{":
            stack.append(None)
        elif token[0] == "}":
            opened = stack.pop() if stack else None
            if opened is not None and not (found and found[-1][0] >= opened[1]):
                found.append((opened[0], token.end(), text[opened[1] : token.start()].strip()))
            elif opened is not None:  # holds another box: that one is the answer
                found[-1] = (opened[0], token.end(), found[-1][2])
        elif token[0][-1] == "{" and len(token[0]) > 2:
            stack.append((token.start(), token.end()))
    found += [(m.start(), m.end(), m[1].rstrip(".,;")) for m in phrases.BARE_BOX.finditer(text)]
    return sorted(box for box in found if box[2])


def last_box(text: str) -> str | None:
    r"""Content of the last `\boxed{…}`, or of several that make up one answer, joined by ", ".

    Example:
        >>> last_box(r"\boxed{1} and \boxed{\{2\}}"), last_box(r"\boxed{3}? No: \boxed{7}")
        ('1, \\{2\\}', '7')
    """
    place = _boxed(text)
    return place.text if place else None


def _boxed(text: str) -> Place | None:
    found = boxes(text)
    if not found:
        return None
    start, end, content = found[-1]
    contents = [content]
    for before in reversed(found[:-1]):
        between = text[before[1] : start]
        if len(between) > 60 or not phrases.BETWEEN_BOXES.fullmatch(between):
            break
        contents.insert(0, before[2])
        start = before[0]
    distinct = list(dict.fromkeys(contents))
    return Place(start, end, ", ".join(distinct), "box")


def _tags(text: str) -> Iterator[Place]:
    for pattern, rule in ((phrases.TAG, "answer tag"), (phrases.TOKEN_BOX, "token box")):
        for match in pattern.finditer(text):
            content = next((group for group in match.groups() if group), "").strip()
            if content:
                yield Place(match.start(), match.end(), content, rule)


def _last(pattern: re.Pattern[str], text: str) -> deque[re.Match[str]]:
    """The last matches: what was stated long before does not count."""
    return deque(pattern.finditer(text), maxlen=MAX_STATEMENTS)


def _after(text: str, start: int, rule: str, *, prose: bool, at: int) -> Place | None:
    """The answer after a marker: the rest of its line, else the next line that is not empty."""
    line_end = text.find("\n", start)
    line_end = len(text) if line_end < 0 else line_end
    value = text[start:line_end]
    if not value.strip(" \t*_:："):
        empty = phrases.EMPTY.match(text, line_end)
        start = empty.end() if empty else line_end
        block = phrases.BLOCK.match(text, start)
        line_end = text.find("\n", start)
        value = block[0] if block else text[start : line_end if line_end >= 0 else len(text)]
        prose = prose and not block
    value = value.strip()
    if prose:
        sentence = first_sentence(value)
        named = _NAMED_OPTION.match(value) if len(sentence) <= _LONGEST_LETTER else None
        value = phrases.RATHER.split(named[0] if named else sentence, maxsplit=1)[0]
    value = phrases.HOPE.split(value, maxsplit=1)[0] if "hope" in value else value
    value = phrases.POLITE.sub("", _half_marked(value.strip()))
    if not re.search(r"[^\s*_.。:：$]", value):
        return None
    begin = max(text.find(value, start), start)
    return Place(at, begin + len(value), value, rule)


def _half_marked(value: str) -> str:
    """`7**` → `7`: the marker's own emphasis ends behind the answer."""
    for mark in ("**", "__"):
        if value.count(mark) == 1:
            value = value.replace(mark, "")
    if value.replace("**", "").count("*") == 1 and re.search(r"(?<!\*)\*[\s.。]*$", value):
        value = value.rstrip(" \t.。").removesuffix("*")
    elif value.count("*") == 1:
        value = phrases.LONE_STAR.sub("", value)
    return value.strip()


def _lines(text: str) -> Iterator[Place]:
    lower = text.casefold()
    if any(word in lower for word in phrases.FINAL_HINTS):
        for match in _last(phrases.FINAL, text):
            if match["heading"] is not None and not phrases.DECORATED.fullmatch(
                text, _line_start(text, match), match.start()
            ):
                continue
            place = _after(text, match.end(), "final answer", prose=match["is"] is not None, at=match.start())
            if place:
                yield place
    if any(word in lower for word in phrases.LINE_HINTS):
        for match in _last(phrases.LINE, text):
            place = _after(text, match.end(), "answer line", prose=False, at=match.start())
            if place:
                yield place
    if ('"' in text or "'" in text) and "{" in text and (found := [*_last(phrases.JSON, text)]):
        short = [match for match in found if match[1].lower().startswith("short")] or found
        value = short[-1][2].strip("\"'").replace('\\"', '"').replace("\\\\", "\\")
        if value.strip():
            yield Place(short[-1].start(), short[-1].end(), value, "json")
    last = text.rfind("\n") + 1  # the text is stripped
    hashes = phrases.HASHES.fullmatch(text, last)
    if hashes and not phrases.NO_HASH_ANSWER.match(hashes[1]):
        yield Place(last, len(text), hashes[1], "hashes")
    boxed = _boxed(text) if "\\boxed" in text or "\\fbox" in text or "\\framebox" in text else None
    if boxed:
        yield boxed


def _line_start(text: str, match: re.Match[str]) -> int:
    return text.rfind("\n", 0, match.start()) + 1


def _prose(text: str) -> Iterator[Place]:
    patterns = [phrases.ANSWER_IS] if text.isascii() else [phrases.ANSWER_IS, phrases.ASIAN]
    for pattern in patterns:
        for match in _last(pattern, text):
            place = _after(text, match.end(), "answer is", prose=True, at=match.start())
            if place and not phrases.NOT.match(place.text):
                yield place


def _letters(text: str) -> Iterator[Place]:
    for match in _last(phrases.CHOSEN, text):
        if phrases.CONDITION.search(text, max(0, match.start() - 200), match.start()):
            continue  # "If it is red, select option B."
        place = _after(text, match.end(), "chosen", prose=True, at=match.start())
        if place:
            yield place
    matches = _last(phrases.OPTION_RIGHT, text)
    judged = {_letter_in(match) for match in matches if match["judged"]}
    for match in matches:
        letter = _letter_in(match)
        if match["judged"] is None or len(judged) == 1:  # "A is true, B is true": the options are gone through
            yield Place(match.start(), match.end(), " ".join(filter(None, (letter, match["text"]))), "option is right")


def _letter_in(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group)


RULES: dict[str, Callable[[str], Iterator[Place]]] = {
    "tag": _tags,
    "line": _lines,
    "prose": _prose,
    "letter": _letters,  # prose that can only name a letter; for verifiers that look for one
}


def statements(text: str, *, letters: bool = False) -> Iterator[Place]:
    """Explicit statements of an answer, the one that counts first; what follows are weaker ones, in turn.

    Example:
        >>> [(p.rule, p.text) for p in statements("So \\\\boxed{5}.\\n\\nAnswer: D")]
        [('answer line', 'D'), ('box', '5')]
    """
    tags = _standing(text, RULES["tag"](text)) if "<" in text or "[ANSWER]" in text else []
    if tags:
        yield from tags
        return
    lines = _standing(text, RULES["line"](text))
    if lines and lines[0].rule != "box":
        yield from lines
        return
    found = [*RULES["prose"](text), *(RULES["letter"](text) if letters else ())]
    prose = _standing(text, iter(found))
    if lines and prose and _supersedes(text, prose[0], lines[0]):
        yield prose.pop(0)
    yield from lines
    yield from prose


def _standing(text: str, places: Iterator[Place]) -> list[Place]:
    """Those that are not taken back by what follows, last first."""
    kept = [place for place in places if not phrases.TAKEN_BACK.match(text, place.end)]
    return sorted(kept, key=lambda place: (place.start, place.end), reverse=True)


def _supersedes(text: str, prose: Place, box: Place) -> bool:
    """Whether a sentence goes before the box: it comes after it, in another paragraph, and is short and plain."""
    between = text[box.end : prose.start]
    return prose.start > box.end and "\n" in between.strip(" $.") and len(prose.text) <= 40


def contradict(places: Iterable[Place]) -> bool:
    """Whether two final statements of one kind differ, none of them taken back; one may say more than the other.

    Example:
        >>> [contradict(statements(t)) for t in ("Final answer: 5\\nFinal answer: 6", "\\\\boxed{5} \\\\boxed{6}")]
        [True, False]
    """
    final = [place for place in places if place.rule in ("answer tag", "final answer")]
    outer = [p for p in final if any(p.start < other.start < p.end for other in final)]
    texts = [re.sub(r"[^\w-]+", "", place.text).casefold() for place in final if place not in outer]
    shortest = min(texts, key=len, default="")
    return not all(text.startswith(shortest) for text in texts)
