"""How other tools write responses down: from one row to its problem, its samples and their texts.

Each form is a row of `FORMS`: the columns that give it away, and how its rows are read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mpo.multimodal.errors import DataError
from rewards.interchange.problems import COLUMNS, id_text
from rewards.interchange.tables import Row

FAILED = "Failed to obtain answer via API"  # VLMEvalKit's text where a model gave none
_NUMBERED_ID = re.compile(r"(.+)[#:](\d{1,6})")


class Sampled(NamedTuple):
    """The responses of one row.

    Attributes:
        ids: of its problem, the most telling first: which of them a set of problems knows, decides.
        said: (sample index if the row tells it, text or an object with `text`) of each response.
        problem: the columns that a problem can be made of.
    """

    ids: tuple[str, ...]
    said: list[tuple[int | None, Any]]
    problem: Row


class Form(NamedTuple):
    """One form: the columns that its rows have, and how they are read."""

    columns: frozenset[str]
    read: Callable[[Row], Sampled]


def own_response(row: Row) -> Sampled:
    """Our own: `response` with `finish_reason`, `num_tokens` and `sample_index`, if they are known."""
    index = row.get("sample_index")
    said = [(index if isinstance(index, int) else None, {**row, "text": row["response"]})]
    return Sampled(_ids(row), said, _without(row, "response", "sample_index", "finish_reason", "num_tokens"))


def own_responses(row: Row) -> Sampled:
    """Our own: `responses`, a list of texts or of objects with `text`."""
    several = row["responses"]
    if not isinstance(several, list):
        raise DataError(f"responses is {type(several).__name__}; expected a list", reason="no list of responses")
    return Sampled(_ids(row), list(enumerate(several)), _without(row, "responses"))


def openai_batch(row: Row) -> Sampled:
    """A line of OpenAI's batch output, which `vllm run-batch` writes too: `custom_id`, `response`, `error`.

    https://platform.openai.com/docs/guides/batch. The `custom_id` is the problem's, or the problem's with `#` or `:`
    and the number of the sample.
    """
    custom = str(row["custom_id"])
    reply = row.get("response")
    if not isinstance(reply, Mapping) or reply.get("status_code") not in (200, None) or row.get("error"):
        raise DataError(f"request {custom!r:.80} failed", reason="the server failed")
    choices = _choices(reply.get("body"))
    numbered = _NUMBERED_ID.fullmatch(custom)
    ids = (custom, *([numbered[1]] if numbered else []))
    first = int(numbered[2]) if numbered and len(choices) == 1 else None
    said: list[tuple[int | None, Any]] = [(at if first is None else first, choice) for at, choice in choices]
    return Sampled(ids, said, {})


def vlmevalkit(row: Row) -> Sampled:
    """VLMEvalKit's predictions: the columns of its TSV without the image, and `prediction`.

    https://github.com/open-compass/VLMEvalKit, docs/en/Quickstart.md; .xlsx by default, .tsv and .json where
    `PRED_FORMAT` says so.
    """
    said = row["prediction"]
    if isinstance(said, str) and FAILED in said:
        raise DataError("the row holds no prediction but a failure of the server", reason="the server failed")
    return Sampled(_ids(row), [(None, said)], _without(row, "prediction", "thinking"))


def lmms_eval(row: Row) -> Sampled:
    """A line of lmms-eval's (and lm-evaluation-harness's) `samples_TASK.jsonl`: `doc_id`, `doc`, `target`, `resps`.

    https://github.com/EvolvingLMMs-Lab/lmms-eval, `--log_samples`: `resps` holds a list per request, of one text per
    repeat; `doc_id` is the number of the row in the task's data, from 0. The ids of the row's own `doc` come first.
    """
    said = row.get("resps") if row.get("resps") is not None else row.get("filtered_resps")
    doc = row["doc"] if isinstance(row.get("doc"), Mapping) else {}
    target = {"answer": row["target"]} if row.get("target") not in (None, "") else {}
    named = [id_text(doc[name]) for name in COLUMNS["id"] if doc.get(name) not in (None, "")]
    return Sampled((*named, id_text(row["doc_id"])), list(enumerate(_flat(said))), {**target, **doc})


def inspect_sample(row: Row) -> Sampled:
    """A sample of an inspect_ai log: `id`, `epoch` (from 1), `input`, `choices`, `target`, `output`.

    https://inspect.aisi.org.uk/eval-logs.html and inspect_ai's `EvalSample`.
    """
    if row.get("error"):
        raise DataError(f"sample {row['id']!r:.80} ended with an error", reason="the sample failed")
    epoch = row["epoch"]
    if not isinstance(epoch, int) or epoch < 1:
        raise DataError(f"epoch is {epoch!r:.40}; expected a whole number from 1", reason="no epoch")
    problem = {"question": _asked(row.get("input")), "answer": row.get("target"), "choices": row.get("choices")}
    choices = _choices(row["output"])
    usage = row["output"].get("usage") if isinstance(row["output"], Mapping) else None
    tokens = usage.get("output_tokens") if isinstance(usage, Mapping) else None
    said: list[tuple[int | None, Any]] = [(epoch - 1, {**choices[0][1], "num_tokens": tokens})]
    return Sampled((id_text(row["id"]),), said, {name: value for name, value in problem.items() if value})


FORMS: dict[str, Form] = {
    "responses": Form(frozenset({"responses"}), own_responses),
    "openai_batch": Form(frozenset({"custom_id", "response"}), openai_batch),
    "inspect_ai": Form(frozenset({"id", "epoch", "output"}), inspect_sample),
    "lmms_eval": Form(frozenset({"doc_id"}), lmms_eval),
    "vlmevalkit": Form(frozenset({"prediction"}), vlmevalkit),
    "response": Form(frozenset({"response"}), own_response),
}


def _ids(row: Row) -> tuple[str, ...]:
    found = next((row[name] for name in COLUMNS["id"] if row.get(name) not in (None, "")), None)
    if found is None:
        raise DataError(f"the row names no problem; expected one of {', '.join(COLUMNS['id'])}", reason="no problem id")
    return (id_text(found),)


def _without(row: Row, *columns: str) -> Row:
    return {name: value for name, value in row.items() if name not in columns}


def _choices(body: Any) -> list[tuple[int, Row]]:
    """(place, text and why it ended) of a chat completion's choices."""
    choices = body.get("choices") if isinstance(body, Mapping) else None
    if not isinstance(choices, list) or not choices:
        raise DataError("the reply holds no choices", reason="no choices")
    found = []
    for place, choice in enumerate(choices):
        message = choice.get("message") if isinstance(choice, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else choice.get("text")
        at = choice.get("index")
        ended = choice.get("finish_reason") or choice.get("stop_reason")
        found.append((at if isinstance(at, int) else place, {"text": _content(content), "finish_reason": ended}))
    return found


def _content(content: Any) -> Any:
    """A message's text: as it is, or of its blocks, a reasoning block in the tags that models write themselves."""
    if not isinstance(content, list):
        return content
    texts = []
    for block in content:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "reasoning":
            texts.append(f"<think>\n{block.get('reasoning') or ''}\n</think>\n\n")
        elif kind == "text":
            texts.append(str(block.get("text") or ""))
    return "".join(texts)


def _asked(said: Any) -> str:
    """The text of the last user message, of an input that is a text or messages."""
    if isinstance(said, str):
        return said
    users = [one for one in said or [] if isinstance(one, Mapping) and one.get("role") == "user"]
    text = _content(users[-1].get("content")) if users else ""
    return text if isinstance(text, str) else ""


def _flat(said: Any) -> list[Any]:
    """The texts of a list of lists, however deep; of a log-probability with its flag nothing."""
    if isinstance(said, list):
        return [one for part in said for one in _flat(part)]
    return [said] if isinstance(said, str) else []
