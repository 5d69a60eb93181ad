"""A tiny CLIP: how it is made, trained from scratch, and fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional

from mixopt.demo.digits import CLASSNAMES, IMAGE_SIZE, Part, augment
from mixopt.demo.sweep import Hyperparameters
from mixopt.errors import MixoptError

TEMPLATES = (
    "a photo of the digit {}.",
    "a handwritten {}.",
    "a scan of the number {}.",
    "a blurry photo of a {}.",
    "the digit {} in ink.",
)
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

State = dict[str, Tensor]


def learned_base(part: Part, recipe: Hyperparameters, tick: Callable[[], None]) -> State:
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


def tuner(base: State, part: Part, tick: Callable[[], None]) -> Callable[[Hyperparameters], State]:
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
