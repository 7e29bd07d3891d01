"""The processor of a converted checkpoint: tiles as InternVL cuts them, its chat template, its tokenizer.

Facts are from github.com/OpenGVLab/InternVL: `conversation.py` (templates), `train/dataset.py` (tiles, ImageNet
normalisation). A conversation without a system turn gets the checkpoint's own system message, as its `chat()` does.
"""

from __future__ import annotations

import json
from typing import Any

from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

from mpo.multimodal.errors import ConfigError
from rewards.conversion.config import ChatLayout
from rewards.conversion.tokenizer import IMAGE

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3
_INTERNVL2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_INTERNVL2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
# conversation template: (system message, what follows the end of a turn)
TEMPLATES = {
    "internvl2_5": (_INTERNVL2_5, "\n"),
    "internlm2-chat": (_INTERNVL2, ""),
    "Hermes-2": (_INTERNVL2, ""),
}
_CHAT = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n' + SYSTEM + '<|im_end|>' + AFTER }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for block in message['content'] %}"
    "{% if block['type'] == 'image' %}{{ 'IMAGE\\n' }}{% else %}{{ block['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>' + AFTER }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def system_message(layout: ChatLayout) -> str:
    """The system message that the checkpoint's own code uses."""
    return layout.system if layout.system is not None else _template(layout)[0]


def chat_template(layout: ChatLayout) -> str:
    """The conversation template as Jinja; images stand where their blocks stand.

    Raises:
        ConfigError: a template that is not in `TEMPLATES`.
    """
    settings = {"SYSTEM": system_message(layout), "AFTER": _template(layout)[1]}
    names = "".join(f"{{% set {name} = {json.dumps(text, ensure_ascii=False)} %}}" for name, text in settings.items())
    return names + _CHAT.replace("IMAGE", IMAGE)


def build_processor(layout: ChatLayout, tokenizer: Any) -> InternVLProcessor:
    """Image processor, chat template and tokenizer as one native processor."""
    side = {"height": layout.tile, "width": layout.tile}
    image_processor = GotOcr2ImageProcessor(
        size=side,
        crop_to_patches=True,  # one tile if max_patches is 1
        min_patches=layout.min_tiles,
        max_patches=layout.max_tiles,
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        resample=BICUBIC,
    )
    return InternVLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=side),
        image_seq_length=layout.model.image_seq_length,
        chat_template=chat_template(layout),
    )


def _template(layout: ChatLayout) -> tuple[str, str]:
    if layout.template not in TEMPLATES:
        raise ConfigError(f"config.json: unknown template {layout.template!r}; expected one of {', '.join(TEMPLATES)}")
    return TEMPLATES[layout.template]
