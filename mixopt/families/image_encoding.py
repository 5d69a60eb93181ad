"""Images: kept as uint8, normalised batch by batch on the device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from mixopt.errors import DataError
from mixopt.values.samples import IMAGES, Encoding, Preprocess


def image_encoding(preprocess: Preprocess, enlarging: str = "") -> Encoding:
    """The encoding of images ``[h, w, 3]`` uint8: one array ``images``, which becomes ``[b, 3, h, w]`` float32.

    Its functions raise a `DataError` where a record is no image, or where images are not of the size that
    ``preprocess`` promises.

    Args:
        preprocess: What happens to an image.
        enlarging: What is told where images are enlarged.
    """
    size = preprocess.size

    @cache
    def constants(device: torch.device) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):
            mean, std = (
                torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
                for values in (preprocess.mean, preprocess.std)
            )
        return mean, std

    def encode(record: Any) -> dict[str, NDArray[np.uint8]]:
        if isinstance(record, Mapping):
            raise DataError(
                f"expected an image, found a record with {', '.join(map(str, record)) or 'nothing'}; this model family "
                "takes images: name the field that holds them, --fields image=NAME, or give another split"
            )
        image = np.asarray(record, dtype=np.uint8)
        if size is None or image.shape[:2] == size:
            return {IMAGES: image}
        fitted = np.asarray(preprocess.fit(Image.fromarray(image)), dtype=np.uint8)
        if fitted.shape != (*size, 3):
            raise DataError(f"the family's preprocess.fit gives {list(fitted.shape)}, expected {[*size, 3]}")
        return {IMAGES: fitted}

    def collate(arrays: Mapping[str, Tensor]) -> Tensor:
        stored = arrays[IMAGES]
        if size is not None and tuple(stored.shape[1:3]) != size:
            raise DataError(
                f"the decoded images are {list(stored.shape[1:3])}, but the family's preprocess takes {list(size)}; "
                "give another preprocess another key"
            )
        images = stored.permute(0, 3, 1, 2).contiguous().to(torch.float32).div_(255.0)
        mean, std = constants(stored.device)
        return images.sub_(mean).div_(std)

    return Encoding(encode, collate, preprocess.key, enlarging=enlarging)
