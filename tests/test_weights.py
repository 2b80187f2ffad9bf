"""The declaration of weights, against counts worked out another way and against the published ones."""

import ast
import inspect
import math
import re

import pytest

from maijax import dims, registry, weights
from maijax.config import AttentionConfig, ModelConfig, MoEConfig

registry.discover()
from configs import models  # noqa: E402

SHAPES = {name: value for name, value in vars(models).items() if isinstance(value, ModelConfig)}

# (total, active): the checkpoints of Phi-3 and Llama 3.1, and the ladder's own figures.
PUBLISHED = {
    "PHI_TEST": (131_392, 131_392),
    "PHI_TINY": (1_115_264, 1_115_264),
    "PHI_10M": (10_622_208, 10_622_208),
    "PHI_30M": (29_368_832, 29_368_832),
    "PHI_125M": (125_854_464, 125_854_464),
    "PHI_350M": (350_274_560, 350_274_560),
    "PHI_1B": (1_266_780_160, 1_266_780_160),
    "PHI3_MINI": (3_821_079_552, 3_821_079_552),
    "MAI_7B": (7_248_023_552, 7_248_023_552),
    "PHI3_MEDIUM": (13_960_238_080, 13_960_238_080),
    "MAI_70B": (70_599_843_840, 70_599_843_840),
    "MAI_500B": (499_496_601_600, 499_496_601_600),
    "LLAMA3_405B": (405_853_388_800, 405_853_388_800),
    "MAI_500B_MOE": (499_148_478_464, 27_553_519_616),
}


def count_by_hand(m: ModelConfig) -> tuple[int, int]:
    """(total, active), summed layer by layer."""
    a, norm = m.attention, 2 * m.d_model if m.norm == "layer" else m.d_model
    attention = m.d_model * a.head_dim * (2 * a.num_heads + 2 * a.kv_heads) + (2 * a.head_dim if a.qk_norm else 0)
    total = active = m.vocab_size * m.d_model * (1 if m.tied_head else 2) + norm
    for layer in range(m.num_layers):
        total += attention + 2 * norm
        active += attention + 2 * norm
        if m.moe is None or layer < m.moe.first_dense:
            total += 3 * m.d_model * m.d_ff
            active += 3 * m.d_model * m.d_ff
        else:
            expert = 3 * m.d_model * m.moe.d_ff
            router = m.d_model * m.moe.num_experts + m.moe.num_experts
            total += router + expert * (m.moe.num_experts + m.moe.shared_experts)
            active += router + expert * (m.moe.top_k + m.moe.shared_experts)
    return total, active


OTHERS = {
    "layer norm, qk norm, tied": ModelConfig(
        num_layers=3, d_model=24, d_ff=40, vocab_size=77, context=8, tied_head=True, norm="layer",
        attention=AttentionConfig(num_heads=4, kv_heads=2, head_dim=6, qk_norm=True),
    ),
    "all layers mixed": ModelConfig(
        num_layers=3, d_model=24, d_ff=40, vocab_size=130, context=8,
        attention=AttentionConfig(num_heads=4, kv_heads=1, head_dim=6),
        moe=MoEConfig(num_experts=5, top_k=3, d_ff=7),
    ),
}


@pytest.mark.parametrize("name", [*SHAPES, *OTHERS])
def test_counts_are_those_worked_out_by_hand(name):
    model = SHAPES.get(name) or OTHERS[name]
    assert (weights.count(model), weights.count_active(model)) == count_by_hand(model)


def test_counts_are_the_published_ones():
    assert {n: (weights.count(SHAPES[n]), weights.count_active(SHAPES[n])) for n in PUBLISHED} == PUBLISHED


def test_comment_above_each_shape_is_its_count():
    source = inspect.getsource(models)
    lines = source.splitlines()
    seen = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and (name := ast.unparse(node.targets[0])) in SHAPES:
            numbers = [int(n.replace(",", "")) for n in re.findall(r"\d{1,3}(?:,\d{3})+", lines[node.lineno - 2])]
            total, active = weights.count(SHAPES[name]), weights.count_active(SHAPES[name])
            assert numbers == ([total] if total == active else [total, active]), f"{name}: {lines[node.lineno - 2]}"
            seen.append(name)
    assert seen == list(SHAPES)


@pytest.mark.parametrize("name", [*SHAPES, *OTHERS])
def test_each_weight_agrees_with_itself(name):
    model = SHAPES.get(name) or OTHERS[name]
    declared = weights.declare(model)
    assert len({w.path for w in declared}) == len(declared)
    width = dims.sizes(model)
    for w in declared:
        assert len(w.sizes) == len(w.letters) == len(w.logical_axes)
        assert all(size == width[letter] for letter, size in zip(w.letters, w.sizes, strict=True) if letter != "L")
        assert w.size == math.prod(w.sizes) > 0
        assert (w.init == "normal") == (w.std > 0)
        assert w.decay == bool(w.reads), f"{w.path}: matrices decay, vectors do not"
        assert w.trained or w.name == "router_bias"
    layers = {w.path.split("/")[0]: w.sizes[0] for w in declared if w.stack.startswith("L")}
    assert sum(layers.values()) == model.num_layers


def test_initial_scale_keeps_variance():
    declared = {w.path: w for w in weights.declare(SHAPES["MAI_500B"])}
    assert declared["layers/attention/w_q"].std == 18_432**-0.5
    assert declared["layers/attention/w_o"].std == pytest.approx((144 * 128) ** -0.5 / (2 * 144) ** 0.5)
    assert declared["layers/mlp/w_down"].std == pytest.approx(49_152**-0.5 / (2 * 144) ** 0.5)
    assert declared["head/w_head"].std == 18_432**-0.5


def test_vocabulary_is_stored_padded():
    declared = {w.path: w for w in weights.declare(SHAPES["PHI3_MINI"])}
    assert declared["embed/w_embed"].sizes == (32_128, 3_072)
    assert declared["head/w_head"].sizes == (3_072, 32_128)
