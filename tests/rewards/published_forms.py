"""Small sets in exactly the forms in which others publish theirs: field names and layouts of the released files.

Where a layout comes from is said in the reader of its form (`rewards/interchange/`). The contents are ours.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

RED, BLUE = (200, 30, 30), (30, 30, 200)
SYSTEM = "Judge each step."


def picture(colour: tuple[int, int, int] = RED) -> Image.Image:
    return Image.new("RGB", (32, 32), colour)


def encoded(colour: tuple[int, int, int] = RED, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(colour).save(buffer, kind)
    return buffer.getvalue()


def in_base64(colour: tuple[int, int, int] = RED) -> str:
    return base64.b64encode(encoded(colour, "JPEG")).decode()


def json_lines(path: Path, rows: Iterable[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def in_pieces(path: Path, pieces: int = 3) -> None:
    """A file as `split` leaves it: NAME_aa, NAME_ab, …"""
    data = path.read_bytes()
    size = -(-len(data) // pieces)
    for number in range(pieces):
        piece = data[number * size : (number + 1) * size]
        path.with_name(f"{path.name}_a{chr(97 + number)}").write_bytes(piece)
    path.unlink()


# --- labelled steps ---


def conversation(question: str, steps: list[str], signs: str, image: Any = "chart/a.png") -> dict[str, Any]:
    turns = [{"from": "system", "value": SYSTEM}]
    for number, (step, sign) in enumerate(zip(steps, signs, strict=True)):
        first = f"### Question:\n{question}\n\n### Solution Process:\n{step}"
        turns += [{"from": "human", "value": step if number else first}, {"from": "gpt", "value": sign}]
    shown = {} if image is None else {"image": image}
    return {"id": -1, **shown, "conversations": turns}


def visualprm400k(folder: Path) -> Path:
    """-v1.1: `meta.json`, `annotations/`, and `images.zip` in pieces. One row is of no use."""
    rows = [
        conversation("<image>\nHow many?", ["one", "two", "3"], "++-"),
        conversation("<image>\nHow many?", ["one", "two", "5"], "+++"),
        conversation("Is <image> red?", ["It is.\n\nLook.", "Final answer: yes"], "+-"),
        conversation("1 + 1?", ["one", "2"], "++", image=None),
        conversation("<image>\nHow many?", ["one"], "?"),
    ]
    json_lines(folder / "annotations" / "chart_prm.jsonl", rows)
    entry = {
        "root": f"{folder.name}/images",
        "annotation": f"{folder.name}/annotations/chart_prm.jsonl",
        "data_augment": False,
        "repeat_time": 1,
        "length": len(rows),
    }
    (folder / "meta.json").write_text(json.dumps({"chart_prm": entry}))
    in_pieces(zipped(folder / "images.zip", {"images/chart/a.png": encoded()}))
    return folder


def raw_row(image: Any, question: str, response: str, counts: list[int]) -> dict[str, Any]:
    steps = [
        {"step": step, "score": count / 16, "num_mc_correct": count, "num_mc_total": 16}
        for step, count in zip(response.split("\n\n"), counts, strict=True)
    ]
    asked = {"question": question, "question_orig": question.replace("<image>\n", ""), "answer": "3"}
    return {"image": image, **asked, "response": response, "steps_with_score": steps, "num_mc_sequences": 16}


def visualprm400k_raw(folder: Path) -> Path:
    """-v1.1-Raw: a file per data set, images named with the set's own folder, which `images/` has none of."""
    name = "VisualPRM400K-v1.1-Raw"
    for part in ("Geometry3K", "ai2d"):
        row = raw_row(f"{name}/{part}/1.png", "<image>\nHow many?", "one\n\nso 3", [16, 11])
        json_lines(folder / "annotations" / f"{part}_extracted.jsonl", [row, row | {"response": "", "answer": "3"}])
        (folder / "images" / part).mkdir(parents=True)
        (folder / "images" / part / "1.png").write_bytes(encoded())
    return folder


def trl_stepwise(folder: Path) -> Path:
    """trl-lib/prm800k and trl-lib/math_shepherd: three columns, Parquet in `data/`."""
    rows = [
        {"prompt": "1 + 1?", "completions": ["one and one", "So 2."], "labels": [True, True]},
        {"prompt": "1 + 1?", "completions": ["one\n\nand one", "So 3."], "labels": [True, False]},
        {"prompt": "1 + 2?", "completions": ["So 4."], "labels": [False]},
        {"prompt": "1 + 3?", "completions": ["So 4."], "labels": []},
    ]
    (folder / "data").mkdir(parents=True)
    features = {
        "prompt": datasets.Value("string"),
        "completions": datasets.List(datasets.Value("string")),
        "labels": datasets.List(datasets.Value("bool")),
    }
    table = datasets.Dataset.from_list(rows, features=datasets.Features(features))
    table.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    return folder / "data"


# --- benchmarks ---


def visualprocessbench(folder: Path) -> Path:
    """`test.jsonl` and `images.zip`; `response` is an object, `image` a list."""
    row = {
        "image": ["images/MMMU/1.png"],
        "question": "<image>\nHow many?",
        "answer": "3",
        "response": {"steps": ["one", "two", "so 3"], "process_correctness": [1, 0, -1]},
        "policy_model": "a-model",
        "data_source": "MMMU",
    }
    gone = row | {"image": ["images/MMMU/gone.png"]}
    json_lines(folder / "test.jsonl", [row, row | {"image": ["../../secret.png"]}, gone])
    zipped(folder / "images.zip", {"images/MMMU/1.png": encoded(), "../../secret.png": encoded()})
    return folder


def processbench(folder: Path) -> Path:
    """One JSON array per subset, as Qwen/ProcessBench holds them."""
    rows = [
        {
            "id": f"gsm8k-{number}",
            "generator": "a-model",
            "problem": f"{number} + 1?",
            "steps": ["add", "so"],
            "final_answer_correct": label < 0,
            "label": label,
        }
        for number, label in enumerate((-1, 0, 1, 7))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gsm8k.json").write_text(json.dumps(rows, indent=1))
    return folder / "gsm8k.json"


# --- preference pairs ---


def mmpr(folder: Path) -> Path:
    """-v1.2: two data sets; images in the text, several, none; the archive of images in pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"chosen": "Final answer: 3", "rejected": "Final answer: 4", "answer_gt": "3"}
    rows = [
        {"image": "a.png", "question": "<image>\nHow many?", **sides},
        {"image": "a.png", "question": "How many?\n<image>", **sides},
        {"image": ["a.png", "b.png"], "question": "Is <image> larger than <image>?", **sides},
        {"image": ["a.png"], "question": "<image>How <image> many?", **sides},
        {"question": "1 + 2?", **sides},
    ]
    json_lines(folder / "annotations" / "m3cot.jsonl", rows)
    json_lines(folder / "annotations" / "text.jsonl", [{"question": f"{i} + 1?", **sides} for i in range(5)])
    common = {"data_augment": False, "repeat_time": 1}
    meta = {
        "m3cot": {
            **{"root": f"{folder.name}/images/M3CoT", "annotation": f"{folder.name}/annotations/m3cot.jsonl"},
            **{**common, "data_augment": True, "length": len(rows)},
        },
        "text": {
            **{"root": f"{folder.name}/images", "annotation": f"{folder.name}/annotations/text.jsonl"},
            **{**common, "repeat_time": 0.4, "length": 5},
        },
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=2))
    in_pieces(zipped(folder / "images.zip", {"images/M3CoT/a.png": encoded(), "images/M3CoT/b.png": encoded(BLUE)}))
    return folder


def rlaif_v(folder: Path) -> Path:
    """Parquet with embedded images and paths that lie nowhere."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "ds_name": "toy",
            "image": {"bytes": encoded(), "path": "/home/somebody/1.jpg"},
            "question": question,
            "chosen": "It is red.",
            "rejected": "It is blue.",
            "origin_dataset": "toy",
            "origin_split": "{}",
            "idx": "1",
            "image_path": "/home/somebody/1.jpg",
        }
        for question in ("What colour?", "")
    ]
    names = ("ds_name", "question", "chosen", "rejected", "origin_dataset", "origin_split", "idx", "image_path")
    features = datasets.Features({name: datasets.Value("string") for name in names} | {"image": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).to_parquet(folder / "RLAIF-V-Dataset_000.parquet")
    return folder


def _with_image(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "1.png").write_bytes(encoded())


def llava(folder: Path) -> Path:
    """A JSON array: the form with `prompt`, the one with `conversations`, LLaVA-RLHF's, and one of several turns."""
    _with_image(folder)
    human = {"from": "human", "value": "<image>\nWhat colour?"}
    said = {"output_1": {"from": "llm", "value": "blue"}, "output_2": {"from": "llm", "value": "red"}}
    said = {name: {**turn, "from": "gpt"} for name, turn in said.items()}
    rows = [
        {"id": "1", "image": "1.png", "prompt": "<image>\nWhat colour?", "chosen": "red", "rejected": "blue"},
        {"id": "2", "image": "1.png", "conversations": [human], "chosen": "red", "rejected": "blue"},
        {"id": "3", "image": "1.png", "conversations": [human], **said, "preference": 2},
        {"id": "4", "image": "1.png", "conversations": [human, {"from": "gpt", "value": "red"}, human], "chosen": "a"},
        {"id": "5", "image": "gone.png", "prompt": "<image>\nWhat?", "chosen": "red", "rejected": "blue"},
    ]
    (folder / "dpo.json").write_text(json.dumps(rows))
    return folder / "dpo.json"


def swift(folder: Path) -> Path:
    """`rejected_response` beside `messages`, images in the order of their placeholders; and the older columns."""
    _with_image(folder)
    (folder / "2.png").write_bytes(encoded(BLUE))
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is <image> or <image> red?"}]
    answered = [*asked, {"role": "assistant", "content": "The second."}]
    images = ["2.png", "1.png"]
    return json_lines(
        folder / "rlhf.jsonl",
        [
            {"messages": answered, "rejected_response": "The first.", "images": images},
            {"messages": answered, "rejected_messages": [*asked, answered[-1] | {"content": "No."}], "images": images},
            {"query": "1 + 2?", "response": "3", "rejected_response": "4"},
            {"messages": answered, "rejected_response": "The first.", "images": images[:1]},
            {"messages": answered, "images": images},
        ],
    )


def sharegpt(folder: Path) -> Path:
    """LLaMA-Factory's `dpo_en_demo.json`, `rlhf_v.json`, and an alpaca row."""
    _with_image(folder)
    human = {"from": "human", "value": "<image>What colour?"}
    rows = [
        {
            "conversations": [human],
            "chosen": {"from": "gpt", "value": "red"},
            "rejected": {"from": "gpt", "value": "blue"},
            "images": ["1.png"],
        },
        {"instruction": "Add.", "input": "1 + 2", "chosen": "3", "rejected": "4"},
        {"conversations": [human], "chosen": {"from": "gpt", "value": "red"}, "images": ["1.png"]},
    ]
    (folder / "rlhf_v.json").write_text(json.dumps(rows))
    return folder / "rlhf_v.json"


def chat(folder: Path) -> Path:
    """Conversations in Parquet: an explicit prompt of blocks, and chosen and rejected that begin with the question."""
    folder.mkdir(parents=True, exist_ok=True)
    user = {"role": "user", "content": "What colour?"}
    rows = [
        {
            "images": [{"bytes": encoded(), "path": None}],
            "prompt": "What colour?",
            "chosen": [user, {"role": "assistant", "content": "red"}],
            "rejected": [user, {"role": "assistant", "content": "blue"}],
        },
        {
            "images": [],
            "prompt": None,
            "chosen": [user, {"role": "assistant", "content": "red"}],
            "rejected": [user | {"content": "Who?"}, {"role": "assistant", "content": "blue"}],
        },
    ]
    datasets.Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return folder / "train.parquet"


# Form → how a set is made, rows that can be used, and reason → rows that cannot.
FORMS: dict[str, tuple[str, Callable[[Path], Path], int, dict[str, int]]] = {
    "VisualPRM400K-v1.1": ("visualprm400k", visualprm400k, 4, {"conversations": 1}),
    "VisualPRM400K-v1.1-Raw": ("visualprm400k", visualprm400k_raw, 2, {"response": 2}),
    "prm800k": ("prm800k", trl_stepwise, 3, {"labels": 1}),
    "math_shepherd": ("math_shepherd", trl_stepwise, 3, {"labels": 1}),
    "MMPR-v1.2": ("mmpr", mmpr, 6, {"left out by repeat_time": 3, "not a pair of MMPR": 1}),
    "RLAIF-V": ("rlaif_v", rlaif_v, 1, {"question is empty": 1}),
    "LLaVA": ("llava", llava, 3, {"more than one turn": 1, "unreadable image": 1}),
    "ms-swift": (
        "swift",
        swift,
        3,
        {"placeholders and images differ in number": 1, "rejected_response is no conversation": 1},
    ),
    "ShareGPT": ("sharegpt", sharegpt, 2, {"rejected is no conversation": 1}),
    "chat": ("chat", chat, 1, {"different questions": 1}),
    "VisualProcessBench": (
        "visualprocessbench",
        visualprocessbench,
        1,
        {"an image is not a local path inside the folder": 1, "an image is missing": 1},
    ),
    "ProcessBench": ("processbench", processbench, 3, {"label is not the index of a step": 1}),
}
