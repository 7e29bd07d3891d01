"""Rerank responses of any origin with a PRM, best first.

    python examples/rerank_my_answers.py PRM responses.jsonl

A line is `{"id": …, "question": …, "images": ["images/1.png"], "responses": [text, …]}`, the images inside the file's
folder, or what vLLM, VLMEvalKit, lmms-eval or inspect_ai write with the question. `mpo import-responses`, `mpo score`
and `mpo rerank` do the same and keep what they have done.
"""

import json
import sys
from pathlib import Path

from rewards.interchange.problems import problem_of
from rewards.interchange.responses import Response, read_responses
from rewards.prm.model_prm import ModelPRM
from rewards.types import Problem

folder, file = sys.argv[1], Path(sys.argv[2])
prm = ModelPRM.load(folder)
problems: dict[str, Problem] = {}
texts: dict[str, list[str]] = {}
for item in read_responses(file):
    if isinstance(item, Response) and prm.unscorable(item.completion.text) is None:  # no control token
        id = item.problem_ids[0]
        if id not in problems:
            problems[id] = problem_of({**item.row, "id": id}, {}, where=item.where, root=file.parent)
        texts.setdefault(id, []).append(item.completion.text)
for id, problem in problems.items():
    for text, reward in prm.select_best_response(problem, texts[id], return_scores=True):
        print(json.dumps({"id": id, "reward": round(reward, 4), "response": text}))
