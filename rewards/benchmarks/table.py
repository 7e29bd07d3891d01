"""The benchmarks, one row each: files, columns, prompt, verifier, official metric, licence, number of rows.

Facts were read off the official repositories and cards and off two harnesses that many numbers come from: VLMEvalKit
(github.com/open-compass/VLMEvalKit at e8e78f05, `vlmeval/dataset/`, whose TSV files the rows name) and lmms-eval
(github.com/EvolvingLMMs-Lab/lmms-eval, `lmms_eval/tasks/`). What could not be found is `None`. `docs/benchmarks.md`
says what prompt and verifier do differently from the official code, and which numbers to expect. No benchmark's data is
part of this project. To add a benchmark, add a row here and a golden test of its metric.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mpo.multimodal.errors import DataError

Row = dict[str, Any]
TSV = "https://opencompass.openxlab.space/utils/"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: as tables print it.
        paper: arXiv number.
        tsv: address of VLMEvalKit's file; download it yourself. `None`: it has none.
        hub: the data set of the Hugging Face Hub, as `--problems` takes it. `None`: several data sets would have to be
            joined.
        licence: of the data, as its authors state it; `None`: no statement was found.
        rows: problems to expect.
        metric: a name of `rewards.benchmarks.metrics.METRICS`.
        columns: part of a problem → the column that holds it, in those files that have such a column.
        keep: column → the value that a row must have, in those files that have such a column.
        prompt: a name of `rewards.sampling.prompts.PROMPTS`.
        verifier: a name of `rewards.verifying.verification.VERIFIERS`.
        by: columns that the accuracy is broken down by, the first that is there.
        shows_options: whether the question's text already holds hint and options.
        numbered: whether the answer is the number of an option, from 0.
    """

    name: str
    paper: str
    tsv: str | None
    hub: str | None
    licence: str | None
    rows: int | None
    metric: str = "accuracy"
    columns: Mapping[str, str] = field(default_factory=dict)
    keep: Mapping[str, str] = field(default_factory=dict)
    prompt: str = "cot"
    verifier: str = "auto_rounded"
    by: tuple[str, ...] = ()
    shows_options: bool = False
    numbered: bool = False


ROWS = (
    Benchmark(  # validation: 30 subjects × 30; the TSV has the 150 development rows too
        "MMMU", "2311.16502", TSV + "VLMEval/MMMU_DEV_VAL.tsv", "hub:lmms-lab-encoder/MMMU:validation",
        "Apache-2.0", 900, keep={"split": "validation"}, by=("category", "subfield"),
    ),
    Benchmark(  # testmini
        "MathVista", "2310.02255", TSV + "VLMEval/MathVista_MINI.tsv", "hub:AI4Math/MathVista:testmini",
        "CC-BY-SA-4.0", 1000, columns={"question": "query"}, by=("task",), shows_options=True,
    ),
    Benchmark(  # test
        "MathVision", "2402.14804", TSV + "VLMEval/MathVision.tsv", "hub:MathLLMs/MathVision:test",
        "MIT", 3040, by=("subject", "category"),
    ),
    Benchmark(  # the Vision-Only version of testmini: the question is in the image
        "MathVerse-VO", "2403.14624", TSV + "benchmarks/MathVerse/MathVerse_MINIVOnly.tsv",
        "hub:CaraJ/MathVerse-lmmseval:testmini_version_split:vision_only",
        "MIT", 788, columns={"question": "query_cot"}, keep={"problem_version": "Vision Only"}, by=("subject",),
        shows_options=True,
    ),
    Benchmark(  # 10 variants of 501 seed questions; the Hub's splits repeat their ids, so the TSV is the one to read
        "DynaMath", "2411.00836", TSV + "VLMEval/DynaMath.tsv", None, "Apache-2.0", 5010, "worst case", by=("subject",),
    ),
    Benchmark(  # testmini: 360 problems of 2 steps and 165 of 3, each with its sub-problems
        "WeMath", "2407.01284", TSV + "VLMEval/WeMath.tsv", "hub:We-Math/We-Math:testmini", "CC-BY-NC-4.0", 1740,
        "strict", columns={"images": "image_path", "choices": "option"}, verifier="choice", by=("knowledge concept",),
    ),
    Benchmark(  # several letters may be right
        "LogicVista", "2407.04973", TSV + "VLMEval/LogicVista.tsv", "hub:lscpku/LogicVista:test", "Apache-2.0", 448,
        verifier="choice", by=("skill",),
    ),
    Benchmark(
        "M3CoT", "2405.16473", None, "hub:LightChen2333/M3CoT:test", "CC-BY-SA-4.0", 2318,
        columns={"hint": "context"}, verifier="choice", by=("domain",),
    ),
    Benchmark(
        "AI2D", "1603.07396", TSV + "VLMEval/AI2D_TEST.tsv", "hub:lmms-lab/ai2d:test", None, 3088,
        verifier="choice", numbered=True,
    ),
    Benchmark(  # 1,250 questions of people and 1,250 made by a model; right within 5 %
        "ChartQA", "2203.10244", TSV + "VLMEval/ChartQA_TEST.tsv", "hub:lmms-lab/ChartQA:test", None, 2500,
        prompt="cot", verifier="relaxed", by=("split", "type"),
    ),
    Benchmark(  # the test problems that have an image
        "ScienceQA", "2209.09513", TSV + "benchmarks/ScienceQA/ScienceQA_TEST.tsv",
        "hub:lmms-lab/ScienceQA:ScienceQA-IMG:test", "CC-BY-NC-SA-4.0", 2017,
        verifier="choice", by=("subject",), numbered=True,
    ),
)  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {row.name: row for row in ROWS}
# The seven of VisualPRM's tables (arXiv 2503.10291), in their order.
REASONING = ("MMMU", "MathVista", "MathVision", "MathVerse-VO", "DynaMath", "WeMath", "LogicVista")


def prepared(benchmark: Benchmark) -> Callable[[Row], Row]:
    """What makes a row of the benchmark's files one with the usual columns.

    Args:
        benchmark: a row of the table.

    Returns:
        raw row → row; raises `DataError` for a row of another split or version.

    Example:
        >>> row = {"question": "Which?", "options": ["a", "b"], "answer": "1"}
        >>> prepared(BENCHMARKS["AI2D"])(row)["answer"]
        'B'
    """

    def prepare(row: Row) -> Row:
        nested = row.get("metadata")
        row = {**nested, **row} if isinstance(nested, dict) else dict(row)
        for column, wanted in benchmark.keep.items():
            if column in row and str(row[column]) != wanted:
                raise DataError(
                    f"{column} is {str(row[column])[:40]!r}; {benchmark.name} is made of {wanted!r}",
                    reason=f"not {column} {wanted}",
                )
        for part, column in benchmark.columns.items():
            if row.get(column) not in (None, ""):
                row[part] = row[column]
        if isinstance(row.get("choices"), str) and _OPTION.match(row["choices"]):
            row["choices"] = _options(row["choices"])
        if benchmark.numbered and str(row.get("answer", "")).isdigit():
            row["answer"] = chr(ord("A") + int(row["answer"]))
        return row

    return prepare


_OPTION = re.compile(r"\s*[A-Z]\s*[.:)]")
_BETWEEN = re.compile(r"\s*;\s*(?=[A-Z]\s*[.:)])")


def _options(text: str) -> list[str]:
    """We-Math's options, which are one text.

    Example:
        >>> _options("A. 300, 400;B. 400, 300; C. No correct answer")
        ['300, 400', '400, 300', 'No correct answer']
    """
    return [_OPTION.sub("", option, count=1).strip() for option in _BETWEEN.split(text)]
