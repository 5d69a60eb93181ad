from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.errors import SpecError
from mixopt.values.groups import Groups, block_names, depth_order, make_groups

# Names as the libraries give them (state-dict order), each tensor with the block that it belongs to.
Architecture = list[tuple[str, str]]

CLIP: Architecture = [
    ("positional_embedding", "stem"),
    ("text_projection", "head"),
    ("logit_scale", "head"),
    ("visual.class_embedding", "visual.stem"),
    ("visual.positional_embedding", "visual.stem"),
    ("visual.proj", "visual.head"),
    ("visual.conv1.weight", "visual.stem"),
    ("visual.ln_pre.weight", "visual.stem"),
    ("visual.ln_pre.bias", "visual.stem"),
    ("visual.transformer.resblocks.0.ln_1.weight", "visual.transformer.resblocks.0"),
    ("visual.transformer.resblocks.0.attn.in_proj_weight", "visual.transformer.resblocks.0"),
    ("visual.transformer.resblocks.0.attn.out_proj.weight", "visual.transformer.resblocks.0"),
    ("visual.transformer.resblocks.0.mlp.c_proj.weight", "visual.transformer.resblocks.0"),
    ("visual.transformer.resblocks.1.ln_1.weight", "visual.transformer.resblocks.1"),
    ("visual.transformer.resblocks.10.ln_1.weight", "visual.transformer.resblocks.10"),
    ("visual.ln_post.weight", "visual.head"),
    ("visual.ln_post.bias", "visual.head"),
    ("transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0"),
    ("transformer.resblocks.1.mlp.c_fc.weight", "transformer.resblocks.1"),
    ("token_embedding.weight", "stem"),
    ("ln_final.weight", "head"),
]
CLIP_RESNET: Architecture = [
    ("positional_embedding", "stem"),
    ("text_projection", "head"),
    ("logit_scale", "head"),
    ("visual.conv1.weight", "visual.stem"),
    ("visual.bn1.running_mean", "visual.stem"),
    ("visual.layer1.0.conv1.weight", "visual.layer1"),
    ("visual.layer1.0.downsample.0.weight", "visual.layer1"),
    ("visual.layer4.2.bn3.bias", "visual.layer4"),
    ("visual.attnpool.positional_embedding", "visual.head"),
    ("visual.attnpool.k_proj.weight", "visual.head"),
    ("visual.attnpool.c_proj.bias", "visual.head"),
    ("transformer.resblocks.0.attn.in_proj_weight", "transformer.resblocks.0"),
    ("token_embedding.weight", "stem"),
    ("ln_final.weight", "head"),
]
CUSTOM_TEXT_CLIP: Architecture = [
    ("logit_scale", "head"),
    ("visual.trunk.cls_token", "visual.stem"),
    ("visual.trunk.pos_embed", "visual.stem"),
    ("visual.trunk.patch_embed.proj.weight", "visual.stem"),
    ("visual.trunk.blocks.0.norm1.weight", "visual.trunk.blocks.0"),
    ("visual.trunk.blocks.1.attn.proj.weight", "visual.trunk.blocks.1"),
    ("visual.trunk.attn_pool.latent", "visual.head"),
    ("visual.trunk.attn_pool.pos_embed", "visual.head"),
    ("visual.trunk.norm.weight", "visual.head"),
    ("visual.head.proj.weight", "visual.head"),
    ("text.token_embedding.weight", "text.stem"),
    ("text.positional_embedding", "text.stem"),
    ("text.transformer.resblocks.0.ln_1.weight", "text.transformer.resblocks.0"),
    ("text.ln_final.weight", "text.head"),
    ("text.text_projection.weight", "text.head"),
]
RESNET: Architecture = [
    ("conv1.weight", "stem"),
    ("bn1.weight", "stem"),
    ("bn1.running_var", "stem"),
    ("layer1.0.conv1.weight", "layer1"),
    ("layer1.0.bn1.weight", "layer1"),
    ("layer1.0.downsample.0.weight", "layer1"),
    ("layer1.1.conv2.weight", "layer1"),
    ("layer2.0.conv1.weight", "layer2"),
    ("layer3.5.bn3.bias", "layer3"),
    ("layer4.2.conv3.weight", "layer4"),
    ("fc.weight", "head"),
    ("fc.bias", "head"),
]
DEEP_STEM_RESNET: Architecture = [
    ("conv1.0.weight", "stem"),
    ("conv1.3.weight", "stem"),
    ("bn1.weight", "stem"),
    ("layer1.0.conv1.weight", "layer1"),
    ("fc.weight", "head"),
]
TIMM_VIT: Architecture = [
    ("cls_token", "stem"),
    ("pos_embed", "stem"),
    ("patch_embed.proj.weight", "stem"),
    ("patch_embed.proj.bias", "stem"),
    ("blocks.0.norm1.weight", "blocks.0"),
    ("blocks.0.attn.proj.weight", "blocks.0"),
    ("blocks.1.mlp.fc1.weight", "blocks.1"),
    ("blocks.11.norm2.bias", "blocks.11"),
    ("norm.weight", "head"),
    ("fc_norm.weight", "head"),
    ("head.weight", "head"),
]
CONVNEXT: Architecture = [
    ("stem.0.weight", "stem"),
    ("stem.1.weight", "stem"),
    ("stages.0.blocks.0.gamma", "stages.0"),
    ("stages.0.blocks.1.conv_dw.weight", "stages.0"),
    ("stages.1.downsample.0.weight", "stages.1"),
    ("stages.1.blocks.0.norm.weight", "stages.1"),
    ("stages.3.blocks.2.mlp.fc2.bias", "stages.3"),
    ("head.norm.weight", "head"),
    ("head.fc.weight", "head"),
]
SWIN: Architecture = [
    ("patch_embed.proj.weight", "stem"),
    ("patch_embed.norm.weight", "stem"),
    ("layers.0.blocks.0.attn.relative_position_bias_table", "layers.0"),
    ("layers.0.blocks.1.attn.proj.weight", "layers.0"),
    ("layers.1.downsample.reduction.weight", "layers.1"),
    ("layers.3.blocks.1.mlp.fc1.weight", "layers.3"),
    ("norm.weight", "head"),
    ("head.fc.weight", "head"),
]
TORCHVISION_VIT: Architecture = [
    ("class_token", "stem"),
    ("conv_proj.weight", "stem"),
    ("encoder.pos_embedding", "stem"),
    ("encoder.layers.encoder_layer_0.ln_1.weight", "encoder.layers.encoder_layer_0"),
    ("encoder.layers.encoder_layer_0.self_attention.out_proj.weight", "encoder.layers.encoder_layer_0"),
    ("encoder.layers.encoder_layer_1.mlp.0.weight", "encoder.layers.encoder_layer_1"),
    ("encoder.layers.encoder_layer_11.mlp.3.bias", "encoder.layers.encoder_layer_11"),
    ("encoder.ln.weight", "head"),
    ("heads.head.weight", "head"),
]
BERT: Architecture = [
    ("bert.embeddings.word_embeddings.weight", "stem"),
    ("bert.embeddings.position_embeddings.weight", "stem"),
    ("bert.embeddings.LayerNorm.weight", "stem"),
    ("bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.0"),
    ("bert.encoder.layer.0.attention.output.dense.weight", "bert.encoder.layer.0"),
    ("bert.encoder.layer.1.output.LayerNorm.weight", "bert.encoder.layer.1"),
    ("bert.encoder.layer.10.intermediate.dense.bias", "bert.encoder.layer.10"),
    ("bert.pooler.dense.weight", "head"),
    ("classifier.weight", "head"),
]
MLP: Architecture = [
    ("0.weight", "stem"),
    ("2.weight", "stem"),
]
ARCHITECTURES = {
    "open_clip ViT": CLIP,
    "open_clip ResNet": CLIP_RESNET,
    "open_clip custom text": CUSTOM_TEXT_CLIP,
    "torchvision ResNet": RESNET,
    "timm ResNet-D": DEEP_STEM_RESNET,
    "timm ViT": TIMM_VIT,
    "timm ConvNeXt": CONVNEXT,
    "timm Swin": SWIN,
    "torchvision ViT": TORCHVISION_VIT,
    "Hugging Face BERT": BERT,
    "nn.Sequential": MLP,
}
# Those with one tower and telling names.
ORDERS = {
    "timm ViT": TIMM_VIT,
    "torchvision ResNet": RESNET,
    "torchvision ViT": TORCHVISION_VIT,
    "timm ConvNeXt": CONVNEXT,
    "timm Swin": SWIN,
    "Hugging Face BERT": BERT,
}

tensor_sizes = st.dictionaries(
    st.from_regex(r"[a-z]{1,3}\.[0-9]{1,2}\.[a-z]{1,3}", fullmatch=True), st.integers(0, 1000), min_size=1, max_size=12
)
schemes = st.sampled_from(["whole", "block", "tensor", "1", 1])


def one_each(found: Architecture) -> dict[str, int]:
    return {name: 1 for name, _ in found}


def blocks_of(found: Architecture) -> dict[str, tuple[str, ...]]:
    groups: dict[str, list[str]] = {}
    for name, group in found:
        groups.setdefault(group, []).append(name)
    return {group: tuple(tensors) for group, tensors in groups.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_block_knows_the_blocks_of_real_architectures(architecture: Architecture) -> None:
    groups = make_groups("block", one_each(architecture))
    assert dict(groups.items) == blocks_of(architecture)
    assert groups.names == tuple(blocks_of(architecture))


@pytest.mark.parametrize("architecture", ORDERS.values(), ids=ORDERS)
def test_a_container_around_the_model_changes_no_border(architecture: Architecture) -> None:
    named = block_names([f"model.{name}" for name, _ in architecture])
    for name, block in architecture:
        assert named[f"model.{name}"] == (block if block in ("stem", "head") else f"model.{block}")


@pytest.mark.parametrize("architecture", ORDERS.values(), ids=ORDERS)
@given(seed=st.integers(0, 1000))
def test_depth_order_of_one_tower_is_stem_blocks_by_number_head(architecture: Architecture, seed: int) -> None:
    names = [name for name, _ in architecture]
    # What no name tells (torchvision's encoder.ln) goes by its place, so it stays where files put it.
    told = [name for name in names if name != "encoder.ln.weight"]
    random.Random(seed).shuffle(told)
    blocks = dict(architecture)
    ordered = list(dict.fromkeys(blocks[name] for name in depth_order(told)))
    assert ordered == list(dict.fromkeys(block for _, block in architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_depth_order_keeps_every_name_and_is_stable(architecture: Architecture) -> None:
    names = [name for name, _ in architecture]
    ordered = depth_order(names)
    assert sorted(ordered) == sorted(names)
    assert depth_order(ordered) == ordered
    parts = dict(architecture)
    for part in set(parts.values()):
        inside = [name for name in names if parts[name] == part]
        assert [name for name in ordered if parts[name] == part] == inside


@pytest.mark.parametrize("by_name", [False, True])
def test_depth_order_of_clip_goes_tower_by_tower(by_name: bool) -> None:
    names = sorted(name for name, _ in CLIP) if by_name else [name for name, _ in CLIP]
    blocks = dict(CLIP)
    ordered = list(dict.fromkeys(blocks[name] for name in depth_order(names)))
    assert ordered == [
        "stem",
        "transformer.resblocks.0",
        "transformer.resblocks.1",
        "head",
        "visual.stem",
        "visual.transformer.resblocks.0",
        "visual.transformer.resblocks.1",
        "visual.transformer.resblocks.10",
        "visual.head",
    ]


def test_names_that_tell_nothing_go_by_their_place() -> None:
    named = block_names(["first", "blocks.0.w", "blocks.1.w", "last"])
    assert named == {"first": "stem", "blocks.0.w": "blocks.0", "blocks.1.w": "blocks.1", "last": "head"}


def test_numbered_children_of_stems_and_heads_are_no_blocks() -> None:
    named = block_names(["stem.0.weight", "patch_embed.3.weight", "blocks.0.w", "head.0.weight", "classifier.1.bias"])
    assert list(named.values()) == ["stem", "stem", "blocks.0", "head", "head"]


@given(tensor_sizes, schemes, st.data())
def test_every_tensor_is_in_exactly_one_group(sizes: dict[str, int], scheme: str | int, data: st.DataObject) -> None:
    scheme = data.draw(st.one_of(st.just(scheme), st.integers(1, len(sizes))))
    groups = make_groups(scheme, sizes)
    grouped = [tensor for _, tensors in groups.items for tensor in tensors]
    assert sorted(grouped) == sorted(sizes)
    assert all(tensors for _, tensors in groups.items)
    assert len(set(groups.names)) == len(groups)
    for tensor, number in groups.index().items():
        assert tensor in groups.items[number][1]


def test_whole_is_one_group_and_tensor_one_each() -> None:
    sizes = {"a": 3, "b": 4, "c": 5}
    assert make_groups("whole", sizes).items == (("whole", ("a", "b", "c")),)
    assert make_groups("tensor", sizes).items == (("a", ("a",)), ("b", ("b",)), ("c", ("c",)))


@given(tensor_sizes, st.data())
def test_k_groups_are_contiguous_and_about_equal(sizes: dict[str, int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    groups = make_groups(count, sizes)
    assert groups == make_groups(str(count), sizes)
    assert len(groups) == count
    assert [tensor for _, tensors in groups.items for tensor in tensors] == list(sizes)
    masses = [sum(sizes[tensor] for tensor in tensors) for _, tensors in groups.items]
    # A cut lies within half a tensor of its place, or next to the cut before it.
    assert max(masses) <= sum(sizes.values()) / count + max(sizes.values())


@pytest.mark.parametrize(
    ("masses", "count", "expected"),
    [
        ([1, 1, 1, 1], 2, [2, 2]),
        ([1, 1, 1, 1, 1, 1], 3, [2, 2, 2]),
        ([10, 1, 1, 1], 2, [10, 3]),
        ([1, 1, 1, 10], 2, [3, 10]),
        ([100, 1, 1, 1], 4, [100, 1, 1, 1]),
        ([1, 1, 1, 100], 4, [1, 1, 1, 100]),
        ([3, 3, 3, 1, 1, 1], 3, [3, 6, 3]),
    ],
)
def test_k_groups_by_hand(masses: list[int], count: int, expected: list[int]) -> None:
    sizes = {f"t{number}": mass for number, mass in enumerate(masses)}
    groups = make_groups(count, sizes)
    assert [sum(sizes[tensor] for tensor in tensors) for _, tensors in groups.items] == expected


def test_group_names_of_segments_sort_as_they_lie() -> None:
    groups = make_groups(11, {f"t{number}": 1 for number in range(30)})
    assert list(groups.names) == sorted(groups.names)
    assert groups.names[0] == "depth.00"
    assert groups.names[-1] == "depth.10"


def write_toml(folder: Path, text: str) -> str:
    path = folder / "groups.toml"
    path.write_text(text)
    return str(path)


def test_a_toml_of_regular_expressions(tmp_path: Path) -> None:
    path = write_toml(tmp_path, '[groups]\nattention = ["attn", "qkv$"]\nrest = "^(mlp|head)"\n')
    sizes = {"mlp.0": 1, "a.attn.w": 1, "b.qkv": 1, "head": 1}
    assert make_groups(path, sizes).items == (("rest", ("mlp.0", "head")), ("attention", ("a.attn.w", "b.qkv")))


def test_a_pattern_that_matches_nothing_makes_no_group(tmp_path: Path) -> None:
    path = write_toml(tmp_path, '[groups]\nall = "."\nnone = "^$"\n')
    assert make_groups(path, {"a": 1}).names == ("all",)


def test_tensors_left_out_or_matched_twice_are_all_named(tmp_path: Path) -> None:
    path = write_toml(tmp_path, '[groups]\none = "^a"\ntwo = "b"\n')
    with pytest.raises(SpecError) as caught:
        make_groups(path, {"a": 1, "ab": 1, "c": 1, "b": 1, "d": 1})
    assert "ab (one and two)" in str(caught.value)
    assert "c (none)" in str(caught.value)
    assert "d (none)" in str(caught.value)
    assert "groups.toml" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["[groups", "", "[other]\na = 'b'\n", "[groups]\na = 3\n", "[groups]\na = '('\n", "groups = 4\n"],
)
def test_a_bad_toml_says_what_is_expected(tmp_path: Path, text: str) -> None:
    with pytest.raises(SpecError, match=r"groups\.toml: (no .*expected a table \[groups\]|not valid TOML)"):
        make_groups(write_toml(tmp_path, text), {"a": 1})


def test_a_missing_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.toml"):
        make_groups(str(tmp_path / "nowhere.toml"), {"a": 1})


def test_an_unknown_scheme_suggests_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"'blocks'; did you mean 'block'\? Known: block, tensor, whole"):
        make_groups("blocks", {"a": 1})


@pytest.mark.parametrize("scheme", ["-1", "2.5", "²", "", "b.tomll"])
def test_what_is_no_scheme_is_refused(scheme: str) -> None:
    with pytest.raises(SpecError, match="unknown group scheme"):
        make_groups(scheme, {"a": 1})


@pytest.mark.parametrize("count", [0, 3, "3", "100"])
def test_more_groups_than_tensors_are_refused(count: int | str) -> None:
    with pytest.raises(SpecError, match="from 1 to 2, the tensors that are mixed"):
        make_groups(count, {"a": 1, "b": 1})


@st.composite
def partitions(draw: st.DrawFn, tensors: tuple[str, ...] = ("a", "b", "c", "d", "e")) -> Groups:
    """Any grouping of five tensors, in any order."""
    order = draw(st.permutations(tensors))
    numbers = draw(st.lists(st.integers(0, 4), min_size=len(tensors), max_size=len(tensors)))
    label = draw(st.sampled_from("xyz"))
    return Groups.from_dict(
        {
            f"{label}{number}": [name for name, own in zip(order, numbers, strict=True) if own == number]
            for number in dict.fromkeys(numbers)
        }
    )


def borders(groups: Groups) -> frozenset[frozenset[str]]:
    return frozenset(frozenset(tensors) for _, tensors in groups.items)


@given(partitions(), partitions())
def test_refine_gives_the_coarsest_groups_within_both(one: Groups, other: Groups) -> None:
    refined = borders(one.refine(other))
    assert refined == {left & right for left in borders(one) for right in borders(other)} - {frozenset()}


@given(partitions(), partitions(), partitions())
def test_refine_is_commutative_associative_and_idempotent(one: Groups, two: Groups, three: Groups) -> None:
    assert borders(one.refine(two)) == borders(two.refine(one))
    assert borders(one.refine(two).refine(three)) == borders(one.refine(two.refine(three)))
    assert one.refine(one) is one
    finer = one.refine(two)
    assert finer.refine(one) == finer


def test_refine_keeps_the_groups_that_are_finer_already() -> None:
    sizes = {"a.0.w": 1, "a.0.b": 1, "a.1.w": 1}
    whole, tensor = make_groups("whole", sizes), make_groups("tensor", sizes)
    assert whole.refine(tensor) is tensor
    assert tensor.refine(whole) is tensor


def test_refine_over_other_tensors_is_refused() -> None:
    with pytest.raises(SpecError, match="different tensors"):
        make_groups("whole", {"a": 1}).refine(make_groups("whole", {"a": 1, "b": 1}))


@given(partitions())
def test_groups_survive_a_dictionary(groups: Groups) -> None:
    assert Groups.from_dict(groups.as_dict()) == groups


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ((("a", ()),), "'a' holds no tensor"),
        ((("a", ("x",)), ("b", ("y", "x"))), "tensor x stands in another group"),
        ((("a", ("x",)), ("a", ("y",))), "same name: a, a"),
    ],
)
def test_groups_that_are_none_are_refused(items: tuple[tuple[str, tuple[str, ...]], ...], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Groups(items)


def test_a_wrappers_prefix_changes_no_grouping() -> None:
    names = [
        "visual.conv1.weight",
        "visual.transformer.resblocks.0.mlp.weight",
        "visual.transformer.resblocks.1.mlp.weight",
        "visual.proj",
        "token_embedding.weight",
        "transformer.resblocks.0.mlp.weight",
        "transformer.resblocks.1.mlp.weight",
        "ln_final.weight",
    ]
    plain = block_names(names)
    wrapped = block_names([f"module.{name}" for name in names])
    assert len(set(plain.values())) == len(set(wrapped.values())) > 5
    for first in names:
        for second in names:
            together = plain[first] == plain[second]
            assert (wrapped[f"module.{first}"] == wrapped[f"module.{second}"]) == together
    assert depth_order([f"module.{name}" for name in names]) == [f"module.{name}" for name in depth_order(names)]
