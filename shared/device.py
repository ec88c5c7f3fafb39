"""What every model of torch needs: the device it runs on and the digest that names its weights."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Item = TypeVar("Item")
Encoded = TypeVar("Encoded")


def choose_device(device: str) -> str:
    """Turn a setting of auto | cpu | cuda into cpu or cuda.

    Raises ValueError for another word, and for cuda where there is none: a service that was promised a GPU
    must not crawl along on the CPU unnoticed.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device {device!r} is none of auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no GPU")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def started_on(
    device: str, start: Callable[[Sequence[Item]], Callable[[], Sequence[Encoded]]]
) -> Callable[[Sequence[Item]], Callable[[], Sequence[Encoded]]]:
    """`start` (see `shared.encoding.ahead`) for batches that follow one another on this device.

    On a CPU as many batches are computed side by side as torch has threads here, each by one of them: threads
    that share a batch wait for one another at every layer, and far longer where another process has their
    core. On a GPU a batch is handed over at once, in order, by one thread at a time.
    """
    if device != "cpu":
        lock = threading.Lock()

        def handed_over(items: Sequence[Item]) -> Callable[[], Sequence[Encoded]]:
            with lock:
                return start(items)

        return handed_over
    pool = ThreadPoolExecutor(
        torch.get_num_threads(),
        thread_name_prefix="model",
        initializer=torch.set_num_threads,  # of the thread that calls it; those there are keep theirs
        initargs=(1,),
    )

    def submitted(items: Sequence[Item]) -> Callable[[], Sequence[Encoded]]:
        return pool.submit(lambda: start(items)()).result

    return submitted


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Values of the CPU on the device. On a GPU nobody waits for what was started there before, as
    `torch.tensor(..., device=...)` would."""
    if torch.device(device).type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


def copied(tensor: Tensor) -> Callable[[], npt.NDArray[np.float32]]:
    """Start copying a float32 tensor off its device; what is returned waits for the copy.

    On a GPU more work can be handed over meanwhile; on the CPU the tensor itself is seen.
    """
    if not tensor.is_cuda:
        return tensor.numpy
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    # Blocking: else whoever waits keeps a core busy asking, and the tokenizer wants it.
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    done.record()

    def wait() -> npt.NDArray[np.float32]:
        done.synchronize()
        return host.numpy()

    return wait


def state_digest(network: nn.Module) -> str:
    """12 hexadecimal digits that change with the weights, wherever they were loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        # By bytes: numpy has no bfloat16.
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
