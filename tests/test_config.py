"""The blocks: what they refuse, all at once, and what they derive."""

import dataclasses

import pytest

from maijax import config, registry
from maijax.config import AttentionConfig, MeshConfig, ModelConfig, MoEConfig, RopeConfig
from maijax.errors import UserError


def test_blocks_are_frozen_keyword_only_and_small():
    for block in vars(config).values():
        if isinstance(block, type) and dataclasses.is_dataclass(block):
            assert block.__dataclass_params__.frozen, block
            assert all(f.kw_only for f in dataclasses.fields(block)), block
            assert len(dataclasses.fields(block)) <= 20, f"{block} grows; split it by owner"


def test_every_experiment_is_valid():
    for name in registry.names():
        assert registry.get(name).problems() == []


def test_all_problems_are_told_in_one_line():
    tiny = registry.get("phi_tiny")
    broken = dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, d_ff=0, attention=AttentionConfig(num_heads=6, kv_heads=4, head_dim=3)),
        optim=dataclasses.replace(tiny.optim, lr=-1.0, b1=2.0),
        train=dataclasses.replace(tiny.train, batch_size=16, seq_len=1024, accumulation=3),
    )
    with pytest.raises(UserError) as caught:
        broken.validate()
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "model.d_ff=0", "model.attention.kv_heads=4 must divide num_heads=6", "model.attention.head_dim=3",
        "optim.lr=-1.0", "optim.b1=2.0", "train.seq_len=1024 must not exceed model.context=256",
        "train.accumulation=3 must divide batch_size=16",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("block", "part"),
    [
        (RopeConfig(short_factor=(1.0,)), "go together"),
        (RopeConfig(short_factor=(1.0,), long_factor=(1.0,)), "original_context=None"),
        (RopeConfig(fraction=1.5), "fraction=1.5"),
        (MoEConfig(num_experts=2, top_k=3, d_ff=4), "top_k=3 must not exceed num_experts=2"),
        (MoEConfig(num_experts=2, top_k=1, d_ff=4, bias_speed=-1.0), "bias_speed=-1.0"),
        (config.SourceConfig(uri=""), "uri=''"),
        (config.SourceConfig(uri="x", weight=0.0), "weight=0.0"),
        (config.DataConfig(sources=()), "sources=()"),
        (config.DataConfig(sources=(config.SourceConfig(uri="x"),), held_out=1.0), "held_out=1.0"),
        (MeshConfig(fsdp=None), "only one of them"),
        (MeshConfig(fsdp=0), "fsdp=0"),
    ],
)
def test_a_block_names_field_and_value(block, part):
    assert any(part in problem for problem in block.problems())


def test_path_of_a_problem_inside_a_tuple():
    tiny = registry.get("phi_tiny")
    source = config.SourceConfig(uri="", weight=-1.0)
    broken = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, sources=(tiny.data.sources[0], source)))
    assert [problem.split("=")[0] for problem in broken.problems()] == [
        "data.sources[1].weight", "data.sources[1].uri",
    ]


def test_padded_vocab_is_the_next_multiple():
    def padded(vocab_size):
        attention = AttentionConfig(num_heads=1, kv_heads=1, head_dim=2)
        return ModelConfig(
            num_layers=1, d_model=2, d_ff=2, vocab_size=vocab_size, context=2, attention=attention
        ).padded_vocab

    assert [padded(v) for v in (1, 127, 128, 129, 32_064)] == [128, 128, 128, 256, 32_128]


def test_mesh_gives_the_rest_to_data():
    assert MeshConfig(fsdp=4).shape(8) == {
        "replica": 1, "data": 2, "fsdp": 4, "expert": 1, "context": 1, "tensor": 1, "stage": 1,
    }
    with pytest.raises(UserError, match="3 devices"):
        MeshConfig(fsdp=3).shape(8)
    with pytest.raises(UserError, match="multiply to 4 devices, there are 8"):
        MeshConfig(data=2, tensor=2).shape(8)


def test_tokens_of_a_run():
    tiny = registry.get("phi_tiny")
    train = dataclasses.replace(tiny.train, steps=7, batch_size=4, seq_len=32)
    assert dataclasses.replace(tiny, train=train).tokens == 7 * 4 * 32
