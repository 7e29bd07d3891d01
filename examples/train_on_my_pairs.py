"""Mixed Preference Optimization on my own pairs of answers.

    python examples/train_on_my_pairs.py MODEL pairs.jsonl OUT [optimizer steps]

A line is `{"question": …, "images": ["images/1.png"], "chosen": text, "rejected": text}`, the images inside the
file's folder. For a large model add `peft_config=LoraConfig(target_modules="all-linear", exclude_modules="lm_head")`.
"""

import json
import sys
from pathlib import Path

from mpo import MPOConfig, MPOTrainer
from mpo.multimodal.images import load_image

model, file, out = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 100
with file.open(encoding="utf-8") as lines:
    mine = [json.loads(line) for line in lines]
rows = [
    {
        "images": [load_image(name, root=file.parent) for name in row["images"]],
        "prompt": [{"role": "user", "content": row["question"]}],
        "chosen": [{"role": "assistant", "content": row["chosen"]}],
        "rejected": [{"role": "assistant", "content": row["rejected"]}],
    }
    for row in mine
]
args = MPOConfig(out, max_steps=steps, learning_rate=1e-6, per_device_train_batch_size=2, report_to="none")
trainer = MPOTrainer(model, args=args, train_dataset=rows)
trainer.train()
trainer.save_model(out)
print(*trainer.admission["train"].lines("train"), sep="\n")  # rows in, kept, and rejected by reason
