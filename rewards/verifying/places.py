r"""Where a final answer stands in a response: one named rule a place, and which of them counts.

`RULES` lists the rules of explicit statements. Their strength decides, then their place:

1. `tag`: `<answer>…</answer>`, `<|begin_of_box|>…`; nothing else counts then.
2. `line`: "Final answer: …", "#### …", "Answer: …", `\boxed{…}`: the one that stands last.
3. `prose`: "the answer is …", "option B is correct": the last one. One that stands in the last paragraph, after the
   last box, goes before that box.

Only what follows the last `</think>` is looked at. Weaker signs (a bare answer, a letter at the start, a number in the
last sentence) are read in `reading.py`, where nothing explicit is found.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rewards.thoughts import CLOSED, OPENED
from rewards.verifying.dress import balanced_end


MAX_STATEMENTS = 32  # of one rule that are looked at, from the end


@dataclass(frozen=True)
class Place:
    """A stated answer, still dressed: where it begins and ends, and the rule that found it."""

    start: int
    end: int
    text: str
    rule: str


_TAG = re.compile(
    r"<(?:final_)?answer>(.*?)(?:</(?:final_)?answer>|$)|\[ANSWER\](.*?)(?:\[/ANSWER\]|$)", re.DOTALL | re.IGNORECASE
)
_JSON = re.compile(
    r"""["'](short[ _-]?answer|final[ _-]?answer|answer|final|choice|option|correct[ _]?(?:answer|option)|答案)["']\s*:\s*"""
    r"""("(?:[^"\\]|\\.){0,2000}"|'[^'\n]{0,200}'|-?[\d.]+(?:[eE][+-]?\d+)?|true|false)""",
    re.IGNORECASE,
)
_TOKEN_BOX = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)", re.DOTALL)

_FINAL_WORDS = (
    r"final answers?|final result|final solution|final choice|最终答案|最终结果|最終答案|最終的な答え|最終回答|最後の答え"
    r"|endgültige antwort|endantwort|réponse finale|respuesta final|resposta final|risposta finale|окончательный ответ"
    r"|최종\s?(?:정?답변?|답안)"
)
_ANSWER_WORDS = (
    r"(?:(?:the|my|our|your|so|so,|thus|thus,|hence,|therefore,?|short|brief|la|le|die|der|das|el|a)[ \t]+){0,2}"
    r"(?:(?:correct|right|best|proper|direct|richtige|bonne|correcta|correta|corretta|правильный)[ \t]+)?"
    r"(?:answers?|ans|option letter|option|answer choice|choice|correct letter|correct answer"
    r"|antwort|lösung|ergebnis|réponse|respuesta|resposta|risposta|ответ|정답|답변|답"
    r"|【?(?:正确|正確な|所以|因此|故)?(?:答案|选项|選項|回答|解答|答え|正解|答))"
)
_MARKS = r"(?:\*\*|__|\*|_)?"
_OPEN_MARKS = r"(?:[ \t]*(?:\*\*|__|\*(?=\S)))?"
_FINAL = re.compile(
    rf"(?:{_FINAL_WORDS})[ \t]*+{_MARKS}[ \t]*+(?:\([^()\n]{{1,40}}\)[ \t]*+)?{_MARKS}[ \t]*+"
    rf"(?:(?P<colon>[:：=]|为[:：]?|是[:：]|は[:：]|->|→){_OPEN_MARKS}"
    rf"|(?P<is>(?:is|are|是|は|ist|est|es|é|è)\b[ \t]*+[:：]?{_OPEN_MARKS})|(?P<heading>(?=\n)))",
    re.IGNORECASE,
)
_LINE = re.compile(
    rf"(?:^[ \t#>*_✅➡️•-]*+(?:\d{{1,2}}[.)][ \t]*)?|(?<=[.!?。！]) +|(?<=\n\n))(?:{_ANSWER_WORDS})[ \t]*+{_MARKS}[ \t]*+"
    rf"(?:\([^()\n]{{1,30}}\)[ \t]*+)?"
    rf"(?:(?:[:：】]+|[-–—](?= )|(?:is|would be|应为|为|是)[ \t]*+[:：]){_OPEN_MARKS}|(?P<heading>(?=\n)))",
    re.IGNORECASE | re.MULTILINE,
)
_HEADING = re.compile(r"^[ \t]*+(?:#{1,6}|\*\*|__)[^\n]*$")
_HASHES = re.compile(r"[ \t]*####[ \t]*+(\S.*)")
_NO_HASH_ANSWER = re.compile(r"(?:\*\*)?(?:step|conclusion|solution|answer|final|explanation|summary)\b", re.IGNORECASE)
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\.|[{}]", re.DOTALL)
_BARE_BOX = re.compile(r"(?<!\\)\\(?:boxed|fbox)[ \t]*([^\s{}\\$]{1,30})")
_BETWEEN_BOXES = re.compile(
    r"(?=.*(?:,|;|，|、|\band\b|\bor\b|和|与|及|或|\\quad|\\qquad))"
    r"(?:[\s,;$，、]|\\[\[\]()]|\\q?quad|\\[ ,;]|\\text(?:rm)?\{[^{}]{0,12}\}|\band\b|\bor\b|和|与|及|或"
    r"|[A-Za-z](?:_\{?\w\}?)?\s*=)*",
    re.DOTALL,
)

_WORDY = r"(?:therefore|thus|hence|clearly|indeed|actually|simply|definitely|most likely|likely|probably|then|also|just|exactly)"
_IS = rf"(?:is|are|was|would be|should be|must be|will be|has to be|can be|becomes|ist|lautet|est|es|é|è)(?: {_WORDY})?(?: given by| equal to| to be)?"
_ANSWER_IS = re.compile(
    r"\b(?:answers?|(?:answer|correct|right|best|appropriate|suitable) (?:option|choice|letter)"
    r"|(?:correct|right|best) (?:answer )?(?:option|choice) letter|(?:correct|right|best) one|option|choice"
    r"|antwort|lösung|réponse|respuesta|resposta|risposta|opción|opção|opzione)"
    r"(?: (?:choice|option|letter|number|here|in this case|(?:to|for|of) [^.\n:]{1,80}?|correcta|correta|correcte|corretta))?,?"
    rf"[ \t]+{_IS}(?: (?:la opción|la opcion|a opção|l'option|die option|l'opzione|option))?\b(?!\s*(?:not|n't|unclear|unknown|incorrect|wrong|correct\b))[ \t]*+[:：]?[ \t]*+",
    re.IGNORECASE,
)
_ASIAN = re.compile(
    r"(?:正确|最终|本题|該題|该题|此题|所以|因此|故|的)?"
    r"(?:答案|正确选项|正确的选项|选项|選項|正解|正しい(?:答え|選択肢)|答え|정답|답)"
    r"(?:应该|应当|应|就)?(?:是|为|選|选择|选|は|:|：|은|는)[:：]?\s*(?!否|什么|哪|不|错|多少)"
    r"|(?:故|应|所以|因此|因而|综上|则|，|,|。|；|^|\s)(?:本题|此题)?(?:应该|应当|应)?(?:选择|选|選)(?:项|項)?(?:择)?(?:为|是)?[:：]?\s*(?=[（(]?[A-Za-z][)）]?(?![A-Za-z]))"
    r"|ответ[ \t]*[-—–:][ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
_OPTION_RIGHT = re.compile(
    r"(?:\b(?:option|choice|answer|letter)\s+)?[*_\"'“]{0,3}(?<![\w\\])(?:\(([A-Z])\)|([A-Z])\)?|选项\s*[（(]?([A-Z])[)）]?)[*_\"'”]{0,3}"
    r"(?:\s+(?:is|must be|should be|would be|seems|appears)(?: to be)?(?: (?:therefore|thus|clearly|indeed|also))?"
    r"(?: the| our| my)?(?: only| most| single)? (?:correct|right|best|true|appropriate|accurate|valid)\b(?! but)"
    r"|\s+is (?:the|our|my) (?:final |correct |right |best )?(?:answer|option|choice|one)\b"
    r"|\s*(?:选项|選項|项)?(?:是|为)?(?:正确|对的|正确的|正解|が正しい|が正解))",
)
_LETTER_AHEAD = r"[*_\"'“]{0,3}(?=\(?(?-i:[A-Z])\)?(?![\w'’])[*_\"'”]{0,3}(?!\s+(?:and|or|is (?:not|wrong|incorrect))\b))"
_CHOSEN = re.compile(
    r"\b(?:(?:choose|chose|pick|picked|select|selected|go with|going with|opt for|settle on|settled on)"
    r"(?: the)?(?: correct)?(?: answer| option| choice| letter){0,2}"
    r"|(?:hence|thus|therefore|so|leads? (?:us )?to|corresponds? (?:to|with)|matches|matching|which is|which gives|that is|this is|it is|so it's|it's|it must be"
    r"|consistent with|points? to|described (?:by|in)|shown in|equal to|same as|namely|represents|represented by|given (?:by|in))"
    rf",?(?: the)?(?: correct)? (?:answer |option |choice |letter )*(?:option|choice|letter|answer|(?=\((?-i:[A-Z])\))))\s*{_LETTER_AHEAD}",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"[\s.,!?*\"'\]})$\\]*(?:(?:or|but|hmm+|oh)[,. ]+)*(?:wait|no\b[,. ]|nope|hold on|is it\b|or is it|that(?:'s| is) (?:wrong|not right|incorrect)"
    r"|let me (?:re|double|check)|actually,? (?:no|wait|that)|is (?:wrong|tempting|incorrect)|fails|does(?: not|n't) work)",
    re.IGNORECASE,
)
_FINAL_HINTS = ("final", "最", "endgültig", "endantwort", "окончат", "최종")
_LINE_HINTS = (
    "answer", "ans", "option", "choice", "letter", "antwort", "lösung", "ergebnis", "réponse", "respuesta", "resposta",
    "risposta", "ответ", "답", "答", "正解", "选项", "選項",
)  # fmt: skip
_DECORATED = re.compile(r"[ \t#>*_✅•-]*")
_NOT = re.compile(r"not\b|n't\b", re.IGNORECASE)
_LONE_STAR = re.compile(r"\*(?=\W*$)|^\W*\*")
_EMPTY = re.compile(r"[\s*_:：]*")
_BLOCK = re.compile(r"\\\[[^\0]{0,400}?\\\]|\$\$[^$]{0,400}\$\$")
_RATHER = re.compile(r",?\s+(?:and )?(?:not|rather than|instead of)\s", re.IGNORECASE)
_HOPE = re.compile(r"[.\s]*\bI hope (?:it|this) is correct\b", re.IGNORECASE)
_POLITE = re.compile(r"(?:です|である|だ|となります|になります|입니다|이다)[。.]?$")
_ABBREVIATION = re.compile(r"(?:\b(?:St|Mt|Dr|Mr|Mrs|Ms|vs|approx|sq|cu|etc|e\.g|i\.e|a\.m|p\.m|Jr|Sr|Inc|Co|Ltd|U\.S)|\b[A-Z]\.[A-Z])$")
_SENTENCE_END = re.compile(r"(?:[.?]|(?<!\d)!)(?=[\s\"'”*_)]|$)|[。！；？]|\n")


def without_thought(response: str) -> str | None:
    """What follows the last closed thought; None if a thought is still open at the end.

    Example:
        >>> without_thought("<think>3?</think>4"), without_thought("3?</think>4"), without_thought("<think>3")
        ('4', '4', None)
    """
    end = max((match.end() for match in CLOSED.finditer(response)), default=0)
    return None if OPENED.search(response, end) else response[end:]


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, or the line's end.

    Example:
        >>> first_sentence("B. BECAUSE it is."), first_sentence("3.5 m. Not 3."), first_sentence("St. Louis. Yes.")
        ('B', '3.5 m', 'St. Louis')
    """
    text = text.lstrip()
    for match in _SENTENCE_END.finditer(text):
        before = text[: match.start()]
        if match[0] == "." and _ABBREVIATION.search(before[-8:]) and match.end() < len(text):
            continue
        if before.strip():
            return before.strip()
    return text.strip()


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and content of every `\boxed{…}` whose brace closes, innermost ones only, and of `\boxed 7`.

    Example:
        >>> [content for _, _, content in boxes(r"\boxed{1} and \boxed{\{2\}} or \fbox{\boxed{3}}")]
        ['1', '\\{2\\}', '3']
    """
    stack: list[tuple[int, int] | None] = []
    found: list[tuple[int, int, str]] = []
    for token in _BOX.finditer(text):
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
    found += [(m.start(), m.end(), m[1].rstrip(".,;")) for m in _BARE_BOX.finditer(text)]
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
        if len(between) > 60 or not _BETWEEN_BOXES.fullmatch(between):
            break
        contents.insert(0, before[2])
        start = before[0]
    distinct = list(dict.fromkeys(contents))
    return Place(start, end, ", ".join(distinct), "box")


def _tags(text: str) -> Iterator[Place]:
    for pattern, rule in ((_TAG, "answer tag"), (_TOKEN_BOX, "token box")):
        for match in pattern.finditer(text):
            content = next((group for group in match.groups() if group), "").strip()
            if content:
                yield Place(match.start(), match.end(), content, rule)


def _last(pattern: re.Pattern[str], text: str) -> deque[re.Match[str]]:
    """The last matches: what was stated long before does not count."""
    return deque(pattern.finditer(text), maxlen=MAX_STATEMENTS)


def _after(text: str, start: int, rule: str, *, prose: bool, at: int) -> Place | None:
    """The answer that stands after a marker: the rest of its line, else the next line that is not empty."""
    line_end = text.find("\n", start)
    line_end = len(text) if line_end < 0 else line_end
    value = text[start:line_end]
    if not value.strip(" \t*_:："):
        start = _EMPTY.match(text, line_end).end()
        block = _BLOCK.match(text, start)
        line_end = text.find("\n", start)
        value = block[0] if block else text[start : line_end if line_end >= 0 else len(text)]
        prose = prose and not block
    value = value.strip()
    if prose:
        value = _RATHER.split(first_sentence(value), maxsplit=1)[0]
    value = _HOPE.split(value, maxsplit=1)[0] if "hope" in value else value
    value = _POLITE.sub("", _half_marked(value.strip()))
    if not re.search(r"[^\s*_.。:：$]", value):
        return None
    begin = max(text.find(value, start), start)
    return Place(at, begin + len(value), value, rule)


def _half_marked(value: str) -> str:
    """`7**` → `7`: the marker's own emphasis ends behind the answer."""
    for mark in ("**", "__"):
        if value.count(mark) == 1:
            value = value.replace(mark, "")
    if value.count("*") == 1:
        value = _LONE_STAR.sub("", value)
    return value.strip()


def _lines(text: str) -> Iterator[Place]:
    lower = text.casefold()
    if any(word in lower for word in _FINAL_HINTS):
        for match in _last(_FINAL, text):
            if match["heading"] is not None and not _DECORATED.fullmatch(text, _line_start(text, match), match.start()):
                continue
            place = _after(text, match.end(), "final answer", prose=match["is"] is not None, at=match.start())
            if place:
                yield place
    if any(word in lower for word in _LINE_HINTS):
        for match in _last(_LINE, text):
            place = _after(text, match.end(), "answer line", prose=False, at=match.start())
            if place:
                yield place
    if ('"' in text or "'" in text) and "{" in text and (found := [*_last(_JSON, text)]):
        short = [match for match in found if match[1].lower().startswith("short")] or found
        value = short[-1][2].strip("\"'").replace('\\"', '"').replace("\\\\", "\\")
        if value.strip():
            yield Place(short[-1].start(), short[-1].end(), value, "json")
    last = text.rfind("\n") + 1  # the text is stripped
    hashes = _HASHES.fullmatch(text, last)
    if hashes and not _NO_HASH_ANSWER.match(hashes[1]):
        yield Place(last, len(text), hashes[1], "hashes")
    boxed = _boxed(text) if "\\boxed" in text or "\\fbox" in text or "\\framebox" in text else None
    if boxed:
        yield boxed


def _line_start(text: str, match: re.Match[str]) -> int:
    return text.rfind("\n", 0, match.start()) + 1


def _prose(text: str) -> Iterator[Place]:
    patterns = [_ANSWER_IS] if text.isascii() else [_ANSWER_IS, _ASIAN]
    for pattern in patterns:
        for match in _last(pattern, text):
            place = _after(text, match.end(), "answer is", prose=True, at=match.start())
            if place and not _NOT.match(place.text):
                yield place


def _letters(text: str) -> Iterator[Place]:
    for match in _last(_CHOSEN, text):
        place = _after(text, match.end(), "chosen", prose=True, at=match.start())
        if place:
            yield place
    for match in _last(_OPTION_RIGHT, text):
        letter = next(group for group in match.groups() if group)
        yield Place(match.start(), match.end(), letter, "option is right")


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
    kept = [place for place in places if not _TAKEN_BACK.match(text, place.end)]
    return sorted(kept, key=lambda place: (place.start, place.end), reverse=True)


def _supersedes(text: str, prose: Place, box: Place) -> bool:
    """Whether a sentence goes before the box: it stands behind it, in another paragraph, and is short and plain."""
    between = text[box.end : prose.start]
    return prose.start > box.end and "\n" in between.strip(" $.") and len(prose.text) <= 40


def contradict(places: Iterable[Place]) -> bool:
    """Whether two final statements of one kind differ, none of them taken back; one may say more than the other.

    Example:
        >>> [contradict(statements(text)) for text in ("Final answer: 5\\nFinal answer: 6", "\\\\boxed{5} \\\\boxed{6}")]
        [True, False]
    """
    final = [place for place in places if place.rule in ("answer tag", "final answer")]
    outer = [p for p in final if any(p.start < other.start < p.end for other in final)]
    texts = [re.sub(r"[^\w-]+", "", place.text).casefold() for place in final if place not in outer]
    shortest = min(texts, key=len, default="")
    return not all(text.startswith(shortest) for text in texts)
