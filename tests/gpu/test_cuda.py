"""What runs on CUDA alone: `make gpu`. Tiny models in bfloat16; the values are those of rows read one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mpo.layout import PromptSharing
from mpo.multimodal import shared_prefix, varlen
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.packing import LAYOUT, PackedLayout
from mpo.trainer import MPOTrainer
from recipes.cli import main
from recipes.worlds.digits.world import scenes, to_problem
from rewards.prm.formats import VISUALPRM
from rewards.prm.model_prm import ModelPRM
from rewards.sampling.generator import SamplingParams
from rewards.sampling.transformers_generator import TransformersGenerator
from tests.mpo.tiny import preference_rows, tiny_config, tiny_internvl
from tests.mpo.tiny_models import SHARING, packed_batch, prepared

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CUDA = torch.device("cuda")


@pytest.mark.parametrize(("heads", "key_heads", "size"), [(28, 4, 128), (14, 2, 64), (16, 16, 64)])
def test_the_kernel_passes_its_trial(heads: int, key_heads: int, size: int) -> None:
    assert varlen.why_not(CUDA, torch.bfloat16, heads=heads, key_heads=key_heads, size=size) is None


def test_the_kernel_is_the_segments() -> None:
    layout, given = PackedLayout([300], [(420, 521)]), [torch.randn(1, h, 521, 64, device=CUDA) for h in (8, 2, 2)]

    def run(varlen_on: bool, dtype: torch.dtype) -> list[torch.Tensor]:
        layout.varlen, layout.derived = varlen_on, {}
        leaves = [x.detach().to(dtype).requires_grad_() for x in given]
        module: Any = torch.nn.Module()
        out = shared_prefix.shared_prefix_attention(module, *leaves, None, scaling=0.125, **{LAYOUT: layout})[0]
        return [out.detach(), *torch.autograd.grad((out.float() * out.float().detach().cos()).sum(), leaves)]

    for ours, exact in zip(run(True, torch.bfloat16), run(False, torch.float32), strict=True):
        assert (ours.float() - exact).norm() <= 0.03 * exact.norm()


@pytest.mark.parametrize("name", SHARING)
def test_a_first_batch_agrees_in_bfloat16(name: str) -> None:
    model = prepared(name, "plain").to(CUDA, torch.bfloat16)
    batch = {k: v.to(CUDA) if isinstance(v, torch.Tensor) else v for k, v in packed_batch(name, model).items()}
    batch = {k: v.bfloat16() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in batch.items()}
    sharing = PromptSharing("shared", [model], all_ranks=False)
    sharing.admit(batch, [model])
    assert (sharing.on, sharing.kernel) == (True, True)


def test_training_takes_steps(tmp_path: Path) -> None:
    args = tiny_config(tmp_path, use_cpu=False, bf16=True, gradient_accumulation_steps=2, dataloader_num_workers=1)
    trainer = MPOTrainer(tiny_internvl(), args=args, train_dataset=preference_rows(8))
    trainer.train()
    assert trainer.sharing.kernel
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(0.8318 + first["loss/generation"], abs=0.02)  # policy = reference


def test_scores_and_texts_are_those_of_rows_alone() -> None:
    model: Any = load_model(tiny_internvl(), dtype=torch.bfloat16).to(CUDA).eval()
    processor = load_processor(tiny_internvl())
    problem = to_problem(scenes("test", 1, 1)[0], "p")
    texts = [f"Red is {i}\n\nBlue is 9\n\nFinal answer: {i + 9}" for i in range(6)]
    prm = ModelPRM(model, processor, VISUALPRM)
    shared = [value for some in prm.score(problem, texts) for value in some.values]
    assert (prm.shares, prm._kernel) == (True, True)
    prm.shares = False
    assert shared == pytest.approx([value for some in prm.score(problem, texts) for value in some.values], abs=2e-2)
    generator = TransformersGenerator(model, processor, SamplingParams(max_new_tokens=16))
    assert generator.generate([problem], 8, seed=0) == generator.generate([problem], 8, seed=0)


def test_the_whole_loop_runs(tmp_path: Path) -> None:
    """The tiny settings with a policy that is right often enough for pairs, whatever the last bits of a card are.

    The PRM gives spreads, and one arm ends with GRPO.
    """
    settings = yaml.safe_load((Path(__file__).parents[1] / "recipes" / "digits_tiny.yaml").read_text())
    settings["world"] |= {"num_warm_start": 300, "num_preference": 32, "vision_steps": 200}
    settings["warm_start"]["max_steps"] = 400
    settings["train_prm"] |= {"loss": "binomial", "concentration_head": True, "injected": 0}
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump(settings))
    given = ["--settings", str(tmp_path / "loop.yaml"), "--run_dir", str(tmp_path / "run")]
    assert main(["pipeline", *given, "--arms", "rft", "mpo_grpo"]) == 0
    assert (tmp_path / "run" / "report.html").exists()
