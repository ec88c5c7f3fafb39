"""`crowdtone bench encode`: an encoder's step, record bytes to embedding bytes, over the bare model loop.

No broker and no media store of others: what one process does between reading and writing.
"""

from __future__ import annotations

import torch

from benchmarks import load
from benchmarks.figures import AsJson, Device, OnDevice, Posts, Rounds, in_turn, show
from services.text_encoder.encoder import TextEncoder
from shared.canary import Canary
from shared.device import choose_device
from shared.e5 import E5, token_batches
from shared.encoding import encode_step
from shared.media import MediaStore
from shared.settings import MediaSettings, ModelSettings, TextModelSettings


def encode(
    posts: Posts = 2000, rounds: Rounds = 3, device: OnDevice = Device.auto, as_json: AsJson = False
) -> None:
    """The text encoder's step, from record bytes to embedding bytes, over the bare model loop."""
    model, text = ModelSettings(device=choose_device(device)), TextModelSettings()
    encoder = TextEncoder.load(model, text)
    step = encode_step("text_encoder", encoder, MediaStore(MediaSettings()), canary=Canary(encoder))
    records = load.post_records(posts)
    dtype = torch.float16 if model.device == "cuda" else torch.float32
    e5 = E5.load(cache_dir=model.cache_dir, device=model.device, dtype=dtype, max_tokens=text.max_tokens)
    rows = e5.tokenize([post.text for post in load.posts(posts)])
    batches = [
        e5.pad([rows[i] for i in batch]) for batch in token_batches([*map(len, rows)], text.max_batch_tokens)
    ]

    def bare() -> None:
        with torch.inference_mode():
            for ids, mask in batches:
                e5(ids, mask).cpu()

    def service() -> None:
        for start in range(0, posts, 500):
            step(records[start : start + 500], 0.0)

    bare_s, service_s = in_turn(rounds, bare, service)
    tokens = sum(map(len, rows))
    show(
        "encode",
        {
            "device": str(e5.device),
            "threads": torch.get_num_threads(),
            "posts": posts,
            "tokens_per_post": round(tokens / posts, 1),
            "padding_share": round(1 - tokens / sum(ids.numel() for ids, _ in batches), 3),
            "posts_per_s": round(posts / service_s, 1),
            "bare_loop_posts_per_s": round(posts / bare_s, 1),
            "ratio_to_bare_loop": round(bare_s / service_s, 3),
        },
        as_json,
    )
