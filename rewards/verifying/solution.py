"""What of a response is read for its answer: behind the thought, without closing phrases and repeated options."""

from __future__ import annotations

import re

from rewards.verifying import phrases

_CLOSING_SENTENCES, _CLOSING_CHARACTERS = 6, 400
_SPECIAL_END = re.compile(r"(?:<\|[A-Za-z_]{2,24}\|>|</s>|<eos>|<end_of_turn>)\Z")


def solution(response: str) -> str | None:
    """What follows the last thought, without end-of-turn tokens and closing phrases; None if a thought is open.

    Example:
        >>> solution("<think>3?</think>It is 4.</s>"), solution("It is 4.\\n\\nI hope this helps!")
        ('It is 4.', 'It is 4.')
    """
    text = without_thought(response)
    if text is None:
        return None
    text = text.strip().lstrip("\u200b\u2060\ufeff").lstrip()
    while (
        text.endswith(">") and (end := _SPECIAL_END.search(text, max(0, len(text) - 32))) and end[0] != "<|end_of_box|>"
    ):
        text = text[: end.start()].rstrip()
    return without_courtesy(text)


def without_thought(response: str) -> str | None:
    """What follows the last closed thought; None if a thought is still open at the end.

    Example:
        >>> without_thought("<think>3?</think>4"), without_thought("3?</think>4"), without_thought("<think>3")
        ('4', '4', None)
    """
    end = max((match.end() for match in phrases.CLOSED.finditer(response)), default=0)
    rest = response[end:]
    return None if phrases.OPENED.search(rest) else rest


def without_courtesy(text: str) -> str:
    """Without closing phrases such as "I hope this helps! Do you have other questions?".

    Example:
        >>> without_courtesy("It is **6 m**.\\n\\nI hope this helps! Let me know if you have any other questions.")
        'It is **6 m**.'
    """
    for _ in range(_CLOSING_SENTENCES):
        tail = max(0, len(text) - _CLOSING_CHARACTERS)
        match = phrases.COURTESY.search(text, tail)
        if match is None or not text[: match.start()].strip():
            return text
        text = text[: match.start()].rstrip()
    return text


def without_option_lists(text: str) -> str:
    r"""Without lists that only repeat the options: lines "(A) …", "(B) …" in a row that judge none of them.

    Example:
        >>> without_option_lists("Which one?\n(A) 12\n(B) 14\nIt is (B).").split()
        ['Which', 'one?', 'It', 'is', '(B).']
    """
    if "A)" not in text and "A." not in text and "A:" not in text:
        return text
    kept, run = [], list[re.Match[str]]()
    at = 0
    for match in [*phrases.OPTION_LINE.finditer(text), None]:
        letters = "".join(one[1] or "" for one in run)
        expected = chr(65 + len(letters))
        if match and (not run or match.start() == run[-1].end()) and (match[1] in (None, expected)):
            run.append(match)
            continue
        if len(letters) > 1 and not any(phrases.JUDGES.search(one[2] or "") for one in run):
            kept.append(text[at : run[0].start()])
            at = run[-1].end()
        run = [match] if match and match[1] in (None, "A") else []
    return "\n".join([*kept, text[at:]]).strip() if kept else text
