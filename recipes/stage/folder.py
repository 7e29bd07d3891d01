"""A stage's folder: its output, and a manifest written last that says what made it and vouches for every file.

A stage that is complete with the same settings and inputs is not run again; one that was made with other settings
is refused by name. A stage killed half way leaves no manifest; it is run anew, or continues if it can. Every manifest
keeps the account `in = out + rejected(reason)`. One process works in a folder at a time; its lock dies with it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mpo.multimodal.errors import ConfigError, FingerprintError, StageError
from mpo.multimodal.failpoints import reach
from mpo.multimodal.files import write_atomic
from mpo.multimodal.hub import ADAPTER_CONFIG, CONFIG
from mpo.multimodal.text import one_line
from recipes.stage.closing import circumstances, closing_line
from recipes.stage.identity import file_content, folder_content, model_content
from recipes.stage.lock import lock, unlock
from recipes.stage.manifest import MANIFEST, STARTED, image_root_of, manifest_of, place, problems_of, read_own
from recipes.stage.models import checked_model, hub_names, roles_of
from recipes.stage.threads import threads_used
from recipes.stage.unused import make_folder
from recipes.stage.vouching import faults, vouched
from rewards.kept.store import differences

PAIRS = "pairs.parquet"  # of `mpo pairs`
RESULTS = "results.json"  # of `mpo best-of-n`
# Where, how fast, in which form and how closely watched, not what is made.
NOT_SETTINGS = (
    *("out", "workers", "engine", "actors", "base_url", "prm_base_url", "concurrency", "samples_a_request"),
    *("problems_a_call", "dataloader_num_workers", "max_tokens_total", "price_per_million_tokens"),
    *("on_change", "parquet"),
    *("sample_every", "sample_problems", "sample_tokens", "report_to"),
    *("per_device_batch", "gradient_checkpointing", "max_row_tokens", "save_steps"),
    *("vllm_base_url", "serve_command"),
)


logger = logging.getLogger(__name__)


@dataclass
class Stage:
    """One stage of a run; `open_stage` makes it, `finish` completes it.

    Attributes:
        fingerprint: `settings`, and `inputs`: the name of each → the key of its content.
        sources: where the inputs lie, by the same names; no part of what the stage is.
        hub: `org/name@commit` of those that come from the hub.
        image_root: where the images of the problems lie, if not beside their file: as set, or as of the groups read.
    """

    name: str
    out: Path
    fingerprint: dict[str, Any]
    complete: bool
    sources: dict[str, Path] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)
    image_root: Path | None = None
    started: float = field(default_factory=time.monotonic)

    def by_content(self) -> dict[str, Any]:
        """Settings and content keys of the inputs: the fingerprint of unfinished work."""
        return {**self.fingerprint["settings"], **self.fingerprint["inputs"]}

    def provenance(self) -> dict[str, Any]:
        """What a card says of where this stage's work comes from."""
        places = {name: str(path) for name, path in self.sources.items()} | self.hub
        return {"stage": self.name, **self.fingerprint, "sources": places}

    def finish(self, counts: Mapping[str, Any], *, note: str = "") -> Path:
        """Write the manifest, last and atomically, let the next process in, and print the closing line.

        Of several processes the first does.

        Args:
            counts: `in`, `out` and `rejected` (reason → number), and whatever else the stage counted; `problems` is the
                file behind the groups in this folder.
            note: the number that matters, in words, for the closing line.

        Raises:
            AssertionError: the account does not balance, which is a defect of ours.
        """
        if "in" in counts:
            assert counts["in"] == counts["out"] + sum(counts["rejected"].values()), (self.name, counts)
        if not is_first_process():
            return self.out
        problems = place(Path(counts["problems"]), self.out) if "problems" in counts else None
        seconds = round(time.monotonic() - self.started, 2)
        manifest: dict[str, Any] = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "counts": {name: value for name, value in counts.items() if name != "problems"},
            "files": vouched(self.out),
            "sources": {name: place(path, self.out) for name, path in self.sources.items()},
            "hub": self.hub,
            "problems": problems,
            "image_root": place(self.image_root, self.out) if self.image_root else None,
            "threads": threads_used(),
            "seconds": seconds,
            "made": circumstances(),
        }
        reach("before_manifest")
        write_atomic(self.out / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        unlock(self.out)
        print(closing_line(self.name, counts, self.out, seconds=seconds, note=note), file=sys.stderr)
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
    """Check the inputs, compare with an earlier run of the stage, make the output folder, and keep others out of it.

    Args:
        name: the stage's name, e.g. "sample".
        config: its dataclass, with a field `out`.
        inputs: folders or files that must exist; a folder must be complete, and its files as they were written.
        grows: settings that may be larger than before, and inputs that may be others, row by row: the stage is then
            not complete, and adds to what is there.
        refuse: whether a difference is an error; if not, the stage is not complete.
        work: of a stage that continues where it was killed, whether `out` holds something to continue from; its
            settings are written down at the start. None: a killed stage is run anew.

    Raises:
        StageError: an input is missing, damaged or was never finished; another process works in `out`; or `out` is
            damaged and holds nothing to make it again from.
        ConfigError: a model that cannot play its role, see `checked_model`.
        FingerprintError: `out` holds the result of other settings or inputs.
    """
    sources, roles = _sources(config, inputs), roles_of(type(config))
    image_root = getattr(config, "image_root", None) or _inherited_root(sources.values())
    found = {}
    for key in sorted(sources, key=roles.__contains__):  # models last: they take longest to read
        if key in roles:
            checked_model(sources[key], roles[key], flag=key)
        found[key] = content_of(sources[key], name, image_root)
    keys = {key: found[key] for key in sources}
    fingerprint = {"settings": _settings(config, keys), "inputs": keys}
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"stage {name}: out={out} is a file; expected a folder")
    stage = Stage(
        name, out, fingerprint, complete=False, sources=sources, hub=hub_names(sources), image_root=image_root
    )
    if _is_complete(stage, config, grows=grows, refuse=refuse, work=work):
        stage.complete = True
        if is_first_process():
            print(one_line(f"{name}: complete already, nothing to do; {out}"), file=sys.stderr)
        return stage
    make_folder(out)
    if is_first_process():
        lock(out, stage=name)
        if _is_complete(stage, config, grows=grows, refuse=refuse, work=work):  # another process has just finished it
            stage.complete = True
            unlock(out)
        elif work is not None and not (work and read_own(out / STARTED)):
            write_atomic(out / STARTED, json.dumps({"fingerprint": fingerprint}, indent=2, sort_keys=True) + "\n")
    return stage


def is_first_process() -> bool:
    """Whether this is the only process of a stage, or of several (torchrun, accelerate) the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def faults_of(folder: Path) -> list[str]:
    """What is wrong with a finished stage's files, one line for each; every file is read, a second a gigabyte or so.

    Raises:
        StageError: it is not finished, or its manifest is damaged.
    """
    return faults(folder, manifest_of(folder)["files"])


def content_of(path: Path, stage: str, image_root: Path | None) -> str:
    """Content key of an input: of a file, a model folder, or a finished stage whose files are as they were written.

    Args:
        path: the input.
        stage: that reads it, for the message.
        image_root: where the images lie that rows of a file name; None is the file's own folder.

    Raises:
        StageError: it is missing, damaged, or not finished.
    """
    if not path.exists():
        raise StageError(f"stage {stage}: input {path} does not exist; run the stage that writes it first")
    if path.is_file():
        return file_content(path, image_root=image_root)
    if (path / MANIFEST).exists():
        if wrong := faults_of(path):
            raise StageError(
                f"stage {stage}: input {path} is damaged: {_some(wrong)}; run the stage that writes it again"
            )
        if manifest_of(path).get("problems"):
            return folder_content(path, problems=problems_of(path), image_root=image_root_of(path))
        return folder_content(path)
    if any((path / name).exists() for name in (CONFIG, ADAPTER_CONFIG)):  # a model folder of the user's
        return model_content(path)
    raise StageError(f"stage {stage}: input {path} is not finished (no {MANIFEST}); run the stage that writes it first")


def _sources(config: Any, inputs: Sequence[Path]) -> dict[str, Path]:
    """Name → path of each input: the setting that holds it, with its place in a list of several; the setting and what
    follows; else its last part."""
    told = {f.name: getattr(config, f.name) for f in fields(config)}
    several = {name: value for name, value in told.items() if isinstance(value, list)}
    listed = {f"{name}[{place}]": one for name, value in several.items() for place, one in enumerate(value)}
    held = {name: str(value) for name, value in told.items() if isinstance(value, str | Path)}
    held |= {name: str(value) for name, value in listed.items() if isinstance(value, Path)}
    named: dict[str, Path] = {}
    for path in inputs:
        names = [name for name, value in held.items() if value == str(path) and name != "out"]
        above = [
            f"{name}/{Path(path).relative_to(value)}"
            for name, value in held.items()
            if value and Path(path).is_relative_to(value)
        ]
        named |= dict.fromkeys(names or above[:1] or [Path(path).name], Path(path))
    return named


def _settings(config: Any, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What a stage is told besides its inputs; a path is no setting, what lies there is an input."""
    names = [f.name for f in fields(config) if _is_setting(f) and f.name not in inputs]
    told = asdict(config)
    return json.loads(json.dumps({name: told[name] for name in names}))  # as it will be read back: a tuple is a list


def _is_setting(part: Any) -> bool:
    return part.name not in NOT_SETTINGS and "Path" not in str(part.type)


def _defaults(config: Any) -> dict[str, Any]:
    """Every setting that has a default, as it enters a fingerprint."""
    settings = [f for f in fields(config) if _is_setting(f)]
    known = {f.name: f.default for f in settings if f.default is not MISSING}
    made = {f.name: f.default_factory() for f in settings if f.default_factory is not MISSING}
    return json.loads(json.dumps(known | made, default=str))


def _is_complete(stage: Stage, config: Any, *, grows: Sequence[str], refuse: bool, work: bool | None) -> bool:
    """Whether `out` holds this very stage, whole.

    Raises:
        FingerprintError: it holds another, and `refuse`.
        StageError: it holds this one, damaged, and nothing to make it again from.
    """
    manifest, started = read_own(stage.out / MANIFEST), read_own(stage.out / STARTED) if work else None
    kept = manifest or started
    if kept is None:
        return False
    before, settings = kept["fingerprint"], stage.fingerprint["settings"]
    known = {key: value for key, value in _defaults(config).items() if key in settings}
    before["settings"] = known | before["settings"]  # a setting may be younger than the folder
    grown = [key for key in grows if before["settings"].get(key, settings.get(key, 0)) < settings.get(key, 0)]
    grown += [key for key in grows if before["inputs"].get(key) != stage.fingerprint["inputs"].get(key)]
    differing = _differences(before, stage.fingerprint, besides=grown)
    if differing and refuse:
        raise FingerprintError(
            f"stage {stage.name}: {stage.out} was made with other {', '.join(differing)}; choose another folder or "
            "delete it"
        )
    if manifest is None or differing or grown:
        return False
    wrong = faults_of(stage.out)
    if wrong and not work and not any(stage.out.glob("*.sqlite")):
        raise StageError(
            f"stage {stage.name}: {stage.out} is damaged: {_some(wrong)}; delete the folder, and the same command "
            "makes it again"
        )
    if wrong:
        logger.warning("%s is damaged and made again from what it keeps: %s", stage.out, _some(wrong))
    return not wrong


def _inherited_root(inputs: Iterable[Path]) -> Path | None:
    """The image root of the first input that is a finished stage with one of its own."""
    stages = (path for path in inputs if path.is_dir() and read_own(path / MANIFEST))
    return next((root for path in stages if (root := image_root_of(path))), None)


def _some(wrong: Sequence[str]) -> str:
    return "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], *, besides: Sequence[str]) -> list[str]:
    """What differs in settings and inputs, each with both values; `besides` are not looked at."""
    left_out = set(besides)
    names = []
    for part in ("settings", "inputs"):
        old, new = ({key: value for key, value in side[part].items() if key not in left_out} for side in (before, now))
        names += differences(old, new)
    return names
