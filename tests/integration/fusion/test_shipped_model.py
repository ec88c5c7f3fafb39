"""The shipped weights with the real text model: obvious posts in several languages, the card kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.fusion.model import EMOTIONS, FusionModel
from services.fusion.settings import SHIPPED_WEIGHTS
from services.training import features
from shared.encoding import Input
from shared.messages import Label, Modality
from shared.settings import ModelSettings

OBVIOUS = [
    ("I absolutely love this phone, best purchase ever! 😍", Label.POSITIVE),
    ("Terrible service, I am so angry, never again.", Label.NEGATIVE),
    ("Das ist wunderbar, ich bin so glücklich und dankbar!", Label.POSITIVE),
    ("Was für eine Katastrophe, einfach nur schrecklich.", Label.NEGATIVE),
    ("Qué día tan maravilloso, me encanta ❤️", Label.POSITIVE),
    ("Odio esto, es la peor empresa del mundo.", Label.NEGATIVE),
    ("J'adore, c'est magnifique, merci beaucoup !", Label.POSITIVE),
    ("C'est nul, je suis très déçu et en colère.", Label.NEGATIVE),
    ("Adoro questo posto, è stato fantastico!", Label.POSITIVE),
    ("The meeting takes place on Tuesday at 10 in room 4.", Label.NEUTRAL),
    ("Der Zug nach Bern fährt um 9 Uhr von Gleis 3 ab.", Label.NEUTRAL),
]


@pytest.fixture(scope="module")
def model() -> FusionModel:
    torch.set_num_threads(1)
    return FusionModel.load(SHIPPED_WEIGHTS, "cpu")


def test_obvious_posts_are_labelled_right(model: FusionModel) -> None:
    encoder = features.encoders(model=ModelSettings(device="cpu", threads=1))(Modality.TEXT)
    answers = encoder.encode([Input(text) for text, _ in OBVIOUS])
    posts = [{slot: a.vector for slot, a in answer.items() if a.vector is not None} for answer in answers]
    verdicts = model.classify(posts)
    found = [(text, verdict.label.name) for (text, _), verdict in zip(OBVIOUS, verdicts, strict=True)]
    assert found == [(text, label.name) for text, label in OBVIOUS]
    for verdict in verdicts:
        assert set(verdict.emotions) == set(EMOTIONS)
        assert verdict.model_version == model.model_version


def test_spoken_words_have_the_emotion_of_written_ones(model: FusionModel) -> None:
    encoder = features.encoders(model=ModelSettings(device="cpu", threads=1))(Modality.TEXT)
    plain = {"I am so angry, this is outrageous!": "anger", "I'm so happy and grateful today": "joy"}
    for answer, emotion in zip(encoder.encode([Input(text) for text in plain]), plain.values(), strict=True):
        vector = answer[Modality.TEXT].vector
        assert vector is not None
        for verdict in model.classify([{Modality.TEXT: vector}, {Modality.SPEECH: vector}]):
            assert max(verdict.emotions, key=verdict.emotions.__getitem__) == emotion


def test_the_shipped_model_takes_what_the_encoders_give(model: FusionModel) -> None:
    assert set(model.dimensions) == set(Modality)
    open_encoder = features.encoders(model=ModelSettings(device="cpu", threads=1))
    for modality in (Modality.TEXT, Modality.IMAGE, Modality.AUDIO):
        for slot, dimension in open_encoder(modality).dimensions.items():
            assert model.dimensions[slot] == dimension


def test_the_weights_are_small_and_the_folder_holds_no_pickle() -> None:
    files = [path for path in Path(SHIPPED_WEIGHTS).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".npy"}
    assert sum(path.stat().st_size for path in files) < 40 * 1024 * 1024
