"""The cache gives the losses of an online reference, runs it once per pair, and refuses another one's values."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from transformers import AutoTokenizer

import mpo.forward
import mpo.reference_run
from mpo.collator import PreferenceCollator
from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from mpo.reference import ReferenceCache, digest_of_processor, digest_of_weights, precompute
from mpo.trainer import MPOTrainer
from tests.mpo.tiny import preference_row, preference_rows, tiny_config, tiny_internvl

MADE_BY = {"weights": "w", "processor": "p", "dtype": "torch.float32"}


def trainer_in(folder: Path, **changes: Any) -> MPOTrainer:
    arguments = {key: changes.pop(key) for key in ("peft_config", "ref_model", "eval_dataset") if key in changes}
    model = changes.pop("model", None) or tiny_internvl()
    rows = changes.pop("rows", None) or preference_rows(6)
    settings = {"max_steps": 5, "learning_rate": 0.02} | changes
    return MPOTrainer(model, args=tiny_config(folder, **settings), train_dataset=rows, **arguments)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every reference forward."""
    seen: list[int] = []
    real = mpo.forward.reference_logps

    def spy(policy: Any, inputs: Any, **kwargs: Any) -> Any:
        seen.append(len(inputs["input_ids"]))
        return real(policy, inputs, **kwargs)

    for module in (mpo.forward, mpo.reference_run):
        monkeypatch.setattr(module, "reference_logps", spy)
    return seen


def losses(trainer: MPOTrainer) -> list[float]:
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("mode", ["copy", "lora", "other"])
def test_cached_equals_online(tmp_path: Path, forwards: list[int], mode: str) -> None:
    """A frozen copy, disabled adapters, or a reference of its own: the same five losses, six pairs computed once."""
    extra: dict[str, Any] = {
        "lora": {"peft_config": LoraConfig(target_modules=["q_proj", "v_proj"], r=2)},
        "other": {"ref_model": tiny_internvl()},
    }.get(mode, {})
    online = losses(trainer_in(tmp_path / "online", **extra))
    del forwards[:]
    first = trainer_in(tmp_path / "cached", precompute_ref_log_probs=True, precompute_ref_batch_size=4, **extra)
    assert forwards == [4, 2]  # packed rows, one per pair
    assert first.ref_model is None
    assert losses(first) == pytest.approx(online, abs=1e-5)
    again = trainer_in(tmp_path / "cached", precompute_ref_log_probs=True, **extra)
    assert losses(again) == pytest.approx(online, abs=1e-5)
    assert forwards == [4, 2]  # packed rows, one per pair


def test_evaluation_rows_are_computed_too(tmp_path: Path, forwards: list[int]) -> None:
    extra: dict[str, Any] = {"eval_dataset": [preference_row(i) for i in (20, 21, 22)], "max_steps": 2}
    online, cached = (
        trainer_in(tmp_path / str(flag), precompute_ref_log_probs=flag, **extra) for flag in (False, True)
    )
    for trainer in (online, cached):
        trainer.train()
    assert cached.evaluate()["eval_loss"] == pytest.approx(online.evaluate()["eval_loss"], abs=1e-5)
    assert len(cached.reference_cache) == 18


def test_only_new_rows_are_computed(tmp_path: Path, forwards: list[int]) -> None:
    """A new text, or another image under the same id, is another pair."""
    folder = str(tmp_path / "shared")
    settings: dict[str, Any] = {"precompute_ref_log_probs": True, "reference_cache_dir": folder}
    trainer_in(tmp_path / "a", **settings)
    assert sum(forwards) == 6
    changed = [*preference_rows(5), preference_row(7), preference_row(0, images=[Image.new("RGB", (32, 32), "blue")])]
    trainer_in(tmp_path / "b", rows=changed, **settings)
    assert sum(forwards) == 6 + 2


def test_another_reference_is_refused_by_name(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"precompute_ref_log_probs": True, "reference_cache_dir": str(tmp_path / "cache")}
    trainer_in(tmp_path / "a", **settings)
    other = load_model(tiny_internvl())
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(ConfigError, match=r"computed with other weights: delete"):
        MPOTrainer(
            other,
            args=tiny_config(tmp_path / "b", **settings),
            train_dataset=preference_rows(2),
            processing_class=load_processor(tiny_internvl()),
        )
    processor = load_processor(tiny_internvl())
    processor.chat_template = processor.chat_template.replace("assistant", "model")
    with pytest.raises(ConfigError, match=r"computed with other processor: delete"):
        MPOTrainer(
            tiny_internvl(),
            args=tiny_config(tmp_path / "c", **settings),
            train_dataset=preference_rows(2),
            processing_class=processor,
        )


def test_rows_that_were_not_precomputed_stop_the_run(tmp_path: Path) -> None:
    trainer = trainer_in(tmp_path, precompute_ref_log_probs=True)
    trainer.train_dataset = [preference_row(30), preference_row(31)]
    with pytest.raises(ConfigError, match="4 of 4 responses of a batch are not in the reference cache"):
        trainer.train()


def test_a_complete_cache_serves_weights_that_get_sharded(tmp_path: Path, forwards: list[int]) -> None:
    """It is only read; one that lacks rows is refused before anything is cut up. `test_sharded.py` trains with it."""
    trainer = trainer_in(tmp_path, precompute_ref_log_probs=True)
    files = {path.name: path.stat().st_mtime_ns for path in trainer.reference_cache.folder.iterdir()}
    forwards.clear()
    trainer.is_deepspeed_enabled = True
    values = trainer.cached_reference()
    assert (len(values), trainer.ref_model, forwards) == (len(trainer.reference_cache), None, [])
    assert {path.name: path.stat().st_mtime_ns for path in values.folder.iterdir()} == files
    trainer.train_dataset = preference_rows(8)
    with pytest.raises(ConfigError, match=r"lacks 2 rows, .* once without FSDP or DeepSpeed"):
        trainer.cached_reference()
    trainer.args.reference_cache_dir = str(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="lacks 8 rows"):
        trainer.cached_reference()


def test_a_collator_without_keys_is_refused(tmp_path: Path) -> None:
    processor = load_processor(tiny_internvl())
    with pytest.raises(ConfigError, match="with_keys=True"):
        MPOTrainer(
            tiny_internvl(),
            args=tiny_config(tmp_path, precompute_ref_log_probs=True),
            train_dataset=preference_rows(2),
            processing_class=processor,
            data_collator=PreferenceCollator(processor),
        )


def test_digests_see_what_matters_and_nothing_else() -> None:
    model, same = load_model(tiny_internvl()), load_model(tiny_internvl())
    assert digest_of_weights(model) == digest_of_weights(same)
    assert digest_of_weights(same.bfloat16()) != digest_of_weights(model)
    processor = load_processor(tiny_internvl())
    assert digest_of_processor(processor) == digest_of_processor(load_processor(tiny_internvl()))
    processor.image_processor.max_patches = 2
    assert digest_of_processor(processor) != digest_of_processor(load_processor(tiny_internvl()))
    tokenizer = AutoTokenizer.from_pretrained(tiny_internvl())
    assert digest_of_processor(tokenizer) != digest_of_processor(processor)


def fake_collate(rows: list[int]) -> dict[str, Any]:
    """A pair a row, of a response that only it has and one that it shares with the next row."""
    names = [name for row in rows for name in (f"own {row}", f"shared {row // 2}")]
    keys = [*dict.fromkeys(names)]
    index = [[keys.index(f"own {row}"), keys.index(f"shared {row // 2}")] for row in rows]
    return {"response_keys": keys, "pair_index": torch.tensor(index), "rows": rows}


def fake_logps(batch: dict[str, Any]) -> torch.Tensor:
    return torch.tensor([-float(key.split()[1]) for key in batch["response_keys"]])


def test_ranks_share_the_rows_and_read_each_other(tmp_path: Path) -> None:
    """Two ranks of three and two rows; afterwards either knows all five."""
    caches = [ReferenceCache(tmp_path, MADE_BY, rank=rank) for rank in (0, 1)]
    for rank, cache in enumerate(caches):
        done = precompute(
            cache, range(5), collate=fake_collate, batch_size=2, rank=rank, world_size=2,
            logps=fake_logps,
        )  # fmt: skip
        assert done == (3, 2)[rank]
    for cache in caches:
        cache.reload()
        assert cache.lookup(["own 4", "own 1", "shared 2"]).tolist() == [-4.0, -1.0, -2.0]
        assert len(cache) == 5 + 3


def test_a_kill_loses_at_most_a_batch(tmp_path: Path) -> None:
    """SIGKILL while a child computes; the next process computes the rest and only the rest."""

    def slowly(batch: dict[str, Any]) -> torch.Tensor:
        time.sleep(0.02)
        return fake_logps(batch)

    child = os.fork()
    if not child:
        precompute(ReferenceCache(tmp_path, MADE_BY), range(400), collate=fake_collate, logps=slowly, batch_size=2)
        os._exit(0)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and len(ReferenceCache(tmp_path, MADE_BY)) < 20:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    cache = ReferenceCache(tmp_path, MADE_BY)
    known = len(cache)
    assert 20 <= known < 600
    assert known % 3 == 0  # two rows, three responses
    done = precompute(
        cache, range(400), collate=fake_collate, batch_size=50,
        logps=fake_logps,
    )  # fmt: skip
    assert (done, len(cache)) == (400 - known // 3 * 2, 600)
    with sqlite3.connect(tmp_path / "logps-0.sqlite") as connection:
        assert dict(connection.execute("SELECT name, value FROM made_by").fetchall()) == MADE_BY


def test_values_survive_the_disk_exactly(tmp_path: Path) -> None:
    """float32 sums are kept as float64: nothing is rounded."""
    values = torch.tensor([-123.45678, -0.1, -1e-7, -3e4])
    ReferenceCache(tmp_path, MADE_BY).add(list("abcd"), values)
    assert torch.equal(ReferenceCache(tmp_path, MADE_BY).lookup(list("abcd")), values)
