"""A process reward model from answers whose steps I have labelled; then the scores of one answer's steps.

    python examples/train_my_prm.py MODEL steps.jsonl OUT [optimizer steps]

A line is `{"question": …, "images": ["images/1.png"], "answers": [{"steps": [text, …], "right": [true, …]}, …]}`, the
images inside the file's folder. A step is right if all is right up to its end; a step holds no blank line.
"""

import json
import sys
from pathlib import Path

from transformers import TrainingArguments

from mpo.multimodal.images import load_image
from mpo.multimodal.loading import load_model, load_processor
from rewards import Problem
from rewards.prm.formats import VISUALPRM
from rewards.prm.labelling.labels import LabelledGroup, LabelledSolution
from rewards.prm.model_prm import ModelPRM
from rewards.prm.trainer import PRMTrainer
from rewards.steps import split_into

model, file, out = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 100
with file.open(encoding="utf-8") as lines:
    rows = [json.loads(line) for line in lines]
groups = []
for number, row in enumerate(rows):
    images = tuple(load_image(name, root=file.parent) for name in row["images"])
    solutions = tuple(
        LabelledSolution(
            split_into("\n\n".join(answer["steps"]), len(answer["steps"])), tuple(map(float, answer["right"]))
        )
        for answer in row["answers"]
    )
    groups.append(LabelledGroup(Problem(str(number), row["question"], images), solutions))
args = TrainingArguments(
    out,
    max_steps=steps,
    learning_rate=1e-5,
    per_device_train_batch_size=2,
    remove_unused_columns=False,
    report_to="none",
)
trainer = PRMTrainer(load_model(model), load_processor(model), VISUALPRM, args, groups)
trainer.train()
trainer.save_model(out)
answer = "\n\n".join(step.text for step in groups[0].solutions[0].steps)
print(json.dumps(ModelPRM.load(out).score(groups[0].problem, [answer])[0].values))
