"""The text encoder service: settings -> objects -> serve."""

from __future__ import annotations

from services.text_encoder.encoder import TextEncoder
from services.text_encoder.settings import TextEncoderSettings
from shared import topics, worker
from shared.canary import Canary
from shared.device import choose_device
from shared.encoding import TURNS, encode_step
from shared.media import MediaStore
from shared.service import embedding_cache, serve
from shared.settings import MediaSettings, ModelSettings, TextModelSettings, WorkerSettings

SERVICE = "text_encoder"


def run() -> None:
    stopped = worker.on_sigterm()
    settings = TextEncoderSettings()
    text = TextModelSettings()
    model = ModelSettings()
    encoder = TextEncoder.load(model, text)
    cache = embedding_cache(encoder, text)
    step = encode_step(SERVICE, encoder, MediaStore(MediaSettings()), canary=Canary(encoder), cache=cache)
    posts = settings.posts_of_poll(choose_device(model.device))
    serve(SERVICE, topics.POSTS, step, stopped=stopped, max_poll_records=posts, turns=TURNS)


if __name__ == "__main__":
    worker.main(SERVICE, run, log_level=WorkerSettings().log_level)
