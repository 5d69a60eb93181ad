"""The open_clip family against open_clip itself."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mixopt import load_spec
from mixopt.assemble import assemble
from mixopt.errors import SpecError
from mixopt.families import FamilyOptions, from_identity, open_family
from mixopt.families.open_clip import CONFIG_NAME, OpenClip
from mixopt.families.open_clip_config import tokenizer_of
from mixopt.listener import Listener
from mixopt.values.mix import Mix
from tests.conftest import CLASSES, CLIP_CONFIG, random_mix

TEMPLATES = ("a photo of a {}.", "a {} thing.", "the {} one")
TEXT_NAMES = (
    "token_embedding.weight",
    "positional_embedding",
    "transformer.resblocks.0.attn.in_proj_weight",
    "transformer.resblocks.0.ln_1.bias",
    "transformer.resblocks.0.mlp.c_fc.weight",
    "ln_final.weight",
    "text_projection",
)


def opened(model: Any = CLIP_CONFIG, folder: Path | None = None, **changes: Any) -> OpenClip:
    given: dict[str, Any] = {"classnames": CLASSES, "templates": TEMPLATES, **changes}
    family = open_family(FamilyOptions("open_clip", model, folder=folder or Path(), **given))
    assert isinstance(family, OpenClip)
    return family


def fresh_config() -> dict[str, Any]:
    """A copy of the tiny config that a test may change."""
    return copy.deepcopy(CLIP_CONFIG)


@pytest.fixture
def heads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one for every zero-shot head that is built."""
    built: list[int] = []
    original: Callable[..., Tensor] = open_clip.build_zero_shot_classifier

    def counted(*arguments: Any, **options: Any) -> Tensor:
        built.append(len(built))
        return original(*arguments, **options)

    monkeypatch.setattr(open_clip, "build_zero_shot_classifier", counted)
    return built


def reference_logits(folder: Path, state: dict[str, Tensor], images: Tensor) -> Tensor:
    """open_clip's own path, from its own factory."""
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    model.load_state_dict(state)
    model.eval()
    with torch.inference_mode():
        head = open_clip.build_zero_shot_classifier(
            model, open_clip.get_tokenizer(f"local-dir:{folder}"), CLASSES, TEMPLATES
        )
        logits: Tensor = model.logit_scale.exp() * model.encode_image(images, normalize=True) @ head
    return logits


@pytest.mark.parametrize("quick_gelu", [False, True])
@pytest.mark.parametrize("custom_text", [False, True])
def test_logits_are_open_clips_own(clip_pool: Path, quick_gelu: bool, custom_text: bool) -> None:
    config = fresh_config()
    config["model_cfg"] |= {"quick_gelu": quick_gelu, "custom_text": custom_text}
    (clip_pool / CONFIG_NAME).write_text(json.dumps(config))
    torch.manual_seed(3)
    state = open_clip.create_model(f"local-dir:{clip_pool}", load_weights=False).state_dict()
    state = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in state.items()}
    images = torch.randn(7, 3, 16, 16)
    family = opened(CONFIG_NAME, clip_pool)
    module = family.build().eval()
    module.load_state_dict(state)
    with torch.inference_mode():
        logits = family.predict(module, frozenset())(images)
    expected = reference_logits(clip_pool, state, images)
    assert logits.shape == (7, len(CLASSES))
    assert expected.std() > 0.1, "control: the logits are not all alike"
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("custom_text", [False, True])
def test_logits_have_the_models_own_bias(custom_text: bool) -> None:
    """As SigLIP's: a plain forward of open_clip's model on one prompt a class is the reference."""
    config = fresh_config()
    config["model_cfg"] |= {"init_logit_bias": -10.0, "init_logit_scale": 2.3, "custom_text": custom_text}
    family = opened(config, templates=("a photo of a {}.",))
    module: Any = family.build().eval()
    with torch.no_grad():
        module.logit_bias.zero_()
    images = torch.randn(5, 3, 16, 16)
    with torch.inference_mode():
        without = family.predict(module, frozenset())(images)
    with torch.no_grad():
        module.logit_bias.fill_(-7.5)
    tokenize = open_clip.tokenizer.SimpleTokenizer(context_length=12)
    prompts = tokenize([f"a photo of a {name}." for name in CLASSES])
    with torch.inference_mode():
        logits = family.predict(module, frozenset())(images)
        expected, _ = module.get_logits(images, prompts)
        hidden = images
        for step in family.predict_segments(module, frozenset()):
            hidden = step(hidden)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits, without - 7.5)
    assert torch.equal(hidden, logits), "what reuse goes on with is the same to the bit"
    segments = family.segments(module)
    assert segments is not None
    assert "logit_bias" in segments[-1]


def test_whole_path_is_open_clips_own(clip_pool: Path, tmp_path: Path) -> None:
    options = {"cache": tmp_path / "cache", "device": "cpu", "templates": TEMPLATES, "confirm": 0}
    spec = load_spec({"models": clip_pool, **options})
    objective = assemble(spec, Listener()).objective
    mix = random_mix(one_group(objective.pool.sizes), objective.pool.columns, seed=3)
    states = [load_file(objective.pool.paths[column]) for column in mix.columns]
    fused = {
        name: sum((weight * state[name] for weight, state in zip(mix.coefficients[0], states, strict=True)), 0 * tensor)
        for name, tensor in states[0].items()
    }
    split = objective.evaluators["validation"].split
    images = (torch.from_numpy(split.arrays["images"].copy()).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    logits = reference_logits(clip_pool, {**states[0], **fused}, images)
    score = objective.score(mix)
    losses = nn.functional.cross_entropy(logits, torch.from_numpy(split.labels), reduction="none")
    torch.testing.assert_close(torch.from_numpy(score.outcomes.losses).float(), losses, atol=1e-4, rtol=0)
    assert score.outcomes.predicted.tolist() == logits.argmax(dim=1).tolist()


def one_group(sizes: dict[str, int]) -> Any:
    from mixopt.values.groups import make_groups

    return make_groups("whole", sizes)


def test_build_does_not_touch_the_random_state() -> None:
    family = opened()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    family.build()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_build_does_not_silence_the_callers_logging(caplog: pytest.LogCaptureFixture) -> None:
    opened().build()
    assert not caplog.records, "open_clip's remarks on random weights are not for the user"
    logging.getLogger("someone").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


# The zero-shot head


def test_head_is_built_once_while_the_text_tower_is_fixed(heads: list[int]) -> None:
    family = opened()
    module = family.build()
    fixed = frozenset(name for name in module.state_dict() if not name.startswith("visual."))
    images = torch.randn(2, 3, 16, 16)
    first = family.predict(module, fixed)(images)
    assert torch.equal(family.predict(module, fixed)(images), first)
    assert len(heads) == 1


def test_logit_scale_may_move_while_the_head_is_kept(heads: list[int]) -> None:
    family = opened()
    module: Any = family.build()
    fixed = frozenset(name for name in module.state_dict() if not name.startswith(("visual.", "logit_scale")))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = family.predict(module, fixed)(images)
        module.logit_scale.add_(1.0)
        after = family.predict(module, fixed)(images)
    torch.testing.assert_close(after, before * torch.e)
    assert len(heads) == 1


@pytest.mark.parametrize("mixed", TEXT_NAMES)
def test_head_is_rebuilt_where_a_text_tensor_is_mixed(heads: list[int], mixed: str) -> None:
    family = opened()
    module = family.build()
    state = module.state_dict()
    assert mixed in state
    fixed = frozenset(name for name in state if not name.startswith("visual.") and name != mixed)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before = family.predict(module, fixed)(images)
        state[mixed].add_(torch.randn_like(state[mixed]))
        after = family.predict(module, fixed)(images)
    assert len(heads) == 2
    assert not torch.allclose(before, after)


def test_every_text_tensor_counts() -> None:
    """The names that keep a head are all but the image tower's and the scale, in both of open_clip's layouts."""
    from mixopt.families.open_clip import _TEXT_NAMES

    for custom_text in (False, True):
        config = fresh_config()
        config["model_cfg"]["custom_text"] = custom_text
        for name in opened(config).build().state_dict():
            is_text = not name.startswith(("visual.", "logit_scale", "logit_bias"))
            assert bool(_TEXT_NAMES.match(name)) == is_text, name


def test_head_of_one_module_is_not_anothers(heads: list[int]) -> None:
    family = opened()
    modules = [family.build() for _ in range(2)]
    fixed = frozenset(modules[0].state_dict())
    for module in modules:
        family.predict(module, fixed)
    assert len(heads) == 2


def test_pool_with_a_frozen_text_tower_builds_one_head(clip_pool: Path, tmp_path: Path, heads: list[int]) -> None:
    spec = load_spec({"models": clip_pool, "cache": tmp_path / "cache", "device": "cpu"})
    assembly = assemble(spec, Listener())
    groups = one_group(assembly.objective.pool.sizes)
    for seed in range(4):
        assembly.objective.score(random_mix(groups, assembly.objective.pool.columns, seed=seed))
    assert len(heads) == 1


def test_pool_with_a_tuned_text_tower_builds_a_head_per_mix(clip_pool: Path, tmp_path: Path, heads: list[int]) -> None:
    state = load_file(clip_pool / "model_0.safetensors")
    state["ln_final.bias"].add_(0.5)
    save_file(state, clip_pool / "model_0.safetensors")
    spec = load_spec({"models": clip_pool, "cache": tmp_path / "cache", "device": "cpu", "precision": "fp32"})
    objective = assemble(spec, Listener()).objective
    groups = one_group(objective.pool.sizes)
    assert "ln_final.bias" in objective.pool.sizes
    mixes: list[Mix] = [random_mix(groups, objective.pool.columns, seed=seed) for seed in range(3)]
    for mix in mixes:
        objective.score(mix)
    assert len(heads) == 3


# Options and configs


def test_architecture_that_is_not_registered() -> None:
    with pytest.raises(SpecError, match=r"--model: unknown open_clip architecture 'ViT-B/32'; did you mean 'ViT-B-32"):
        opened("ViT-B/32")


def test_registered_architecture_by_name() -> None:
    identity = opened("ViT-S-32-alt").identity()
    assert identity["model"]["model_cfg"] == open_clip.get_model_config("ViT-S-32-alt"), "the whole config is kept"
    assert opened("ViT-S-32-alt").preprocess.size == (224, 224)


@pytest.mark.parametrize("classnames", [None, ()])
def test_missing_class_names(classnames: tuple[str, ...] | None) -> None:
    with pytest.raises(SpecError, match=r"classnames: .* needs the class names"):
        opened(classnames=classnames)


def test_template_without_a_place() -> None:
    with pytest.raises(SpecError, match=r"templates: expected \{\} .* 'a photo'"):
        opened(templates=("a {}", "a photo"))


def test_template_by_default() -> None:
    assert opened(templates=None).identity()["templates"] == ["a photo of a {}."]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file"),
        ("{", "not JSON"),
        ("[1]", "expected a JSON object, found a list"),
        ('{"model_cfg": {"embed_dim": 3}}', "lacks model_cfg.vision_cfg"),
    ],
)
def test_config_that_cannot_be_used(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / CONFIG_NAME).write_text(text)
    with pytest.raises(SpecError, match=says) as caught:
        opened(CONFIG_NAME, tmp_path)
    assert "--model" in str(caught.value)


def test_config_that_open_clip_refuses(tmp_path: Path) -> None:
    config = fresh_config()
    config["model_cfg"]["vision_cfg"]["no_such_option"] = 1
    with pytest.raises(SpecError, match=r"--model: open_clip cannot make this model \(.*no_such_option"):
        opened(config).build()


def test_config_file_from_the_working_directory(
    clip_pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = fresh_config()
    config["model_cfg"]["embed_dim"] = 8
    (elsewhere / "other.json").write_text(json.dumps(config))
    (elsewhere / CONFIG_NAME).write_text(json.dumps(config))
    monkeypatch.chdir(elsewhere)
    assert opened("other.json", clip_pool).identity()["model"]["model_cfg"]["embed_dim"] == 8
    assert opened(None, clip_pool).identity()["model"]["model_cfg"]["embed_dim"] == 16, "the pool's own by default"


def test_config_without_the_outer_table() -> None:
    assert opened(CLIP_CONFIG["model_cfg"]).build().state_dict().keys() == opened().build().state_dict().keys()


def test_identity_gives_the_same_model_again(tmp_path: Path) -> None:
    family = opened()
    stored = json.loads(json.dumps(family.identity()))
    again = from_identity(stored, tmp_path, "recipe.json")
    assert isinstance(again, OpenClip)
    assert again.identity() == family.identity()
    assert again.classnames == family.classnames
    assert again.preprocess.key == family.preprocess.key
    shapes = [{name: tensor.shape for name, tensor in each.build().state_dict().items()} for each in (family, again)]
    assert shapes[0] == shapes[1]


def test_identity_cannot_be_changed_from_outside() -> None:
    family = opened()
    family.identity()["model"]["model_cfg"]["embed_dim"] = 1
    assert family.identity()["model"]["model_cfg"]["embed_dim"] == 16
    assert fresh_config()["model_cfg"]["embed_dim"] == 16


def test_identity_that_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"recipe\.json: the recipe does not describe its model family"):
        from_identity({"name": "open_clip", "model": CLIP_CONFIG}, tmp_path, "recipe.json")


def test_companions_load_with_open_clip(clip_pool: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    folder.mkdir()
    family = opened(CONFIG_NAME, clip_pool)
    for name, text in family.companions().items():
        (folder / name).write_text(text)
    state = load_file(clip_pool / "model_2.safetensors")
    save_file(state, folder / "model.safetensors")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    normalise = transform.transforms[-1]
    assert tuple(normalise.mean) == family.preprocess.mean
    assert tuple(normalise.std) == family.preprocess.std


def test_depth_puts_the_image_tower_first() -> None:
    family = opened()
    names = list(family.build().state_dict())
    ordered = family.depth(reversed(names))
    assert sorted(ordered) == sorted(names)
    parts = [next(place for place, name in enumerate(ordered) if name.startswith(start)) for start in (
        "visual.conv1", "visual.transformer.resblocks.0", "visual.transformer.resblocks.1", "visual.ln_post",
        "token_embedding", "transformer.resblocks.0", "ln_final",
    )]  # fmt: skip
    assert parts == sorted(parts)


# Stages


def test_a_tower_of_another_kind_has_no_stages() -> None:
    config = fresh_config()
    config["model_cfg"]["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    family = opened(config)
    assert family.segments(family.build()) is None


@pytest.mark.parametrize(
    "vision",
    [
        {"pool_type": "avg"},
        {"final_ln_after_pool": True},
        {"no_ln_pre": True, "pos_embed_type": "sin_cos_2d"},
        {"attentional_pool": True, "attn_pooler_heads": 1},
        {"ls_init_value": 0.1, "qk_norm": True},
    ],
)
@pytest.mark.parametrize("custom_text", [False, True])
def test_stages_are_predict_for_every_kind_of_transformer(vision: dict[str, Any], custom_text: bool) -> None:
    config = fresh_config()
    config["model_cfg"]["vision_cfg"] |= vision
    config["model_cfg"]["custom_text"] = custom_text
    family = opened(config)
    module = family.build().eval()
    segments = family.segments(module)
    assert segments is not None
    assert sum(map(len, segments)) == len(module.state_dict())
    hidden = images = torch.randn(3, 3, 16, 16)
    with torch.inference_mode():
        for step in family.predict_segments(module, frozenset()):
            hidden = step(hidden)
        assert torch.equal(hidden, family.predict(module, frozenset())(images))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ({"tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code, which runs a stranger's code"),
        ({"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}, "bpe_path, which reads a file outside the pool"),
        ({"tokenizer_kwargs": 5}, "expected tokenizer_kwargs as a JSON object, found a int"),
        ({"tokenizer_kwargs": {"clean": "zz"}}, "its tokenizer cannot be made"),
        ({"tokenizer_kwargs": {"x": 1}}, "its tokenizer cannot be made"),
        ({"context_length": 3}, "its (tokenizer|text tower)"),
    ],
)
def test_a_tokenizer_that_cannot_be_used(text: dict[str, Any], says: str) -> None:
    config = fresh_config()
    config["model_cfg"]["text_cfg"].update(text)
    family = opened(config)
    other = opened().build()  # whose text tower has the plain config's length
    with torch.no_grad(), pytest.raises(SpecError, match=f"--model: .*{says}"):
        family.predict(other, frozenset())


@pytest.mark.parametrize("model", ["hf-hub:a/b", "local-dir:/elsewhere"])
def test_no_hub_is_asked_for_a_config(model: str) -> None:
    with pytest.raises(SpecError, match="--model: unknown open_clip architecture"):
        opened(model)


@pytest.mark.parametrize(
    ("tower", "more"),
    [
        ("vision_cfg", {"layers": [1_000_000] * 4}),
        ("vision_cfg", {"layers": 5000}),
        ("vision_cfg", {"width": 10**7}),
        ("vision_cfg", {"image_size": 10**8}),
        ("text_cfg", {"context_length": 10**7}),
        ("text_cfg", {"vocab_size": 10**13}),
    ],
)
def test_a_tower_beyond_the_memory_is_told_before_it_is_made(tower: str, more: dict[str, Any]) -> None:
    config = fresh_config()
    config["model_cfg"][tower].update(more)
    with pytest.raises(SpecError, match=rf"--model: {tower} of .* layers of width .* needs .*B of memory or more"):
        opened(config).build()


def test_a_model_of_a_hub_is_refused() -> None:
    config = fresh_config()
    config["model_cfg"]["vision_cfg"]["timm_model_name"] = "hf-hub:x/y"
    with pytest.raises(SpecError, match="timm_model_name asks a hub"):
        opened(config).build()


def test_no_hub_is_asked_for_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refused(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refused)
    config: Any = copy.deepcopy(CLIP_CONFIG)
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "nobody/nothing"
    with pytest.raises(SpecError, match=r"cannot be made from what is on this disk .*hf download nobody/nothing"):
        tokenizer_of(config)
