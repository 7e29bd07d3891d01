"""Everything that only a GPU can say, in at most seven minutes on one H100: `make gpu`.

    python benchmarks/gpu.py                       all parts
    python benchmarks/gpu.py --part kernel prm     some of them
    python benchmarks/gpu.py --tiny                every line of it on tiny shapes, a CPU included

Models are built from a config on the device, with random weights in bfloat16 and a vocabulary of 151,936. Figures are
printed as they come and kept as JSON, so a run that is cut still says something. A way that fails is a line, too.
Peers are measured too: TRL's DPOTrainer with all pairs at once, with a pair at a time, with Liger's kernels, and
transformers' `generate`. `share_of_matmul` and `mfu` are over the rate of one large product, which is measured first;
`ideal` is a ratio of FLOPs, `reached` the share of it that the clock shows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from _gpu_parts import PARTS
from _gpu_tools import REAL, TINY, Report, matmul_rate


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=[*PARTS], help="parts to run, in this order")
    parser.add_argument(
        "--only", nargs="+", default=[], help="of the parts train and trainer, the rows with these words: 'LoRA, 2 x 4'"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes in float32, to try the script itself")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"), help="the figures")
    parser.add_argument(
        "--limit",
        type=float,
        default=420,
        help="seconds; a part, or a training arm, that would begin later is left out",
    )
    args = parser.parse_args(given)
    if not args.tiny and not torch.cuda.is_available():
        print("gpu: torch sees no CUDA device, so nothing was measured; --tiny tries the script")
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    report, sizes = Report(args.out, ends=started + args.limit, only=args.only), TINY if args.tiny else REAL
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    names = ("torch", "transformers", "trl", "peft", "accelerate")
    report.add("machine", card, **{name: version(name) for name in names})
    rate = matmul_rate(sizes)
    report.add("machine", "one large product", tflops=rate / 1e12)
    for name in args.part:
        passed = time.monotonic() - started
        if report.late():
            report.add(name, "left out", seconds_passed=passed)
            continue
        with report.trying(name, "the whole part"):
            PARTS[name](report, sizes, rate)
        report.add(name, "part", seconds=time.monotonic() - started - passed)


if __name__ == "__main__":
    main()
