"""Responses made elsewhere: rows of each tool's own form, their ids and indexes, and what is wrong with a row."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mpo.multimodal.errors import ConfigError, DataError
from rewards.interchange.problems import Rejected
from rewards.interchange.responses import Response, read_responses
from rewards.types import FinishReason
from tests.rewards.published_forms import json_lines


def reply(*texts: str, ended: str = "stop") -> dict[str, Any]:
    choices = [
        {"index": at, "message": {"role": "assistant", "content": text}, "finish_reason": ended}
        for at, text in enumerate(texts)
    ]
    return {"object": "chat.completion", "choices": choices, "usage": {"completion_tokens": 9}}


def batch(custom: str, body: Any, status: int = 200) -> dict[str, Any]:
    return {"id": "x", "custom_id": custom, "response": {"status_code": status, "body": body}, "error": None}


def sample(id: Any, epoch: int, text: Any, **more: Any) -> dict[str, Any]:
    """One of an inspect_ai log."""
    message = {"role": "assistant", "content": text}
    output = {
        "model": "m",
        "choices": [{"message": message, "stop_reason": "max_tokens"}],
        "usage": {"output_tokens": 5},
    }
    return {"id": id, "epoch": epoch, "input": "1 + 1?", "choices": None, "target": "2", "output": output, **more}


def found(path: Path) -> list[tuple[Any, ...]]:
    """(ids, index, text) of responses, (reason,) of rejected rows."""
    return [
        (item.problem_ids, item.index, item.completion.text) if isinstance(item, Response) else (item.reason,)
        for item in read_responses(path)
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [{"id": "a", "responses": ["2", {"text": "3"}, ""]}, {"id": 7, "response": "4", "sample_index": 3}],
            [(("a",), 0, "2"), (("a",), 1, "3"), ("empty response",), (("7",), 3, "4")],
        ),
        (
            [batch("a", reply("2", "3")), batch("b#4", reply("5")), batch("c", None), batch("d", {}, 500)],
            [(("a",), 0, "2"), (("a",), 1, "3"), (("b#4", "b"), 4, "5"), ("no choices",), ("the server failed",)],
        ),
        (
            [
                {"index": 3, "question": "?", "A": "x", "answer": "A", "prediction": "It is A."},
                {"index": 4, "question": "?", "prediction": "Failed to obtain answer via API."},
                {"index": 5, "question": "?", "prediction": 12},
            ],
            [(("3",), None, "It is A."), ("the server failed",), (("5",), None, "12")],
        ),
        (
            [
                {"doc_id": 0, "doc": {"pid": "p9", "query": "?"}, "target": "2", "resps": [["2", "3"]]},
                {"doc_id": 1, "doc": {}, "target": "2", "resps": [["4"]], "filtered_resps": ["4"]},
                {"doc_id": 2, "doc": {}, "target": "2", "resps": [[[-0.5, True]]]},
            ],
            [(("p9", "0"), 0, "2"), (("p9", "0"), 1, "3"), (("1",), 0, "4"), ("no response",)],
        ),
        (
            [
                sample(1, 2, "2"),
                sample("b", 1, [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "3"}]),
            ],
            [(("1",), 1, "2"), (("b",), 0, "<think>\nhm\n</think>\n\n3")],
        ),
        ([sample(1, 1, "2", error={"message": "boom"})], [("the sample failed",)]),
        ([{"prediction": "2"}, [], {"id": 1, "response": None}], [("no problem id",), ("no object",), ("no text",)]),
    ],
)
def test_the_forms(rows: list[Any], expected: list[Any], tmp_path: Path) -> None:
    assert found(json_lines(tmp_path / "a.jsonl", rows)) == expected


def test_a_log_of_inspect_in_both_of_its_forms(tmp_path: Path) -> None:
    samples = [sample(id, epoch, f"{id} {epoch}") for epoch in (1, 2) for id in ("a", "b")]
    header = {"version": 2, "status": "success", "eval": {"task": "t"}}
    (tmp_path / "log.json").write_text(json.dumps({**header, "samples": samples}, indent=1))
    with zipfile.ZipFile(tmp_path / "log.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", json.dumps(header))
        archive.writestr("summaries.json", "[]")
        for one in samples:
            archive.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
        archive.writestr("samples/c_epoch_1.json", "{")
        archive.writestr("../samples/d_epoch_1.json", json.dumps(samples[0]))
    whole = [((one["id"],), one["epoch"] - 1, f"{one['id']} {one['epoch']}") for one in samples]
    assert found(tmp_path / "log.json") == whole
    assert found(tmp_path / "log.eval") == [*whole, ("unreadable sample",)]
    response = next(item for item in read_responses(tmp_path / "log.eval") if isinstance(item, Response))
    assert response.completion.finish_reason is FinishReason.LENGTH
    assert response.completion.num_tokens == 5
    assert response.row == {"question": "1 + 1?", "answer": "2"}
    (tmp_path / "bad.eval").write_bytes(b"no zip")
    with pytest.raises(DataError, match="no log of inspect_ai"):
        list(read_responses(tmp_path / "bad.eval"))


def test_a_workbook(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (
        ["index", "question", "answer", "prediction"],
        [3, "1 + 1?", "2", "Final answer: 2"],
        [4, "?", "x", None],
    ):
        book.active.append(row)
    book.save(tmp_path / "model_toy.xlsx")
    assert found(tmp_path / "model_toy.xlsx") == [(("3",), None, "Final answer: 2"), ("no text",)]
    with zipfile.ZipFile(tmp_path / "bomb.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/sharedStrings.xml", bytes(1 << 20))
    from rewards.interchange import xlsx

    limit, xlsx.MAX_UNPACKED = xlsx.MAX_UNPACKED, 1000
    try:
        with pytest.raises(DataError, match="unpacks to 1048576 bytes"):
            list(read_responses(tmp_path / "bomb.xlsx"))
    finally:
        xlsx.MAX_UNPACKED = limit
    with pytest.raises(DataError, match="no readable workbook"):
        list(read_responses(tmp_path / "bomb.xlsx"))


def test_a_form_that_nobody_knows(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"id": 1, "text": "?"}])
    with pytest.raises(ConfigError, match=r"columns id, text are of no known form.*vlmevalkit \(prediction\)"):
        list(read_responses(path))


def test_where_a_row_stood(tmp_path: Path) -> None:
    path = json_lines(tmp_path / "a.jsonl", [{"id": 1, "response": "2"}, {"response": "2"}])
    items = list(read_responses(path))
    assert [item.where for item in items] == ["a.jsonl:1", "a.jsonl:2"]
    assert isinstance(items[1], Rejected)
