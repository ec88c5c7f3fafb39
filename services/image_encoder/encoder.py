"""Pictures to vectors: the image model behind the `Encoder` protocol. No Kafka, no environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from services.image_encoder import efficientnet
from services.image_encoder.settings import ImageEncoderSettings
from shared import metrics
from shared.decoding import Decoders
from shared.device import choose_device, copied, sent, started_on, state_digest
from shared.encoding import Input, ahead, answers
from shared.errors import InvalidMessage
from shared.messages import Answer, Modality
from shared.settings import ModelSettings

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]  # (side, side, 3)


@dataclass(frozen=True, slots=True)
class ImageModel:
    """What is needed of an image model.

    network: (B, 3, side, side) float to (B, dimension).
    mean, deviation: of a channel in 0..255; pixels enter as (value - mean) / deviation.
    """

    network: Callable[[Tensor], Tensor]
    version: str
    dimension: int
    side: int
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


class ImageEncoder:
    """Posts' pictures to vectors: `prepare` (CPU) -> `forward` (device) -> `finish` (numpy).

    A post with several pictures gets the mean of their vectors; a broken one among them does not count.
    """

    slots: tuple[Modality, ...] = (Modality.IMAGE,)

    def __init__(
        self,
        model: ImageModel,
        decode: Callable[[bytes], Pixels],
        *,
        device: str,
        max_batch_pixels: int,
        decoders: int,
        decode_on_device: Callable[[Sequence[bytes]], Sequence[Tensor | None]] | None = None,
    ) -> None:
        """decode: a picture's bytes to pixels of the model's side, or InvalidMessage. decoders: at once.

        decode_on_device: asked first; (3, side, side) numbers, or None for what is left to `decode`.
        """
        self._model = model
        self._device = device
        self._dtype = torch.float16 if device == "cuda" else torch.float32
        self._decode = decode
        self._decode_on_device = decode_on_device
        self.batch = max(1, max_batch_pixels // model.side**2)
        self._start = started_on(device, self._batch)
        self._decoders = ThreadPoolExecutor(decoders, thread_name_prefix="decode")
        self._mean = torch.tensor(model.mean, device=device)[:, None, None]
        self._deviation = torch.tensor(model.deviation, device=device)[:, None, None]
        self.model_version = model.version
        self.dimensions: Mapping[Modality, int] = {Modality.IMAGE: model.dimension}

    @classmethod
    def load(cls, model: ModelSettings, image: ImageEncoderSettings) -> ImageEncoder:
        """Raises ValueError, FileNotFoundError or OSError when the model or the device cannot be had."""
        if model.threads:
            torch.set_num_threads(model.threads)
        device = choose_device(model.device)
        if image.model == efficientnet.NAME:
            loaded = _default(model.cache_dir, device)
        else:
            loaded = _hugging_face(image.model, model.cache_dir, device)
        decoders = Decoders(
            "services.image_encoder.pictures:decoder",
            loaded.side,
            image.max_pixels,
            processes=image.decoders,
            memory_bytes=image.decode_memory_bytes,
            cpu_s=image.decode_cpu_s,
            max_bytes=3 * loaded.side**2,
        )
        on_the_gpu = None
        if image.decode_on_device:
            if device != "cuda":
                raise ValueError("pictures can be decoded on a GPU only, and the device is the CPU")
            from services.image_encoder import on_device  # torchvision, for those who decode there

            on_the_gpu = partial(
                on_device.decode, side=loaded.side, max_pixels=image.max_pixels, device=device
            )
        return cls(
            loaded,
            decoders.decode,
            device=device,
            max_batch_pixels=image.pixel_budget(device),
            decoders=image.decoders,
            decode_on_device=on_the_gpu,
        )

    def encode(self, inputs: Sequence[Input]) -> list[Mapping[Modality, Answer]]:
        return self.finish(inputs, self.forward(self.prepare(inputs)))

    def prepare(self, inputs: Sequence[Input]) -> Iterable[Pixels | Tensor | Exception]:
        """Pixels of every picture of every post, one after another, or why there are none.

        The decoders begin at once with all of them; each is waited for when it is asked for.
        """
        contents = [content for item in inputs for content in item.media]
        if self._decode_on_device is None:
            return self._decoders.map(self._pixels, contents)
        decoded = self._decode_on_device(contents)
        rest = self._decoders.map(
            self._pixels, [content for content, own in zip(contents, decoded, strict=True) if own is None]
        )
        return [next(rest) if own is None else own for own in decoded]

    def forward(self, pictures: Iterable[Pixels | Tensor | Exception]) -> list[Floats | Exception]:
        """(D,) float32 per picture, in order. All pictures have one size, so a pixel budget is a count.

        A batch goes to the model as soon as its pictures are decoded, while the next are being decoded.
        """
        seen: list[Pixels | Tensor | Exception] = []

        def counted(batch: list[int]) -> list[int]:
            metrics.batched("image_encoder", budget=self.batch, filled=len(batch), padding=0)
            return batch

        def batches() -> Iterator[list[int]]:
            batch: list[int] = []
            for picture in pictures:
                seen.append(picture)
                if not isinstance(picture, Exception):
                    batch.append(len(seen) - 1)
                if len(batch) == self.batch:
                    yield counted(batch)
                    batch = []
            if batch:
                yield counted(batch)

        return ahead(self._start, seen, batches())

    def finish(
        self, inputs: Sequence[Input], vectors: Sequence[Floats | Exception]
    ) -> list[Mapping[Modality, Answer]]:
        """One answer per post: the mean over its pictures, absent when not one could be used."""
        of_posts: list[Floats | Exception] = []
        rest = iter(vectors)
        for item in inputs:
            of_post = [next(rest) for _ in item.media]
            usable = [vector for vector in of_post if not isinstance(vector, Exception)]
            errors = [vector for vector in of_post if isinstance(vector, Exception)]
            if usable:
                of_posts.append(np.mean(usable, axis=0))
            else:
                of_posts.append(errors[0] if errors else InvalidMessage("no picture in the post"))
        return [{Modality.IMAGE: answer} for answer in answers(of_posts)]

    def _pixels(self, content: bytes) -> Pixels | Exception:
        try:
            return self._decode(content)
        except InvalidMessage as error:
            return error

    @torch.inference_mode()
    def _batch(self, pictures: Sequence[Any]) -> Callable[[], list[Floats]]:
        # Pixels or Tensors. uint8 to the device, float only there: a quarter of the copying.
        vectors = self._model.network(
            ((self._placed(pictures) - self._mean) / self._deviation).to(self._dtype)
        ).float()
        wait = copied(vectors)
        return lambda: list(wait())

    def _placed(self, pictures: Sequence[Pixels | Tensor]) -> Tensor:
        """(B, 3, side, side) uint8 on the device."""
        decoded = [picture for picture in pictures if not isinstance(picture, Tensor)]
        copied: Iterator[Tensor] = iter(())
        if decoded:
            stacked = sent(torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2), self._device)
            if len(decoded) == len(pictures):
                return stacked
            copied = iter(stacked)
        return torch.stack([picture if isinstance(picture, Tensor) else next(copied) for picture in pictures])


def _default(cache_dir: Path, device: str) -> ImageModel:
    network = efficientnet.EfficientNetLite0.load(cache_dir)
    return ImageModel(
        _placed(network, device),
        version=f"{efficientnet.NAME}@{efficientnet.SOURCE_SHA256[:12]}",
        dimension=efficientnet.DIMENSION,
        side=efficientnet.SIDE,
        # Source: efficientnet/lite of tensorflow/tpu, MEAN_RGB and STDDEV_RGB.
        mean=(127.0, 127.0, 127.0),
        deviation=(128.0, 128.0, 128.0),
    )


def _placed(network: nn.Module, device: str) -> nn.Module:
    dtype = torch.float16 if device == "cuda" else torch.float32
    # channels last: twice as fast on the CPU, and the layout the decoded pixels have anyway
    return cast(nn.Module, cast(Any, network).to(device, dtype, memory_format=torch.channels_last).eval())


def _hugging_face(model: str, cache_dir: Path, device: str) -> ImageModel:
    from transformers import AutoImageProcessor, AutoModel  # 17 s to import: only for those who configure it

    hub = None if Path(model).is_dir() else cache_dir.expanduser() / "huggingface"
    processor = AutoImageProcessor.from_pretrained(model, cache_dir=hub)  # type: ignore[no-untyped-call]
    network = AutoModel.from_pretrained(model, cache_dir=hub, use_safetensors=True)
    placed = _placed(network, device)
    size = processor.size
    side = int(size.get("height") or size["shortest_edge"])

    def vectors(pixels: Tensor) -> Tensor:
        if hasattr(placed, "get_image_features"):  # two towers, as CLIP and SigLIP have
            features = cast(Any, placed).get_image_features(pixel_values=pixels)
        else:
            features = placed(pixel_values=pixels)
        if isinstance(features, Tensor):
            return features
        pooled = getattr(features, "pooler_output", None)
        return cast(Tensor, pooled if pooled is not None else features.last_hidden_state.mean(1)).flatten(1)

    with torch.inference_mode():
        probe = torch.zeros(1, 3, side, side, device=device, dtype=next(placed.parameters()).dtype)
        dimension = vectors(probe).shape[1]
    mean, deviation = processor.image_mean, processor.image_std
    return ImageModel(
        vectors,
        version=f"{model if hub else Path(model).name}@{state_digest(network)}",
        dimension=dimension,
        side=side,
        mean=(255 * mean[0], 255 * mean[1], 255 * mean[2]),
        deviation=(255 * deviation[0], 255 * deviation[1], 255 * deviation[2]),
    )
