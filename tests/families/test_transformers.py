"""transformers' models from local folders: the same logits as its own classes give, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from mixopt.data.encode import encoded
from mixopt.errors import CheckpointError, DataError, SpecError
from mixopt.families import FamilyOptions, from_identity
from mixopt.families.transformers import Transformers, open_family
from mixopt.weights.checkpoints import Checkpoint
from tests.tiny_transformers import (
    LABELS,
    LONGEST,
    VIT,
    named,
    text_config,
    tokenizer_of,
    write_image_model,
    write_text_model,
)

SENTENCES = [{"text": "good film"}, {"text": "a dull , bad plot , a"}, {"text": "fine", "text_pair": "dull plot"}]


def opened(folder: Path, **more: Any) -> Transformers:
    return open_family(FamilyOptions(**{"name": "transformers", "model": None, "folder": folder} | NONE | more))


NONE: dict[str, Any] = {"classnames": None, "templates": None}


def edited(folder: Path, name: str, **changes: Any) -> None:
    """A JSON file with other values; None takes a key away."""
    path = folder / name
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def batch(family: Transformers, records: list[dict[str, str]]) -> Any:
    arrays = [encoded(family.encoding, record) for record in records]
    stacked: dict[str, torch.Tensor] = {}
    for name, first in arrays[0].items():
        every = [torch.from_numpy(each[name]) for each in arrays]
        if first.ndim == 1:
            stacked[f"{name}_length"] = torch.tensor([len(array) for array in every])
            stacked[name] = torch.nn.utils.rnn.pad_sequence(every, batch_first=True)
        else:
            stacked[name] = torch.stack(every)
    return family.encoding.collate(stacked)


def loaded(family: Transformers, folder: Path) -> torch.nn.Module:
    """The family's model with the weights of a folder, by the names that its file has them under."""
    module = family.build()
    module.load_state_dict({family.rename(name): x for name, x in load_file(folder / "model.safetensors").items()})
    return module


KINDS: dict[str, dict[str, Any]] = {
    "bert": {},
    "distilbert": {},
    "electra": {},
    "roberta": {"pad_token_id": 1, "max_position_embeddings": LONGEST + 2},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_gives_the_logits_of_transformers_own_pipeline(kind: str, tmp_path: Path) -> None:
    write_text_model(tmp_path, 1, text_config(kind, **KINDS[kind]))
    family = opened(tmp_path)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = tokenizer_of(tmp_path)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    taken = signature(model.forward).parameters
    with torch.inference_mode():
        predict = family.predict(loaded(family, tmp_path), frozenset())
        own = predict(batch(family, SENTENCES))
        for record, alone in zip(SENTENCES, own, strict=True):
            given = tokenizer(*record.values(), return_tensors="pt")
            theirs = model(**{name: given[name] for name in given if name in taken}).logits[0]
            torch.testing.assert_close(alone, theirs, atol=1e-6, rtol=0)
            torch.testing.assert_close(predict(batch(family, [record]))[0], alone, atol=1e-6, rtol=0)
    assert family.classnames == LABELS


def test_images_are_prepared_as_its_own_processor_does(tmp_path: Path) -> None:
    write_image_model(tmp_path, 1)
    family = opened(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    prepared = family.encoding.collate({"images": torch.tensor(encoded(family.encoding, image)["images"][None])})
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    theirs = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared, theirs, atol=1e-5, rtol=0)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    with torch.inference_mode():
        own = family.predict(loaded(family, tmp_path), frozenset())(prepared)
        torch.testing.assert_close(own, model(theirs).logits, atol=1e-5, rtol=0)
    assert family.classnames == ("red", "green", "blue")


PROCESSORS: dict[str, Any] = {
    "crops": lambda: transformers.BitImageProcessor(size={"shortest_edge": 20}, crop_size=16),
    "by a share": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 16}),
    "other scale": lambda: transformers.ViTImageProcessor(size={"height": 16, "width": 16}, rescale_factor=1 / 127.5),
    "no statistics": lambda: transformers.ViTImageProcessor(size={"height": 16, "width": 16}, do_normalize=False),
}


@pytest.mark.parametrize("how", PROCESSORS)
def test_every_way_to_prepare_images(how: str, tmp_path: Path) -> None:
    write_image_model(tmp_path)
    processor = PROCESSORS[how]()
    processor.save_pretrained(tmp_path)
    encoding = opened(tmp_path).encoding
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    prepared = encoding.collate({"images": torch.tensor(encoded(encoding, image)["images"][None])})
    theirs = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(prepared, theirs, atol=1e-5, rtol=0)


def test_a_processor_that_keeps_sizes_is_refused(tmp_path: Path) -> None:
    write_image_model(tmp_path)
    transformers.ViTImageProcessor(do_resize=False).save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="images of different sizes"):
        opened(tmp_path)


def test_timm_models_inside_transformers(tmp_path: Path) -> None:
    kept = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3, "interpolation": "bicubic", "crop_pct": 0.9}
    described = {"architecture": "resnet10t", "num_classes": 2, "label_names": list(LABELS), "pretrained_cfg": kept}
    config = transformers.TimmWrapperConfig.from_dict(described)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    model.save_pretrained(tmp_path)
    family = opened(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    prepared = family.encoding.collate({"images": torch.tensor(encoded(family.encoding, image)["images"][None])})
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path)(Image.fromarray(image))["pixel_values"]
    with torch.inference_mode():
        own = family.predict(loaded(family, tmp_path), frozenset())(prepared)
        torch.testing.assert_close(own, model(theirs).logits, atol=1e-5, rtol=0)
    assert family.classnames == LABELS
    assert family.rename("fc.weight") == "timm_model.fc.weight"


def test_names_of_old_files_and_of_new_modules(tmp_path: Path) -> None:
    write_text_model(tmp_path / "text")
    family = opened(tmp_path / "text")
    assert family.rename("bert.embeddings.LayerNorm.gamma") == "bert.embeddings.LayerNorm.weight"
    assert family.rename("bert.embeddings.LayerNorm.beta") == "bert.embeddings.LayerNorm.bias"
    assert family.rename("strange") == "strange"
    write_image_model(tmp_path / "images")
    images = opened(tmp_path / "images")
    on_disk = load_file(tmp_path / "images" / "model.safetensors").keys()
    assert {images.rename(name) for name in on_disk} == images.build().state_dict().keys()


def test_depth_goes_from_embeddings_to_the_head(tmp_path: Path) -> None:
    write_text_model(tmp_path, 0, text_config("distilbert", n_layers=11))
    family = opened(tmp_path)
    ordered = family.depth(sorted(family.build().state_dict()))
    parts = ["embeddings", *(f"layer.{number}." for number in range(11)), "pre_classifier", ".classifier"]
    places = [min(place for place, name in enumerate(ordered) if part in f".{name}") for part in parts]
    assert places == sorted(places)


def test_long_texts_are_cut_and_counted(tmp_path: Path) -> None:
    write_text_model(tmp_path)
    encoding = opened(tmp_path).encoding
    arrays = [encoded(encoding, {"text": "good " * count}) for count in (LONGEST - 2, LONGEST - 1, 3 * LONGEST)]
    assert [len(each["input_ids"]) for each in arrays] == [LONGEST] * 3
    assert list(encoding.notices({"cut": np.stack([each["cut"] for each in arrays])})) == [
        "2 of 3 texts are longer than the model's 12 tokens and are cut there"
    ]
    assert not list(encoding.notices({"cut": np.zeros(3, dtype=np.uint8)}))


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"sentence": "good"}, "looks for 'text', the record has sentence"),
        ({"text": None}, "expected a text in the field text, found a NoneType"),
        ({"text": "a", "text_pair": 3}, "expected a text in the field text_pair, found a int"),
        (np.zeros((4, 4, 3), dtype=np.uint8), "found an image; this model takes texts"),
    ],
)
def test_records_that_are_no_texts(record: Any, says: str, tmp_path: Path) -> None:
    write_text_model(tmp_path)
    with pytest.raises(DataError, match=says):
        encoded(opened(tmp_path).encoding, record)


def test_the_folder_of_the_model_is_found(tmp_path: Path) -> None:
    pool = tmp_path / "out"
    for number in (10, 9):
        write_text_model(pool / f"checkpoint-{number}", number, text_config(labels=("first", f"of {number}")))
    assert opened(pool).classnames == ("first", "of 9"), "of the first one in natural order"
    assert opened(pool, model="checkpoint-10").classnames == ("first", "of 10")
    assert opened(pool, model="checkpoint-10/config.json").classnames == ("first", "of 10")
    assert opened(tmp_path, model=str(pool / "checkpoint-10")).classnames == ("first", "of 10")
    write_text_model(pool)
    assert opened(pool).classnames == LABELS


def test_a_tokenizer_that_lies_in_the_pool_alone(tmp_path: Path) -> None:
    write_text_model(tmp_path / "checkpoint-1")
    for path in (tmp_path / "checkpoint-1").glob("*token*"):
        path.rename(tmp_path / path.name)
    family = opened(tmp_path)
    assert family.notices == (
        f"{tmp_path}/checkpoint-1: has no tokenizer or image processor; that of {tmp_path} is taken",
    )
    assert family.companions().keys() == {"config.json", "tokenizer.json", "tokenizer_config.json"}


def test_an_identity_wants_the_same_tokenizer(tmp_path: Path) -> None:
    write_text_model(tmp_path / "one")
    identity = opened(tmp_path / "one").identity()
    (tmp_path / "two").mkdir()
    with pytest.raises(SpecError, match=r"recipe\.json.*two: expected the tokenizer's files.*tokenizer\.json.*missing"):
        from_identity(identity, tmp_path / "two", "recipe.json")
    edited(tmp_path / "one", "tokenizer_config.json", model_max_length=3)
    with pytest.raises(SpecError, match=r"tokenizer_config\.json are missing or others"):
        from_identity(identity, tmp_path / "one", "recipe.json")


def test_what_a_folder_names_elsewhere_is_not_followed(tmp_path: Path) -> None:
    write_text_model(tmp_path)
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    edited(tmp_path, "config.json", auto_map={"AutoConfig": "code.C"}, attn_implementation="some/kernel")
    secret = str(tmp_path / "secret.txt")
    edited(tmp_path, "tokenizer_config.json", vocab_file=secret, auto_map={"AutoTokenizer": ["code.T", None]})
    family = opened(tmp_path)
    assert family.notices == (
        f"{tmp_path}/config.json: names code of its own (auto_map), which is not run; the model is transformers' own",
    )
    every = "".join(str(content) for content in family.companions().values())
    assert not any(word in every for word in ("auto_map", "secret", "some/kernel"))
    assert family.build()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown kind": ({"model_type": "bertt"}, r"unknown model_type 'bertt'; did you mean 'bert'.*not run"),
    "another task": ({"architectures": ["BertForMaskedLM"]}, r"expected a model .* that classifies.*BertForMaskedLM"),
    "no task": ({"architectures": None, "model_type": "vit_mae"}, "found none named"),
    "regression": ({"problem_type": "regression"}, "problem_type is 'regression'"),
    "several labels": ({"problem_type": "multi_label_classification"}, "only single_label_classification"),
    "quantised": ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantised \(bitsandbytes\)"),
    "a hub's": ({"backbone": "someone/model"}, "nothing is downloaded"),
    "no depth": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1,000,000,000"),
    "wrong value": ({"hidden_size": "wide"}, "cannot make"),
    "odd heads": ({"num_attention_heads": 3}, "transformers cannot make this model"),
    "numbers": ({"id2label": {"1": "a", "2": "b"}}, "expected id2label as the numbers from 0 on"),
    "one name": ({"id2label": {"0": "a", "1": "a"}}, "two labels of id2label have the same name"),
    "small vocabulary": ({"vocab_size": 5}, "its tokenizer has 17 tokens, but the model embeds 5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_configs_that_are_refused(case: str, tmp_path: Path) -> None:
    write_text_model(tmp_path)
    changes, says = REFUSED[case]
    edited(tmp_path, "config.json", **changes)
    with pytest.raises(SpecError, match=says) as caught:
        opened(tmp_path).build()
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("key", ["version", "normalizer", "decoder", "truncation"])
def test_a_damaged_tokenizer_is_one_error(key: str, tmp_path: Path) -> None:
    write_text_model(tmp_path)
    edited(tmp_path, "tokenizer.json", **{key: [1, 2]})
    with pytest.raises(SpecError, match=r"cannot make the tokenizer beside it .*save_pretrained"):
        opened(tmp_path)


def test_a_tokenizer_that_fails_on_a_text_is_one_error(tmp_path: Path) -> None:
    write_text_model(tmp_path)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    edited(tmp_path, "tokenizer.json", model={**model, "vocab": ["a"]})
    with pytest.raises((SpecError, DataError), match="tokenizer"):
        encoded(opened(tmp_path).encoding, {"text": "good film"})


@pytest.mark.parametrize("value", [{"a": 1}, "wide"])
@pytest.mark.parametrize("key", ["do_rescale", "image_mean", "size", "resample"])
def test_a_damaged_processor_is_one_error(key: str, value: Any, tmp_path: Path) -> None:
    write_image_model(tmp_path)
    edited(tmp_path, "preprocessor_config.json", **{key: value})
    if (key, value) != ("do_rescale", "wide"):  # which is as good as yes
        with pytest.raises(SpecError, match="image processor"):
            opened(tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"there is no config\.json in"):
        opened(tmp_path)
    with pytest.raises(SpecError, match="no such folder"):
        opened(tmp_path, model="elsewhere")
    with pytest.raises(SpecError, match="nothing is downloaded"):
        opened(tmp_path, model="hf-hub:someone/model")
    write_text_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(SpecError, match=r"there is no tokenizer beside it .*tokenizer\.save_pretrained"):
        opened(tmp_path)
    write_image_model(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(SpecError, match=r"there is no preprocessor_config\.json beside it"):
        opened(tmp_path)


def test_class_names_of_the_user(tmp_path: Path) -> None:
    write_text_model(tmp_path)
    assert opened(tmp_path, classnames=("schlecht", "gut")).classnames == ("schlecht", "gut")
    with pytest.raises(SpecError, match="leave classnames out"):
        opened(tmp_path, classnames=("positive", "negative"))
    with pytest.raises(SpecError, match=r"classnames: 3 names .* expected 2"):
        opened(tmp_path, classnames=("a", "b", "c"))
    edited(tmp_path, "config.json", id2label=None, label2id=None)
    assert opened(tmp_path).classnames is None


def checkpoint(folder: Path, tensors: Mapping[str, torch.Tensor] | None = None) -> Checkpoint:
    return Checkpoint(folder, dict(tensors or load_file(folder / "model.safetensors")))


@pytest.fixture
def first(tmp_path: Path) -> Transformers:
    write_text_model(tmp_path / "first")
    family = opened(tmp_path / "first")
    family.fitted(checkpoint(tmp_path / "first"))
    return family


def second(folder: Path, labels: tuple[str, ...], rows: list[int]) -> Path:
    """A fine-tuning of the first one, with other labels, the rows of its head in some order."""
    state = load_file(folder / "first" / "model.safetensors")
    state = {name: x + 0.001 * torch.randn_like(x) for name, x in state.items()}
    model = write_text_model(folder / "second", 5, text_config(labels=labels))
    head = {name: state[name][rows].contiguous() for name in ("classifier.weight", "classifier.bias")}
    save_file({**state, **head}, folder / "second" / "model.safetensors", metadata={"format": "pt"})
    assert model.config.id2label == dict(enumerate(labels))
    return folder / "second"


def test_labels_in_another_order_are_mapped_where_the_rows_are_in_it_too(first: Transformers, tmp_path: Path) -> None:
    given = checkpoint(second(tmp_path, LABELS[::-1], [1, 0]))
    found = first.fitted(given)
    assert torch.equal(found.tensors["classifier.weight"], given.tensors["classifier.weight"][[1, 0]])
    assert torch.equal(found.tensors["classifier.bias"], given.tensors["classifier.bias"][[1, 0]])
    assert found.notices == (
        f"{tmp_path}/second/config.json has its labels in another order (positive, negative); the rows of its head are "
        "brought into ours",
    )


def test_labels_in_another_order_over_rows_that_are_not(first: Transformers, tmp_path: Path) -> None:
    folder = second(tmp_path, LABELS[::-1], [0, 1])
    says = r"order \[positive, negative\], expected \[negative, positive\].*as they stand: its config seems to be wrong"
    with pytest.raises(CheckpointError, match=says):
        first.fitted(checkpoint(folder))


def test_labels_in_another_order_over_a_strange_head(first: Transformers, tmp_path: Path) -> None:
    folder = second(tmp_path, LABELS[::-1], [1, 0])
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.weight"] = torch.linspace(-1, 1, 32).cos().reshape(2, 16)
    with pytest.raises(CheckpointError, match="enough in either order to tell which is right"):
        first.fitted(checkpoint(folder, tensors))


def test_labels_without_names_are_taken_to_be_the_same(first: Transformers, tmp_path: Path) -> None:
    folder = second(tmp_path, ("LABEL_0", "LABEL_1"), [0, 1])
    assert "names no labels; they are taken to be negative, positive" in first.fitted(checkpoint(folder)).notices[0]


def test_all_differences_are_listed(first: Transformers, tmp_path: Path) -> None:
    config = text_config(labels=("a", "b", "c"), num_hidden_layers=3, vocab_size=30, attention_probs_dropout_prob=0.3)
    write_text_model(tmp_path / "second", 0, config)
    with pytest.raises(CheckpointError) as caught:
        first.fitted(checkpoint(tmp_path / "second"))
    says = str(caught.value)
    for part in ("num_hidden_layers is 3, expected 2", "vocab_size is 30, expected 17", "3 labels, expected 2"):
        assert part in says
    assert "drop" not in says
    write_text_model(tmp_path / "third", 0, text_config(labels=("bad", "good")))
    with pytest.raises(CheckpointError, match=r"its labels are \[bad, good\], expected \[negative, positive\]"):
        first.fitted(checkpoint(tmp_path / "third"))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SpecError, match=r"pip install 'mixopt\[transformers\]'"):
        opened(tmp_path)


def test_no_hub_is_asked_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[bool] = []
    write_text_model(tmp_path)
    real = transformers.AutoTokenizer.from_pretrained

    def watched(*args: Any, **more: Any) -> Any:
        asked.append(huggingface_hub.constants.HF_HUB_OFFLINE)
        return real(*args, **more)

    before = huggingface_hub.constants.HF_HUB_OFFLINE
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", watched)
    opened(tmp_path)
    assert asked == [True]
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE


def test_vision_sizes_are_bounded(tmp_path: Path) -> None:
    write_image_model(tmp_path)
    edited(tmp_path, "preprocessor_config.json", size={"height": 10**9, "width": 10**9})
    with pytest.raises(SpecError, match="expected 0 to 10000 pixels"):
        opened(tmp_path)
    assert VIT["image_size"] == 16
    assert named(("a",))["id2label"] == {0: "a"}
