"""Every decoder of untrusted bytes with damaged input: it gives a value or an error of ours, and nothing grows.

`tests/test_fuzz.py` tries some hundred inputs of each; `make fuzz` tries for `FUZZ_SECONDS` each and prints how many.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from mpo.multimodal.errors import MPOError
from mpo.multimodal.files import read_json
from mpo.multimodal.images import image_size, load_image
from recipes.loop.settings import Settings
from recipes.stage.folder import manifest_of
from recipes.stage.groups import read_groups, read_problems
from rewards.interchange.archives import ZipImages
from rewards.interchange.json_rows import decoded_row
from rewards.interchange.mmpr import META, read_mmpr
from rewards.interchange.preference_rows import read_preference_rows
from rewards.interchange.problems import read_problems as read_problems_of
from rewards.interchange.processbench import read_processbench
from rewards.interchange.responses import read_responses
from rewards.interchange.stepwise_rows import read_stepwise_parquet, write_stepwise_parquet
from rewards.interchange.trl_rows import from_trl_row, iter_trl_parquet, read_trl_parquet, write_trl_parquet
from rewards.interchange.visualprm_release import read_release
from rewards.interchange.visualprocessbench import read_visualprocessbench
from rewards.prm.formats import find_format
from rewards.prm.model_prm import load_format
from rewards.types import Completion, MonteCarloCount, PreferencePair, Problem, Rollout

LONGEST = 5000  # characters of a message

Decoder = tuple[Callable[[], bytes], Callable[[Path], object]]  # a valid input, and what reads a file of it


def encoded(kind: str) -> bytes:
    """A small image of a format."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, kind)
    return out.getvalue()


def archive(method: int) -> bytes:
    """A zip with one image."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as zipped:
        zipped.writestr("images/a.png", encoded("PNG"))
    return out.getvalue()


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def pairs() -> bytes:
    """A Parquet file of TRL rows."""
    problem = Problem("p", "2 + 2?", (Image.new("RGB", (4, 4)),))
    with tempfile.TemporaryDirectory() as folder:
        found = [PreferencePair(problem, Completion("4"), Completion(str(i)), "correctness") for i in range(5, 9)]
        write_trl_parquet(found, Path(folder) / "pairs.parquet")
        return (Path(folder) / "pairs.parquet").read_bytes()


def stepwise() -> bytes:
    """A Parquet file of labelled steps."""
    made = Rollout(Completion("a\n\nb"), mc=(MonteCarloCount(1, 4), MonteCarloCount(0, 4)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        write_stepwise_parquet([(Problem("p", "2 + 2?"), made)] * 4, path)
        return path.read_bytes()


def _zip(path: Path) -> None:
    with ZipImages(path) as images:
        load_image(images.read("images", "a.png"))


def _mmpr(path: Path) -> None:
    meta = {"set": {"root": "images", "annotation": path.name, "length": 1}}
    (path.parent / META).write_text(json.dumps(meta))
    list(read_mmpr(path.parent, on_reject=lambda *_: None))


def _meta(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(lines(MMPR))
    list(read_mmpr(folder, on_reject=lambda *_: None))


def _trl(path: Path) -> None:
    read_trl_parquet(path)
    for row in iter_trl_parquet(path):
        with contextlib.suppress(MPOError):
            from_trl_row(row)


def _groups(path: Path) -> None:
    (path.parent / "p.jsonl").write_bytes(lines({"id": "p", "question": "?"}))
    manifest = {
        "stage": "made", "counts": {}, "files": {}, "fingerprint": {"settings": {}, "inputs": {}},
        "problems": ["p.jsonl", "p.jsonl"],
    }  # fmt: skip
    (path.parent / "manifest.json").write_text(json.dumps(manifest))
    path.rename(path.parent / "groups.jsonl")
    read_groups(path.parent)


def _problems(path: Path) -> None:
    read_problems(path, on_bad=lambda *_: None)


def _visualprm(path: Path) -> None:
    list(read_release(path))


def tsv() -> bytes:
    image = base64.b64encode(encoded("PNG")).decode()
    rows = [f'1\t{image}\t"Which\nis it?"\tred\tblue\tA', "2\t1\tWhat?\t\t\t7"]
    return "\n".join(["index\timage\tquestion\tA\tB\tanswer", *rows, ""]).encode()


def table() -> bytes:
    buffer = io.BytesIO()
    rows = [{"id": "p", "question": "2?", "image": {"bytes": encoded("PNG"), "path": "a"}, "options": "['1', '2']"}]
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def log() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        zipped.writestr("header.json", "{}")
        zipped.writestr("samples/1_epoch_1.json", json.dumps(SAID[1]))
    return buffer.getvalue()


def _preferences(form: str) -> Callable[[Path], object]:
    read = partial(read_preference_rows, form, on_reject=lambda *_: None)
    return _named("a.jsonl", lambda path: list(read(path)))


def _responses(ending: str) -> Callable[[Path], object]:
    return lambda path: list(read_responses(path.rename(path.with_suffix(ending))))


def _format(path: Path) -> None:
    find_format(str(path.rename(path.with_suffix(".yaml"))))


def _named(name: str, read: Callable[[Path], object]) -> Callable[[Path], object]:
    """Read the folder that holds the input under a name."""

    def reading(path: Path) -> object:
        return read(path.rename(path.parent / name).parent)

    return reading


PROBLEM = {"id": "p", "question": "How many?", "images": ["a.png"], "answer": "1", "meta": {"x": [1, {"y": 2.5}]}}
ROLLOUT = {"text": "a\n\nb", "finish_reason": "stop", "num_tokens": 3, "verdict": "correct", "step_scores": [0.5, 1.0],
           "reward": 0.5, "mc": [[1, 4], [2, 4]]}  # fmt: skip
MMPR = {"image": "a.png", "question": "<image>\nHow many?", "chosen": "1", "rejected": "2", "answer_gt": "1"}
PROCESS = {"id": "gsm8k-0", "problem": "2 + 2?", "steps": ["4", "So 4"], "label": 1, "final_answer_correct": False}
TURN = {"from": "human", "value": "### Question:\n2?\n\n### Solution Process:\n4"}
SPOKEN = {"id": -1, "conversations": [TURN, {"from": "gpt", "value": "+"}]}
ASKED = [{"role": "user", "content": [{"type": "text", "text": "2?"}]}]
PREFERRED = {
    "rlaif_v": {"question": "2?", "chosen": "2", "rejected": "3", "idx": 1},
    "llava": {"conversations": [TURN], "output_1": {"from": "gpt", "value": "2"},
              "output_2": {"from": "gpt", "value": "3"}, "preference": 1},
    "swift": {"messages": [*ASKED, {"role": "assistant", "content": "2"}], "rejected_response": "3"},
    "chat": {"prompt": ASKED, "chosen": [{"role": "assistant", "content": "2"}], "rejected": "3"},
}  # fmt: skip
REPLY = {"choices": [{"index": 0, "message": {"content": "2"}, "finish_reason": "stop"}]}
SAID = [
    {"custom_id": "p#1", "response": {"status_code": 200, "body": REPLY}, "error": None},
    {"id": 1, "epoch": 1, "input": "2?", "target": "2", "output": REPLY},
    {"doc_id": 0, "doc": {"id": "p"}, "target": "2", "resps": [["2", "3"]]},
    {"index": 1, "question": "2?", "prediction": "2"},
    {"id": "p", "question": "2?", "responses": ["2", {"text": "3", "num_tokens": 1}]},
]
VISUAL = {"question": "2?", "response": {"steps": ["4"], "process_correctness": [1]}, "data_source": "toy"}
SCORED = {"image": "a.png", "question": "<image>\n?", "answer": "7", "response": "a\n\nb", "steps_with_score": [
    {"step": "a", "score": 0.5, "num_mc_correct": 2, "num_mc_total": 4},
    {"step": "b", "score": 0.25, "num_mc_correct": 1, "num_mc_total": 4}]}  # fmt: skip
FORMAT = {"name": "mine", "layout": "end", "positive": "+", "negative": "-"}

DECODERS: dict[str, Decoder] = {
    **{f"image {kind}": (lambda kind=kind: encoded(kind), lambda path: load_image(path.read_bytes()))
       for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")},
    "image size": (lambda: encoded("PNG"), image_size),
    **{f"zip {name}": (lambda method=method: archive(method), _zip)
       for name, method in (("stored", 0), ("deflate", 8), ("bzip2", 12), ("lzma", 14))},
    "row": (lambda: lines(PROBLEM), lambda path: decoded_row(path.read_bytes())),
    "problems": (lambda: lines(PROBLEM, {**PROBLEM, "id": "q"}), _problems),
    "groups": (lambda: lines({"problem_id": "p", "rollouts": [ROLLOUT]}), _groups),
    "mmpr rows": (lambda: lines(MMPR, MMPR), _mmpr),
    "mmpr meta": (lambda: json.dumps({"set": {"root": "images", "annotation": "a.jsonl"}}).encode(),
                  _named(META, _meta)),
    "processbench": (lambda: lines(PROCESS, PROCESS), read_processbench),
    "visualprocessbench": (lambda: lines(VISUAL, VISUAL), read_visualprocessbench),
    "visualprm400k": (lambda: lines(SCORED, SCORED), _visualprm),
    "conversations": (lambda: lines(SPOKEN, SPOKEN), _visualprm),
    **{f"problems {kind}": (make, _named(f"a{kind}", lambda path: list(read_problems_of(path))))
       for kind, make in ((".tsv", tsv), (".parquet", table), (".json", lambda: b'[{"id": 1, "question": "2?"}]'))},
    **{f"pairs {form}": (lambda row=row: lines(row), _preferences(form)) for form, row in PREFERRED.items()},
    **{f"responses {number}": (lambda row=row: lines(row), _responses(".jsonl")) for number, row in enumerate(SAID)},
    "inspect log": (log, _responses(".eval")),
    "stepwise": (stepwise, lambda path: list(read_stepwise_parquet(path))),
    "pairs": (pairs, _trl),
    "manifest": (lambda: json.dumps({"stage": "a", "fingerprint": {"settings": {}, "inputs": {}}}).encode(),
                 _named("manifest.json", manifest_of)),
    "results": (lambda: b'{"a": [1, 2, null]}', read_json),
    "prm.json": (lambda: json.dumps(FORMAT).encode(), _named("prm.json", load_format)),
    "format": (lambda: b"name: mine\nlayout: end\npositive: '+'\n", _format),
    "settings": (lambda: b"verify:\n  verifier: exact\npairs:\n  seed: 3\n", Settings),
}  # fmt: skip

# Spots (as shares of the length), and bytes that take the place of what stands there, or stand before it.
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 8), st.one_of(st.binary(max_size=8), st.sampled_from(
        [b"\x00", b"\xff", b"\\ud800", b"NaN", b"1e999", b"null", b"[" * 200, b"9" * 5000, b'"', b"../", b"{}"]
    ))), min_size=1, max_size=3)  # fmt: skip


def damaged(valid: bytes, edits: list[tuple[float, int, bytes]], kept: float) -> bytes:
    """The input with some places changed, cut or inserted, and maybe its end missing."""
    for where, gone, new in edits:
        spot = int(where * len(valid))
        valid = valid[:spot] + new + valid[spot + gone :]
    return valid[: max(1, int(kept * len(valid)))]


def attempt(name: str, content: bytes, folder: Path) -> bool:
    """Whether the decoder took it; anything raised but an error of ours escapes."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        path = Path(own) / "input.jsonl"
        path.write_bytes(content)
        said = ""
        try:
            DECODERS[name][1](path)
        except MPOError as error:
            said = str(error)
        assert len(said) < LONGEST, f"a message of {len(said)} characters"
        return not said


def try_inputs(name: str, examples: int, start: int, folder: Path) -> int:
    """Try that many inputs; returns how many there were."""
    valid, tried = DECODERS[name][0](), 0
    attempt(name, valid, folder)

    @seed(start)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(EDITS, st.one_of(st.just(1.0), st.floats(0, 1)))
    def one(edits: list[tuple[float, int, bytes]], kept: float) -> None:
        nonlocal tried
        tried += 1
        attempt(name, damaged(valid, edits, kept), folder)

    one()
    return tried


def main(names: list[str]) -> None:
    seconds, process = float(os.environ.get("FUZZ_SECONDS", "600")), psutil.Process()
    for name in names or DECODERS:
        with tempfile.TemporaryDirectory() as folder:
            tried, start, begun = try_inputs(name, 200, 0, Path(folder)), 0, time.monotonic()
            before = process.memory_info().rss
            while time.monotonic() - begun < seconds:
                start += 1
                tried += try_inputs(name, 500, start, Path(folder))
            grown = (process.memory_info().rss - before) / 1e6
        print(
            f"{name:<20} {tried:>9} inputs, no escape; memory {grown:+.0f} MB, {process.num_fds()} open files",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
