"""The image encoder service: settings -> objects -> serve."""

from __future__ import annotations

from services.image_encoder.encoder import ImageEncoder
from services.image_encoder.settings import ImageEncoderSettings
from shared import topics, worker
from shared.canary import Canary
from shared.device import choose_device
from shared.encoding import TURNS, encode_step
from shared.media import MediaStore
from shared.service import embedding_cache, serve
from shared.settings import MediaSettings, ModelSettings, WorkerSettings

SERVICE = "image_encoder"


def run() -> None:
    stopped = worker.on_sigterm()
    settings = ImageEncoderSettings()
    model = ModelSettings()
    encoder = ImageEncoder.load(model, settings)
    cache = embedding_cache(encoder, settings)
    step = encode_step(SERVICE, encoder, MediaStore(MediaSettings()), canary=Canary(encoder), cache=cache)
    posts = settings.posts_of_poll(choose_device(model.device))
    serve(SERVICE, topics.POSTS, step, stopped=stopped, max_poll_records=posts, turns=TURNS)


if __name__ == "__main__":
    worker.main(SERVICE, run, log_level=WorkerSettings().log_level)
