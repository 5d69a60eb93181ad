"""Images for transformers' models: the image processor resizes and crops; normalisation is left to the evaluator."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mixopt.errors import SpecError
from mixopt.families.image_encoding import image_encoding
from mixopt.families.transformers.folder import CONFIG, PROCESSORS, Described, text_of
from mixopt.untrusted import refusing
from mixopt.values.samples import IMAGES, Preprocess

# Pixels of a side; far beyond any model's, and soon beyond memory.
_LARGEST = 10_000
# Sizes, upright and lying, of the images by which a processor is understood.
_TRIED = ((61, 47), (40, 90))
_TIMM = "timm_wrapper"


def open_preprocess(described: Described) -> Preprocess:
    """The image processor of a folder as a `Preprocess`, compared with the processor itself on images of two sizes.

    Raises:
        SpecError: There is none, transformers cannot make it, or it does more than to resize, crop and normalise.
    """
    where, is_timm = described.where, described.config.get("model_type") == _TIMM
    if described.processor is None and not is_timm:
        raise SpecError(
            f"{where}: there is no {PROCESSORS[0]} beside it; save the image processor of the training there: "
            "processor.save_pretrained(FOLDER)"
        )
    _check_sizes(described)
    processor = _processor_of(described)
    with refusing(
        SpecError, where, found="its image processor cannot be used", cure="correct its config", also=(ImportError,)
    ):
        if is_timm:
            fit, mean, std = _timm_steps(processor)
        else:
            fit, (mean, std) = _fit_of(processor), _statistics(processor)
        tried = [Image.fromarray(_noise(size)) for size in _TRIED]
        fitted = [np.asarray(fit(image)) for image in tried]
    sizes = {array.shape for array in fitted}
    if len(sizes) != 1 or len(next(iter(sizes))) != 3:
        raise SpecError(
            f"{where}: its image processor gives images of different sizes ({sorted(sizes)}); expected one that "
            "resizes or crops to one size"
        )
    key = json.dumps({"transformers": described.processor, "timm": is_timm and described.config}, sort_keys=True)
    height, width, _ = sizes.pop()
    preprocess = Preprocess((height, width), mean, std, fit, key)
    _check_same(preprocess, processor, tried, where)
    return preprocess


def _processor_of(described: Described) -> Any:
    from transformers import AutoImageProcessor

    with tempfile.TemporaryDirectory() as folder:
        for name, values in ((CONFIG, described.config), (PROCESSORS[0], described.processor)):
            if values is not None:
                (Path(folder) / name).write_text(text_of(values), encoding="utf-8")
        with refusing(
            SpecError,
            described.where,
            found="transformers cannot make the image processor beside it",
            cure="save it anew with processor.save_pretrained(FOLDER)",
            also=(ImportError,),
        ):
            return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _fit_of(processor: Any) -> Callable[[Any], Any]:
    """All that the processor does before it scales and normalises."""

    def fit(image: Any) -> NDArray[np.uint8]:
        done = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        return np.asarray(np.clip(np.rint(np.moveaxis(np.asarray(done), 0, -1)), 0, 255), dtype=np.uint8)

    return fit


def _statistics(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation on the scale 0 to 1, whatever scale the processor has them on."""
    scale = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    return tuple(float(each) / scale for each in mean), tuple(float(each) / scale for each in std)


def _timm_steps(processor: Any) -> tuple[Callable[[Any], Any], tuple[float, ...], tuple[float, ...]]:
    """The evaluation transform of timm, whose last two steps make a tensor and normalise it."""
    *steps, _, _ = processor.val_transforms.transforms
    data = processor.data_config

    def fit(image: Any) -> Any:
        for step in steps:
            image = step(image)
        return image

    return fit, tuple(map(float, data["mean"])), tuple(map(float, data["std"]))


def _check_same(preprocess: Preprocess, processor: Any, tried: Iterable[Any], where: str) -> None:
    """Compare a preprocess with the processor that it stands for.

    Raises:
        SpecError: They differ.
    """
    import torch

    encoding = image_encoding(preprocess)
    for image in tried:
        stored = np.array(encoding.encode(np.asarray(image))[IMAGES])
        own = encoding.collate({IMAGES: torch.from_numpy(stored[None])})
        # Half a step of a pixel: processors that resize in floating point are rounded here.
        allowed = 0.51 / 255 / min(preprocess.std)
        with refusing(SpecError, where, found="its image processor cannot be used", cure="correct its config"):
            theirs = np.asarray(processor(image, return_tensors="pt")["pixel_values"])
        if not np.allclose(theirs, own, atol=allowed, rtol=0):
            raise SpecError(
                f"{where}: its image processor does more than to resize, crop and normalise, which is all that can be "
                "done here; write a family of your own for this model (mixopt guide files)"
            )


def _check_sizes(described: Described) -> None:
    """Refuse sizes that no image has, before any is made."""

    def numbers(value: Any) -> Iterable[float]:
        if isinstance(value, Mapping):
            value = list(value.values())
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, (Mapping, list)):
                yield from numbers(each)
            elif isinstance(each, (int, float)):
                yield each

    for key, value in (described.processor or {}).items():
        if "size" in key and any(not 0 <= number <= _LARGEST for number in numbers(value)):
            raise SpecError(
                f"{described.where}: its image processor has {key} {value}; expected 0 to {_LARGEST} pixels"
            )


def _noise(size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
