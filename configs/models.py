"""Model shapes of the ladder. The comment above each is its parameter count; a test recomputes it.

Rules of the shapes: head_dim 64 below 1B and 128 above, d_model and d_ff multiples of 256 from 10M up,
d_ff near 8/3 d_model (3.5 at 70B and 405B), d_model / num_layers 26-64 up to 350M and 85-130 above.
"""

from maijax.config import AttentionConfig, ModelConfig, MoEConfig, RopeConfig

LONG_ROPE = RopeConfig(theta=500_000.0)  # for contexts of 8,192 and more; source: Llama 3, arXiv 2407.21783

# 131,392: unit tests
PHI_TEST = ModelConfig(
    num_layers=2, d_model=64, d_ff=192, vocab_size=512, context=64, tied_head=True,
    attention=AttentionConfig(num_heads=2, kv_heads=1, head_dim=32),
)

# 1,115,264: a laptop, minutes
PHI_TINY = ModelConfig(
    num_layers=4, d_model=128, d_ff=384, vocab_size=2_048, context=256, tied_head=True,
    attention=AttentionConfig(num_heads=2, kv_heads=2, head_dim=64),
)

# 10,622,208
PHI_10M = ModelConfig(
    num_layers=10, d_model=256, d_ff=768, vocab_size=8_192, context=512, tied_head=True,
    attention=AttentionConfig(num_heads=4, kv_heads=4, head_dim=64),
)

# 29,368,832
PHI_30M = ModelConfig(
    num_layers=8, d_model=512, d_ff=1_536, vocab_size=8_192, context=512, tied_head=True,
    attention=AttentionConfig(num_heads=8, kv_heads=4, head_dim=64),
)

# 125,854,464
PHI_125M = ModelConfig(
    num_layers=16, d_model=768, d_ff=2_048, vocab_size=32_768, context=2_048, tied_head=True,
    attention=AttentionConfig(num_heads=12, kv_heads=4, head_dim=64),
)

# 350,274,560
PHI_350M = ModelConfig(
    num_layers=24, d_model=1_024, d_ff=2_816, vocab_size=32_768, context=2_048,
    attention=AttentionConfig(num_heads=16, kv_heads=8, head_dim=64),
)

# 1,266,780,160
PHI_1B = ModelConfig(
    num_layers=24, d_model=2_048, d_ff=5_632, vocab_size=32_768, context=4_096,
    attention=AttentionConfig(num_heads=16, kv_heads=8, head_dim=128),
)

# 3,821,079,552: exact. Source: microsoft/Phi-3-mini-4k-instruct, whose 4k model has no LongRoPE
PHI3_MINI = ModelConfig(
    num_layers=32, d_model=3_072, d_ff=8_192, vocab_size=32_064, context=4_096,
    attention=AttentionConfig(num_heads=32, kv_heads=32, head_dim=96, window=2_047),
)

# 7,248,023,552
MAI_7B = ModelConfig(
    num_layers=32, d_model=4_096, d_ff=12_288, vocab_size=131_072, context=8_192,
    attention=AttentionConfig(num_heads=32, kv_heads=8, head_dim=128, rope=LONG_ROPE),
)

# 13,960,238,080: exact. Source: microsoft/Phi-3-medium-4k-instruct
PHI3_MEDIUM = ModelConfig(
    num_layers=40, d_model=5_120, d_ff=17_920, vocab_size=32_064, context=4_096,
    attention=AttentionConfig(num_heads=40, kv_heads=10, head_dim=128, window=2_047),
)

# 70,599,843,840
MAI_70B = ModelConfig(
    num_layers=80, d_model=8_192, d_ff=28_672, vocab_size=131_072, context=8_192,
    attention=AttentionConfig(num_heads=64, kv_heads=8, head_dim=128, rope=LONG_ROPE),
)

# 499,496,601,600
MAI_500B = ModelConfig(
    num_layers=144, d_model=18_432, d_ff=49_152, vocab_size=131_072, context=8_192,
    attention=AttentionConfig(num_heads=144, kv_heads=8, head_dim=128, rope=LONG_ROPE),
)

# 405,853,388,800: exact. Source: Llama 3, arXiv 2407.21783, table 3; without the frequency scaling of 3.1
LLAMA3_405B = ModelConfig(
    num_layers=126, d_model=16_384, d_ff=53_248, vocab_size=128_256, context=8_192,
    attention=AttentionConfig(num_heads=128, kv_heads=8, head_dim=128, rope=LONG_ROPE),
)

# Mixtures of experts: sigmoid router with a balancing bias, after DeepSeek-V3, arXiv 2412.19437.

# 2,666,648: active 1,339,544
MAI_MOE_3M = ModelConfig(
    num_layers=4, d_model=128, d_ff=384, vocab_size=2_048, context=256, tied_head=True,
    attention=AttentionConfig(num_heads=2, kv_heads=2, head_dim=64),
    moe=MoEConfig(num_experts=8, top_k=2, d_ff=192, shared_experts=1, first_dense=1),
)

# 956,868,288: active 187,147,968
MAI_MOE_1B = ModelConfig(
    num_layers=16, d_model=768, d_ff=2_048, vocab_size=32_768, context=2_048,
    attention=AttentionConfig(num_heads=12, kv_heads=4, head_dim=64),
    moe=MoEConfig(num_experts=64, top_k=6, d_ff=384, shared_experts=2, first_dense=1),
)

# 16,377,695,936: active 2,830,618,304
MAI_MOE_16B = ModelConfig(
    num_layers=28, d_model=2_048, d_ff=11_264, vocab_size=131_072, context=4_096,
    attention=AttentionConfig(num_heads=16, kv_heads=8, head_dim=128),
    moe=MoEConfig(num_experts=64, top_k=6, d_ff=1_408, shared_experts=2, first_dense=1, route_scale=2.5),
)

# 499,148,478,464: active 27,553,519,616
MAI_500B_MOE = ModelConfig(
    num_layers=64, d_model=6_656, d_ff=18_432, vocab_size=131_072, context=8_192,
    attention=AttentionConfig(num_heads=64, kv_heads=8, head_dim=128, rope=LONG_ROPE),
    moe=MoEConfig(num_experts=256, top_k=8, d_ff=1_536, shared_experts=1, first_dense=2, route_scale=2.5),
)
