"""DropoutNTP: the cut against real tokenizers, what may be a positive, and the whole rule with a tiny real model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mpo.multimodal.errors import DataError
from rewards.kept.calls import in_turn
from rewards.pairing.dropout_ntp import (
    BlindContinuer,
    Half,
    dropout_ntp,
    dropout_pair,
    first_halves,
    half_prefix,
    words,
)
from rewards.pairing.limits import Limits
from rewards.sampling.generator import Generator, Sample
from rewards.types import Completion, FinishReason, Problem, Rollout, RolloutGroup, Verdict

C, W = Verdict.CORRECT, Verdict.WRONG
PICTURE = Image.new("RGB", (8, 8))
CHINESE = "图中有三个红色的圆形和两个蓝色的正方形，所以一共有五个图形。答案是五。"


def byte_level() -> Tokenizer:
    """A byte-level BPE as Qwen and InternVL use it, small: most Chinese characters take three tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["the red circle is left of the blue square", "so the answer is three", "图中有三个红色"] * 4
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return tokenizer


BYTES = byte_level()


def encode(text):
    return BYTES.encode(text, add_special_tokens=False).ids


def decode(ids):
    return BYTES.decode(list(ids), skip_special_tokens=False)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.sampled_from([CHINESE, "the red circle is left of the blue square", "é" * 9]))
def test_the_cut_is_a_token_boundary_of_the_text(text):
    prefix = half_prefix(text, encode=encode, decode=decode)
    if prefix is not None:
        ids = encode(text)
        cut = len(encode(prefix))
        assert encode(prefix) == ids[:cut]
        assert text.startswith(prefix)
        assert prefix.strip()
        assert text[len(prefix) :].strip()
        assert len(ids) / 4 <= cut <= 3 * len(ids) / 4
        nearer = [k for k in range(1, len(ids)) if abs(k - len(ids) / 2) < abs(cut - len(ids) / 2)]
        assert not any(
            text.startswith(decode(ids[:k])) and encode(decode(ids[:k])) == ids[:k]
            and decode(ids[:k]).strip() and text[len(decode(ids[:k])) :].strip()
            for k in nearer
        )  # fmt: skip


def test_chinese_is_cut_near_its_middle_and_not_inside_a_character():
    """One word to a splitter at spaces; three bytes a character to the tokenizer."""
    prefix = half_prefix(CHINESE, encode=encode, decode=decode)
    assert CHINESE.startswith(prefix)
    assert abs(len(encode(prefix)) / len(encode(CHINESE)) - 0.5) < 0.05
    middle = len(encode(CHINESE)) // 2
    assert any("\N{REPLACEMENT CHARACTER}" in decode(encode(CHINESE)[:k]) for k in range(middle - 3, middle + 3))


def test_a_tokenizer_that_changes_the_text_gives_no_cut():
    lossy = Tokenizer(models.BPE())
    lossy.normalizer = normalizers.Lowercase()
    lossy.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    lossy.decoder = decoders.ByteLevel()
    lossy.train_from_iterator(["abc"], trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    found = half_prefix("ABC DEF", encode=lambda t: lossy.encode(t).ids, decode=lambda ids: lossy.decode(list(ids)))
    assert found is None
    for short in ("", " ", "a", "a "):
        assert half_prefix(short, encode=encode, decode=decode) is None


def group_of(*rows, answer=None, images=(PICTURE,), id="p"):
    rollouts = tuple(Rollout(Completion(t, f), verdict=v, reward=r) for t, v, r, f in rows)
    return RolloutGroup(Problem(id, "What is this?", images, answer), rollouts)


STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH


@pytest.mark.parametrize(
    ("row", "group", "reason"),
    [
        (("a red circle", None, None, LENGTH), {}, "truncated"),
        ((" \n", None, None, STOP), {}, "empty"),
        (("a red circle", W, None, STOP), {}, "verdict_wrong"),
        (("a red circle", None, None, STOP), {"answer": "circle"}, "no_verdict"),
        (("a red circle", None, None, STOP), {"images": ()}, "no_images"),
        (("ab", None, None, STOP), {}, None),
        (("a", None, None, STOP), {}, "no_token_boundary_in_the_middle"),
        (("a red circle", C, None, STOP), {"answer": "circle"}, None),
    ],
)
def test_what_may_be_a_positive(row, group, reason):
    halves, rejects = first_halves(group_of(row, **group), encode=encode, decode=decode, limits=Limits(max_pairs=3))
    assert rejects == ({reason: 1} if reason else {})
    assert len(halves) == (reason is None)


def test_the_best_rewarded_come_first_and_no_text_twice():
    rows = [("one circle", None, 0.1, STOP), ("two circles", None, 0.9, STOP), (" one circle", None, 0.8, STOP)]
    halves, rejects = first_halves(group_of(*rows), encode=encode, decode=decode, limits=Limits(max_pairs=1))
    assert [half.index for half in halves] == [1]
    assert rejects == {"duplicate_text": 1, "over_max_pairs": 1}


def test_a_continuation_that_gives_no_pair():
    half = Half(group_of(("a red circle", None, None, STOP)), 0, "a red")
    assert dropout_pair(half, Completion(" circle\n")) == "continued_as_it_was"
    assert dropout_pair(half, Completion(" ")) == "empty_continuation"
    pair = dropout_pair(half, Completion(" square", LENGTH, 2))
    assert (pair.chosen.text, pair.rejected) == ("a red circle", Completion("a red square", LENGTH, 2))
    assert pair.problem.images == (PICTURE,)  # the pair is about the image; only the continuation was blind


def test_the_whole_rule_with_a_real_model(policy, processor):
    from rewards.sampling.transformers_generator import SamplingParams, TransformersGenerator

    tokenizer = processor.tokenizer
    groups = [
        group_of(("See Red 3\n\nNow 3\n\nFinal answer: 3", None, None, STOP), id="a"),
        group_of(("See Red 3", None, None, LENGTH), id="b"),
        group_of(id="c"),
    ]
    pairs, report = dropout_ntp(
        groups,
        Limits(max_pairs=2),
        run=in_turn(BlindContinuer(TransformersGenerator(policy, processor, SamplingParams(max_new_tokens=8)))),
        encode=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        seed=0,
    )
    (pair,) = pairs
    assert pair.chosen == groups[0].rollouts[0].completion
    shared = pair.meta["shared_characters"]
    assert 0 < shared < len(pair.chosen.text)
    assert pair.rejected.text[:shared] == pair.chosen.text[:shared]
    assert pair.rejected.text != pair.chosen.text
    assert report.dropped == {"no_rollouts": 1, "truncated": 1}
    assert (report.problems_in, report.problems_with_pairs, report.sources) == (3, 1, {"dropout_ntp": 1})
    assert set(report.blind_rulers) == {"longest", "shortest"}


def test_the_continuation_is_drawn_without_the_image_and_miscounts_are_refused():
    asked = []

    class Recorder(Generator):
        def draw(self, problems, n, *, prefixes=None, seed, done=frozenset()):
            asked.extend(zip(problems, prefixes, strict=True))
            for place in range(len(problems[: self.keep])):
                yield [Sample(place, 0, seed, Completion(" something else"))]

    generator, groups = Recorder(), [group_of(("a red circle", None, None, STOP))]
    generator.keep = 1
    options = {"run": in_turn(BlindContinuer(generator)), "encode": encode, "decode": decode, "seed": 0}
    dropout_ntp(groups, Limits(max_pairs=1), **options)
    ((problem, prefix),) = asked
    assert problem.images == ()
    assert "a red circle".startswith(prefix)
    generator.keep = 0
    with pytest.raises(DataError, match="expected 1 continuations, got 0: they would be other prefixes'"):
        dropout_ntp(groups, Limits(max_pairs=1), **options)


def test_calls_are_cut_and_a_refused_continuation_gives_no_pair() -> None:
    """Two halves a call; what the second call gives for its first half is a refusal."""
    sizes = []

    class Refuser(Generator):
        def draw(self, problems, n, *, prefixes=None, seed, done=frozenset()):
            sizes.append(len(problems))
            for place, prefix in enumerate(prefixes):
                made = Completion(f" and {prefix}") if len(sizes) != 2 or place else None
                yield [Sample(place, 0, seed, made, "" if made else "too long")]

    groups = [group_of(("a red circle", None, None, STOP), id=str(i)) for i in range(5)]
    options = {"encode": words, "decode": "".join, "seed": 0, "rows_a_call": 2}
    told: list[int] = []
    run = in_turn(BlindContinuer(Refuser()))
    pairs, report = dropout_ntp(groups, Limits(max_pairs=1), run=run, on_drawn=told.append, **options)
    assert sizes == told == [2, 2, 1]
    assert [pair.problem.id for pair in pairs] == ["0", "1", "3", "4"]
    assert report.dropped == {"continuation_refused": 1}


@given(st.text(max_size=60))
def test_words_hold_the_whole_text(text: str) -> None:
    assert "".join(words(text)) == text
    prefix = half_prefix(text, encode=words, decode="".join)
    assert prefix is None or text.startswith(prefix)


def test_chinese_is_cut_between_characters_without_a_tokenizer() -> None:
    prefix = half_prefix(CHINESE, encode=words, decode="".join)
    assert abs(len(prefix) / len(CHINESE) - 0.5) < 0.05


def test_a_prefix_that_encodes_to_other_tokens_is_no_boundary():
    """Here a final "c" has a token of its own, so "abc" is not what "abcdef" begins with; "ab" is the next nearest."""

    def encode(text):
        return [1000 if sign == "c" and i == len(text) - 1 else ord(sign) for i, sign in enumerate(text)]

    found = half_prefix("abcdef", encode=encode, decode=lambda ids: "".join("c" if i == 1000 else chr(i) for i in ids))
    assert found == "ab"
