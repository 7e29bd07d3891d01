# ruff: noqa: E501 - tables of words
r"""How responses phrase their final answer, in several languages: the patterns behind the rules of `places.py`.

Every pattern is linear in the text's length: repetitions are possessive, bounded, or followed by what they cannot match.
"""

from __future__ import annotations

import re

CLOSED = re.compile(r"</(?:think|thinking|thought|reasoning)>|◁/think▷|<\|/think\|>|</seed:think>", re.IGNORECASE)
OPENED = re.compile(r"<(?:think|thinking|thought|reasoning)>|◁think▷|<\|think\|>|<seed:think>", re.IGNORECASE)
TAG = re.compile(
    r"<(?:final_)?answer>(.*?)(?:</(?:final_)?answer>|$)|\[ANSWER\](.*?)(?:\[/ANSWER\]|$)", re.DOTALL | re.IGNORECASE
)
JSON = re.compile(
    r"""["'](short[ _-]?answer|final[ _-]?answer|answer|final|choice|option|correct[ _]?(?:answer|option)|答案)["']\s*:\s*"""
    r"""("(?:[^"\\]|\\.){0,2000}"|'[^'\n]{0,200}'|-?[\d.]+(?:[eE][+-]?\d+)?|true|false)""",
    re.IGNORECASE,
)
TOKEN_BOX = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|$)", re.DOTALL)

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
    r"|antwoord|odpowiedź|cevap|jawaban|đáp án|پاسخ|الإجابة|الجواب|उत्तर|คำตอบ"
    r"|【?(?:正确|正確な|所以|因此|故)?(?:答案|选项|選項|回答|解答|答え|正解|答))"
)
_MARKS = r"(?:\*\*|__|\*|_)?"
_OPEN_MARKS = r"(?:[ \t]*(?:\*\*|__|\*(?=\S)))?"
FINAL = re.compile(
    rf"(?:{_FINAL_WORDS})[ \t]*+{_MARKS}[ \t]*+(?:\([^()\n]{{1,40}}\)[ \t]*+)?{_MARKS}[ \t]*+"
    rf"(?:(?P<colon>[:：=]|为[:：]?|是[:：]|は[:：]|->|→){_OPEN_MARKS}"
    rf"|(?P<is>(?:is|are|是|は|ist|est|es|é|è)\b[ \t]*+[:：]?{_OPEN_MARKS})|(?P<heading>(?=\n)))",
    re.IGNORECASE,
)
LINE = re.compile(
    rf"(?:^[ \t#>*_✅➡️•-]*+(?:\d{{1,2}}[.)][ \t]*)?|(?<=[.!?。！]) +|(?<=\n\n))(?:{_ANSWER_WORDS})[ \t]*+{_MARKS}[ \t]*+"
    rf"(?:\([^()\n]{{1,30}}\)[ \t]*+)?"
    rf"(?:(?:[:：】]+|[-–—](?= )|(?:is|would be|应为|为|是)[ \t]*+[:：]){_OPEN_MARKS}|(?P<heading>(?=\n)))",
    re.IGNORECASE | re.MULTILINE,
)
_HEADING = re.compile(r"^[ \t]*+(?:#{1,6}|\*\*|__)[^\n]*$")
HASHES = re.compile(r"[ \t]*####[ \t]*+(\S.*)")
NO_HASH_ANSWER = re.compile(r"(?:\*\*)?(?:step|conclusion|solution|answer|final|explanation|summary)\b", re.IGNORECASE)
BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{|\\.|[{}]", re.DOTALL)
BARE_BOX = re.compile(r"(?<!\\)\\(?:boxed|fbox)[ \t]*([^\s{}\\$]{1,30})")
BETWEEN_BOXES = re.compile(
    r"(?=.*(?:,|;|，|、|\band\b|\bor\b|和|与|及|或|\\quad|\\qquad))"
    r"(?:[\s,;$，、]|\\[\[\]()]|\\q?quad|\\[ ,;]|\\text(?:rm)?\{[^{}]{0,12}\}|\band\b|\bor\b|和|与|及|或"
    r"|[A-Za-z](?:_\{?\w\}?)?\s*=)*",
    re.DOTALL,
)

_WORDY = r"(?:therefore|thus|hence|clearly|indeed|actually|simply|definitely|most likely|likely|probably|then|also|just|exactly)"
_IS = rf"(?:is|are|was|would be|should be|must be|will be|has to be|can be|becomes|ist|lautet|est|es|é|è)(?: {_WORDY})?(?: given by| equal to| to be)?"
ANSWER_IS = re.compile(
    r"\b(?:answers?|(?:answer|correct|right|best|appropriate|suitable) (?:option|choice|letter)"
    r"|(?:correct|right|best) (?:answer )?(?:option|choice) letter|(?:correct|right|best) one|option|choice"
    r"|antwort|lösung|réponse|respuesta|resposta|risposta|opción|opção|opzione)"
    r"(?: (?:choice|option|letter|number|here|in this case|(?:to|for|of) [^.\n:]{1,80}?|correcta|correta|correcte"
    r"|corretta))?,?"
    rf"[ \t]+{_IS}(?: (?:la opción|la opcion|a opção|l'option|die option|l'opzione|option))?\b(?!\s*(?:not|n't"
    rf"|unclear|unknown|incorrect|wrong|correct\b))[ \t]*+[:：]?[ \t]*+",
    re.IGNORECASE,
)
ASIAN = re.compile(
    r"(?:正确|最终|本题|該題|该题|此题|所以|因此|故|的)?"
    r"(?:答案|正确选项|正确的选项|选项|選項|正解|正しい(?:答え|選択肢)|答え|정답|답)"
    r"(?:应该|应当|应|就)?(?:是|为|選|选择|选|は|:|：|은|는)[:：]?\s*(?!否|什么|哪|不|错|多少)"
    r"|(?:故|应|所以|因此|因而|综上|则|，|,|。|；|^|\s)(?:本题|此题)?(?:应该|应当|应)?(?:选择|选|選)(?:项|項)?(?:择)?(?:为"
    r"|是)?[:：]?\s*(?=[（(]?[A-Za-z][)）]?(?![A-Za-z]))"
    r"|ответ[ \t]*[-—–:][ \t]*",
    re.IGNORECASE | re.MULTILINE,
)
OPTION_RIGHT = re.compile(
    r"(?:\b(?:option|choice|answer|letter)\s+)?[*_\"'“]{0,3}(?<![\w\\])(?:\(([A-Z])\)|([A-Z])\)?"
    r"|选项\s*[（(]?([A-Z])[)）]?)[*_\"'”]{0,3}"
    r"(?:,?\s+(?P<text>\([^()\n]{1,80}\)|[\"“][^\"”\n]{1,80}[\"”]),?)?"
    r"(?:\s+(?:is|must be|should be|would be|seems|appears)(?: to be)?(?: (?:therefore|thus|clearly|indeed|also))?"
    r"(?: the| our| my)?(?: only| most| single)?"
    r" (?:(?:correct|right|best)\b(?! but| angle| triangle| side| hand| leg| half| end| of\b)"
    r"|(?P<judged>true|appropriate|accurate|valid)\b(?! but))"
    r"|\s+is (?:the|our|my) (?:final |correct |right |best )?(?:answer|option|choice|one)\b"
    r"|\s*(?:选项|選項|项)?(?:是|为)?(?:正确|对的|正确的|正解|が正しい|が正解))"
    r"|\(([A-Z])\) (?:(?!\b(?:is|are|not|and|but|or)\b)[^().,;:\n]){1,60}? is (?:the |our |my )?(?:correct|right|best)"
    r" (?:answer|option|choice|one)\b",
)
_LETTER_AHEAD = (
    r"[*_\"'“]{0,3}(?=\(?(?-i:[A-Z])\)?(?![\w'’])[*_\"'”]{0,3}(?!\s+(?:and|or|is (?:not|wrong|incorrect))\b))"
)
CHOSEN = re.compile(
    r"\b(?:(?:choose|chose|pick|picked|select|selected|go with|going with|opt for|settle on|settled on)"
    r"(?: the)?(?: correct)?(?: answer| option| choice| letter){0,2}"
    r"|(?:hence|thus|therefore|so|leads? (?:us )?to|corresponds? (?:to|with)|matches|matching|which is|which gives"
    r"|that is|this is|it is|so it's|it's|it must be"
    r"|consistent with|points? to|described (?:by|in)|shown in|equal to|same as|namely|represents|represented by"
    r"|given (?:by|in))"
    rf",?(?: the)?(?: correct)? (?:answer |option |choice |letter )*(?:option|choice|letter|answer"
    rf"|(?=\((?-i:[A-Z])\))))\s*{_LETTER_AHEAD}",
    re.IGNORECASE,
)
CONDITION = re.compile(r"(?:^|[.!?\n])\s*(?:if|when|unless)\b[^.!?\n]*\Z", re.IGNORECASE)
TAKEN_BACK = re.compile(
    r"[\s.,!?*\"'\]})$\\]*(?:(?:or|but|hmm+|oh)[,. ]+)*(?:wait|no\b[,.:]?\s+(?=wait|actually|sorry|hold|hmm"
    r"|let me|i (?:was|mis|made|mean)|(?:that|this)(?:'s| is| was| can)|it(?:'s| is| must| should)"
    r" (?:\(?(?-i:[A-H])\b|wrong|incorrect|not right|be\b|\d)|the (?:answer|correct|right)|[\\$*\d]"
    r"|\(?(?-i:[A-H])\b(?!['’\w]))|nope|hold on|is it\b|or is it|that(?:'s"
    r"| is) (?:wrong|not right|incorrect)"
    r"|let me (?:re|double|check)|actually,? (?:no|wait|that)|is (?:wrong|tempting|incorrect)|fails|does(?: not"
    r"|n't) work)",
    re.IGNORECASE,
)
FINAL_HINTS = ("final", "最", "endgültig", "endantwort", "окончат", "최종")
LINE_HINTS = (
    "answer", "ans", "option", "choice", "letter", "antwort", "lösung", "ergebnis", "réponse", "respuesta", "resposta",
    "risposta", "ответ", "답", "答", "正解", "选项", "選項", "antwoord", "odpowiedź", "cevap", "jawaban", "đáp", "پاسخ", "الإجابة",
    "الجواب", "उत्तर", "คำตอบ",
)  # fmt: skip
DECORATED = re.compile(r"[ \t#>*_✅•-]*")
NOT = re.compile(r"not\b|n't\b", re.IGNORECASE)
LONE_STAR = re.compile(r"\*(?=\W*$)|^\W*\*")
EMPTY = re.compile(r"[\s*_:：]*")
BLOCK = re.compile(r"\\\[[^\0]{0,400}?\\\]|\$\$[^$]{0,400}\$\$")
RATHER = re.compile(r",?\s+(?:and )?(?:not|rather than|instead of)\s", re.IGNORECASE)
HOPE = re.compile(r"[.\s]*\bI hope (?:it|this) is correct\b", re.IGNORECASE)
POLITE = re.compile(r"(?:です|である|だ|となります|になります|입니다|이다)[。.]?$")
ABBREVIATION = re.compile(
    r"(?:\b(?:St|Mt|Dr|Mr|Mrs|Ms|vs|approx|sq|cu|etc|e\.g|i\.e|a\.m|p\.m|Jr|Sr|Inc|Co|Ltd|U\.S)|\b[A-Z]\.[A-Z])$"
)
SENTENCE_END = re.compile(r"(?:[.?]|(?<!\d)!)(?=[\s\"'”*_)]|$)|[。！；？]|\n")
_COURTESY_SENTENCE = (
    r"(?:i hope (?:this|that|these)\b|(?:please |just )?let me know\b|is there anything else\b|(?:please )?feel free\b"
    r"|(?:do|would) you (?:have any|have other|want|need|like)\b|if you (?:have|need|want|would like) (?:any|more"
    r"|further|other|help|me)\b|i(?:'m| am| would be|'d be) (?:happy|glad) to\b|have a (?:nice|great|good)\b)"
)
COURTESY = re.compile(
    rf"(?:\A|(?<=[.!?*_)}}\n。！？]))\s*+(?:{_COURTESY_SENTENCE})[^.!?\n]*+[.!?]*\s*\Z", re.IGNORECASE
)
NEXT_QUESTION = re.compile(
    r"\n[ \t]*\n[ \t]*(?:\*\*|#{1,4} )?(?:question|problem|q|问题|题目)(?: ?\d{1,3})?(?:\*\*)?[:：]", re.IGNORECASE
)
OPTION_LINE = re.compile(r"^[ \t>*_-]*+\(?([A-Z])[).:][*_]*[ \t]+(\S[^\n]{0,160})$\n?|^[ \t]*\n", re.MULTILINE)
JUDGES = re.compile(
    r"\b(?:is|are|was|seems|must be)\s+(?:the |not )?(?:correct|right|true|false|wrong|incorrect|best|answer)\b"
    r"|\b(?:correct|incorrect|wrong|answer|because|since|eliminate\w*)\b|[✓✔✗✘❌✅]|正确|错",
    re.IGNORECASE,
)
