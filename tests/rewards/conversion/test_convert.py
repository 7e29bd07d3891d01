"""Chat checkpoints of the hub → native classes: logits of the source tensors, refusals by name, bounded memory."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor

from mpo.multimodal.errors import ConfigError
from mpo.multimodal.loading import load_model, load_processor
from mpo.multimodal.messages import assistant_message, prompt_text, system_message, user_message
from rewards.conversion import shards
from rewards.conversion.convert import Checkpoint, convert_checkpoint, open_checkpoint
from rewards.prm.model_prm import ModelPRM, load_format
from rewards.types import Problem
from tests.rewards.conversion.chat_checkpoints import (
    INTERNLM2,
    QWEN,
    ChatModel,
    random_tensors,
    write_chat_checkpoint,
    write_sharded,
)

SYSTEM = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module", params=[QWEN, INTERNLM2])
def converted(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Source and native folder."""
    folder = tmp_path_factory.mktemp("chat")
    source = write_chat_checkpoint(folder / "source", request.param)
    convert_checkpoint(open_checkpoint(source), folder / "native", prm=True, shard_bytes=50_000)
    return source, folder / "native"


def difference(source: Path | ChatModel, native: Path, text: str, images: list[Image.Image]) -> float:
    """Largest |Δ logit| between the native model and the source tensors."""
    model, processor = load_model(native).eval(), load_processor(native)
    inputs = processor(text=[text], images=[images] if images else None, return_tensors="pt")
    with torch.no_grad():
        came = model(**inputs).logits[0]
        ids = inputs["input_ids"][0]
        reference = source if isinstance(source, ChatModel) else ChatModel(source)
        expected = reference.logits(ids, inputs.get("pixel_values"), processor.image_token_id)
    assert float(expected.std()) > 0.5  # weights that matter
    return float((came - expected).abs().max())


@pytest.mark.parametrize("images", [[], [picture(28, 28)], [picture(75, 40), picture(30, 90)]])
def test_logits_are_those_of_the_source_tensors(converted: tuple[Path, Path], images: list[Image.Image]) -> None:
    """Texts below and above max_position_embeddings = 64, so that the dynamic rotary base is met too."""
    text = prompt_text(load_processor(converted[1]), [user_message("How many apples? 步骤一", len(images))])
    assert difference(*converted, text, images) < 2e-5


def test_logits_of_a_short_text(converted: tuple[Path, Path]) -> None:
    assert difference(*converted, "How many?", []) < 2e-5


@pytest.mark.parametrize(
    ("llm", "changes"),
    [
        (QWEN, {"vision": {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}}),  # InternViT-6B
        (QWEN, {"vision": {"image_size": 28}, "language": {"rope_scaling": None, "num_key_value_heads": 4}}),
        (QWEN, {"downsample_ratio": 0.25, "force_image_size": 56}),  # positions interpolated from 28 pixels
        (QWEN, {"language": {"rope_scaling": {"factor": 4.0, "rope_type": "dynamic", "type": "dynamic"}}}),
        (INTERNLM2, {"language": {"bias": True, "num_key_value_heads": 1, "rope_scaling": None}}),
        (INTERNLM2, {"language": {"rope_scaling": {"type": "linear", "factor": 3.0}}}),
    ],
)
def test_options_that_are_carried(tmp_path: Path, llm: str, changes: dict[str, Any]) -> None:
    source = write_chat_checkpoint(tmp_path / "source", llm, **changes)
    convert_checkpoint(open_checkpoint(source), tmp_path / "native")
    text = prompt_text(load_processor(tmp_path / "native"), [user_message("How many apples?", 1)])
    assert difference(source, tmp_path / "native", text, [picture(60, 30)]) < 2e-5


@pytest.mark.parametrize("llm", [QWEN, INTERNLM2])
def test_keys_left_out_have_the_published_defaults(tmp_path: Path, llm: str) -> None:
    defaults = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "hidden_act": "silu"}
    if llm == INTERNLM2:
        defaults |= {"bias": True, "max_position_embeddings": 2048, "num_key_value_heads": 4}
    vision = {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False, "layer_norm_eps": 1e-6}
    source = write_chat_checkpoint(tmp_path / "source", llm, language=dict(defaults), vision=vision)
    reference = ChatModel(source)
    config = json.loads((source / "config.json").read_text())
    for section, keys in (("llm_config", defaults), ("vision_config", vision | {"num_channels": 3, "dropout": 0.0})):
        for key in keys:
            del config[section][key]
    (source / "config.json").write_text(json.dumps(config))
    convert_checkpoint(open_checkpoint(source), tmp_path / "native")
    text = prompt_text(load_processor(tmp_path / "native"), [user_message("How many apples?", 1)])
    assert difference(reference, tmp_path / "native", text, [picture(60, 30)]) < 2e-5


def test_tied_head_and_saved_buffers(tmp_path: Path) -> None:
    """A checkpoint without a head ties it, if its configuration says so; a rotary buffer is dropped and counted."""
    source = write_chat_checkpoint(tmp_path / "source", QWEN, language={"tie_word_embeddings": True})
    tensors = random_tensors(json.loads((source / "config.json").read_text()))
    head = tensors.pop("language_model.lm_head.weight")
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    write_sharded(source, tensors, files=3)
    report = convert_checkpoint(open_checkpoint(source), tmp_path / "native")
    assert (report.tensors, report.buffers) == (len(tensors) - 1, 1)
    model: Any = load_model(tmp_path / "native")
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, head)
    config = json.loads((source / "config.json").read_text())
    config["llm_config"]["tie_word_embeddings"] = False
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="no LM head"):
        open_checkpoint(source)


def test_weights_keep_their_number_type_and_names(tmp_path: Path) -> None:
    """bfloat16 in, the same bits out; the files hold the names and shapes that transformers itself writes."""
    source = write_chat_checkpoint(tmp_path / "source", QWEN)
    config = json.loads((source / "config.json").read_text())
    tensors = {name: tensor.bfloat16() for name, tensor in random_tensors(config).items()}
    write_sharded(source, tensors, files=3)
    report = convert_checkpoint(open_checkpoint(source), tmp_path / "native")
    assert report.shards == 1
    written = load_file(tmp_path / "native/model.safetensors")
    assert len(written) == report.parameters == len(tensors) + 2 * 2 * 2  # qkv weight and bias of two layers, in three
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert torch.equal(written["multi_modal_projector.linear_2.weight"], tensors["mlp1.3.weight"])
    model: Any = load_model(tmp_path / "native", dtype=torch.bfloat16)
    assert model.config.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again/model.safetensors")
    assert again.keys() == written.keys()
    assert all(torch.equal(again[name], written[name]) for name in again)


# --- processor -----------------------------------------------------------------------------------------------------


def test_prompt_text(converted: tuple[Path, Path]) -> None:
    """The published internvl2_5 template: its own system message unless there is one, a line break after every turn."""
    processor = load_processor(converted[1])
    turns = "<|im_start|>user\n<IMG_CONTEXT>\nHow many?<|im_end|>\n<|im_start|>assistant\n"
    message = user_message("How many?", 1)
    assert prompt_text(processor, [message]) == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{turns}"
    assert prompt_text(processor, [system_message("S"), message]) == f"<|im_start|>system\nS<|im_end|>\n{turns}"
    longer = prompt_text(processor, [message, assistant_message("+"), user_message("next")])
    assert longer.endswith(f"{turns}+<|im_end|>\n<|im_start|>user\nnext<|im_end|>\n<|im_start|>assistant\n")


def test_older_template_has_no_line_break_after_a_turn(tmp_path: Path) -> None:
    source = write_chat_checkpoint(tmp_path / "source", QWEN, template="Hermes-2", system_message="I am.")
    processor = open_checkpoint(source).processor
    expected = "<|im_start|>system\nI am.<|im_end|><|im_start|>user\nq<|im_end|><|im_start|>assistant\n"
    assert prompt_text(processor, [user_message("q")]) == expected


@pytest.mark.parametrize("size", [(28, 28), (75, 40), (30, 90), (200, 31), (400, 300), (61, 59)])
def test_tiles_are_those_of_internvl(converted: tuple[Path, Path], size: tuple[int, int]) -> None:
    """Dynamic resolution worked out with Pillow: closest aspect ratio of up to 6 tiles, then a thumbnail.

    transformers' Pillow backend gives the very same numbers; its default backend rounds some pixels to the next grey
    level, 1 / (255 · 0.224) after normalisation, in an image without noise.
    """
    image = picture(8, 8).resize(size, Image.Resampling.BICUBIC)
    expected = internvl_tiles(image, tile=28, most=6)
    exact = AutoImageProcessor.from_pretrained(converted[1], backend="pil")([image], return_tensors="pt")
    assert torch.equal(exact["pixel_values"], expected)
    default = load_processor(converted[1]).image_processor([image], return_tensors="pt")
    assert float((default["pixel_values"] - expected).abs().max()) < 1.01 / (255 * 0.224)


def internvl_tiles(image: Image.Image, *, tile: int, most: int) -> torch.Tensor:
    grids = sorted(
        {(w, h) for w in range(1, most + 1) for h in range(1, most + 1) if w * h <= most}, key=lambda g: g[0] * g[1]
    )
    best, least = (1, 1), float("inf")
    for grid in grids:
        distance = abs(image.width / image.height - grid[0] / grid[1])
        if distance < least or (distance == least and image.width * image.height > 0.5 * tile**2 * grid[0] * grid[1]):
            best, least = grid, distance
    whole = image.resize((tile * best[0], tile * best[1]), Image.Resampling.BICUBIC)
    boxes = [(c * tile, r * tile, (c + 1) * tile, (r + 1) * tile) for r in range(best[1]) for c in range(best[0])]
    tiles = [whole.crop(box) for box in boxes]
    if len(tiles) > 1:
        tiles.append(image.resize((tile, tile), Image.Resampling.BICUBIC))
    pixels = torch.stack([torch.from_numpy(np.array(t)).permute(2, 0, 1) / 255 for t in tiles])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels - mean[:, None, None]) / std[:, None, None]


def test_without_dynamic_resolution_there_is_one_tile(tmp_path: Path) -> None:
    source = write_chat_checkpoint(tmp_path / "source", QWEN, dynamic_image_size=False, use_thumbnail=False)
    convert_checkpoint(open_checkpoint(source), tmp_path / "native")
    inputs = load_processor(tmp_path / "native")(
        text=["<IMG_CONTEXT>"], images=[[picture(90, 30)]], return_tensors="pt"
    )
    assert inputs["pixel_values"].shape == (1, 3, 28, 28)


# --- process reward model ------------------------------------------------------------------------------------------


def test_step_scores_are_those_of_visualprm(converted: tuple[Path, Path]) -> None:
    """The released code's own prompt, tokenised as a whole by the source's tokens, read before each placeholder.

    score = softmax over the logits of `+` and `-` at the last token of `<|im_start|>assistant\\n`.
    """
    source, native = converted
    prm = ModelPRM.load(native)
    image = picture(75, 40)
    problem = Problem("p", "How many apples?", images=(image,), answer="3")
    steps = ["Step 1: count.", "Step 2: 1 + 2 = 3.", "So it is 3."]
    (scores,) = prm.score(problem, ["\n\n".join(steps)])

    tokenizer = prm.processor.tokenizer
    pixels = prm.processor.image_processor([image], return_tensors="pt")["pixel_values"]
    tokens = "<img>" + "<IMG_CONTEXT>" * 4 * len(pixels) + "</img>"
    first = f"### Question:\n{tokens}\nHow many apples?\n\n### Solution Process:\n{steps[0]}"
    query = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    for turn in [first, *steps[1:]]:
        query += f"<|im_start|>user\n{turn}<|im_end|>\n<|im_start|>assistant\n+<|im_end|>\n"
    ids = tokenizer(query)["input_ids"]
    opening = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    places = [i + len(opening) - 1 for i in range(len(ids)) if ids[i : i + len(opening)] == opening]
    signs = [tokenizer.convert_tokens_to_ids(sign) for sign in "+-"]
    ids = ids[: places[-1] + 1]  # what follows could only change the dynamic rotary base of a text beyond the limit
    logits = ChatModel(source).logits(torch.tensor(ids), pixels, prm.processor.image_token_id)
    expected = logits[places][:, signs].softmax(-1)[:, 0]
    assert scores.values == pytest.approx(expected.tolist(), abs=1e-5)
    assert max(scores.values) - min(scores.values) > 0.02


def test_contract_only_for_a_reward_model(tmp_path: Path) -> None:
    chat = write_chat_checkpoint(tmp_path / "chat", QWEN)
    assert convert_checkpoint(open_checkpoint(chat), tmp_path / "native").prm_format is None
    assert not (tmp_path / "native/prm.json").exists()
    named = write_chat_checkpoint(tmp_path / "named", QWEN, architectures=["InternVLRewardModel"])
    convert_checkpoint(open_checkpoint(named), tmp_path / "native-prm", system="Judge.")
    assert load_format(tmp_path / "native-prm").system == "Judge."


# --- untrusted folders ---------------------------------------------------------------------------------------------


def rewrite(file: Path, change: Any) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


CONFIG_FAULTS = [
    ({"architectures": ["InternVLForConditionalGeneration"]}, "architectures"),
    ({"ps_version": "v1"}, "ps_version is 'v1'"),
    ({"select_layer": -4}, "select_layer is -4"),
    ({"use_llm_lora": 16}, "use_llm_lora"),
    ({"pad2square": True}, "pad2square"),
    ({"use_thumbnail": False}, "use_thumbnail"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ({"template": "phi3-chat"}, "unknown template 'phi3-chat'"),
    ({"downsample_ratio": 0.3}, "downsample_ratio"),
    ({"force_image_size": 30}, "30 pixels"),
    ({"language": {"architectures": ["Phi3ForCausalLM"]}}, "Phi3ForCausalLM"),
    ({"language": {"rope_scaling": {"type": "su", "factor": 2.0}}}, "'su'"),
    ({"vision": {"qk_normalization": True, "layer_norm_eps": 1e-5}}, "qk_normalization"),
    ({"language": {"num_hidden_layers": 3}}, r"layers\.2.*fetch it again"),
    ({"language": {"num_hidden_layers": 1}}, "which the model of config.json does not have"),
    ({"language": {"intermediate_size": 47}}, "config.json asks for"),
    ({"language": {"hidden_act": "nope"}}, "nope"),
    ({"language": {"num_hidden_layers": 10**12}}, "1000000000000 layers"),
    ({"vision": {"num_hidden_layers": 10**12}}, "1000000000000 layers"),
]


@pytest.mark.parametrize(("change", "expected"), CONFIG_FAULTS, ids=range(len(CONFIG_FAULTS)))
def test_what_cannot_be_carried_is_refused_by_name(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    source = write_chat_checkpoint(tmp_path, QWEN)
    sections = {"language": "llm_config", "vision": "vision_config"}

    def apply(config: dict[str, Any]) -> None:
        for key, value in change.items():
            if key in sections:
                config[sections[key]].update(value)
            else:
                config[key] = value

    rewrite(source / "config.json", apply)
    with pytest.raises(ConfigError, match=expected):
        open_checkpoint(source)


def test_wrong_types_are_refused_and_nothing_else_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key of config.json with every wrong value: a refusal, or a value that means "off"; never another error."""
    one = {"num_hidden_layers": 1}
    source = write_chat_checkpoint(tmp_path, QWEN, language=one, vision=one)
    tokenizer = open_checkpoint(source).processor.tokenizer
    monkeypatch.setattr("rewards.conversion.convert.load_tokenizer", lambda *_, **__: tokenizer)  # read once, for speed
    good = json.loads((source / "config.json").read_text())
    places = [(good, key) for key in good] + [
        (good[section], key) for section in ("llm_config", "vision_config") for key in good[section]
    ]
    refused = 0
    for section, key in places:
        kept = section[key]
        for value in (None, "x", -1, {"type": "dynamic"}):
            section[key] = value
            (source / "config.json").write_text(json.dumps(good))
            try:
                open_checkpoint(source)
            except ConfigError:
                refused += 1
        section[key] = kept
    assert refused > len(places)


def test_internlm2_rope_that_llama_has_but_internlm2_has_not(tmp_path: Path) -> None:
    source = write_chat_checkpoint(tmp_path, INTERNLM2, language={"rope_scaling": {"type": "yarn", "factor": 2.0}})
    with pytest.raises(ConfigError, match="'yarn'"):
        open_checkpoint(source)


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "..\\c.safetensors", "model.bin", 7]
)
def test_index_cannot_leave_the_folder(tmp_path: Path, name: Any) -> None:
    source = write_chat_checkpoint(tmp_path / "source", QWEN)
    save_file({"mlp1.0.weight": torch.ones(96)}, tmp_path / "secret.safetensors")
    rewrite(source / INDEX, lambda index: index["weight_map"].update({"mlp1.0.weight": name}))
    with pytest.raises(ConfigError, match=r"plain name of a \.safetensors file"):
        open_checkpoint(source)


def test_damaged_and_inconsistent_weights(tmp_path: Path) -> None:
    source = write_chat_checkpoint(tmp_path, QWEN)
    good = (source / INDEX).read_text()
    first = source / "model-00001-of-00003.safetensors"

    rewrite(source / INDEX, lambda index: index["weight_map"].pop("mlp1.0.weight"))
    with pytest.raises(ConfigError, match=r"does not list tensor 'mlp1\.0\.weight'"):
        open_checkpoint(source)
    rewrite(
        source / INDEX, lambda index: index["weight_map"].update({"mlp1.0.weight": first.name, "ghost": first.name})
    )
    with pytest.raises(ConfigError, match="which does not hold it"):
        open_checkpoint(source)

    (source / INDEX).write_text(good)
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match="not a complete safetensors file"):
        open_checkpoint(source)
    first.unlink()
    with pytest.raises(ConfigError, match="is missing"):
        open_checkpoint(source)
    first.write_bytes(whole)
    for text in ("{", "[" * 200_000):
        (source / INDEX).write_text(text)
        with pytest.raises(ConfigError, match="is not JSON"):
            open_checkpoint(source)


def test_unknown_and_doubled_tensors(tmp_path: Path) -> None:
    source = write_chat_checkpoint(tmp_path, QWEN)
    tensors = random_tensors(json.loads((source / "config.json").read_text()))
    write_sharded(source, tensors | {"vision_model.head.weight": torch.ones(2, 2)}, files=3)
    with pytest.raises(ConfigError, match=r"'vision_model\.head\.weight' has no place"):
        open_checkpoint(source)
    write_sharded(source, tensors | {"mlp1.0.weight": torch.ones(96, dtype=torch.int8)}, files=3)
    with pytest.raises(ConfigError, match="I8"):
        open_checkpoint(source)
    write_sharded(source, tensors, files=3)
    second = source / "model-00002-of-00003.safetensors"
    doubled = next(iter(load_file(source / "model-00001-of-00003.safetensors").items()))
    save_file(load_file(second) | dict([doubled]), second)
    with pytest.raises(ConfigError, match="expected it once"):
        open_checkpoint(source)


def test_a_pickle_is_refused_by_name(tmp_path: Path) -> None:
    source = write_chat_checkpoint(tmp_path, QWEN)
    for file in [*source.glob("*.safetensors"), source / INDEX]:
        file.unlink()
    (source / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin, a pickle"):
        open_checkpoint(source)


# --- memory and disk -----------------------------------------------------------------------------------------------


def test_one_shard_is_the_most_that_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live tensors, counted whenever a shard is written, stay near one shard although the model is 4 times as large."""
    source = write_chat_checkpoint(tmp_path / "source", INTERNLM2, language={"num_hidden_layers": 12})
    checkpoint: Checkpoint = open_checkpoint(source)
    total = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    shard, largest = total // 4, max(tensor.nbytes for tensor in checkpoint.tensors.values())
    before = {id(t) for t in gc.get_objects() if isinstance(t, torch.Tensor)}
    live = []

    def counting(tensors: dict[str, torch.Tensor], *arguments: Any, **options: Any) -> None:
        found = [t for t in gc.get_objects() if isinstance(t, torch.Tensor) and id(t) not in before]
        live.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in found}.values()))
        save_file(tensors, *arguments, **options)

    monkeypatch.setattr(shards, "save_file", counting)
    report = convert_checkpoint(checkpoint, tmp_path / "native", shard_bytes=shard)
    assert report.shards == len(live) >= 4
    assert max(live) <= shard + 2 * largest
    sizes = [file.stat().st_size for file in (tmp_path / "native").glob("*.safetensors")]
    assert len(sizes) == report.shards
    assert max(sizes) <= shard + 20_000  # and a header


def test_a_killed_conversion_is_done_again_and_weights_are_never_overwritten(tmp_path: Path) -> None:
    source = write_chat_checkpoint(tmp_path / "source", QWEN)
    native = tmp_path / "native"
    native.mkdir()
    (native / "shard-00009.tmp").write_bytes(b"half")
    convert_checkpoint(open_checkpoint(source), native, shard_bytes=50_000)
    assert not list(native.glob("*.tmp"))
    index = json.loads((native / INDEX).read_text())["weight_map"]
    assert {file.name for file in native.glob("*.safetensors")} == set(index.values())
    for name, file in index.items():
        with safe_open(native / file, "pt") as opened:
            assert name in opened.keys()  # noqa: SIM118
    for folder in (native, source):
        with pytest.raises(ConfigError, match="already holds weights"):
            convert_checkpoint(open_checkpoint(source), folder)
