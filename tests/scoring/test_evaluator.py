"""The evaluator: a naive loop's numbers, in a fixed order, in pieces that fit together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mixopt import DataError, Encoding, MixoptError, Samples
from mixopt.scoring.evaluator import Evaluator
from tests.listening import Recorder
from tests.scoring.memory import ENCODING, make_model, make_split

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch_size", [1, 7, 53, 100])
def test_outcomes_are_those_of_a_naive_loop(batch_size: int) -> None:
    split, model = make_split(), make_model()
    outcomes = Evaluator(split, ENCODING, CPU, batch_size).run(model)
    for number in range(len(split)):
        pixels = torch.tensor(split.arrays["images"][number].astype(np.float64) / 255).permute(2, 0, 1)
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
    evaluator = Evaluator(make_split(), ENCODING, CPU, 10)
    whole = evaluator.run(make_model())
    first, rest = evaluator.run(make_model(), 0, 20), evaluator.run(make_model(), 20)
    assert np.array_equal(np.concatenate([first.predicted, rest.predicted]), whole.predicted)
    assert np.array_equal(np.concatenate([first.losses, rest.losses]), whole.losses)


def test_batches_are_told() -> None:
    counts: list[int] = []
    Evaluator(make_split(), ENCODING, CPU, 20).run(make_model(), on_batch=counts.append)
    assert counts == [20, 20, 13]


def test_labels_beyond_the_models_classes_are_an_error() -> None:
    with pytest.raises(DataError, match="labels go up to 4"):
        Evaluator(make_split(), ENCODING, CPU).run(make_model(classes=3))


def test_the_model_sees_ready_images_only() -> None:
    seen: list[Tensor] = []

    def predict(images: Tensor) -> Tensor:
        seen.append(images)
        return torch.zeros(len(images), 5)

    Evaluator(make_split(), ENCODING, CPU, 53).run(predict)
    assert seen[0].dtype == torch.float32
    assert seen[0].shape == (53, 3, 4, 4)
    assert seen[0].is_contiguous()
    assert torch.is_inference(seen[0])


class Limited:
    """A model that runs out of memory above a number of images, the way that a device says it."""

    def __init__(self, most: int, error: Exception) -> None:
        self.most, self.error = most, error
        self.model = make_model()
        self.sizes: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        if len(images) > self.most:
            raise self.error
        logits: Tensor = self.model(images)
        return logits


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_batches_that_do_not_fit_are_halved_once_and_told_once(error: Exception) -> None:
    heard = Recorder()
    evaluator = Evaluator(make_split(), ENCODING, CPU, 40, listener=heard.listener)
    limited = Limited(12, error)
    counts: list[int] = []
    outcomes = evaluator.run(limited, on_batch=counts.append)
    assert limited.sizes == [40, 20, 10, 10, 10, 10, 10, 3]
    assert counts == [10, 10, 10, 10, 10, 3]
    assert heard.told == heard.warnings
    assert heard.warnings == [
        "validation: 40 images at a time do not fit in memory on cpu; going on with 10 at a time (--batch-size 10 "
        "starts with that)"
    ]
    limited.sizes.clear()
    evaluator.at("fp32").run(limited)
    assert limited.sizes == [10, 10, 10, 10, 10, 3], "what did not fit is not tried again"
    assert len(heard.told) == 1
    assert evaluator.batch_size == 40
    whole = Evaluator(make_split(), ENCODING, CPU, 53).run(make_model())
    assert np.array_equal(outcomes.predicted, whole.predicted)
    assert outcomes.losses == pytest.approx(whole.losses, abs=1e-6)


def test_not_even_one_image_fits() -> None:
    limited = Limited(0, torch.OutOfMemoryError("no room"))
    with pytest.raises(MixoptError, match=r"memory: out of memory on cpu with one image at a time \(no room\); free"):
        Evaluator(make_split(), ENCODING, CPU, 4).run(limited)
    assert limited.sizes == [4, 2, 1]


def test_other_errors_of_a_model_are_not_taken_for_a_lack_of_memory() -> None:
    limited = Limited(0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(DataError, match=r"memory: the model fails on .*\(images \[53, 4, 4, 3\]\): shapes cannot"):
        Evaluator(make_split(), ENCODING, CPU, 4).run(limited)
    assert limited.sizes == [4]


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_low_precision_is_of_the_forward_pass_alone(precision: str, dtype: torch.dtype) -> None:
    model, seen = make_model(), []

    def predict(images: Tensor) -> Tensor:
        seen.append((images.dtype, model(images).dtype))
        return torch.as_tensor(model(images))

    exact = Evaluator(make_split(), ENCODING, CPU).run(model)
    evaluator = Evaluator(make_split(), ENCODING, CPU, precision=precision)
    outcomes = evaluator.run(predict)
    assert seen == [(torch.float32, dtype)]
    assert outcomes.losses == pytest.approx(exact.losses, abs=0.1)
    assert not np.array_equal(outcomes.losses, exact.losses)
    with torch.inference_mode(), torch.autocast("cpu", dtype):
        logits = model(next(evaluator.batches())[0]).float()
    assert torch.equal(evaluator.logits(model), logits)
    assert np.array_equal(evaluator.outcomes_of(logits).losses, outcomes.losses), "losses from float32 logits"
    assert np.array_equal(evaluator.at("fp32").run(model).losses, exact.losses)


def test_unknown_precision() -> None:
    with pytest.raises(MixoptError, match="precision"):
        Evaluator(make_split(), ENCODING, CPU, precision="int8")


# Samples that are not images


def make_texts(count: int = 53) -> Samples:
    """Numbers ``[n, 6]``, of which the first few of each row count."""
    random = np.random.default_rng(0)
    lengths = random.integers(0, 7, count)
    numbers = np.where(np.arange(6) < lengths[:, None], random.normal(size=(count, 6)), 0)
    arrays = {"numbers": numbers, "numbers_length": lengths}
    return Samples("validation", "memory", arrays, lengths % 3, np.zeros((count, 16), dtype=np.uint8))


TEXTS = Encoding(lambda record: record, lambda arrays: (arrays["numbers"], arrays["numbers_length"]), "numbers")


def by_mean(batch: tuple[Tensor, Tensor]) -> Tensor:
    """Logits that follow the mean of what counts."""
    numbers, lengths = batch
    mean = numbers.sum(dim=1) / lengths.clamp(min=1)
    return torch.stack([mean, -mean, mean**2], dim=1)


@pytest.mark.parametrize("batch_size", [1, 7, 53])
def test_outcomes_of_other_samples_are_those_of_a_naive_loop(batch_size: int) -> None:
    split = make_texts()
    outcomes = Evaluator(split, TEXTS, CPU, batch_size).run(by_mean)
    for number, label in enumerate(split.labels):
        length = split.arrays["numbers_length"][number]
        mean = split.arrays["numbers"][number, :length].sum() / max(1, length)
        logits = torch.tensor([mean, -mean, mean**2])
        assert outcomes.predicted[number] == int(logits.argmax())
        assert outcomes.losses[number] == pytest.approx(float(logits.logsumexp(0) - logits[label]), abs=1e-5)


def test_messages_call_other_samples_samples() -> None:
    heard = Recorder()

    def limited(batch: tuple[Tensor, Tensor]) -> Tensor:
        if len(batch[0]) > most:
            raise torch.OutOfMemoryError("no room")
        return by_mean(batch)

    most = 12
    Evaluator(make_texts(), TEXTS, CPU, 40, listener=heard.listener).run(limited)
    assert heard.warnings == [
        "validation: 40 samples at a time do not fit in memory on cpu; going on with 8 at a time (--batch-size 8 "
        "starts with that)"
    ], "16 of like length are the first batch"
    most = 0
    with pytest.raises(MixoptError, match=r"out of memory on cpu with one sample at a time"):
        Evaluator(make_texts(), TEXTS, CPU, 40).run(limited)
