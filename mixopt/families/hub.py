"""No hub is asked for what a file names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import huggingface_hub

# The switch is one for the whole process.
_held = threading.RLock()


@contextmanager
def no_hub() -> Iterator[None]:
    """Libraries that would ask Hugging Face's hub in this block take what lies on the disk, or fail."""
    with _held:
        before = huggingface_hub.constants.HF_HUB_OFFLINE
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        try:
            yield
        finally:
            huggingface_hub.constants.HF_HUB_OFFLINE = before
