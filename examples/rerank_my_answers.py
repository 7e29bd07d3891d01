"""Rerank my model's answers with a PRM, best first.

    python examples/rerank_my_answers.py PRM answers.jsonl

A line is `{"question": …, "images": ["images/1.png"], "answers": [text, …]}`, the images inside the file's folder.
"""

import json
import sys
from pathlib import Path

from mpo.multimodal.images import load_image
from rewards import Problem
from rewards.prm.model_prm import ModelPRM

folder, file = sys.argv[1], Path(sys.argv[2])
prm = ModelPRM.load(folder)
with file.open(encoding="utf-8") as lines:
    rows = [json.loads(line) for line in lines]
for number, row in enumerate(rows):
    images = tuple(load_image(name, root=file.parent) for name in row["images"])
    readable = [answer for answer in row["answers"] if prm.unscorable(answer) is None]  # not empty, no control token
    problem = Problem(str(number), row["question"], images)
    for answer, reward in prm.select_best_response(problem, readable, return_scores=True):
        print(json.dumps({"row": number, "reward": round(reward, 4), "answer": answer}))
