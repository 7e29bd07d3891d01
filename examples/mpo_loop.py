"""Mixed Preference Optimization as a plain torch loop: L = w_p·L_p + w_q·L_q + w_g·L_g (arXiv 2411.10442).

    python examples/mpo_loop.py MODEL pairs.jsonl OUT [optimizer steps]

A line is `{"images": ["images/1.png"], "prompt": [{"role": "user", "content": text}], "chosen": text,
"rejected": text}`, the images inside the file's folder. At step 0 policy and reference are equal, so the loss is
0.8·ln 2 + 0.2·2·ln 2 + L_g = 0.8318 + L_g.
"""

import json
import random
import sys
from pathlib import Path

import torch

import mpo

path, file, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
steps = int(sys.argv[4]) if len(sys.argv) > 4 else 100
rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
processor = mpo.load_processor(path)
policy, reference = mpo.prepare_models(path)  # the reference is a frozen copy of the policy
collate = mpo.PreferenceCollator(processor, image_root=file.parent)
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, weight_decay=0.05)
shift = mpo.RewardShift()  # δ, the running mean of the implicit rewards

for step in range(steps):
    inputs, pairs = mpo.model_inputs(collate(random.sample(rows, min(4, len(rows)))))
    logps = mpo.pair_logps(policy, inputs, pairs["pair_index"], reference=reference)  # π_c, π_r, ρ_c, ρ_r, |y_c|
    loss = mpo.mpo_loss(logps, beta=0.1, reward_shift=shift.value)  # the paper's weights: 0.8, 0.2, 1
    loss.total.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    shift.observe(*mpo.implicit_rewards(logps, beta=0.1))
    shift.commit()
    parts = f"L_p {loss.preference:.4f}  L_q {loss.quality:.4f}  L_g {loss.generation:.4f}"
    print(f"step {step}  L {loss.total:.4f}  {parts}  delta {shift.value:+.4f}")

policy.save_pretrained(out)
processor.save_pretrained(out)
