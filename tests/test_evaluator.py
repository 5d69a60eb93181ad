"""The evaluator: a naive loop's numbers, in a fixed order, in pieces that fit together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mixopt import DataError, Preprocess, Split
from mixopt.evaluator import Evaluator

CPU = torch.device("cpu")
PREPROCESS = Preprocess(None, (0.2, 0.4, 0.6), (0.5, 0.25, 0.125), lambda image: image, "test")


def make_split(count: int = 53, classes: int = 5) -> Split:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 4, 4, 3)).astype(np.uint8)
    labels = random.integers(0, classes, count).astype(np.int64)
    return Split("search", "memory", images, labels, np.zeros((count, 16), dtype=np.uint8))


def make_model(classes: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, classes))


@pytest.mark.parametrize("batch_size", [1, 7, 53, 100])
def test_outcomes_are_those_of_a_naive_loop(batch_size: int) -> None:
    split, model = make_split(), make_model()
    outcomes = Evaluator(split, PREPROCESS, CPU, batch_size).run(model)
    for number in range(len(split)):
        pixels = torch.tensor(split.images[number].astype(np.float64) / 255).permute(2, 0, 1)
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in ((0.2, 0.4, 0.6), (0.5, 0.25, 0.125))
        )
        logits = model.double()(((pixels - mean) / std)[None])[0].detach()
        model.float()
        assert outcomes.predicted[number] == int(logits.argmax())
        assert outcomes.losses[number] == pytest.approx(
            float(logits.logsumexp(0) - logits[split.labels[number]]), abs=1e-4
        )


def test_pieces_fit_together() -> None:
    evaluator = Evaluator(make_split(), PREPROCESS, CPU, 10)
    whole = evaluator.run(make_model())
    first, rest = evaluator.run(make_model(), 0, 20), evaluator.run(make_model(), 20)
    assert np.array_equal(np.concatenate([first.predicted, rest.predicted]), whole.predicted)
    assert np.array_equal(np.concatenate([first.losses, rest.losses]), whole.losses)


def test_batches_are_told() -> None:
    counts: list[int] = []
    Evaluator(make_split(), PREPROCESS, CPU, 20).run(make_model(), on_batch=counts.append)
    assert counts == [20, 20, 13]


def test_labels_beyond_the_models_classes_are_an_error() -> None:
    with pytest.raises(DataError, match="labels go up to 4"):
        Evaluator(make_split(), PREPROCESS, CPU).run(make_model(classes=3))


def test_the_model_sees_ready_images_only() -> None:
    seen: list[Tensor] = []

    def predict(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.zeros(len(images), 5)

    Evaluator(make_split(), PREPROCESS, CPU, 53).run(predict)
    assert seen[0].dtype == torch.float32
    assert seen[0].shape == (53, 3, 4, 4)
    assert seen[0].is_contiguous()
    assert torch.is_inference(seen[0])
