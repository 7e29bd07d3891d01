"""Data, models and checkpoints of somebody else: nothing is fetched, nothing is run, nothing outside is read."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from mpo.collator import PreferenceCollator
from mpo.multimodal.checkpoint_files import write_manifest
from mpo.multimodal.errors import ConfigError, DataError, ImageError
from mpo.multimodal.images import load_image, png_bytes
from mpo.multimodal.loading import load_model, load_processor
from recipes.cli import main
from recipes.stage.groups import read_problems
from recipes.stage.quarantine import Quarantine
from rewards.interchange.mmpr import read_mmpr
from rewards.interchange.visualprm_release import read_release
from rewards.prm.formats import find_format
from tests.model_server import ModelServer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_no_address_in_data_is_asked(server: ModelServer, policy_folder: Path, tmp_path: Path) -> None:
    """As image, as entry of a message, in Markdown, with a redirect, with a file's scheme: no request at all."""
    url = server.base_url.replace("/v1", "/redir.png")
    markdown = f"What is on ![this image]({url})? <img src='{url}'>"
    quarantine = Quarantine()
    problems = lines(
        tmp_path / "q.jsonl",
        {"id": "url", "question": "?", "images": [url]},
        {"id": "markdown", "question": markdown, "answer": url, "meta": {"image": url}},
    )
    assert list(read_problems(problems, on_bad=quarantine.add)) == ["markdown"]
    out = str(tmp_path / "samples")
    flags = ["--problems", str(problems), "--policy", str(policy_folder), "--out", out, "--max_new_tokens", "4"]
    assert main(["sample", *flags, "--num_samples", "1", "--parquet", "true"]) == 0

    rejected: list[tuple[str, str, str]] = []
    (tmp_path / "images").mkdir()
    (tmp_path / "meta.json").write_text(json.dumps({"s": {"root": "images", "annotation": "pairs.jsonl"}}))
    lines(tmp_path / "pairs.jsonl", {"image": url, "question": "<image>\n?", "chosen": "a", "rejected": "b"})
    assert list(read_mmpr(tmp_path, on_reject=lambda *row: rejected.append(row))) == []
    assert "nothing is fetched" in rejected[0][2]
    steps = [{"step": "a", "score": 1.0, "num_mc_correct": 1, "num_mc_total": 1}]
    row = {"image": url, "question": "<image>\n?", "response": "a", "steps_with_score": steps}
    ((_, fault),) = read_release(lines(tmp_path / "v.jsonl", row), image_root=tmp_path)
    assert isinstance(fault, ImageError)

    collate = PreferenceCollator(load_processor(policy_folder))
    text = {"type": "text", "text": "?"}
    for images, content in [
        ([url], [{"type": "image"}, text]),
        ([{"bytes": None, "path": url}], [{"type": "image"}, text]),
        ([], [{"type": "image", "url": url}, text]),
        ([], [{"type": "image", "image": url}, text]),
        ([], [{"type": "image_url", "image_url": {"url": url}}, text]),
    ]:
        pair = {"images": images, "prompt": [{"role": "user", "content": content}], "chosen": "a", "rejected": "b"}
        with pytest.raises(DataError):
            collate([pair])
    picture = {"bytes": png_bytes(Image.new("RGB", (32, 32))), "path": url}
    content = [{"type": "image"}, {"type": "text", "text": markdown}]
    collate([{"images": [picture], "prompt": [{"role": "user", "content": content}], "chosen": "a", "rejected": "b"}])

    assert server.paths == []
    urllib.request.urlopen(url).close()  # and the server would have seen one
    assert server.paths == ["/redir.png"]


class Touch:
    """Pickled, this makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_reader_would_be_caught(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Touch(tmp_path / "pwned")))  # noqa: S301
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pickle_in_a_checkpoint_is_not_run(name: str, policy_folder: Path, tmp_path: Path) -> None:
    """Its manifest vouches for it: then transformers' own `weights_only` is the guard, or it is not read at all."""
    import torch

    pair = {"images": [], "prompt": [{"role": "user", "content": "?"}], "rejected": "two"}
    rows = [{**pair, "chosen": f"one {number}"} for number in range(4)]

    def trainer(steps: int) -> Any:
        from mpo.config import MPOConfig
        from mpo.trainer import MPOTrainer

        quiet: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "report_to": "none"}
        saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
        run = {"output_dir": str(tmp_path / "run"), "max_steps": steps, "allow_config_change": True}
        args = MPOConfig(**run, **quiet, **saving)
        return MPOTrainer(str(policy_folder), args=args, train_dataset=rows)

    trainer(1).train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    torch.save(Touch(tmp_path / "pwned"), checkpoint / name)
    manifest = json.loads((checkpoint / "complete.json").read_text())
    write_manifest(checkpoint, manifest["settings"], ranks=1)
    resumed = trainer(3)  # transformers resumes with the rate that the finished run ended with: 0 for one step
    if name == "training_args.bin":
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 3
    else:
        with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights"):
            resumed.train(resume_from_checkpoint=True)
    assert not (tmp_path / "pwned").exists()


def test_code_in_a_model_folder_is_not_run(policy_folder: Path, tmp_path: Path) -> None:
    """`auto_map` beside a native class is passed over; where there is no native class, loading fails."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in policy_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'pwned')!r})\nclass Evil: pass\n")
    kinds = ("AutoConfig", "AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoProcessor", "AutoTokenizer")
    mapped = {"auto_map": dict.fromkeys(kinds, "evil.Evil")}
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | mapped))
    assert type(load_model(folder)).__module__.startswith("transformers.models.internvl")
    load_processor(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil_model"}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_model(folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exported_bytes_are_those_of_the_pixels(kind: str) -> None:
    """EXIF, colour profile, comments, XMP and what stands behind the image stay behind."""
    exif, info = Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x010E] = "CANARY"
    info.add_text("Comment", "CANARY")
    options: dict[str, Any] = {"exif": exif, "icc_profile": b"CANARY" * 20}
    options |= {"PNG": {"pnginfo": info}, "JPEG": {"comment": b"CANARY"}}.get(kind, {})
    picture, buffer = Image.effect_noise((8, 8), 90).convert("RGB"), io.BytesIO()
    picture.save(buffer, format=kind, **options)
    given = load_image(buffer.getvalue() + b"CANARY")
    exported = png_bytes(given)
    assert exported == png_bytes(Image.frombytes("RGB", given.size, given.tobytes()))


ZOO = """
import resource, sys
from mpo.multimodal.errors import ImageError
from mpo.multimodal.images import load_image
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
for name in sys.argv[1:]:
    try:
        print(load_image(name).size)
    except ImageError as error:
        print("refused", error)
"""


def test_bombs_under_a_limit_of_memory(tmp_path: Path) -> None:
    """300 MiB over what Python takes: a bomb is refused by its header, a long animation costs its first frame."""
    side = 13_000
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    Image.new("1", (side, side)).save(tmp_path / "bomb.tiff", compression="group4")
    Image.new("P", (side, side)).save(tmp_path / "bomb.gif")
    frames = [Image.new("L", (1600, 1600), shade) for shade in range(60)]  # 460 MB as RGB
    for kind in ("png", "gif", "tiff"):
        options = {"compression": "tiff_deflate"} if kind == "tiff" else {}
        frames[0].save(tmp_path / f"frames.{kind}", save_all=True, append_images=frames[1:], **options)
    names = sorted(path.name for path in tmp_path.iterdir())
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", ZOO, *names]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(zip(names, done.stdout.splitlines(), strict=True))
    for name in ("bomb.png", "bomb.tiff", "bomb.gif"):
        assert f"refused image '{name}' has 13000x13000 pixels" in found[name]
        assert (tmp_path / name).stat().st_size < 200_000
    assert {found[f"frames.{kind}"] for kind in ("png", "gif", "tiff")} == {"(1600, 1600)"}


def test_an_alias_bomb_in_a_format_file_is_refused_at_once(tmp_path: Path) -> None:
    """Seven levels of nine aliases: an error message that spelled the five million entries out took 20 s."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 8)]
    (tmp_path / "bomb.yaml").write_text("\n".join([*levels, "name: *a7", "positive: *a7", ""]))
    started = time.process_time()
    with pytest.raises(ConfigError, match=r"uses a YAML alias") as refused:
        find_format(str(tmp_path / "bomb.yaml"))
    assert time.process_time() - started < 1
    assert len(str(refused.value)) < 2_000
