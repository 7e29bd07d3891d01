"""What the stages that train large models share: `mpo train-mpo` and `mpo train-prm`."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class ModelTraining:
    """Schedule, number type, memory, and which weights are trained; a row is a pair of MPO, a problem of a PRM."""

    epochs: float = field(default=0.0, metadata={"help": "passes over the rows, instead of max_steps; 0 is off"})
    warmup: float = field(default=0.05, metadata={"help": "share of the steps in which the learning rate rises"})
    per_device_batch: int = field(default=0, metadata={"help": "rows of a micro-batch; 0: all of a process's at once"})
    dtype: str = field(
        default="auto",
        metadata={"help": "the pass runs in float32 or bfloat16; auto: the checkpoint's. Trained weights are float32"},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "compute activations again to save memory"})
    lora_rank: int = field(default=0, metadata={"help": "train adapters of this rank only; 0 trains the weights"})
    lora_alpha: int = field(default=32, metadata={"help": "the adapters' output is scaled by lora_alpha / lora_rank"})
    lora_targets: list[str] = field(
        default_factory=lambda: ["all-linear"],
        metadata={"help": "layers that get adapters, e.g. q_proj v_proj; the LM head never does"},
    )
    freeze_vision: bool = field(default=False, metadata={"help": "train the language model only"})
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "most tokens of a prompt with a response, images included; longer ones are rejected and counted"
        },
    )
    save_steps: int = field(
        default=0,
        metadata={"help": "steps from one checkpoint to the next; the same command goes on there; 0 for none"},
    )
