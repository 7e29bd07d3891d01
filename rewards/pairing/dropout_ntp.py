"""Dropout next-token prediction (MPO, arXiv 2411.10442, §2.2): pairs for questions that nobody can verify.

Chosen is a response that the policy wrote while it saw the image. Rejected is the first half of the same response,
continued by the policy *without* the image: what it writes there can only be guessed. The rule needs no verdict, so it
is the one exception to "no unverified response as chosen"; where there is a verdict, it must be `correct`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rewards.kept.calls import Each, Run, each_time, watched
from rewards.pairing.limits import Limits
from rewards.pairing.report import PairAccount, PairingReport
from rewards.sampling.generator import Generator, Sample, Task, as_values, continuations_of
from rewards.types import Completion, FinishReason, PreferencePair, Rollout, RolloutGroup, Verdict, without_images

Encode = Callable[[str], Sequence[Any]]
Decode = Callable[[Sequence[Any]], str]

_ONE_A_WORD = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Chinese and Japanese characters
_WORD = re.compile(rf"\s*(?:[{_ONE_A_WORD}]|[^\W{_ONE_A_WORD}]+|[^\w\s])|\s+")


@dataclass(frozen=True)
class Half:
    """The first half of one rollout of a group."""

    group: RolloutGroup
    index: int
    prefix: str


def half_prefix(text: str, *, encode: Encode, decode: Decode) -> str | None:
    """The text up to the token boundary nearest to its middle that survives tokenisation.

    A boundary counts if the prefix encodes to the very tokens that it was cut from, so that the policy continues as it
    would have inside the response. This also works where words are not separated by spaces: a cut through the bytes
    of one Chinese character is no boundary.

    Args:
        text: a response.
        encode: text → tokens, without special ones.
        decode: tokens → text.

    Returns:
        A prefix with some text on both sides of its end; None if no boundary lies in the middle half of the tokens.

    Example:
        >>> half_prefix("abcdef", encode=lambda text: list(map(ord, text)), decode=lambda ids: "".join(map(chr, ids)))
        'abc'
    """
    ids = list(encode(text))
    middle = len(ids) / 2
    cuts = range(-(-len(ids) // 4), 3 * len(ids) // 4 + 1)
    for cut in sorted(cuts, key=lambda cut: (abs(cut - middle), cut)):
        prefix = decode(ids[:cut])
        if (
            text.startswith(prefix)
            and prefix.strip()
            and text[len(prefix) :].strip()
            and list(encode(prefix)) == ids[:cut]
        ):
            return prefix
    return None


def first_halves(
    group: RolloutGroup, *, encode: Encode, decode: Decode, limits: Limits
) -> tuple[list[Half], Counter[str]]:
    """The halves to continue, of the best-rewarded responses first; and reason → rollouts that give none."""
    rejects: Counter[str] = Counter()
    seen: set[str] = set()
    usable: list[int] = []
    for index, rollout in enumerate(group.rollouts):
        reason = _not_positive(group, rollout, seen)
        if reason:
            rejects[reason] += 1
        else:
            seen.add(rollout.completion.text.strip())
            usable.append(index)
    halves: list[Half] = []
    for index in sorted(usable, key=lambda i: (-(group.rollouts[i].reward or 0.0), i)):
        prefix = half_prefix(group.rollouts[index].completion.text, encode=encode, decode=decode)
        if prefix is None:
            rejects["no_token_boundary_in_the_middle"] += 1
        elif len(halves) == limits.max_pairs:
            rejects["over_max_pairs"] += 1
        else:
            halves.append(Half(group, index, prefix))
    return halves, rejects


def dropout_pair(half: Half, continuation: Completion, limits: Limits = Limits()) -> PreferencePair | str:
    """The pair of a response and its blind continuation, or why there is none."""
    rollout = half.group.rollouts[half.index]
    if not continuation.text.strip():
        return "empty_continuation"
    text = half.prefix + continuation.text
    if text.strip() == rollout.completion.text.strip():
        return "continued_as_it_was"
    if not limits.length_fits(text, rollout.completion.text):
        return "not_of_its_length"
    rejected = Completion(text, continuation.finish_reason, continuation.num_tokens)
    meta = {"chosen_index": half.index, "chosen_reward": rollout.reward, "shared_characters": len(half.prefix)}
    return PreferencePair(half.group.problem, rollout.completion, rejected, "dropout_ntp", meta)


def blind_text(task: Task, samples: Sequence[Sample]) -> list[Any]:
    """What a call keeps, as JSON values: text, finish reason and tokens of each; None for one that was refused."""
    return [as_values(sample.completion) for sample in samples]


class BlindContinuer:
    """Makes one call of `dropout_ntp` with a generator, the policy that wrote the responses."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def __call__(self, task: Task) -> list[Any]:
        """`blind_text` of the call's continuations, in order."""
        return blind_text(task, continuations_of(self.generator, task))


def dropout_ntp(
    groups: Sequence[RolloutGroup],
    limits: Limits,
    *,
    run: Run,
    encode: Encode,
    decode: Decode,
    seed: int,
    rows_a_call: int = 64,
    each: Each = each_time,
    on_drawn: Callable[[int], object] = lambda number: None,
) -> tuple[list[PreferencePair], PairingReport]:
    """Continue the halves of every problem without its images.

    Args:
        groups: sampled responses; verdicts and rewards are used where there are some.
        limits: `max_pairs` and `max_length_ratio` are read.
        run: makes the calls, each of which draws one continuation per half: a `BlindContinuer` in this process
            (`in_turn`) or on several workers, or servers (`side_by_side` with `blind_text`).
        encode: text → tokens: the policy's tokenizer, without special tokens, or `words`.
        decode: the inverse, special tokens kept.
        seed: changes the draw.
        rows_a_call: continuations per call, at most.
        each: keeps what each call gave, so that a killed run resumes (`CallStore.each`).
        on_drawn: told the number of continuations of each call that was made, or was kept.

    Returns:
        Pairs in the order of the problems, and the report; a ruler that asks for the first sample does not apply.
    """
    halves: list[Half] = []
    reasons: dict[str, Counter[str]] = {}
    for group in groups:
        found, reasons[group.problem.id] = first_halves(group, encode=encode, decode=decode, limits=limits)
        halves += found
    parts = [halves[start : start + rows_a_call] for start in range(0, len(halves), rows_a_call)]
    calls = [(_about(part, seed), _task(part, seed)) for part in parts]
    told = watched(run, len(halves), lambda task: len(task.prefixes), on_drawn)
    drawn = [made for part in each(calls, told) for made in part]
    pairs: dict[str, list[PreferencePair]] = {group.problem.id: [] for group in groups}
    for half, made in zip(halves, drawn, strict=True):
        pair = "continuation_refused" if made is None else dropout_pair(half, _completion(*made), limits)
        if isinstance(pair, str):
            reasons[half.group.problem.id][pair] += 1
        else:
            pairs[half.group.problem.id].append(pair)
    account = PairAccount()
    for group in groups:
        own, why = pairs[group.problem.id], reasons[group.problem.id]
        most = min(why, key=lambda reason: (-why[reason], reason), default="no_rollouts")
        account.add(own, rejected=why, why_none="" if own else most)
    return [pair for own in pairs.values() for pair in own], account.report()


def words(text: str) -> list[str]:
    """The words of a text, each with the space before it: what a half is cut into where there is no tokenizer.

    A Chinese or Japanese character is a word, and so is a punctuation mark. `"".join` is the inverse.

    Example:
        >>> words("See 3.  图中")
        ['See', ' 3', '.', '  图', '中']
    """
    return _WORD.findall(text)


def _about(part: Sequence[Half], seed: int) -> list[Any]:
    return ["dropout", seed, [[half.group.problem.id, half.group.problem.question, half.prefix] for half in part]]


def _task(part: Sequence[Half], seed: int) -> Task:
    return Task([without_images(half.group.problem) for half in part], [half.prefix for half in part], 1, seed)


def _completion(text: str, reason: str, tokens: int) -> Completion:
    return Completion(text, FinishReason(reason), tokens)


def _not_positive(group: RolloutGroup, rollout: Rollout, seen: set[str]) -> str | None:
    text = rollout.completion.text.strip()
    verifiable = bool((group.problem.answer or "").strip())
    if not group.problem.images:
        return "no_images"
    if not text:
        return "empty"
    if rollout.completion.finish_reason is FinishReason.LENGTH:
        return "truncated"
    if rollout.verdict is None and verifiable:
        return "no_verdict"
    if rollout.verdict is not None and rollout.verdict is not Verdict.CORRECT:
        return f"verdict_{rollout.verdict.value}"
    if rollout.is_disputed:
        return "disputed_verdict"
    return "duplicate_text" if text in seen else None
