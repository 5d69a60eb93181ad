"""The small real pool that `mixopt demo` makes: a tiny CLIP, trained and fine-tuned on handwritten digits.

The images are scikit-learn's bundled digits (1,797 grey 8x8 scans; Alpaydin and Kaynak, 1998), so nothing is
downloaded. The recipe is that of the model-soup papers, at the size of a laptop: one base, trained on varied
views of few images, and a random sweep of fine-tunings of its image tower (Wortsman et al., 2022).
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from mixopt.errors import MixoptError
from mixopt.weights.checkpoints import write

CLASSNAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}.",
    "a handwritten {}.",
    "a scan of the number {}.",
    "a blurry photo of a {}.",
    "the digit {} in ink.",
)
INGREDIENTS = 12
PART_SIZES = {"base": 300, "tune": 440, "val": 520, "test": 537}  # disjoint, 1,797 images in all
IMAGE_SIZE = 16
BATCH = 32
LEARNED = 0.5  # accuracy on its own training images above which a base is one
ATTEMPTS = 3
MODEL_CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": IMAGE_SIZE, "patch_size": 4, "width": 48, "layers": 3, "head_width": 24},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}

Pixels = NDArray[np.uint8]  # [n, h, w, 3]
Labels = NDArray[np.int64]  # [n]
Part = tuple[Pixels, Labels]
State = dict[str, Tensor]
Progress = Callable[[str, int, int], None]  # what is being done, epochs done, epochs in all


@dataclass(frozen=True)
class Hyperparameters:
    """How one training went; augmentations are the largest strength that a sample may get."""

    seed: int
    epochs: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float = 0.0
    mixup: float = 0.0  # both parameters of the Beta law of the mixing share; 0 is off
    rotation: float = 0.0  # degrees
    translation: float = 0.0  # pixels
    noise: float = 0.0  # standard deviation, where the range of a pixel is 1
    erase: float = 0.0  # probability that a square of a quarter of the width turns grey
    contrast: float = 0.0  # the gain is drawn from [1 - contrast, 1]; below 0 the image is inverted


BASE = Hyperparameters(0, 90, 6e-4, 0.1, rotation=15, translation=1, noise=0.1, contrast=1.8)


def ensure_pool(directory: Path, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """The pool in `directory`, made by `make_pool` where there is none yet."""
    if (directory / "pool.toml").is_file():
        return directory
    return make_pool(directory, seed=seed, progress=progress)


def make_pool(directory: Path, *, seed: int = 0, progress: Progress | None = None) -> Path:
    """Train the demo's pool and write it into `directory` (made if absent), which is returned.

    Writes `base.safetensors`, `model_00.safetensors` ... (fp16; the text tower is the base's in all),
    `hparams.jsonl`, `open_clip_config.json`, the selection split `val.npz`, the clean `test.npz`, its images
    again under four shifts, and last `pool.toml`: where that file is, the pool is complete. Training images,
    selection split and test split are disjoint. One seed gives one pool, whatever the number of threads.

    Args:
        directory: Where to; must not hold checkpoints, splits or a `pool.toml`.
        seed: Of the division of the images, the base and the sweep.
        progress: Called after every epoch with what is being done, epochs done, epochs in all.

    Raises:
        MixoptError: scikit-learn is missing, or the directory is not free.
    """
    _check_free(directory)
    rng = np.random.default_rng(seed)
    part = draw_parts(rng)
    recipe = replace(BASE, seed=int(rng.integers(2**31)))
    sweep = {f"model_{index:02d}": draw_hyperparameters(rng) for index in range(INGREDIENTS)}
    tick = _counter(progress, recipe.epochs + sum(each.epochs for each in sweep.values()))

    with one_thread() as at_once, ThreadPoolExecutor(at_once) as executor:
        base = _learned_base(part["base"], recipe, lambda: tick("training the base"))
        tune = _tuner(base, part["tune"], lambda: tick(f"fine-tuning {len(sweep)} ingredients"))
        checkpoints = {"base": base, **dict(zip(sweep, executor.map(tune, sweep.values()), strict=True))}

    test_images, test_labels = part["test"]
    splits = {"val": part["val"], "test": part["test"]}
    splits |= {name: (x, test_labels) for name, x in shifted(test_images, rng).items()}
    _write_pool(directory, checkpoints, sweep, splits)
    return directory


def draw_parts(rng: np.random.Generator) -> dict[str, Part]:
    """The digits, divided at random into the disjoint parts of `PART_SIZES`.

    Raises:
        MixoptError: scikit-learn is missing.
    """
    images, labels = _load_digits()
    parts = _stratified(labels, PART_SIZES.values(), rng)
    return {name: (images[rows], labels[rows]) for name, rows in zip(PART_SIZES, parts, strict=True)}


def draw_hyperparameters(rng: np.random.Generator) -> Hyperparameters:
    """One random fine-tuning, with about half of the regularizers and augmentations switched off."""

    def sometimes(strength: float) -> float:
        return round(strength, 3) if rng.random() < 0.5 else 0.0

    return Hyperparameters(
        seed=int(rng.integers(2**31)),
        epochs=int(rng.integers(16, 29)),
        learning_rate=round(float(10 ** rng.uniform(-3.4, -2.7)), 6),
        weight_decay=round(float(10 ** rng.uniform(-3, -0.3)), 6),
        label_smoothing=sometimes(rng.uniform(0, 0.25)),
        mixup=sometimes(rng.uniform(0.1, 0.5)),
        rotation=sometimes(rng.uniform(5, 25)),
        translation=sometimes(rng.uniform(0.5, 2)),
        noise=sometimes(rng.uniform(0.05, 0.3)),
        erase=sometimes(rng.uniform(0.2, 0.8)),
        contrast=sometimes(rng.uniform(0.2, 0.8)),
    )


def shifted(images: Pixels, rng: np.random.Generator) -> dict[str, Pixels]:
    """The same images `[n, h, w, 3]` under four shifts, by name; the noise is drawn from `rng`."""
    grey = images[..., 0].astype(np.float64)
    slopes = np.hypot(ndimage.sobel(grey, axis=1), ndimage.sobel(grey, axis=2))
    shifts = {
        "inverted": 255 - grey,
        "blurred": ndimage.gaussian_filter(grey, sigma=(0, 2, 2)),
        "noisy": grey + rng.normal(0, 90, grey.shape),
        "edges": 0.3 * grey + 0.7 * 255 * slopes / slopes.max(axis=(1, 2), keepdims=True),
    }
    return {name: _to_pixels(x) for name, x in shifts.items()}


def augment(images: Tensor, strengths: Hyperparameters, generator: torch.Generator) -> Tensor:
    """Images `[n, 1, s, s]` in [0, 1], each turned, moved, disturbed, erased in part, dimmed at random."""
    count, size = len(images), images.shape[-1]

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((count, *shape), generator=generator)

    angle = uniform(-1, 1) * math.radians(strengths.rotation)
    move = uniform(-1, 1, 2, 1) * strengths.translation * 2 / size
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(count, 2, 2)
    grid = functional.affine_grid(torch.cat([turn, move], dim=2), list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, align_corners=False)
    images = images + uniform(0, strengths.noise, 1, 1, 1) * torch.randn(images.shape, generator=generator)
    near = (torch.arange(size) - uniform(0, size, 2, 1)).abs() < size / 8
    hidden = (near[:, 0, :, None] & near[:, 1, None, :])[:, None] & (uniform(0, 1, 1, 1, 1) < strengths.erase)
    gain = uniform(1 - strengths.contrast, 1, 1, 1, 1)
    return 0.5 + gain * (images.masked_fill(hidden, 0.5) - 0.5)


def _load_digits() -> Part:
    """All digits as RGB `[1797, 16, 16, 3]`, and their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MixoptError("the demo needs scikit-learn: pip install 'mixopt[demo]'") from error
    scans, labels = load_digits(return_X_y=True)
    small = torch.as_tensor(scans, dtype=torch.float32).view(-1, 1, 8, 8) * (255 / 16)
    large = functional.interpolate(small, size=IMAGE_SIZE, mode="bicubic", align_corners=False)
    return _to_pixels(large[:, 0].numpy()), np.asarray(labels, dtype=np.int64)


def _to_pixels(grey: NDArray[Any]) -> Pixels:
    """Grey values `[n, h, w]` around 0 ... 255, as RGB bytes `[n, h, w, 3]`."""
    return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def _stratified(labels: Labels, sizes: Iterable[int], rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Disjoint random index sets of these sizes, each with nearly the class shares of the whole."""
    place = np.empty(len(labels))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        place[rows] = (rng.permutation(len(rows)) + rng.random()) / len(rows)  # spread evenly over [0, 1]
    order = np.argsort(place, kind="stable")
    return np.split(order, np.cumsum(list(sizes))[:-1])


def _check_free(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise MixoptError(f"{directory}: the demo's pool needs a directory, found a file; name another")
    patterns = ("*.safetensors", "*.npz", "pool.toml")
    if taken := sorted(path.name for pattern in patterns for path in directory.glob(pattern)):
        raise MixoptError(
            f"{directory}: the demo's pool needs a directory without checkpoints and splits, found "
            f"{taken[0]}{f' and {len(taken) - 1} more' if taken[1:] else ''}; remove them or name another"
        )


def _counter(progress: Progress | None, total: int) -> Callable[[str], None]:
    """A function for any thread that calls `progress` with a count that grows by one each time."""
    lock, steps = Lock(), itertools.count(1)

    def tick(text: str) -> None:
        with lock:
            done = min(next(steps), total)
            if progress is not None:
                progress(text, done, total)

    return tick


@contextmanager
def one_thread() -> Iterator[int]:
    """Give each torch operation one thread, and yield how many there were.

    These models are too small to share an operation: on a busy machine two threads are ten times slower than one,
    and sums then do not depend on the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _new_model(seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return open_clip.CLIP(**MODEL_CONFIG["model_cfg"])


def _half(model: nn.Module) -> State:
    return {name: tensor.detach().half() for name, tensor in model.state_dict().items()}


def _tokens() -> Tensor:
    """Token ids of every class in every template, `[templates, classes, context]`."""
    context: int = MODEL_CONFIG["model_cfg"]["text_cfg"]["context_length"]
    prompts = [template.format(name) for template in TEMPLATES for name in CLASSNAMES]
    ids: Tensor = open_clip.tokenize(prompts, context)
    return ids.view(len(TEMPLATES), len(CLASSNAMES), context)


def _learned_base(part: Part, recipe: Hyperparameters, tick: Callable[[], None]) -> State:
    """The base; about one seed in ten never leaves chance, and the next seed is then trained.

    Raises:
        MixoptError: None of `ATTEMPTS` seeds learned.
    """
    for attempt in range(ATTEMPTS):
        base = train_base(part, replace(recipe, seed=recipe.seed + attempt), tick)
        model, head = zero_shot(base)
        with torch.no_grad():
            images = torch.from_numpy(part[0].copy()).float().div(255).permute(0, 3, 1, 2)
            predicted = (model.encode_image(images * 2 - 1, normalize=True) @ head).argmax(dim=1)
        if float((predicted.numpy() == part[1]).mean()) > LEARNED:
            return base
    raise MixoptError(f"the demo's base did not learn from {ATTEMPTS} seeds; give another --seed")


def train_base(part: Part, recipe: Hyperparameters, tick: Callable[[], None]) -> State:
    """Train both towers and the logit scale from scratch, each batch against one template drawn at random.

    Returns:
        The weights in fp16, as the demo saves them.
    """
    model, tokens = _new_model(recipe.seed), _tokens()
    choose = torch.Generator().manual_seed(recipe.seed + 1)

    def head() -> Tensor:
        template = int(torch.randint(len(tokens), (), generator=choose))
        text: Tensor = model.encode_text(tokens[template], normalize=True)
        scale: Tensor = model.logit_scale.exp()
        return text.T * scale

    for _ in training(model, model, head, part, recipe):
        tick()
    return _half(model)


def _tuner(base: State, part: Part, tick: Callable[[], None]) -> Callable[[Hyperparameters], State]:
    """A function that fine-tunes the base's image tower alone, against the frozen zero-shot head."""
    start, head = zero_shot(base)

    def tune(recipe: Hyperparameters) -> State:
        model = deepcopy(start)
        for _ in training(model, model.visual, lambda: head, part, recipe):
            tick()
        return _half(model)

    return tune


def zero_shot(base: State) -> tuple[Any, Tensor]:
    """A CLIP with the base's weights, and its frozen zero-shot head times the logit scale, `[width, classes]`."""
    model, tokens = _new_model(0), _tokens()
    model.load_state_dict(base)  # the rounded weights, so that the base is where the ingredients started
    with torch.no_grad():
        text: Tensor = model.encode_text(tokens.flatten(0, 1), normalize=True).unflatten(0, tokens.shape[:2])
        return model, functional.normalize(text.mean(0), dim=-1).T * model.logit_scale.exp()


def training(
    model: Any, trained: nn.Module, head: Callable[[], Tensor], part: Part, recipe: Hyperparameters
) -> Iterator[int]:
    """Train one part of a CLIP in place by AdamW with a one-cycle cosine schedule; yields after every epoch.

    Other weights may be loaded into the model between epochs: optimizer and schedule go on as they are.

    Args:
        model: The CLIP.
        trained: The part of it that is trained.
        head: Gives the class embeddings of a batch, times the logit scale: `[width, classes]`.
        part: Images and labels.
        recipe: How.

    Yields:
        The number of epochs done.
    """
    generator, rng = torch.Generator().manual_seed(recipe.seed), np.random.default_rng(recipe.seed)
    x = torch.from_numpy(part[0][..., 0].copy()).float().div(255)[:, None]
    targets = functional.one_hot(torch.from_numpy(part[1]), len(CLASSNAMES)).float()
    batches = math.ceil(len(x) / BATCH)
    rate, decay = recipe.learning_rate, recipe.weight_decay
    optimizer = torch.optim.AdamW(trained.parameters(), lr=rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=batches * recipe.epochs, pct_start=0.1, cycle_momentum=False
    )
    for epoch in range(recipe.epochs):
        for rows in torch.randperm(len(x), generator=generator).chunk(batches):
            batch, target = augment(x[rows], recipe, generator), targets[rows]
            if recipe.mixup > 0:
                share = rng.beta(recipe.mixup, recipe.mixup)
                other = torch.randperm(len(rows), generator=generator)
                batch, target = batch.lerp(batch[other], share), target.lerp(target[other], share)
            inputs = (batch * 2 - 1).expand(-1, 3, -1, -1)  # mean and std of 0.5, as in `preprocess_cfg`
            logits = model.encode_image(inputs, normalize=True) @ head()
            loss = functional.cross_entropy(logits, target, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        yield epoch + 1


def _write_pool(
    directory: Path,
    checkpoints: Mapping[str, State],
    sweep: Mapping[str, Hyperparameters],
    splits: Mapping[str, Part],
) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "open_clip_config.json").write_text(json.dumps(MODEL_CONFIG, indent=2) + "\n")
    for name, state in checkpoints.items():
        write(directory / f"{name}.safetensors", state, tied={}, metadata={})
    rows = [{"model": name, **asdict(each)} for name, each in sweep.items()]
    (directory / "hparams.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, (x, y) in splits.items():
        np.savez_compressed(directory / f"{name}.npz", x=x, y=y, classes=np.array(CLASSNAMES))
    lines = [
        'family = "open_clip"',
        'model = "open_clip_config.json"',
        'base = "base.safetensors"',
        'ingredients = ["model_*.safetensors"]',
        f"classnames = {json.dumps(CLASSNAMES)}",
        f"templates = {json.dumps(TEMPLATES)}",
        "\n[data]",
        'search = "val.npz"',
        "\n[data.test]",
        *(f'{name} = "{name}.npz"' for name in splits if name != "val"),
    ]
    (directory / "pool.toml").write_text("\n".join(lines) + "\n")
