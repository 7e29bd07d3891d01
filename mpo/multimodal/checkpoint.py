"""A trainer whose checkpoints are either complete or absent, and which resumes only the run that it was.

A run that is killed inside a save leaves a folder without `complete.json`; such a folder, or one whose files do not
match, is named and skipped (`checkpoint_files.py`). Old checkpoints are deleted only after a newer one is complete.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from mpo.multimodal.checkpoint_files import MANIFEST, checkpoints, faults_of, newest_complete, write_manifest
from mpo.multimodal.errors import ConfigError, StageError
from mpo.multimodal.finite import FiniteTrainer
from mpo.multimodal.loading import load_model

# What decides the updates, whatever is trained. A resumed run in which one of these differs is another run.
DECISIVE = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "max_steps", "num_train_epochs"),
    *("optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm"),
    *("seed", "data_seed", "bf16", "fp16", "dataloader_drop_last"),
)

logger = logging.get_logger(__name__)


class CheckpointedTrainer(FiniteTrainer):
    """`transformers.Trainer` whose checkpoints are complete or skipped, and which resumes only the run that it was."""

    _settings: dict[str, Any]

    @property
    def weights_get_sharded(self) -> bool:
        """Whether FSDP or DeepSpeed cuts the weights up when training starts."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint=True` continues from the newest complete checkpoint of `output_dir`.

        Raises:
            StageError: no complete checkpoint, or the named one is damaged.
            ConfigError: the checkpoint belongs to a run with other settings, all differences are listed; or DeepSpeed
                wrote it on another number of ranks.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(newest_complete(str(self.args.output_dir)))
        elif resume_from_checkpoint and (faults := faults_of(Path(resume_from_checkpoint))):
            raise StageError(
                f"cannot resume from {resume_from_checkpoint}: {'; '.join(faults)}; "
                "name another checkpoint, or pass True for the newest complete one"
            )
        self._settings = json.loads(json.dumps(self._run_settings()))  # once: it reads every row
        if resume_from_checkpoint:
            self._check_same_run(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """No step after the last one: Trainer asks only after a step whether it is done, even when it resumes."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # nothing is deleted before the end
        if self.args.should_save:
            if folder.exists():  # of an earlier attempt, maybe on other ranks, whose files must not mix with ours
                shutil.rmtree(folder)
            folder.mkdir(parents=True)
            self._save_own_state(folder)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            write_manifest(folder, self._settings, ranks=self.args.world_size)
            self._delete_older(folder.parent, keep=limit)

    def _delete_older(self, output_dir: Path, *, keep: int | None) -> None:
        """All but the best and the newest `keep` by step: a clock can step back, and a copied folder has new times.

        Later steps than this one are of a checkpoint that was damaged and is on its way to be written again.
        """
        found = sorted(pair for pair in checkpoints(output_dir) if pair[0] <= self.state.global_step)
        for _, path in found[:-keep] if keep and keep > 0 else ():
            if str(path) != str(self.state.best_model_checkpoint):
                shutil.rmtree(path)

    def _save_own_state(self, folder: Path) -> None:
        """What a subclass keeps beside Trainer's files."""

    def _check_same_run(self, checkpoint: Path) -> None:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        before = manifest["settings"]
        differing = [
            f"{name}: {before.get(name)!r} then, {now!r} now"
            for name, now in self._settings.items()
            if before.get(name) != now
        ]
        allowed = getattr(self.args, "allow_config_change", None)  # None: the trainer has no such setting
        if differing and not allowed:
            otherwise = "start anew in another output_dir" if allowed is None else "pass allow_config_change=True"
            raise ConfigError(
                f"{checkpoint} was written by a run with other settings ({'; '.join(differing)}): set them back, "
                f"or {otherwise}"
            )
        for difference in differing:
            logger.warning("resuming with a changed setting, %s", difference)
        self._check_ranks(checkpoint, manifest.get("ranks", self.args.world_size))

    def _check_ranks(self, checkpoint: Path, before: int) -> None:
        """The order of rows does not depend on the ranks; random states and DeepSpeed's shards are kept by rank."""
        now = self.args.world_size
        if before == now:
            return
        if self.is_deepspeed_enabled:
            raise ConfigError(
                f"{checkpoint} was written by DeepSpeed on {before} ranks, this run has {now}: its optimizer is cut "
                f"by rank, so start {before} processes"
            )
        logger.warning(
            "resuming on %d ranks a checkpoint that %d ranks saved: dropout, if any, draws other numbers", now, before
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_renamed_weights(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_renamed_weights(str(self.state.best_model_checkpoint)):
            super()._load_best_model()

    def _load_renamed_weights(self, checkpoint: str) -> bool:
        """Read a full checkpoint through `from_pretrained`, which undoes the renaming of `save_pretrained`.

        Trainer (transformers 5.23) calls `load_state_dict(strict=False)` on the file's names instead. For an InternVL
        no name matches, so it would continue from the initial weights with a warning.
        """
        if (
            self.weights_get_sharded
            or isinstance(self.model, PeftModel)
            or not Path(checkpoint, "config.json").exists()
        ):
            return False
        self.model.load_state_dict(self._read_weights(checkpoint).state_dict())
        return True

    def _read_weights(self, checkpoint: str) -> Any:
        """The whole model of a checkpoint."""
        return load_model(checkpoint, dtype=self.model.dtype)

    def _run_settings(self) -> dict[str, Any]:
        """What decides the updates, as plain data; a subclass adds its own."""
        given = self.args.to_dict()
        settings = {name: given.get(name) for name in DECISIVE}
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return {**settings, "rows_a_step": rows, "train_rows": self._rows_digest()}

    def _row_contents(self) -> Iterable[Any]:
        """What is learned from each training row, as plain data, in the order of the rows."""
        return ()

    def _rows_digest(self) -> str | None:
        """Digest of all rows in their order; None for a stream."""
        if self.train_dataset is None or not hasattr(self.train_dataset, "__len__"):
            return None
        digest = hashlib.sha256()
        for content in self._row_contents():
            digest.update(json.dumps(content, sort_keys=True, default=str).encode())
        return f"{len(self.train_dataset)} rows, {digest.hexdigest()[:16]}"
