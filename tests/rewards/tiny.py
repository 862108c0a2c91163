"""Scorers of a few thousand weights, written to disk in the formats of the real ones: the real code loads them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amsd.rewards.head import ScoreHead


def clip_folder(folder: Path, seed: int = 0, image_size: int = 32) -> Path:
    """A CLIP model with a byte-level tokenizer (514 tokens, no merges), as a transformers folder."""
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = shape | {"image_size": image_size, "patch_size": 8}
    text = shape | {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513, "max_position_embeddings": 77}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    randomize(model, seed)
    model.logit_scale.data.fill_(4.6)
    model.save_pretrained(folder)
    clip_tokenizer_files(folder)
    return folder


def clip_tokenizer_files(folder: Path) -> None:
    """`vocab.json` and `merges.txt` with CLIP's alphabet and no merges."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = byte_alphabet()
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def byte_alphabet() -> list[str]:
    """The 256 printable letters that stand for bytes in CLIP's and GPT-2's vocabularies."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def bert_folder(folder: Path, words: Mapping[int, str], size: int) -> Path:
    """A word-piece tokenizer with these words at these ids, [PAD] at 0, [UNK] at 100, [CLS] at 101, [SEP] at 102."""
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    tokens = [special.get(i, words.get(i, f"unused{i}")) for i in range(size)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    return folder


def aesthetic_head(path: Path, width: int = 24) -> Path:
    """A score head, as a torch file with the original's names."""
    head = ScoreHead(width)
    randomize(head, 3)
    torch.save(head.state_dict(), path)
    return path


def open_clip_files(folder: Path) -> tuple[Path, Path]:
    """(configuration, checkpoint) of an OpenCLIP model with the real vocabulary, in HPS's format."""
    import open_clip

    tower = {"width": 32, "layers": 2}
    configuration: dict[str, Any] = {
        "embed_dim": 24,
        "vision_cfg": {**tower, "image_size": 32, "patch_size": 8, "head_width": 8},
        "text_cfg": {**tower, "context_length": 77, "vocab_size": 49408, "heads": 4},
    }
    model = open_clip.CLIP(**configuration)
    randomize(model, 5)
    (folder / "architecture.json").write_text(json.dumps(configuration))
    torch.save({"epoch": 1, "state_dict": model.state_dict()}, folder / "hps.pt")
    return folder / "architecture.json", folder / "hps.pt"


def randomize(module: nn.Module, seed: int) -> None:
    """Weights large enough that scores of different images differ by far more than rounding."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)


def image_reward_shapes(
    width: int, layers: int, text_width: int, text_layers: int, vocabulary: int = 30524
) -> dict[str, tuple[int, ...]]:
    """Every floating-point entry of an original ImageReward checkpoint of this size."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int) -> None:
        shapes.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    def norm(name: str, size: int) -> None:
        shapes.update({f"{name}.weight": (size,), f"{name}.bias": (size,)})

    eyes = "blip.visual_encoder"
    shapes |= {f"{eyes}.cls_token": (1, 1, width), f"{eyes}.pos_embed": (1, 197, width)}
    shapes |= {f"{eyes}.patch_embed.proj.weight": (width, 3, 16, 16), f"{eyes}.patch_embed.proj.bias": (width,)}
    for layer in range(layers):
        block = f"{eyes}.blocks.{layer}"
        norm(f"{block}.norm1", width), norm(f"{block}.norm2", width)
        linear(f"{block}.attn.qkv", width, 3 * width), linear(f"{block}.attn.proj", width, width)
        linear(f"{block}.mlp.fc1", width, 4 * width), linear(f"{block}.mlp.fc2", 4 * width, width)
    norm(f"{eyes}.norm", width)
    words = "blip.text_encoder"
    shapes |= {f"{words}.embeddings.word_embeddings.weight": (vocabulary, text_width)}
    shapes |= {f"{words}.embeddings.position_embeddings.weight": (512, text_width)}
    norm(f"{words}.embeddings.LayerNorm", text_width)
    for layer in range(text_layers):
        block = f"{words}.encoder.layer.{layer}"
        for kind, keys in (("attention", text_width), ("crossattention", width)):
            linear(f"{block}.{kind}.self.query", text_width, text_width)
            linear(f"{block}.{kind}.self.key", keys, text_width), linear(f"{block}.{kind}.self.value", keys, text_width)
            linear(f"{block}.{kind}.output.dense", text_width, text_width)
            norm(f"{block}.{kind}.output.LayerNorm", text_width)
        linear(f"{block}.intermediate.dense", text_width, 4 * text_width)
        linear(f"{block}.output.dense", 4 * text_width, text_width)
        norm(f"{block}.output.LayerNorm", text_width)
    linear("blip.vision_proj", width, 256), linear("blip.text_proj", text_width, 256)
    sizes = (text_width, 1024, 128, 64, 16, 1)
    for index, inputs, outputs in zip((0, 2, 4, 6, 7), sizes, sizes[1:], strict=False):
        linear(f"mlp.layers.{index}", inputs, outputs)
    return shapes


def image_reward_checkpoint(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The golden numbers' weights: filled by the rule of tests/golden/imagereward.json from the original names."""
    state = {name: torch.from_numpy(golden_fill(name, shape)) for name, shape in shapes.items()}
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512).view(1, -1)
    return state


def golden_fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`fill_rule` of tests/golden/imagereward.json."""
    values = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if len(shape) == 1 and name.endswith(".weight"):
        values = 1.0 + 0.02 * values
    elif name.endswith(("bias", "embeddings.weight", "pos_embed", "cls_token")):
        values = 0.02 * values
    else:
        values = values / np.sqrt(float(np.prod(shape[1:])))
    return values.astype(np.float32)


def golden_image(index: int, height: int = 512, width: int = 512) -> Tensor:
    """`input_rule` of tests/golden/imagereward.json: (3, height, width) in [0, 1]."""
    random = np.random.Generator(np.random.PCG64(1000 + index))
    y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None] + 0.5) / width
    channels = []
    for _ in range(3):
        total = np.zeros((height, width))
        for _ in range(6):
            fx, fy = int(random.integers(0, 5)), int(random.integers(0, 5))
            phase, amplitude = float(random.uniform(0, 2 * np.pi)), float(random.uniform(0.2, 1.0))
            total += amplitude * np.cos(2 * np.pi * (fx * x + fy * y) + phase)
        if index == 3:  # detail above the Nyquist limit of 224 pixels
            total += 1.5 * np.cos(2 * np.pi * (150 * x + 95 * y))
        channels.append(0.5 + 0.45 * np.tanh(total))
    return torch.from_numpy(np.stack(channels).astype(np.float32))
