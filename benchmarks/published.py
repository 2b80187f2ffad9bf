"""Published training runs, as values: shape, machine, layout, and the figure that was reported.

`figure` is tokens per second and chip where the source gives them, for nobody can count those another way; else
TFLOP/s per chip. MFU is shown as the source counts it. Layouts are said in our axes. What our ModelConfig cannot say is
said by `rerun` (which parts run again, where a run keeps named activations), `scores` (multi-head latent attention
scores with more channels than it projects) and `capacity` (dropped tokens: rows that experts multiply, per useful row).
An MLP of two matrices is written as a gated one of two thirds the width, which has the same products.
"""

import dataclasses
import math
from typing import Literal

from configs import models
from maijax.config import AttentionConfig, MeshConfig, ModelConfig, MoEConfig, Remat

FULL = frozenset({"qkv", "scores", "out", "router", "gate_up", "experts"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One published figure."""

    name: str
    topology: str
    slices: int = 1
    model: ModelConfig
    mesh: MeshConfig
    batch: int  # sequences per step, over all chips
    seq: int
    figure: float
    unit: Literal["tokens", "flops"]  # tokens/s, or TFLOP/s
    counted: Literal["full", "causal"] = "causal"  # how the source counts attention
    source: str
    rerun: frozenset[str] | None = None  # None: as model.remat says
    scores: float = 1.0
    capacity: float = 1.0
    fits: str = ""  # the constant that this run fits, a chip's efficiency by the chip's name; "": a test
    outside: str = ""  # why the model does not claim to speak for it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """The peak memory of a step that libtpu compiled for a machine: weights and AdamW in float32."""

    name: str
    topology: str
    slices: int = 1
    model: ModelConfig
    mesh: MeshConfig
    batch: int
    seq: int
    peak: float  # GiB on one device


def dense(layers: int, d: int, heads: int, kv: int, d_ff: int, vocab: int, remat: Remat = "full", hd: int = 128,
          **other) -> ModelConfig:
    attention = AttentionConfig(num_heads=heads, kv_heads=kv, head_dim=hd)
    return ModelConfig(
        num_layers=layers, d_model=d, d_ff=d_ff, vocab_size=vocab, context=8_192, attention=attention,
        remat=remat, **other,
    )


def megatron(layers: int, d: int, heads: int) -> ModelConfig:
    return dense(layers, d, heads, heads, round(d * 8 / 3), 131_072, "none", hd=d // heads)


LLAMA_8B = dense(32, 4_096, 32, 8, 14_336, 128_256)
LLAMA_70B = dense(80, 8_192, 64, 8, 28_672, 128_256)
LLAMA_405B = dense(126, 16_384, 128, 8, 53_248, 128_256)
LLAMA2_70B = dense(80, 8_192, 64, 8, 28_672, 32_000)
GPT3 = dense(96, 12_288, 96, 96, 32_768, 50_304)
# MaxText's global_parameter_scale; multi-head attention, vocabulary 32,000.
MAXTEXT_16B = dense(32, 4_096, 64, 64, 28_672, 32_000)
MAXTEXT_32B = dense(32, 8_192, 64, 64, 28_672, 32_000, "dots")
MAXTEXT_64B = dense(64, 8_192, 64, 64, 28_672, 32_000, "dots")
MAXTEXT_128B = dense(64, 8_192, 128, 128, 57_344, 32_000, "dots")
MAXTEXT_256B = dense(64, 16_384, 128, 128, 57_344, 32_000, "dots")
MAXTEXT_512B = dense(128, 16_384, 128, 128, 57_344, 32_000)
MAXTEXT_1024B = dense(128, 16_384, 256, 256, 114_688, 32_000)
MIXTRAL_8X7B = dense(32, 4_096, 32, 8, 14_336, 32_000, moe=MoEConfig(num_experts=8, top_k=2, d_ff=14_336))
MIXTRAL_8X22B = dense(56, 6_144, 48, 8, 16_384, 32_768, moe=MoEConfig(num_experts=8, top_k=2, d_ff=16_384))
SCOUT = dense(48, 5_120, 40, 8, 8_192, 202_048,
              moe=MoEConfig(num_experts=16, top_k=1, d_ff=8_192, shared_experts=1))
# Every second layer is a mixture: 24 dense layers before 24 mixtures have the same sums.
MAVERICK = dense(48, 5_120, 40, 8, 16_384, 202_048,
                 moe=MoEConfig(num_experts=128, top_k=1, d_ff=8_192, shared_experts=1, first_dense=24))
# Multi-head latent attention has 187M weights a layer and scores over 128 x (192 + 128) / 2 channels: grouped
# attention of 128 heads of 96 has as many weights and 0.6 of the channels.
DEEPSEEK_V3 = dense(61, 7_168, 128, 8, 18_432, 129_280, hd=96,
                    moe=MoEConfig(num_experts=256, top_k=8, d_ff=2_048, shared_experts=1, first_dense=3))
MLA = 160 / 96
GPT_OSS_120B = dense(36, 2_880, 64, 8, 2_880, 201_088, "none", hd=64,
                     moe=MoEConfig(num_experts=128, top_k=4, d_ff=2_880))

_README = "MaxText configs/v5p/README and scripts, early 2024"
_RECIPE = "tpu-recipes training/"
_CORE = "Megatron-Core r0.8 weak scaling table"  # says neither micro-batch (here 1) nor interleaving (here none)


def _again(model: ModelConfig, remat: Remat) -> ModelConfig:
    return dataclasses.replace(model, remat=remat)


def _maxtext(name, shape, model, tensor, rows, figure, slices=1, chip="v5p", **other) -> Run:
    chips = math.prod(map(int, shape.split("x")))
    if model.remat == "dots":  # its "minimal" policy keeps products, as ours, but not what the attention kernel made
        other["rerun"] = frozenset({"scores"})
    return Run(
        name=f"MaxText {name}", topology=f"{chip}:{shape}", slices=slices, model=model,
        mesh=MeshConfig(replica=slices, data=1, fsdp=chips // tensor, tensor=tensor), batch=rows * chips * slices,
        seq=2_048, figure=figure, unit="flops", counted="full", source=_README, **other,
    )


def _core(name, layers, d, heads, tensor, stages, gpus, batch, figure, **other) -> Run:
    return Run(
        name=f"Megatron {name}", topology=f"h100:{gpus}", model=megatron(layers, d, heads),
        mesh=MeshConfig(stage=stages, data=48, tensor=tensor, microbatches=batch // 48 if stages > 1 else None),
        batch=batch, seq=4_096, figure=figure, unit="flops", counted="full", source=_CORE, **other,
    )


RUNS = (
    _maxtext("16B", "16x16", MAXTEXT_16B, 1, 6, 120, chip="v5e", fits="v5e"),
    _maxtext("32B", "16x16", _again(MAXTEXT_32B, "full"), 1, 4, 132, chip="v5e"),
    _maxtext("64B", "16x16", _again(MAXTEXT_64B, "full"), 1, 2, 118, chip="v5e"),
    _maxtext("128B", "16x16", MAXTEXT_128B, 16, 1, 110, chip="v5e"),
    _maxtext("32B", "16x16", _again(MAXTEXT_32B, "full"), 1, 4, 119, 32, chip="v5e"),
    _maxtext("64B", "16x16", _again(MAXTEXT_64B, "full"), 1, 2, 99, 32, chip="v5e"),
    _maxtext("32B", "4x4x4", MAXTEXT_32B, 4, 7, 328),
    _maxtext("64B", "4x4x4", MAXTEXT_64B, 4, 3, 323),
    _maxtext("128B", "4x4x8", MAXTEXT_128B, 8, 1, 315, fits="v5p"),
    _maxtext("128B", "4x8x8", MAXTEXT_128B, 8, 1, 316),
    _maxtext("256B", "8x8x8", MAXTEXT_256B, 8, 1, 308),
    _maxtext("512B", "8x8x8", MAXTEXT_512B, 8, 2, 294),
    _maxtext("1024B", "8x8x16", MAXTEXT_1024B, 8, 2, 254),
    _maxtext("1024B", "8x16x16", MAXTEXT_1024B, 8, 2, 297),
    _maxtext("32B", "4x4x4", MAXTEXT_32B, 4, 7, 319, 2),
    _maxtext("64B", "4x4x4", MAXTEXT_64B, 4, 3, 309, 2),
    _maxtext("128B", "4x4x8", MAXTEXT_128B, 8, 1, 305, 2),
    _maxtext("128B", "4x8x8", MAXTEXT_128B, 8, 1, 274, 2),
    _maxtext("256B", "8x8x8", MAXTEXT_256B, 8, 1, 289, 2),
    _maxtext("512B", "8x8x8", MAXTEXT_512B, 8, 2, 282, 2),
    _maxtext("1024B", "8x8x16", MAXTEXT_1024B, 8, 2, 237, 2),
    _maxtext("1024B", "8x16x16", MAXTEXT_1024B, 8, 2, 279, 2),
    Run(name="Llama-3.1-405B", topology="v5p:8x8x8", model=LLAMA_405B, mesh=MeshConfig(data=1, fsdp=512),
        batch=1_024, seq=8_192, figure=124.6, unit="tokens", rerun=frozenset({"qkv", "out", "gate_up"}),
        source=_RECIPE + "v5p/Llama3.1-405B-MaxText"),
    Run(name="Llama-4 Scout", topology="v5p:4x4x8", model=SCOUT, mesh=MeshConfig(data=1, fsdp=128), batch=1_024,
        seq=8_192, figure=2_070.5, unit="tokens", source=_RECIPE + "v5p/Llama4-Scout-17B-16E-Maxtext", fits="EXPERTS"),
    Run(name="Llama-4 Maverick", topology="v5p:4x4x8", model=MAVERICK, mesh=MeshConfig(data=1, fsdp=32, tensor=4),
        batch=512, seq=8_192, figure=1_321.7, unit="tokens", counted="full", rerun=FULL - {"qkv", "out"},
        source=_RECIPE + "v5p/Llama4-Maverick-17B-128E-Maxtext"),
    Run(name="DeepSeek-V3", topology="v5p:8x8x8", model=DEEPSEEK_V3, mesh=MeshConfig(data=1, fsdp=512), batch=3_072,
        seq=8_192, figure=542.1, unit="tokens", rerun=FULL - {"out"}, scores=MLA,
        source=_RECIPE + "v5p/DeepSeek3-671B-MaxText"),
    Run(name="Llama-3.1-70B", topology="v6e:16x16", model=LLAMA_70B, mesh=MeshConfig(data=1, fsdp=256), batch=1_280,
        seq=8_192, figure=960.2, unit="tokens", counted="full", rerun=FULL - {"qkv"},
        source=_RECIPE + "trillium/Llama3.1-70B-MaxText/v6e-256"),
    Run(name="Llama-3.1-70B", topology="v6e:8x16", model=LLAMA_70B, mesh=MeshConfig(data=1, fsdp=128), batch=512,
        seq=8_192, figure=942.0, unit="tokens", counted="full", rerun=FULL - {"qkv"},
        source=_RECIPE + "trillium/Llama3.1-70B-MaxText/v6e-128"),
    Run(name="Llama-3.1-8B", topology="v6e:16x16", model=LLAMA_8B, mesh=MeshConfig(data=1, fsdp=256), batch=1_024,
        seq=8_192, figure=7_207.3, unit="tokens", counted="full", rerun=FULL - {"qkv", "out"},
        source=_RECIPE + "trillium/Llama3.1-8B-MaxText/v6e-256", fits="v6e"),
    Run(name="Llama-2-70B", topology="v6e:16x16", model=LLAMA2_70B, mesh=MeshConfig(data=1, fsdp=256), batch=512,
        seq=4_096, figure=905.0, unit="tokens", counted="full", rerun=FULL - {"qkv"},
        source=_RECIPE + "trillium/Llama2-70B-MaxText"),
    Run(name="GPT3-175B", topology="v6e:16x16", model=GPT3, mesh=MeshConfig(data=1, fsdp=256), batch=768, seq=2_048,
        figure=358.0, unit="tokens", counted="full", source=_RECIPE + "trillium/GPT3-175B-MaxText/bf16"),
    Run(name="Llama-3.1-405B", topology="v6e:16x16", slices=2, model=LLAMA_405B,
        mesh=MeshConfig(replica=2, data=1, fsdp=256), batch=512, seq=8_192, figure=149.5, unit="tokens", counted="full",
        source=_RECIPE + "trillium/Llama3.1-405B-MaxText; weights shared over both slices, here copied"),
    Run(name="Mixtral-8x22B", topology="v6e:16x16", model=MIXTRAL_8X22B,
        mesh=MeshConfig(data=1, fsdp=64, expert=4, exchange_room=1.25), batch=2_048, seq=4_096, figure=1_326.0,
        unit="tokens", counted="full", rerun=FULL - {"qkv", "out"}, capacity=1.25,
        source=_RECIPE + "trillium/Mixtral-8x22B-MaxText"),
    Run(name="Mixtral-8x7B", topology="v6e:16x16", model=MIXTRAL_8X7B, mesh=MeshConfig(data=1, fsdp=256),
        batch=3_072, seq=4_096, figure=3_645.2, unit="tokens", counted="full", rerun=FULL - {"qkv", "out"},
        capacity=1.25, source=_RECIPE + "trillium/Mixtral-8x7B-MaxText"),
    Run(name="Llama-3.1-405B", topology="tpu7x:4x8x8", model=LLAMA_405B, mesh=MeshConfig(data=1, fsdp=512),
        batch=1_536, seq=8_192, figure=500.0, unit="tokens", rerun=frozenset({"qkv", "scores", "out", "gate_up"}),
        source=_RECIPE + "ironwood/llama3.1-405b/8k-bf16-tpu7x-4x8x8"),
    Run(name="Llama-3.1-70B", topology="tpu7x:4x4x4", model=LLAMA_70B, mesh=MeshConfig(data=1, fsdp=128), batch=256,
        seq=8_192, figure=2_687.0, unit="tokens", rerun=frozenset({"out", "gate_up"}),
        source=_RECIPE + "ironwood/llama3.1-70b/8k-bf16-tpu7x-4x4x4", fits="tpu7x"),
    Run(name="DeepSeek-V3", topology="tpu7x:4x8x8", model=DEEPSEEK_V3, mesh=MeshConfig(data=1, fsdp=512),
        batch=4_096, seq=4_096, figure=2_446.0, unit="tokens", scores=MLA,
        source=_RECIPE + "ironwood/deepseek3-671b/4k-bf16-tpu7x-4x8x8"),
    _core("1.7B", 24, 2_048, 16, 1, 1, 48, 192, 408.8),
    _core("7.1B", 30, 4_096, 32, 2, 1, 96, 192, 465.9),
    _core("16B", 32, 6_144, 48, 4, 1, 192, 192, 489.1, fits="h100"),
    _core("32B", 48, 7_168, 56, 8, 1, 384, 192, 459.6),
    _core("70B", 84, 8_192, 64, 8, 2, 768, 384, 419.7),
    _core("119B", 92, 10_240, 80, 8, 4, 1_536, 768, 420.5),
    _core("177B", 96, 12_288, 96, 8, 6, 2_304, 1_152, 432.8),
    _core("314B", 96, 16_384, 128, 8, 8, 3_072, 1_536, 474.4),
    _core("462B", 112, 18_432, 144, 8, 16, 6_144, 3_072, 459.9),
    Run(name="Megatron Mixtral-8x7B", topology="h100:64",
        model=_again(MIXTRAL_8X7B, "none"),
        mesh=MeshConfig(stage=4, data=2, expert=8, microbatches=16, repeats=8, exchange_room=1.0), batch=256,
        seq=4_096, figure=468.0, unit="flops", counted="full", rerun=frozenset(),
        source="Megatron-LM megatron/core/transformer/moe/README (MCore v0.9; mapping of its reference table)"),
    Run(name="Megatron-Bridge gpt-oss-120b", topology="h100:64", model=GPT_OSS_120B,
        mesh=MeshConfig(stage=4, data=2, expert=8, microbatches=8, exchange_room=1.0), batch=512, seq=4_096,
        figure=5_630.0, unit="tokens", rerun=frozenset(), source="Megatron-Bridge docs/performance-summary, 25.11"),
    Run(name="MaxText Llama-3.1-70B", topology="h200:256",
        model=LLAMA_70B, mesh=MeshConfig(data=2, fsdp=128), batch=512, seq=8_192, figure=1_056.0, unit="tokens",
        counted="full", rerun=frozenset({"gate_up"}),
        source="gpu-recipes a3ultra/maxtext-configs/llama-3.1-70b-256gpus-a3u-bf16"),
    Run(name="MaxText Llama-3.1-405B", topology="b200:256", model=LLAMA_405B, mesh=MeshConfig(data=2, fsdp=128),
        batch=512, seq=8_192, figure=1_520.0, unit="flops", counted="full",
        source="gpu-recipes a4/maxtext-configs/llama3-1-405b-256gpus-a4-bf16"),
    Run(name="torchtitan Llama-3.1-8B", topology="h100:8", model=_again(LLAMA_8B, "dots"),
        mesh=MeshConfig(data=1, fsdp=8), batch=16, seq=8_192, figure=6_667.0, unit="tokens",
        source="torchtitan benchmarks/llama3_h100_202412", outside="cards held to 500 W, memory of 2.4 TB/s"),
    Run(name="torchtitan Llama-3.1-70B", topology="h100:256", model=LLAMA_70B,
        mesh=MeshConfig(data=1, fsdp=32, tensor=8), batch=512, seq=8_192, figure=652.0, unit="tokens",
        source="torchtitan benchmarks", outside="cards held to 500 W, memory of 2.4 TB/s"),
    Run(name="DeepSeek-V3", topology="h100:2048", model=DEEPSEEK_V3,
        mesh=MeshConfig(stage=16, data=2, expert=64, microbatches=120, exchange_room=1.0), batch=15_360, seq=4_096,
        figure=1_543.0, unit="tokens", scores=MLA, rerun=frozenset(),
        source="arXiv 2412.19437, 180K H800 hours per trillion tokens", outside="products in fp8, H800 links"),
)

# By libtpu 0.0.52 through jax 0.10, of a plain step of the same shape with splash attention; the last but two by
# MaxText 0.2.5.
COMPILED = (
    Compiled(name="Llama-3.1-8B", topology="v5e:16x16", model=LLAMA_8B, mesh=MeshConfig(data=1, fsdp=256), batch=512,
             seq=2_048, peak=5.37),
    Compiled(name="Llama-3.1-70B", topology="v6e:16x16", model=LLAMA_70B, mesh=MeshConfig(data=1, fsdp=32, tensor=8),
             batch=256, seq=4_096, peak=14.9),
    Compiled(name="Llama-3.1-70B", topology="tpu7x:4x4x4", model=LLAMA_70B,
             mesh=MeshConfig(data=1, fsdp=16, tensor=8), batch=128, seq=4_096, peak=17.8),
    Compiled(name="Llama-3.1-405B", topology="v5p:8x8x8", slices=2, model=LLAMA_405B,
             mesh=MeshConfig(replica=2, data=1, fsdp=64, tensor=8), batch=128, seq=4_096, peak=21.8),
    Compiled(name="Llama-3.1-405B", topology="v5p:16x16x16", model=LLAMA_405B,
             mesh=MeshConfig(data=1, fsdp=256, tensor=16), batch=1_024, seq=4_096, peak=9.1),
    Compiled(name="Llama-3.1-405B", topology="v5p:8x8x8", model=LLAMA_405B,
             mesh=MeshConfig(data=1, fsdp=64, tensor=8), batch=512, seq=4_096, peak=35.84),
    Compiled(name="mai_500b_moe, attention", topology="v5p:8x8x16",
             model=dataclasses.replace(models.MAI_500B_MOE, remat="attention"),
             mesh=MeshConfig(data=2, fsdp=256, context=2), batch=2_048, seq=8_192, peak=69.9),
    Compiled(name="mai_500b_moe, dots", topology="v5p:16x16x32",
             model=dataclasses.replace(models.MAI_500B_MOE, remat="dots"),
             mesh=MeshConfig(data=4, fsdp=512, tensor=4), batch=2_048, seq=8_192, peak=22.4),
)
