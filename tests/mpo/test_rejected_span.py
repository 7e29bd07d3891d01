"""Spans of the rejected response: which tokens count, what the batch and the losses make of them, in whole runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mpo.admission import admit
from mpo.collator import PreferenceCollator
from mpo.doctor.preflight import preflight
from mpo.forward import pair_logps
from mpo.losses import mpo_loss
from mpo.multimodal.errors import ConfigError, DataError
from mpo.multimodal.images import load_image
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.logps import enable_chunked_logps
from mpo.multimodal.messages import prompt_text, response_ids
from mpo.multimodal.packing import LAYOUT
from mpo.multimodal.scoring import response_logps
from mpo.multimodal.shared_prefix import enable_shared_prefix
from mpo.spans import checked_span, tokens_of_span
from mpo.trainer import MPOTrainer
from mpo.types import PairLogps
from tests.mpo.tiny import preference_row, preference_rows, tiny_config, tiny_internvl

STEPS = "See 3\n\nNow 12\n\nFinal 8"  # rejected; spans of its three steps: [0, 7), [7, 15), [15, 22)


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(tiny_internvl())


class Tokenizing:
    """The one thing of a processor that `tokens_of_span` reads."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


def byte_level() -> Tokenizing:
    """A token per byte, as byte-level BPE falls back to for rare characters."""
    vocabulary = {byte: index for index, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return Tokenizing(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def words() -> Tokenizing:
    """A token per word; whitespace is dropped."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0, "two": 1, "plus": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizing(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?"))


def spelled(of: Any, text: str, span: tuple[int, int], *, truncated: bool = False) -> list[str]:
    """The counted tokens; "EOT" for what follows the text."""
    ids = [*of.tokenizer(text, add_special_tokens=False)["input_ids"], *([] if truncated else [10**6])]
    start, end = tokens_of_span(of, text, span, ids) or (0, len(ids))
    return ["EOT" if i == 10**6 else of.tokenizer.decode([i]) for i in ids[start:end]]


def test_tokens_that_overlap_the_span_count() -> None:
    of = words()
    assert spelled(of, "two plus two", (4, 8)) == ["plus"]
    assert spelled(of, "two plus two", (4, 5)) == ["plus"]  # a part of it is enough
    assert spelled(of, "two plus two", (2, 5)) == ["two", "plus"]
    assert spelled(of, "two plus two", (3, 9)) == ["plus"]  # the borders lie in whitespace
    assert spelled(of, "two plus two", (3, 10)) == ["plus", "two"]


def test_the_end_of_turn_belongs_to_the_end_of_the_text() -> None:
    of = words()
    assert spelled(of, "two plus two", (9, 12)) == ["two", "EOT"]
    assert spelled(of, "two plus two", (9, 11)) == ["two"]
    assert spelled(of, "two plus\n", (4, 8)) == ["plus", "EOT"]  # nothing but whitespace is left
    assert spelled(of, "two plus two", (9, 12), truncated=True) == ["two"]


def test_characters_of_several_tokens() -> None:
    """Spans are in characters, whatever their bytes: é has two tokens, 😀 four, and a span covers all or none."""
    of = byte_level()
    sizes = {"é": 2, "a": 1, "😀": 4}
    for text in ("éa😀", "a😀é", "😀😀a"):
        for start in range(3):
            for end in range(start + 1, 4):
                counted = len(spelled(of, text, (start, end), truncated=True))
                assert counted == sum(sizes[c] for c in text[start:end]), (text, start, end)


def test_a_span_without_a_token_is_an_error_with_a_reason() -> None:
    ids = words().tokenizer("two plus", add_special_tokens=False)["input_ids"]
    with pytest.raises(DataError, match=r"\[3, 4\] covers no token") as caught:
        tokens_of_span(words(), "two plus", (3, 4), ids)
    assert caught.value.reason == "rejected_span that covers no token"


def test_the_whole_response_is_no_span(processor: Any) -> None:
    for truncated in (False, True):
        ids = response_ids(processor, STEPS, truncated=truncated)
        assert tokens_of_span(processor, STEPS, (0, len(STEPS)), ids) is None
        assert tokens_of_span(processor, STEPS, (0, 7), ids) is not None


@pytest.mark.parametrize("given", [[3, 3], [4, 2], [-1, 3], [0, 23], [0, 1, 2], [0], "01", 3, [0.0, 3.0], [True, 3]])
def test_bad_spans(given: Any) -> None:
    with pytest.raises(DataError, match="rejected_span: expected") as caught:
        checked_span(given, STEPS)
    assert caught.value.reason == "bad rejected_span"


def test_a_slow_tokenizer_is_named() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ConfigError, match=r"fast one\), got Slow"):
        tokens_of_span(Tokenizing(Slow()), "1", (0, 1), [1])


def test_admission_counts_spans_that_cannot_be_used(processor: Any) -> None:
    rows = [preference_row(i, rejected=STEPS, rejected_span=span) for i, span in enumerate([[0, 7], [0, 99], None])]
    kept, report = admit(rows, PreferenceCollator(processor))
    assert (len(kept), report.rejected) == (2, {"bad rejected_span": 1})


def labelled(batch: dict[str, Any], processor: Any) -> list[str]:
    """The text that has labels, of each response in the order of the batch."""
    labels = batch["labels"]
    if LAYOUT in batch:
        parts = [labels[row, a:b] for row in range(len(labels)) for a, b in batch[LAYOUT].segments(row)]
    else:
        parts = list(labels)
    return [processor.tokenizer.decode([i for i in part.tolist() if i >= 0]) for part in parts]


def span_rows() -> list[dict[str, Any]]:
    """One prompt; STEPS is rejected whole and with two spans, and chosen; one rejected response has a span twice."""
    sides = [("1", STEPS, [0, 7]), ("1", STEPS, [7, 15]), ("2", STEPS, None), (STEPS, "3", None), ("2", STEPS, [0, 7])]
    return [
        preference_row(0, problem_id=f"p{i}", chosen=chosen, rejected=rejected, rejected_span=span)
        for i, (chosen, rejected, span) in enumerate(sides)
    ]


@pytest.mark.parametrize("shared", [True, False])
def test_a_response_stands_once_for_each_part_that_counts(processor: Any, shared: bool) -> None:
    batch = PreferenceCollator(processor, shared_prefix=shared, with_keys=True)(span_rows())
    whole = f"{STEPS}<|im_end|>"
    assert labelled(batch, processor) == [*["1<|im_end|>", STEPS[:7], STEPS[7:15], "2<|im_end|>", whole, "3<|im_end|>"]]
    assert batch["pair_index"].tolist() == [[0, 1], [0, 2], [3, 4], [4, 5], [3, 1]]
    assert len(set(batch["response_keys"])) == 6
    without = PreferenceCollator(processor, shared_prefix=shared)(
        [row | {"rejected_span": None} for row in span_rows()]
    )
    assert len(labelled(without, processor)) == 4
    tokens = len(response_ids(processor, STEPS))
    shares = [len(processor.tokenizer(STEPS[a:b])["input_ids"]) / tokens for a, b in ((0, 7), (7, 15))]
    assert batch["pair_rejected_share"].tolist() == pytest.approx([shares[0], shares[1], 1.0, 1.0, shares[0]])


def alone(model: Any, processor: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Another reading of one row: token log-probs from whole logits, added where their characters are in the span."""
    prompt = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["prompt"][0]["content"]}]}]
    texts = {
        side: row[side] if isinstance(row[side], str) else row[side][0]["content"] for side in ("chosen", "rejected")
    }
    encoded = processor(
        text=[prompt_text(processor, prompt)], images=[load_image(row["images"][0])], return_tensors="pt"
    )
    before = encoded["input_ids"].shape[1]
    sums = {}
    for side, text in texts.items():
        ids = response_ids(processor, text)
        inputs = dict(encoded) | {"input_ids": torch.cat([encoded["input_ids"], torch.tensor([ids])], dim=1)}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        with torch.no_grad():
            logits = model(**inputs).logits[0].float()
        start, end = row.get("rejected_span") or (0, len(text) + 1)
        if side == "chosen":
            start, end = 0, len(text) + 1
        total, written = 0.0, 0
        for place, token in enumerate(ids):
            own = 1 if place == len(ids) - 1 else len(processor.tokenizer.decode([token]))
            if written < end and written + own > start:
                total += float(logits[before + place - 1].log_softmax(-1)[token])
            written += own
        sums[side] = total
    return {**sums, "length": len(response_ids(processor, texts["chosen"]))}


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def perturbed(scale: float) -> Any:
    model, generator = load_model(tiny_internvl()), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("shared", [True, False])
def test_losses_with_spans_equal_a_loop_over_tokens(processor: Any, shared: bool) -> None:
    """L_p, L_q, L_g of four pairs, two of them with one rejected text, from token log-probs that were added by hand."""
    rows = [*span_rows(), preference_row(1, rejected=STEPS, rejected_span=[7, 15])]
    policy, reference = perturbed(0.02), perturbed(0.0)
    beta, delta = 0.1, 0.05
    parts = []
    for row in rows:
        pi, rho = (alone(model, processor, row) for model in (policy, reference))
        r_c, r_r = (beta * (pi[side] - rho[side]) for side in ("chosen", "rejected"))
        parts.append((softplus(r_r - r_c), softplus(delta - r_c) + softplus(r_r - delta), -pi["chosen"] / pi["length"]))
    expected = [sum(column) / len(rows) for column in zip(*parts, strict=True)]

    for model in (policy, reference):
        enable_chunked_logps(model)
        if shared:
            enable_shared_prefix(model)
    batch = PreferenceCollator(processor, shared_prefix=shared)(rows)
    inputs = {name: value for name, value in batch.items() if not name.startswith("pair_")}
    logps = pair_logps(policy, inputs, batch["pair_index"], reference=reference)
    loss = mpo_loss(logps, beta=beta, reward_shift=delta)
    assert [p.item() for p in (loss.preference, loss.quality, loss.generation)] == pytest.approx(expected, abs=1e-5)
    assert loss.total.item() == pytest.approx(0.8 * expected[0] + 0.2 * expected[1] + expected[2], abs=1e-5)
    whole = [row | {"rejected_span": None} for row in rows]
    full = PreferenceCollator(processor, shared_prefix=shared)(whole)
    sums, _ = response_logps(policy, {name: value for name, value in full.items() if not name.startswith("pair_")})
    chosen = sums[full["pair_index"][:, 0]]
    assert torch.allclose(logps.policy_chosen, chosen, atol=1e-5)  # the chosen side does not know of spans
    assert not torch.allclose(logps.policy_rejected, sums[full["pair_index"][:, 1]], atol=1e-2)


def test_golden_first_error() -> None:
    """By hand: the golden pair of docs/losses.md, of whose rejected tokens only the second and third count.

    π_r = −4 −6 −2 −3 = −15 and ρ_r = −3 −4.5 −2.5 −3 = −13 become −8 and −7, so r_r = 0.1·(−8 + 7) = −0.1.
    L_p = ln(1 + e^−0.3) = 0.554355; L_q = ln(1 + e^−0.15) + ln(1 + e^−0.15) = 1.241914; L_g = 2 as before.
    """
    rejected, reference = torch.tensor([-4.0, -6.0, -2.0, -3.0]), torch.tensor([-3.0, -4.5, -2.5, -3.0])
    span = slice(1, 3)
    logps = PairLogps(
        torch.tensor([-10.0]), rejected[span].sum()[None], torch.tensor([-12.0]), reference[span].sum()[None],
        torch.tensor([5]),
    )  # fmt: skip
    loss = mpo_loss(logps, beta=0.1, reward_shift=0.05)
    assert float(loss.preference) == pytest.approx(0.554355, abs=1e-6)
    assert float(loss.quality) == pytest.approx(1.241914, abs=1e-6)
    assert float(loss.generation) == 2.0
    assert float(loss.total) == pytest.approx(2.691867, abs=1e-6)


def trainer_for(folder: Path, rows: list[Any], **changes: Any) -> MPOTrainer:
    settings: dict[str, Any] = {"max_steps": 3, "per_device_train_batch_size": 4} | changes
    return MPOTrainer(
        tiny_internvl(),
        args=tiny_config(folder, **settings),
        train_dataset=rows,
        processing_class=load_processor(tiny_internvl()),
    )


def run(folder: Path, rows: list[Any], **changes: Any) -> MPOTrainer:
    trainer = trainer_for(folder, rows, **changes)
    trainer.train()
    return trainer


def weights_of(trainer: MPOTrainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def marked(number: int = 7) -> list[dict[str, Any]]:
    """Pairs whose rejected side has a span, but for every third; some share their prompt."""
    spans = ([0, 7], [7, 15], None)
    return [
        row | {"rejected": STEPS, "rejected_span": spans[index % 3]}
        for index, row in enumerate([*preference_rows(number - 2), *preference_rows(2)])
    ]


def test_a_span_of_the_whole_response_changes_nothing(tmp_path: Path) -> None:
    given = [row | {"rejected": STEPS} for row in preference_rows(4)]
    plain = run(tmp_path / "plain", given)
    whole = run(tmp_path / "whole", [row | {"rejected_span": [0, len(STEPS)]} for row in given])
    part = run(tmp_path / "part", [row | {"rejected_span": [0, 7]} for row in given])
    assert torch.equal(weights_of(plain), weights_of(whole))
    assert plain.reward_shift.state_dict() == whole.reward_shift.state_dict()
    assert (weights_of(plain) - weights_of(part)).abs().max() > 1e-4
    counted = [line["tokens/rejected_counted"] for line in part.state.log_history if "loss" in line]
    tokenizer = load_processor(tiny_internvl()).tokenizer
    assert counted == pytest.approx([len(tokenizer.tokenize(STEPS[:7])) / (len(tokenizer.tokenize(STEPS)) + 1)] * 3)
    assert plain.state.log_history[0]["tokens/rejected_counted"] == 1.0


def test_micro_batches_layouts_and_the_cache_do_not_matter(tmp_path: Path) -> None:
    """The same weights, losses and δ from one batch, single pairs, the paired layout and a kept reference."""
    settings: dict[str, dict[str, Any]] = {
        "one": {},
        "cut": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        "paired": {"layout": "paired"},
        "cached": {"precompute_ref_log_probs": True},
    }
    runs = {name: run(tmp_path / name, marked(), **changes) for name, changes in settings.items()}
    one = runs.pop("one")
    assert one.reward_shift.value != 0.0
    for name, other in runs.items():
        torch.testing.assert_close(weights_of(other), weights_of(one), atol=1e-5, rtol=0, msg=name)
        assert other.reward_shift.value == pytest.approx(one.reward_shift.value, abs=1e-5), name
        for key in ("loss", "rewards/rejected", "logps/rejected", "tokens/rejected_counted"):
            ours, theirs = ([line[key] for line in t.state.log_history if key in line] for t in (other, one))
            assert ours == pytest.approx(theirs, abs=1e-4), (name, key)


def test_delta_is_the_mean_of_the_rewards_of_the_spans(tmp_path: Path) -> None:
    """At step 0 all rewards are 0, so after two steps δ is half the mean of the second one's."""
    trainer = run(tmp_path, marked(4), max_steps=2)
    line = [entry for entry in trainer.state.log_history if "rewards/rejected" in entry][1]
    assert line["rewards/rejected"] != 0.0
    assert trainer.reward_shift.value == pytest.approx(
        (line["rewards/chosen"] + line["rewards/rejected"]) / 4, abs=1e-6
    )


def test_a_kept_sum_of_another_span_is_not_used(tmp_path: Path) -> None:
    """A cache knows a text with one span; the same text with another span is computed again."""
    settings: dict[str, Any] = {"precompute_ref_log_probs": True, "reference_cache_dir": str(tmp_path / "cache")}
    rows = [row | {"rejected": STEPS, "rejected_span": [0, 7]} for row in preference_rows(2)]
    first = trainer_for(tmp_path / "a", rows, **settings)
    assert len(first.reference_cache) == 4
    moved = [row | {"rejected_span": [7, 15]} for row in rows]
    assert len(trainer_for(tmp_path / "b", moved, **settings).reference_cache) == 6
    assert len(trainer_for(tmp_path / "c", rows, **settings).reference_cache) == 6


def test_a_resume_with_other_spans_is_refused(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    run(tmp_path, marked(4), **saving)
    moved = [row | {"rejected_span": [0, 3]} for row in marked(4)]
    with pytest.raises(ConfigError, match="rows"):
        trainer_for(tmp_path, moved, **saving).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_the_doctor_says_what_counts(tmp_path: Path) -> None:
    findings = preflight(trainer_for(tmp_path, marked(7)))
    counted, total = (sum(getattr(pair, name) for pair in findings.lengths) for name in ("counted", "rejected"))
    assert findings.rejected_counted == pytest.approx(counted / total)
    assert 0.3 < findings.rejected_counted < 0.8
    assert findings.step_zero.agrees
    assert any(d.setting == "rejected tokens that count" and d.paper == "100.0%" for d in findings.deviations)
    whole = preflight(trainer_for(tmp_path / "whole", preference_rows(4)))
    assert not any(d.setting == "rejected tokens that count" for d in whole.deviations)
