"""How much memory a training step needs, before it is taken.

    held = weights + reference + optimizer states + batch
    peak = held + max(activations + head, gradients)      one micro-batch per step
    peak = held + activations + head + gradients          gradients accumulate

The batch is one micro-batch, whatever the accumulation: its pixels, ids and positions. The head's logits never exist as
a whole: one tile of them does.

Activations are not guessed from sizes: one forward pass of the policy on the largest batch runs with a hook that adds
up what autograd would save for the backward pass, and keeps nothing of it. So the count follows the architecture,
the layout, frozen parts, adapters and number type by itself. With checkpointing (https://arxiv.org/abs/1604.06174) each
layer keeps its input, and the backward pass holds one layer's activations at a time.

Not in it: the allocator's fragmentation, an accelerator's context, buffers of distributed training, and what a single
operation needs while it runs. `tests/mpo/test_preflight.py` compares it with the measured peak of a process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from transformers.modeling_layers import GradientCheckpointingLayer

from mpo.multimodal.scoring import innermost

# States that an optimizer keeps for each trained value, in the value's own number type. All others: 2, as Adam.
OPTIMIZER_STATES: dict[str, int] = {
    "sgd": 0,
    "adafactor": 0,
    "adagrad": 1,
    "rmsprop": 1,
    "lion_32bit": 1,
    "lion_8bit": 1,
}


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass saves for its backward pass.

    Attributes:
        language: in the layers of the language model.
        vision: in all other layers that can be checkpointed: the vision tower's.
        rest: outside of layers: embeddings, projector, LM head.
        layer_inputs: what the layers are given, each tensor once.
        largest_layer: of one layer.
    """

    language: int
    vision: int
    rest: int
    layer_inputs: int
    largest_layer: int

    def kept(self, *, checkpointing: bool) -> int:
        """Most bytes at a time in the backward pass."""
        if checkpointing:
            return self.rest + self.layer_inputs + self.largest_layer
        return self.rest + self.language + self.vision


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process that holds the whole model.

    Attributes:
        weights: of the policy, adapters included.
        reference: of the frozen reference; 0 where it is the policy without adapters, or was computed before.
        optimizer: states of the trained weights.
        gradients: of the trained weights.
        activations: of one micro-batch of the longest rows.
        checkpointing: whether layers are computed again in the backward pass.
        accumulates: whether gradients are held while the next micro-batch runs forward.
        batch: of one micro-batch of the longest rows: pixels, ids, labels, masks and positions.
        head: of the LM head's tile of logits and its input's gradient.
    """

    weights: int
    reference: int
    optimizer: int
    gradients: int
    activations: Activations
    checkpointing: bool
    accumulates: bool
    batch: int = 0
    head: int = 0

    @property
    def peak(self) -> int:
        """The peak by this module's formula, for the run as it is set."""
        return self.peak_with(checkpointing=self.checkpointing)

    def peak_with(self, *, checkpointing: bool) -> int:
        """The same with activation checkpointing on or off."""
        held = self.weights + self.reference + self.optimizer + self.batch
        kept = self.activations.kept(checkpointing=checkpointing) + self.head
        return held + (kept + self.gradients if self.accumulates else max(kept, self.gradients))


def optimizer_bytes(model: nn.Module, name: str, *, masters: bool = False) -> int:
    """Bytes of an optimizer's states.

    Args:
        model: trained are its parameters that require a gradient.
        name: of transformers' `OptimizerNames`, e.g. "adamw_torch".
        masters: it owns a float32 copy of each trained value, and its states are of those.
    """
    states = OPTIMIZER_STATES.get(name, 2)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return sum(
        p.numel() * (states * (1 if "8bit" in name else 4 if masters else p.element_size()) + 4 * masters)
        for p in trained
    )


def gradient_bytes(model: nn.Module, *, masters: bool = False) -> int:
    """Bytes of the trained weights' gradients; with masters they are float32 whatever the weights are."""
    return sum(p.numel() * (4 if masters else p.element_size()) for p in model.parameters() if p.requires_grad)


def weight_bytes(model: nn.Module | None, *, trained: bool = False) -> int:
    """Bytes of a model's parameters, or of those that require a gradient."""
    parameters = [] if model is None else [p for p in model.parameters() if p.requires_grad or not trained]
    return sum(p.numel() * p.element_size() for p in parameters)


def batch_bytes(inputs: Mapping[str, Any]) -> int:
    """Bytes of the tensors of one micro-batch."""
    return sum(value.numel() * value.element_size() for value in inputs.values() if isinstance(value, Tensor))


def count_activations(
    model: nn.Module, forward: Callable[[], Any], *, inputs: Mapping[str, Any] | None = None
) -> Activations:
    """Run `forward` once and add up what it would keep for a backward pass; no backward pass can follow.

    Args:
        model: what `forward` calls, with checkpointing off; its modules tell layers apart.
        forward: runs the model, gradients enabled.
        inputs: a batch whose tensors are counted elsewhere.
    """
    counter = _Counter(model, (inputs or {}).values())
    with counter.watching(model), saved_tensors_hooks(counter.save, _no_backward):
        forward()
    language = {id(module) for module in innermost(model).get_decoder().modules()}
    in_language = sum(size for layer, size in counter.layers.items() if layer in language)
    total = sum(counter.layers.values())
    return Activations(
        in_language, total - in_language, counter.rest, counter.layer_inputs, max(counter.layers.values(), default=0)
    )


class _Counter:
    """Counts each storage once. Weak references keep an address from being taken for another storage's."""

    def __init__(self, model: nn.Module, known: Iterable[Any]) -> None:
        own = [*model.parameters(), *model.buffers(), *(value for value in known if isinstance(value, Tensor))]
        self._counted = {StorageWeakRef(tensor.untyped_storage()) for tensor in own}
        self._inputs = set(self._counted)
        self._layer: int | None = None
        self.layers: dict[int, int] = {}
        self.rest, self.layer_inputs = 0, 0

    def save(self, tensor: Tensor) -> None:
        """A hook that packs a saved tensor: into nothing."""
        size = _new_bytes(tensor, self._counted)
        if self._layer is None:
            self.rest += size
        else:
            self.layers[self._layer] = self.layers.get(self._layer, 0) + size

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for module in model.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    enter = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                    leave = module.register_forward_hook(self._leave)
                    stack.callback(enter.remove)
                    stack.callback(leave.remove)
            yield

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._layer = id(module)
        given = [*args, *kwargs.values()]
        tensors = [part for value in given for part in (value if isinstance(value, tuple) else (value,))]
        if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in tensors):
            self.layer_inputs += sum(_new_bytes(t, self._inputs) for t in tensors if isinstance(t, Tensor))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._layer = None


def _new_bytes(tensor: Tensor, seen: set[StorageWeakRef]) -> int:
    storage = tensor.untyped_storage()
    reference = StorageWeakRef(storage)
    if reference in seen:
        return 0
    seen.add(reference)
    return storage.nbytes()


def _no_backward(packed: None) -> Tensor:
    raise RuntimeError("what this forward pass saved was only counted: it has no backward pass")
