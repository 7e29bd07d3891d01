"""Two made-up policies and three critics on three benchmarks, in the files' published forms: TSV, TSV and Parquet.

The problems are small sums of our own. MMMU's and DynaMath's files have VLMEvalKit's columns (base64 images), We-Math's
the columns of its data set on the Hub with embedded images.
"""

from __future__ import annotations

import base64
import csv
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SAMPLES = 6
LETTERS = "ABCD"
POLICIES = {"Alpha-2B": 0.35, "Beta-8B": 0.6}  # P(a response is right)
CRITICS = {"GoodPRM": 0.35, "NoisyPRM": 1.5}  # spread of the made-up scores around right and wrong
# Ways to write one answer; each is drawn at random where spelling noise is planted.
SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda text: f"Final answer: {text}",
    lambda text: f"Final answer: \\boxed{{{text}}}",
    lambda text: f"Final answer: **{text}**.",
    lambda text: f"Final answer: ${text}$",
)


@dataclass(frozen=True)
class Asked:
    """One problem as the responses need it: its id, its right answer, and wrong ones."""

    id: str
    right: str
    wrong: Sequence[str]


def picture(seed: int) -> bytes:
    """A random image as PNG."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).resize((96, 64), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def mmmu(path: Path) -> list[Asked]:
    """VLMEvalKit's MMMU_DEV_VAL.tsv: options in columns, subjects as categories, development rows among the others."""
    rows, asked = [], []
    for index in range(14):
        a, b = index + 2, 2 * index + 3
        options = [str(a + b + shift) for shift in (0, 1, -1, 2)]
        letter = LETTERS[index % 4]
        options[0], options[index % 4] = options[index % 4], options[0]
        split = "dev" if index < 2 else "validation"
        rows.append(
            {
                "index": index, "id": f"{split}_{index}", "image": base64.b64encode(picture(index)).decode(),
                "question": f"<image 1> What is {a} plus {b} in this figure number {index}?",
                **dict(zip(LETTERS, options, strict=True)),
                "answer": letter, "category": ("Art", "Law")[index % 2], "split": split,
            }
        )  # fmt: skip
        if split == "validation":
            asked.append(Asked(f"{split}_{index}", letter, [other for other in LETTERS if other != letter]))
    _tsv(path, rows)
    return asked


def dynamath(path: Path) -> list[Asked]:
    """VLMEvalKit's DynaMath.tsv: variants of a seed question, named by `qid` and `varid`."""
    rows, asked = [], []
    for seed in range(5):
        for variant in range(1, 4):
            index, value = 3 * seed + variant, 10 * seed + variant
            rows.append(
                {
                    "index": index, "image": base64.b64encode(picture(100 + index)).decode(),
                    "question": f"Seed {seed}, variant {variant}: read the value off the axis.",
                    "answer": f"{value}.5", "answer_type": "float", "subject": ("algebra", "statistics")[seed % 2],
                    "knowledge_level": "high school", "qid": seed, "varid": variant,
                }
            )  # fmt: skip
            asked.append(Asked(str(index), f"{value}.5", [f"{value + 1}.5", f"{value}.25"]))
    _tsv(path, rows)
    return asked


def wemath(path: Path) -> list[Asked]:
    """We-Math's Parquet: `ID`, `key`, options as one text, the image under `image_path`."""
    rows, asked = [], []
    for number in range(1, 7):
        steps = 2 if number <= 4 else 3
        for part in (*map(str, range(1, steps + 1)), "multi"):
            index = len(rows)
            letter = LETTERS[index % 4]
            options = "; ".join(f"{name}. {index + place} cm" for place, name in enumerate(LETTERS))
            rows.append(
                {
                    "ID": f"{steps}steps_{number}", "split": "testmini", "knowledge concept": f"concept {number % 2}",
                    "question": f"Part {part} of problem {number}: how long is the marked side?", "option": options,
                    "answer": letter, "key": f"{steps}steps_{part}", "question number": number,
                    "image_path": {"bytes": picture(200 + index), "path": f"{index}.png"},
                }
            )  # fmt: skip
            asked.append(Asked(str(index), letter, [other for other in LETTERS if other != letter]))
    pq.write_table(pa.Table.from_pylist(rows), path)
    return asked


BENCHMARKS = {
    "MMMU": (mmmu, "MMMU_DEV_VAL.tsv"),
    "DynaMath": (dynamath, "DynaMath.tsv"),
    "WeMath": (wemath, "we.parquet"),
}


def make(folder: Path, *, spelling: bool = False) -> Path:
    """Write files of problems, responses and scores, and the settings file; returns the settings file."""
    folder.mkdir(parents=True)
    for name, (write, file) in BENCHMARKS.items():
        asked = write(folder / file)
        for policy, skill in POLICIES.items():
            rng = random.Random(f"{name} {policy}")
            noise = random.Random(f"spelling {name} {policy}")
            responses, scores = [], {critic: [] for critic in CRITICS}
            for one in asked:
                rows = list(_responses(one, skill, rng, noise if spelling else None))
                responses.append({"id": one.id, "responses": [text for text, _ in rows]})
                for critic, spread in CRITICS.items():
                    scores[critic] += [
                        {"problem_id": one.id, "index": index, "score": round(right + rng.gauss(0, spread), 6)}
                        for index, (_, right) in enumerate(rows)
                    ]
            _jsonl(folder / f"{policy}-{name}.jsonl", responses)
            for critic, some in scores.items():
                _jsonl(folder / f"{critic}-{policy}-{name}.jsonl", some)
    return settings(folder)


def settings(folder: Path, **more: Any) -> Path:
    """The settings file over these files; JSON is YAML."""
    policies = {
        policy: {"responses": {name: str(folder / f"{policy}-{name}.jsonl") for name in BENCHMARKS}}
        for policy in POLICIES
    }
    benchmarks = {name: {"problems": str(folder / file)} for name, (_, file) in BENCHMARKS.items()}
    critics: dict[str, Any] = {
        critic: {"scores": f"{folder}/{critic}-{{policy}}-{{benchmark}}.jsonl", "cost": 1.0} for critic in CRITICS
    }
    critics["Self-consistency"] = {"vote": "majority"}
    content = {"ns": [1, 3, 6], "verify": {"second_verifier": "exact"}, "policies": policies}
    path = folder / "matrix.yaml"
    path.write_text(json.dumps({**content, "benchmarks": benchmarks, "critics": critics, **more}))
    return path


def _responses(one: Asked, skill: float, rng: random.Random, noise: random.Random | None) -> Iterator[tuple[str, bool]]:
    for _ in range(SAMPLES):
        right = rng.random() < skill
        answer = one.right if right else rng.choice(one.wrong)
        ending = (noise.choice(SPELLINGS) if noise else SPELLINGS[0])(answer)
        yield f"We look at the image.\n\nIt gives {answer}.\n\n{ending}", right


def _tsv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


def _jsonl(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
