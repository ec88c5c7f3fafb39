"""Models small enough that services, and not arithmetic, set the pace: random weights, real formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from services.fusion.model import FusionNetwork, ModelConfig, save
from shared.e5 import E5

WIDTH: Final = 16
IMAGE_WIDTH: Final = 1280  # of the default image encoder
AUDIO_WIDTH: Final = 1039  # and of the default audio encoder


def write_text_model(folder: Path, words: list[str]) -> str:
    """A BERT of one layer that knows these words, as a Hugging Face folder; its version."""
    folder.mkdir(parents=True)
    pieces = ["<pad>", "<s>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "vocab_size": len(pieces),
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": WIDTH,
        "max_position_embeddings": 64,
        "type_vocab_size": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    save_file(_bert_tensors(len(pieces)), folder / "model.safetensors")
    return E5.load(str(folder)).model_version


def _bert_tensors(vocabulary: int) -> dict[str, torch.Tensor]:
    """Random weights by the names of a BertModel."""
    linear = (
        *("attention.self.query", "attention.self.key", "attention.self.value"),
        *("attention.output.dense", "intermediate.dense", "output.dense"),
    )
    norms = [
        "embeddings.LayerNorm",
        "encoder.layer.0.attention.output.LayerNorm",
        "encoder.layer.0.output.LayerNorm",
    ]
    tensors = {
        "embeddings.word_embeddings.weight": torch.randn(vocabulary, WIDTH),
        "embeddings.position_embeddings.weight": torch.randn(64, WIDTH),
        "embeddings.token_type_embeddings.weight": torch.randn(1, WIDTH),
    }
    for name in linear:
        tensors[f"encoder.layer.0.{name}.weight"] = torch.randn(WIDTH, WIDTH)
        tensors[f"encoder.layer.0.{name}.bias"] = torch.zeros(WIDTH)
    for name in norms:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.ones(WIDTH), torch.zeros(WIDTH)
    return tensors


def write_fusion_model(folder: Path, text_version: str) -> None:
    """An untrained fusion model for the small text model's vectors and the default encoders' others."""
    torch.manual_seed(0)
    slots = {"text": WIDTH, "speech": WIDTH, "image": IMAGE_WIDTH, "audio": AUDIO_WIDTH}
    network = FusionNetwork(ModelConfig(slots, width=16, layers=1))
    save(network, folder, {"encoders": {"text": text_version}})
