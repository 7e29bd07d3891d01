"""Two checkouts of this project side by side: CPU seconds of the same work, and whether its results are the same.

    git worktree add --detach /tmp/old COMMIT
    python benchmarks/before_after.py /tmp/old .
    python benchmarks/before_after.py /tmp/old . --part rendering prm-train

Each part runs in a process of its own with one thread, alternately in OLD and in NEW, which must both have today's
rooms (fc51129 or later). What both are given, a policy of the digits world after a warm start and its responses, is
made once, by OLD. CPU seconds include child processes that have ended; imports are not timed.

    label-steps   Monte-Carlo labels for responses of that policy, 3 continuations per step
    rendering     32 responses of 8 steps in VisualPRM's layout, an image of 13 tiles, a byte BPE of 8,000
    prm-train     `PRMTrainer` on those responses, text_weight 0
    mpo-step      one optimizer step of `MPOTrainer` over 64 pairs with an image of 13 tiles each (31 MB of pixels, the
                  size of a Qwen-VL 7B recipe), a pair per micro-batch, on a tiny model; the most memory it takes
    loop          the stages of `make demo` at a smaller size, from the world on: warm-start, sample, verify,
                  label-steps, train-prm (text_weight 1), sample, verify, score, pairs, train-mpo, sample, verify, score

Results are compared as SHA-256 of texts, counts, scores and weights, a line for each.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

PARTS = ("label-steps", "rendering", "prm-train", "mpo-step", "loop")

# name → (tiny, real)
SIZES: dict[str, tuple[int, int]] = {
    "warm-start problems": (8, 400),
    "warm-start steps": (1, 200),
    "problems": (4, 8),
    "responses": (2, 8),
    "labelled responses": (2, 2),
    "continuations": (1, 3),
    "new tokens": (8, 64),
    "prm steps": (1, 24),
    "mpo steps": (1, 12),
    "pairs of a step": (2, 64),
    "loop warm-start steps": (1, 200),
    "loop prm steps": (1, 130),
    "rendered responses": (2, 32),
    "tiles": (2, 13),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="checkout to compare with")
    parser.add_argument("new", type=Path, help="checkout to compare")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=[*PARTS], help="parts to run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each part in each checkout")
    parser.add_argument(
        "--given", type=Path, help="folder for what both are given, kept; one that exists is used again"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script itself")
    parser.add_argument("--worker", choices=("given", *PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    sizes = {name: tiny if args.tiny else real for name, (tiny, real) in SIZES.items()}
    if args.worker:
        with contextlib.redirect_stdout(sys.stderr):
            found = (
                given(args.folder, sizes, args.part)
                if args.worker == "given"
                else WORK[args.worker](args.folder, sizes)
            )
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory(prefix="before-after-") as folder:
        work = args.given or Path(folder)
        if args.given is None or not work.exists():
            _in_a_process(args, args.old, "given", work)
        for part in args.part:
            runs: dict[str, list[dict[str, Any]]] = {"old": [], "new": []}
            for turn in range(args.rounds):
                for name, checkout in (("old", args.old), ("new", args.new)):
                    print(f"{part}, round {turn + 1}: {name}", file=sys.stderr, flush=True)
                    runs[name].append(_in_a_process(args, checkout, part, work))
            _print(part, runs)


def _in_a_process(args: argparse.Namespace, checkout: Path, part: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).resolve()), ".", ".", "--worker", part, "--folder", str(folder)]
    command += ["--part", *args.part]
    own = {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    own |= {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [*command, *(["--tiny"] if args.tiny else [])],
        cwd=checkout, env={**os.environ, **own}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{part} failed in {checkout}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _print(part: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    seconds = {name: [run["seconds"] for run in some] for name, some in runs.items()}
    shown = {name: ", ".join(f"{value:.2f}" for value in some) for name, some in seconds.items()}
    ratio = median(seconds["old"]) / median(seconds["new"])
    print(f"{part}: before {shown['old']}; now {shown['new']} CPU seconds; {ratio:.2f}x", flush=True)
    old, new = (
        {name: {run["results"][name] for run in runs[side]} for name in runs[side][0]["results"]} for side in runs
    )
    for name in old:
        verdict = "equal" if old[name] == new[name] and len(old[name]) == 1 else "NOT equal"
        print(f"  {name}: {verdict}", flush=True)
    for name, value in (runs["old"][0].get("parts") or {}).items():
        now = runs["new"][0]["parts"][name]
        print(f"  {name}: {value:.2f} -> {now:.2f}", flush=True)


# In a checkout.


def mpo(command: str, **flags: Any) -> None:
    """One command of the checkout, in this process."""
    from recipes.cli import main as run

    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    if code := run([command, *words]):
        raise SystemExit(f"mpo {command} {' '.join(words)} gave {code}")


def knows(config: str, name: str) -> bool:
    """Whether a stage of the checkout has this setting."""
    import recipes.config

    return hasattr(recipes.config, config) and name in getattr(recipes.config, config).__dataclass_fields__


def timed(work: Callable[[], Any]) -> float:
    """CPU seconds of this process and of its children that ended meanwhile."""

    def now() -> float:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime

    started = now()
    work()
    return now() - started


def given(folder: Path, sizes: dict[str, int], parts: Sequence[str]) -> dict[str, Any]:
    """A PRM's processor; for the parts that need them a policy and its responses, as plain files."""
    _big_processor(sizes["tiles"]).save_pretrained(folder / "processor")
    (folder / "processor" / "config.json").write_text('{"model_type": "internvl"}')
    if not {"label-steps", "prm-train"} & {*parts}:
        return {}
    from mpo.multimodal.loading import load_for_inference, load_processor
    from rewards.sampling.generator import SamplingParams
    from rewards.sampling.transformers_generator import TransformersGenerator

    _world(folder / "world", sizes)
    _warm_start(folder / "world", folder / "policy", sizes["warm-start steps"], sizes)
    problems, params = _problems(folder, sizes), SamplingParams(max_new_tokens=sizes["new tokens"])
    generator = TransformersGenerator(load_for_inference(folder / "policy"), load_processor(folder / "policy"), params)
    drawn = generator.generate(problems, sizes["responses"], seed=0)
    (folder / "responses.json").write_text(json.dumps([[one.text for one in some] for some in drawn]))
    return {}


def _world(out: Path, sizes: dict[str, int]) -> None:
    some = max(4, sizes["problems"])
    mpo("world", out=out, num_warm_start=sizes["warm-start problems"], num_prm=some, num_preference=some,
        num_development=4, num_test=some, vision_steps=min(100, 2 * sizes["warm-start steps"]))  # fmt: skip


def _warm_start(world: Path, out: Path, steps: int, sizes: dict[str, int]) -> None:
    mpo("warm-start", policy=world / "policy", demonstrations=world, out=out, max_steps=steps, batch_size=16,
        learning_rate=0.002)  # fmt: skip


def _problems(folder: Path, sizes: dict[str, int]) -> list[Any]:
    from recipes.stage.groups import read_problems

    return [*read_problems(folder / "world" / "prm.jsonl").values()][: sizes["problems"]]


def _responses(folder: Path, sizes: dict[str, int]) -> Any:
    """Each problem with texts of the policy that have steps."""
    texts = json.loads((folder / "responses.json").read_text())
    usable = [[text for text in some if text.strip() and "<" not in text] for some in texts]
    return [
        (problem, some[: sizes["labelled responses"]])
        for problem, some in zip(_problems(folder, sizes), usable, strict=True)
        if some
    ]


def _samples(problems: Path, policy: Path, out: Path, sizes: dict[str, int]) -> None:
    more = {"prompt": "direct"} if knows("SampleConfig", "prompt") else {}
    mpo("sample", problems=problems, policy=policy, out=out, num_samples=sizes["responses"], batch_rows=256,
        max_new_tokens=sizes["new tokens"], **more)  # fmt: skip


def _labels(groups: Path, policy: Path, out: Path, sizes: dict[str, int]) -> None:
    mpo("label-steps", groups=groups, policy=policy, out=out, num_continuations=sizes["continuations"], budget="full",
        responses=sizes["labelled responses"], mixed_only="false", max_new_tokens=sizes["new tokens"],
        batch_rows=256)  # fmt: skip


def _big_processor(tiles: int) -> Any:
    """InternVL's processor with 448-pixel tiles of 256 tokens and a byte BPE over words of random syllables."""
    import random

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GotOcr2ImageProcessor

    from recipes.worlds.digits import policy

    processor = policy.build_processor()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=policy.SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    draw = random.Random(0)
    tokenizer.train_from_iterator([" ".join(_word(draw) for _ in range(200)) for _ in range(200)], trainer)
    processor.tokenizer = policy.with_roles(tokenizer)
    processor.image_seq_length = 256
    processor.image_processor = GotOcr2ImageProcessor(
        size={"height": 448, "width": 448}, crop_to_patches=True, min_patches=1, max_patches=max(1, tiles - 1),
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return processor


def _word(draw: Any) -> str:
    return "".join(draw.choice("bdfgklmnprst") + draw.choice("aeiou") for _ in range(draw.randrange(1, 4)))


def label_steps(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    from mpo.multimodal.loading import load_for_inference, load_processor
    from rewards.prm.labelling import monte_carlo
    from rewards.sampling.generator import SamplingParams
    from rewards.sampling.transformers_generator import TransformersGenerator
    from rewards.steps import split_on_blank_lines
    from rewards.types import Completion, Rollout, RolloutGroup, Verdict

    params = SamplingParams(max_new_tokens=sizes["new tokens"])
    model, processor = load_for_inference(folder / "policy"), load_processor(folder / "policy")
    groups = [
        RolloutGroup(problem, tuple(Rollout(Completion(text), Verdict.CORRECT) for text in texts))
        for problem, texts in _responses(folder, sizes)
    ]
    checked: list[str] = []

    def verify(answers: Any) -> list[Verdict]:
        checked.extend(getattr(answer, "text", answer) for _, answer in answers)  # a text before it was a completion
        return [Verdict.WRONG] * len(answers)

    continuer = monte_carlo.Continuer(TransformersGenerator(model, processor, params, batch_rows=256), verify)
    how: dict[str, Any] = {"splitter": split_on_blank_lines, "num_continuations": sizes["continuations"]}
    how |= {"run": lambda tasks: enumerate(map(continuer, tasks)), "seed": 0, "rows_a_call": 256}
    seconds = timed(lambda: monte_carlo.label_steps(groups, **how))
    digest = hashlib.sha256(json.dumps(sorted(checked)).encode()).hexdigest()
    return {"seconds": seconds, "results": {f"texts of {len(checked)} continuations": digest}}


def rendering(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    import random

    import numpy as np
    from PIL import Image

    from mpo.multimodal.loading import load_processor
    from rewards.prm.formats import VISUALPRM
    from rewards.prm.rendering import render
    from rewards.steps import split_on_blank_lines
    from rewards.types import Problem

    processor, draw = load_processor(folder / "processor"), random.Random(1)
    pixels = np.random.default_rng(0).integers(0, 256, (448, 448 * (sizes["tiles"] - 1), 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    texts = ["\n\n".join(" ".join(_word(draw) for _ in range(40)) for _ in range(8))
             for _ in range(sizes["rendered responses"])]  # fmt: skip
    problem = Problem("p", " ".join(_word(draw) for _ in range(40)), (image,))
    steps = [split_on_blank_lines(text) for text in texts]
    render(processor, VISUALPRM, problem, steps[:1], [image])  # the libraries' first use
    rows: list[Any] = []
    seconds = timed(lambda: rows.extend(render(processor, VISUALPRM, problem, steps, [image])))
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row.prompt.input_ids.tolist(), [*row.continuation], [*row.read_positions]]).encode())
        digest.update(row.prompt.image_features["pixel_values"].numpy().tobytes())
    return {"seconds": seconds, "results": {"rows": digest.hexdigest()}}


def prm_train(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    from transformers import TrainingArguments

    from mpo.multimodal.loading import load_model, load_processor
    from rewards.prm.formats import STEP_END
    from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution
    from rewards.prm.trainer import PRMTrainer
    from rewards.steps import split_on_blank_lines

    groups = []
    for problem, texts in _responses(folder, sizes):
        steps = [split_on_blank_lines(text) for text in texts]
        solutions = [
            LabelledSolution(tuple(some), tuple(float(place % 2) for place in range(len(some)))) for some in steps
        ]
        groups.append(LabelledGroup(problem, tuple(solutions)))
    with tempfile.TemporaryDirectory() as out:
        args = TrainingArguments(
            out, max_steps=sizes["prm steps"], per_device_train_batch_size=4, learning_rate=2e-3, use_cpu=True,
            report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, remove_unused_columns=False,
            dataloader_pin_memory=False,
        )  # fmt: skip
        model, processor = load_model(folder / "policy"), load_processor(folder / "policy")
        trainer = PRMTrainer(model, processor, STEP_END, args, groups)
        seconds = timed(trainer.train)
    return {"seconds": seconds, "results": {"weights": _digest(trainer.model)}}


def mpo_step(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    import numpy as np
    import torch
    from PIL import Image
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    from mpo import MPOConfig, MPOTrainer
    from mpo.multimodal.loading import load_processor

    processor, tiles, pairs = load_processor(folder / "processor"), sizes["tiles"], sizes["pairs of a step"]
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}
    config = InternVLConfig(
        vision_config={**heads, "image_size": [448, 448], "patch_size": [14, 14]},
        text_config={
            **heads, "model_type": "qwen2", "vocab_size": len(processor.tokenizer), "num_key_value_heads": 2,
            "bos_token_id": None, "eos_token_id": processor.tokenizer.eos_token_id,
            "pad_token_id": processor.tokenizer.pad_token_id,
        },
        image_token_id=processor.image_token_id, image_seq_length=256,
    )  # fmt: skip
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(config)
    draw = np.random.default_rng(0)

    def row(place: int) -> dict[str, Any]:
        blocks = draw.integers(0, 256, (8, 8 * (tiles - 1), 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize((448 * (tiles - 1), 448))
        answers = {side: [{"role": "assistant", "content": f"{side} {place}"}] for side in ("chosen", "rejected")}
        return {"images": [image], "prompt": [{"role": "user", "content": f"{place}?"}], **answers}

    rows = [row(place) for place in range(pairs)]
    with tempfile.TemporaryDirectory() as out:
        args = MPOConfig(
            out, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=pairs, learning_rate=1e-3,
            use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = MPOTrainer(model, args=args, processing_class=processor, train_dataset=rows)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        seconds = timed(trainer.train)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "seconds": seconds,
        "results": {"weights": _digest(trainer.model)},
        "parts": {"GiB of memory before the step": before, "most GiB": most},
    }


def _digest(model: Any) -> str:
    import torch

    digest = hashlib.sha256()
    for weight in model.parameters():
        digest.update(weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _train_prm(groups: Path, model: Path, out: Path, steps: int, *, text_weight: float) -> None:
    mpo("train-prm", groups=groups, model=model, out=out, prm_format="step_end", until_first_error="true",
        text_weight=text_weight, max_steps=steps, batch_groups=4, learning_rate=0.002, save_steps=0)  # fmt: skip


def loop(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    out = folder / "loop"
    shutil.rmtree(out, ignore_errors=True)
    world, policy = out / "world", out / "policy"
    import recipes.data.label_steps
    import recipes.training.train_mpo
    import recipes.training.train_prm
    import recipes.training.warm_start  # noqa: F401  not timed

    stages: dict[str, Callable[[], None]] = {
        "world": lambda: _world(world, sizes),
        "warm-start": lambda: _warm_start(world, policy, sizes["loop warm-start steps"], sizes),
        "sample": lambda: _samples(world / "prm.jsonl", policy, out / "samples", sizes),
        "verify": lambda: mpo("verify", groups=out / "samples", out=out / "verified"),
        "label-steps": lambda: _labels(out / "verified", policy, out / "labelled", sizes),
        "train-prm": lambda: _train_prm(
            out / "labelled", policy, out / "prm", sizes["loop prm steps"], text_weight=1.0
        ),
        "sample, preference": lambda: _samples(world / "preference.jsonl", policy, out / "preference", sizes),
        "verify, preference": lambda: mpo("verify", groups=out / "preference", out=out / "preference_verified"),
        "score": lambda: mpo("score", groups=out / "preference_verified", prm=out / "prm", out=out / "scored"),
        "pairs": lambda: mpo(
            "pairs", groups=out / "scored", out=out / "pairs", rule="correctness", max_pairs=3, format_negatives="true"
        ),
        "train-mpo": lambda: mpo(
            "train-mpo", policy=policy, pairs=out / "pairs", out=out / "trained", max_steps=sizes["mpo steps"],
            batch_size=16, learning_rate=0.0002, save_steps=0,
        ),
        "sample, test": lambda: _samples(world / "test.jsonl", out / "trained", out / "test", sizes),
        "verify, test": lambda: mpo("verify", groups=out / "test", out=out / "test_verified"),
        "score, test": lambda: mpo("score", groups=out / "test_verified", prm=out / "prm", out=out / "test_scored"),
    }  # fmt: skip
    parts = {name: timed(stage) for name, stage in stages.items()}
    results = {
        "texts of the first samples": _groups(out / "samples", "text"),
        "labels": _groups(out / "labelled", "mc"),
        "weights of the PRM": _weights(out / "prm"),
        "scores": _groups(out / "scored", "scores"),
        "scores to 4 digits": _groups(out / "scored", "scores", digits=4),
        "weights of the policy": _weights(out / "trained"),
        "texts of the test samples": _groups(out / "test", "text"),
    }
    return {"seconds": sum(parts.values()), "results": results, "parts": parts}


def _groups(folder: Path, name: str, *, digits: int | None = None) -> str:
    """SHA-256 of one thing of all responses of `groups.jsonl`, in its order."""
    found = []
    for line in (folder / "groups.jsonl").read_text().splitlines():
        for rollout in json.loads(line)["rollouts"]:
            value = {"text": _text, "mc": lambda one: one.get("mc"), "scores": _scores}[name](rollout)
            found.append([round(x, digits) for x in value] if digits is not None and value else value)
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _text(rollout: dict[str, Any]) -> Any:
    completion = rollout.get("completion", rollout)
    return completion["text"] if isinstance(completion, dict) else completion


def _scores(rollout: dict[str, Any]) -> Any:
    scores = rollout.get("step_scores", rollout.get("scores"))
    return scores["values"] if isinstance(scores, dict) else scores


def _weights(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


WORK: dict[str, Callable[[Path, dict[str, int]], dict[str, Any]]] = {
    "label-steps": label_steps,
    "rendering": rendering,
    "prm-train": prm_train,
    "mpo-step": mpo_step,
    "loop": loop,
}


if __name__ == "__main__":
    main()
