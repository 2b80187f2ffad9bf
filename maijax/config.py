"""An experiment as a value: frozen, keyword-only blocks, one per owner. Standard library only.

Blocks do not raise at construction: `Experiment.validate` gathers the problems of all blocks and raises
them together, so that a person mends a misspelt sweep in one go.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Literal

from maijax.errors import UserError

Remat = Literal["none", "dots", "attention", "full", "offload"]
# Slowest first: neighbouring devices differ in the last, whose traffic is the heaviest.
MESH_AXES = ("replica", "stage", "data", "fsdp", "expert", "context", "tensor")


def _positive(block: object, *names: str) -> Iterator[str]:
    for name in names:
        value = getattr(block, name)
        if value is not None and not value > 0:
            yield f"{name}={value} must be above 0"


def _fraction(block: object, *names: str) -> Iterator[str]:
    for name in names:
        value = getattr(block, name)
        if value is not None and not 0 <= value <= 1:
            yield f"{name}={value} must lie in 0..1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions. Source: arXiv 2104.09864; LongRoPE: arXiv 2402.13753 as in transformers' Phi-3."""

    theta: float = 10_000.0
    fraction: float = 1.0  # share of head_dim that rotates (Phi-2 and Phi-4-mini rotate less than all)
    original_context: int | None = None  # positions seen before LongRoPE; None: no scaling
    short_factor: tuple[float, ...] = ()  # head_dim * fraction / 2 factors, used up to original_context
    long_factor: tuple[float, ...] = ()  # the same number, used for longer sequences

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "theta", "fraction", "original_context")
        yield from _fraction(self, "fraction")
        if bool(self.short_factor) != bool(self.long_factor):
            yield "short_factor and long_factor go together; give both or neither"
        if self.short_factor and self.original_context is None:
            yield "original_context=None must be set beside short_factor, e.g. 4096"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Grouped-query attention."""

    num_heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None  # tokens seen, the query included; None: all before it
    qk_norm: bool = False  # RMSNorm on each head's query and key
    softcap: float | None = None  # cap * tanh(score / cap), as in Gemma 2
    rope: RopeConfig = RopeConfig()

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "num_heads", "kv_heads", "head_dim", "window", "softcap")
        if self.kv_heads > 0 and self.num_heads % self.kv_heads:
            near = [k for k in range(1, self.num_heads + 1) if self.num_heads % k == 0]
            yield f"kv_heads={self.kv_heads} must divide num_heads={self.num_heads}; try {_either(near)}"
        rotated = self.head_dim * self.rope.fraction
        if rotated % 2:
            yield f"head_dim={self.head_dim} x rope.fraction={self.rope.fraction} must be an even whole number"
        for name in ("short_factor", "long_factor"):
            factors = getattr(self.rope, name)
            if factors and len(factors) != rotated // 2:
                yield f"rope.{name} has {len(factors)} factors, head_dim needs {int(rotated // 2)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Dropless top-k experts with a sigmoid router. Source: DeepSeek-V3, arXiv 2412.19437, section 2.1.2."""

    num_experts: int
    top_k: int
    d_ff: int  # width of each expert
    shared_experts: int = 0  # always on; one MLP of shared_experts * d_ff
    first_dense: int = 0  # layers before the first mixture
    route_scale: float = 1.0  # multiplies the normalised gates
    bias_speed: float = 1e-3  # step of the aux-loss-free balancing bias; 0: off
    balance_weight: float = 1e-4  # sequence-wise balance loss

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "num_experts", "top_k", "d_ff", "route_scale")
        if self.top_k > self.num_experts:
            yield f"top_k={self.top_k} must not exceed num_experts={self.num_experts}"
        for name in ("shared_experts", "first_dense", "bias_speed", "balance_weight"):
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name)} must not be below 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParametrizationConfig:
    """How init, rates and multipliers follow the size: maijax/parametrization.py. Standard reads no base."""

    name: Literal["standard", "mup", "completep"] = "standard"
    base_width: int | None = None  # d_model of the size whose hyperparameters these are
    base_depth: int | None = None  # its num_layers (completep)

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "base_width", "base_depth")
        needed = {"standard": (), "mup": ("base_width",), "completep": ("base_width", "base_depth")}[self.name]
        for field in needed:
            if getattr(self, field) is None:
                yield f"{field}=none must be set beside name={self.name}: that of the size whose rates are known"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer; every size of the ladder is one of these."""

    num_layers: int
    d_model: int
    d_ff: int
    vocab_size: int
    context: int  # longest sequence, tokens
    attention: AttentionConfig
    moe: MoEConfig | None = None
    parametrization: ParametrizationConfig = ParametrizationConfig()
    tied_head: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    activation: Literal["silu", "gelu"] = "silu"
    logit_softcap: float | None = None
    vocab_multiple: int = 128  # the vocabulary is stored padded to this, and masked
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # compute; auto: float32 on CPU, else bfloat16
    layers: Literal["auto", "scan", "unroll"] = "auto"  # auto: unroll up to 16 layers on CPU, else scan
    remat: Remat = "none"
    kernels: Literal["auto", "xla", "tpu", "gpu"] = "auto"  # attention and experts; auto: those of the platform

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def problems(self) -> Iterator[str]:
        yield from _positive(
            self, "num_layers", "d_model", "d_ff", "vocab_size", "context", "norm_eps", "logit_softcap",
            "vocab_multiple",
        )
        if self.moe is not None and self.moe.first_dense >= self.num_layers:
            yield f"moe.first_dense={self.moe.first_dense} must be below num_layers={self.num_layers}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """An optax chain and its schedule."""

    name: Literal["adamw", "muon", "adafactor", "lion"] = "adamw"
    lr: float = 3e-4  # peak; of the matrices under muon
    adam_lr: float | None = None  # peak for embeddings, norms and head under muon; None: lr
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup: int = 100  # steps
    decay_fraction: float = 0.2  # of all steps, at the end (wsd)
    final_fraction: float = 0.0  # of the peak, at the end of the last step (wsd, cosine)
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95  # muon
    weight_decay: float = 0.1  # matrices only; each weight's declaration says whether it decays
    clip_norm: float | None = 1.0  # global gradient norm
    spike_sigmas: float | None = None  # skip a step whose gradient norm exceeds its mean by so many sigmas
    max_skipped: int = 20  # skipped steps in a row before the run halts

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "lr", "adam_lr", "eps", "clip_norm", "spike_sigmas", "max_skipped")
        yield from _fraction(self, "decay_fraction", "final_fraction", "b1", "b2", "momentum")
        for name in ("b1", "b2", "momentum"):
            if getattr(self, name) == 1:
                yield f"{name}=1 would never forget; it must be below 1"
        for name in ("warmup", "weight_decay"):
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name)} must not be below 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One corpus of a mixture."""

    uri: str  # a file or folder of .jsonl/.txt (also .gz .bz2 .xz .zst), or tfds:NAME
    weight: float = 1.0  # share of the training tokens, relative to the other sources
    field: str = "text"  # of a JSON line or a TFDS example

    def problems(self) -> Iterator[str]:
        yield from _positive(self, "weight")
        if not self.uri:
            yield "uri='' must name a file, a folder or tfds:NAME"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and how it becomes tokens."""

    sources: tuple[SourceConfig, ...]
    tokenizer: str | None = None  # path of a sentencepiece model; None: trained on the corpus
    tokenizer_kind: Literal["bpe", "unigram"] = "bpe"
    held_out: float = 0.1  # share of the documents kept from training, chosen by their content
    workers: int = 0  # reading processes; 0: threads of this one
    errors: Literal["strict", "replace"] = "strict"  # invalid UTF-8

    def problems(self) -> Iterator[str]:
        if not self.sources:
            yield "sources=() must name at least one corpus"
        if not 0 < self.held_out < 1:
            yield f"held_out={self.held_out} must lie between 0 and 1; try 0.1"
        if self.workers < 0:
            yield f"workers={self.workers} must not be below 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: how long, how much at once, what is looked at on the way."""

    steps: int
    batch_size: int  # sequences per step, over all devices
    seq_len: int  # tokens per sequence
    accumulation: int = 1  # micro-batches per step
    seed: int = 0
    z_loss: float = 0.0
    log_every: int = 10  # steps
    eval_every: int | None = 250  # steps; None: only at the end
    eval_sequences: int | None = 256  # per evaluation during training; None: all that is held out
    sample_every: int | None = 250  # steps; None: only at the end
    prompt: str = "Once upon a time"
    checkpoint_every: int = 250  # steps
    keep: int = 2  # newest checkpoints kept

    def problems(self) -> Iterator[str]:
        yield from _positive(
            self, "steps", "batch_size", "seq_len", "accumulation", "log_every", "eval_every",
            "eval_sequences", "sample_every", "checkpoint_every", "keep",
        )
        if self.accumulation > 0 and self.batch_size % self.accumulation:
            near = [k for k in range(1, self.batch_size + 1) if self.batch_size % k == 0]
            yield (
                f"accumulation={self.accumulation} must divide batch_size={self.batch_size}; "
                f"try {_either(near, self.accumulation)}"
            )
        if not 0 <= self.seed < 2**31:
            yield f"seed={self.seed} must lie in 0..{2**31 - 1}"
        if self.z_loss < 0:
            yield f"z_loss={self.z_loss} must not be below 0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh's named axes; `maijax.rules` says what lies on each. One of data and fsdp may take the rest."""

    replica: int = 1  # across slices
    stage: int = 1
    data: int | None = None  # None: all devices that the other axes leave
    fsdp: int | None = 1  # None: as data
    expert: int = 1
    context: int = 1
    tensor: int = 1
    attention: Literal["ring", "gather"] = "ring"  # over context: keys go round, or all come to each device
    microbatches: int | None = None  # of the pipeline, per pass; None: as many as stages
    repeats: int = 1  # times that a micro-batch goes round the stages, each time through other layers
    gather: Literal["step", "layer"] = "step"  # a stage's weights: all once a step, or a layer's whenever it is due
    exchange_room: float = 2.0  # rows that a device takes for its experts at once, in even shares

    def problems(self) -> Iterator[str]:
        yield from _positive(self, *MESH_AXES, "microbatches", "repeats", "exchange_room")
        if self.data is None and self.fsdp is None:
            yield "data=none and fsdp=none: only one of them can take the devices that are left"

    def shape(self, num_devices: int) -> dict[str, int]:
        """Axis sizes for so many devices; raises UserError if they do not fit."""
        sizes = {a: getattr(self, a) or 1 for a in MESH_AXES}
        fixed = math.prod(sizes.values())
        rest = next((a for a in ("data", "fsdp") if getattr(self, a) is None), None)
        if rest is not None:
            if num_devices % fixed:
                raise UserError(
                    f"mesh: the fixed axes take {fixed} devices, which must divide the {num_devices} there are"
                )
            sizes[rest] = num_devices // fixed
        elif fixed != num_devices:
            raise UserError(f"mesh: the axes multiply to {fixed} devices, there are {num_devices}")
        return sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a run. A name, blocks, and the laws that some of the numbers come from."""

    name: str = ""  # the registry gives it the name of its function
    model: ModelConfig
    optim: OptimConfig
    data: DataConfig
    train: TrainConfig
    mesh: MeshConfig = MeshConfig()
    rules: tuple[tuple[str, str], ...] = ()  # (path of a derived value, the law and its source)

    @property
    def tokens(self) -> int:
        """Training tokens in all."""
        return self.train.steps * self.train.batch_size * self.train.seq_len

    def problems(self) -> list[str]:
        """All that is wrong with the values, one line each, with the full path of each field."""
        found = [f"{path}.{text}" if path else text for path, block in blocks(self) if block is not self
                 for text in block.problems()]
        if self.train.seq_len > self.model.context:
            found.append(
                f"train.seq_len={self.train.seq_len} must not exceed model.context={self.model.context}; "
                f"try {self.model.context}"
            )
        return found

    def validate(self) -> Experiment:
        """Returns itself, or raises one UserError that lists every problem."""
        if found := self.problems():
            raise UserError(f"{self.name}: " + "; ".join(found))
        return self


def blocks(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, block) of a dataclass and of every dataclass inside it, tuples included, outermost first."""
    yield path, value
    for field in dataclasses.fields(value):
        child = getattr(value, field.name)
        here = f"{path}.{field.name}" if path else field.name
        if dataclasses.is_dataclass(child):
            yield from blocks(child, here)
        elif isinstance(child, tuple) and child and dataclasses.is_dataclass(child[0]):
            for i, item in enumerate(child):
                yield from blocks(item, f"{here}[{i}]")


def _either(values: list[int], near: int | None = None) -> str:
    """A few legal values for an error line, the nearest first where one was asked for."""
    picked = sorted(values, key=lambda v: abs(v - near))[:3] if near is not None else values[:4]
    return " or ".join(map(str, sorted(picked)))
