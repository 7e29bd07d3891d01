"""A stage's folder: its output, and a manifest written last that says what made it and that nothing is missing.

A stage that is complete with the same settings and inputs is not run again; one that was made with other settings
is refused by name. A stage killed half way leaves no manifest; it is run anew, or goes on if it can. Every manifest
keeps the account `in = out + rejected(reason)`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError, FingerprintError, StageError
from mpo.multimodal.failpoints import reach
from mpo.multimodal.files import write_atomic
from mpo.multimodal.text import one_line
from recipes.stage.closing import closing_line
from rewards.kept.store import differences

MANIFEST = "manifest.json"
PAIRS = "pairs.parquet"  # of `mpo pairs`
RESULTS = "results.json"  # of `mpo best-of-n`
STARTED = "started.json"  # of a stage that goes on where it was killed: whose work lies in the folder
# Where, how fast, in which form and how closely watched, not what is made.
NOT_SETTINGS = (
    *("out", "workers", "engine", "actors", "base_url", "concurrency", "samples_a_request", "problems_a_call"),
    "dataloader_num_workers",
    *("on_change", "parquet"),
    *("sample_every", "sample_problems", "sample_tokens", "report_to"),
    *("per_device_batch", "gradient_checkpointing", "max_row_tokens", "save_steps"),
)


@dataclass
class Stage:
    """One stage of a run; `open_stage` makes it, `finish` completes it."""

    name: str
    out: Path
    fingerprint: dict[str, Any]
    complete: bool
    started: float = field(default_factory=time.monotonic)

    def by_content(self) -> dict[str, Any]:
        """All settings, with the content key of an input where its path stood: the fingerprint of unfinished work."""
        settings, inputs = self.fingerprint["settings"], self.fingerprint["inputs"]
        return {key: inputs.get(value, value) if isinstance(value, str) else value for key, value in settings.items()}

    def finish(self, counts: Mapping[str, Any], *, note: str = "") -> Path:
        """Write the manifest, last and atomically, and print the closing line; of several processes the first does.

        Args:
            counts: `in`, `out` and `rejected` (reason → number), and whatever else the stage counted.
            note: the number that matters, in words, for the closing line.

        Raises:
            AssertionError: the account does not balance, which is a defect of ours.
        """
        if "problems" in counts:  # relative to the folder, so that a run can be read from anywhere
            counts = {**counts, "problems": os.path.relpath(counts["problems"], self.out)}
        if "in" in counts:
            assert counts["in"] == counts["out"] + sum(counts["rejected"].values()), (self.name, counts)
        if not is_first_process():
            return self.out
        seconds = round(time.monotonic() - self.started, 2)
        manifest = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "counts": dict(counts),
            "seconds": seconds,
        }
        reach("before_manifest")
        write_atomic(self.out / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        line = closing_line(self.name, counts, self.out, seconds=seconds, note=note)
        print(line, file=sys.stderr)
        return self.out


def open_stage(
    name: str,
    config: Any,
    *,
    inputs: Sequence[Path],
    grows: Sequence[str] = (),
    refuse: bool = True,
    work: bool | None = None,
) -> Stage:
    """Check the inputs, compare with an earlier run of the stage, make the output folder.

    Args:
        name: the stage's name, e.g. "sample".
        config: its dataclass, with a field `out`.
        inputs: folders or files that must exist; a folder must be complete.
        grows: settings that may be larger than before: the stage is then not complete, and adds to what is there.
        refuse: whether a difference is an error; if not, the stage is not complete.
        work: of a stage that goes on where it was killed, whether `out` holds something to go on from; its settings are
            written down at the start. None: a killed stage is run anew.

    Raises:
        StageError: an input is missing or was never finished.
        FingerprintError: `out` holds the result of other settings or inputs.
    """
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items() if k not in NOT_SETTINGS}
    settings = json.loads(json.dumps(settings))  # as it will be read back: a tuple is a list
    fingerprint = {"settings": settings, "inputs": {str(path): _digest(path, name) for path in inputs}}
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"stage {name}: out={out} is a file; expected a folder")
    manifest, started = out / MANIFEST, out / STARTED
    if manifest.exists() or (work and started.exists()):
        before = json.loads((manifest if manifest.exists() else started).read_text())["fingerprint"]
        before["settings"] = _defaults(config) | before["settings"]  # a setting may be younger than the folder
        grown = [key for key in grows if before["settings"].get(key, settings[key]) < settings[key]]
        differing = _differences(before, fingerprint, besides=grown)
        if differing and refuse:
            raise FingerprintError(
                f"stage {name}: {out} was made with other {', '.join(differing)}; choose another folder or delete it"
            )
        complete = manifest.exists() and not (grown or differing)
        if complete and is_first_process():
            print(one_line(f"{name}: complete already, nothing to do; {out}"), file=sys.stderr)
        return Stage(name, out, fingerprint, complete=complete)
    out.mkdir(parents=True, exist_ok=True)
    if work is not None and is_first_process():
        write_atomic(started, json.dumps({"fingerprint": fingerprint}, indent=2, sort_keys=True) + "\n")
    return Stage(name, out, fingerprint, complete=False)


def is_first_process() -> bool:
    """Whether this is the only process of a stage, or of several (torchrun, accelerate) the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def manifest_of(folder: str | Path) -> dict[str, Any]:
    """The manifest of a complete stage.

    Raises:
        StageError: there is none.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise StageError(f"{folder} holds no finished stage (no {MANIFEST}); run the stage that writes it first")
    return json.loads(path.read_text())


def _defaults(config: Any) -> dict[str, Any]:
    """Every setting that has a default, as it stands in a fingerprint."""
    settings = [f for f in fields(config) if f.name not in NOT_SETTINGS]
    known = {f.name: f.default for f in settings if f.default is not MISSING}
    made = {f.name: f.default_factory() for f in settings if f.default_factory is not MISSING}
    return json.loads(json.dumps(known | made, default=str))


def _digest(path: Path, stage: str) -> str:
    """Content key of an input: of a finished stage its fingerprint and its problems, of a file its bytes."""
    path = Path(path)
    if not path.exists():
        raise StageError(f"stage {stage}: input {path} does not exist; run the stage that writes it first")
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    if (path / MANIFEST).exists():
        manifest = manifest_of(path)
        digest = hashlib.sha256(json.dumps(manifest["fingerprint"], sort_keys=True).encode())
        problems = path / manifest["counts"].get("problems", "")
        if problems.is_file():  # groups name their problems by id: a changed answer is a changed input
            digest.update(problems.read_bytes())
        return digest.hexdigest()[:16]
    if (path / "config.json").exists():  # a model folder of the user's
        digest = hashlib.sha256((path / "config.json").read_bytes())
        for weights in sorted(path.glob("*.safetensors")):
            with weights.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]
    raise StageError(f"stage {stage}: input {path} is not finished (no {MANIFEST}); run the stage that writes it first")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], *, besides: Sequence[str]) -> list[str]:
    """What differs in settings and inputs, each with both values; `besides` are settings not looked at."""
    left_out = set(besides)
    names = []
    for part in ("settings", "inputs"):
        old, new = ({key: value for key, value in side[part].items() if key not in left_out} for side in (before, now))
        names += differences(old, new)
    return names
