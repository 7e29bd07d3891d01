"""Dropout next-token prediction (MPO, arXiv 2411.10442, §2.2): pairs for questions that nobody can verify.

Chosen is a response that the policy wrote while it saw the image. Rejected is the first half of the same response,
continued by the policy *without* the image: what it writes there can only be guessed. The rule needs no verdict, so it
is the one exception to "no unverified response as chosen"; where there is a verdict, it must be `correct`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rewards.pairing.limits import Limits
from rewards.pairing.report import PairAccount, PairingReport
from rewards.sampling.generator import Generator
from rewards.types import Completion, FinishReason, PreferencePair, Rollout, RolloutGroup, Verdict, without_images

Encode = Callable[[str], Sequence[int]]
Decode = Callable[[Sequence[int]], str]


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
        encode: text → token ids, without special tokens.
        decode: token ids → text.

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


def dropout_ntp(
    groups: Sequence[RolloutGroup],
    limits: Limits,
    *,
    generator: Generator,
    encode: Encode,
    decode: Decode,
    seed: int,
) -> tuple[list[PreferencePair], PairingReport]:
    """Continue the halves of every problem without its images, all in one call of the generator.

    Args:
        groups: sampled responses; verdicts and rewards are used where there are some.
        limits: `max_pairs` and `max_length_ratio` are read.
        generator: the policy that wrote the responses; it draws one continuation per half.
        encode: its tokenizer's, without special tokens.
        decode: the inverse, special tokens kept.
        seed: changes the draw.

    Returns:
        Pairs in the order of the problems, and the report; a ruler that asks for the first sample does not apply.
    """
    halves: list[Half] = []
    reasons: dict[str, Counter[str]] = {}
    for group in groups:
        found, reasons[group.problem.id] = first_halves(group, encode=encode, decode=decode, limits=limits)
        halves += found
    blind = [without_images(half.group.problem) for half in halves]
    drawn = generator.generate(blind, 1, prefixes=[half.prefix for half in halves], seed=seed) if halves else []
    pairs: dict[str, list[PreferencePair]] = {group.problem.id: [] for group in groups}
    for half, (continuation,) in zip(halves, drawn, strict=True):
        made = dropout_pair(half, continuation, limits)
        if isinstance(made, str):
            reasons[half.group.problem.id][made] += 1
        else:
            pairs[half.group.problem.id].append(made)
    account = PairAccount()
    for group in groups:
        own, why = pairs[group.problem.id], reasons[group.problem.id]
        most = min(why, key=lambda reason: (-why[reason], reason), default="no_rollouts")
        account.add(own, rejected=why, why_none="" if own else most)
    return [pair for own in pairs.values() for pair in own], account.report()


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
