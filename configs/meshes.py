"""Meshes: sizes of the named axes, and the rules that place logical axes on them. `--mesh NAME` picks one.

`act_...` are the axes of activations, the others those of weights and of the data. Every axis has its line:
an axis without a rule is an error, () says that it is copied to every device.
"""

from maijax.config import MeshConfig

_ACTIVATIONS = (
    ("sequence", ()),
    ("act_embed", ()),
    ("act_heads", ()),
    ("act_kv_heads", ()),
    ("act_head_dim", ()),
    ("act_mlp", ()),
    ("act_expert", ()),
    ("act_vocab", ()),
)
_WEIGHTS = (
    ("layers", ()),
    ("vocab", ()),
    ("heads", ()),
    ("kv_heads", ()),
    ("head_dim", ()),
    ("mlp", ()),
    ("expert", ()),
)

# Every device holds all weights and takes its share of the batch.
_COPIED = (
    ("batch", ("replica", "data")),
    ("tokens", ("replica", "data")),
    *_ACTIVATIONS,
    ("embed", ()),
    *_WEIGHTS,
)
# Weights and optimizer state lie sharded over the devices too, and are gathered layer by layer.
_SHARDED = (
    ("batch", ("replica", "data", "fsdp")),
    ("tokens", ("replica", "data", "fsdp")),
    *_ACTIVATIONS,
    ("embed", ("fsdp",)),
    *_WEIGHTS,
)
# The same with no copies at all: the weights spread over however many devices there are.
_SPREAD = (
    ("batch", ("data", "fsdp")),
    ("tokens", ("data", "fsdp")),
    *_ACTIVATIONS,
    ("embed", ("data", "fsdp")),
    *_WEIGHTS,
)

ONE = MeshConfig(data=1)  # one device
DATA = MeshConfig(rules=_COPIED)  # any number of devices, one included
FSDP = MeshConfig(rules=_SPREAD)  # any number of devices that divides d_model

# So many devices share one copy of the weights; further devices hold further copies.
FSDP_8 = MeshConfig(fsdp=8, rules=_SHARDED)
FSDP_64 = MeshConfig(fsdp=64, rules=_SHARDED)
FSDP_256 = MeshConfig(fsdp=256, rules=_SHARDED)
FSDP_512 = MeshConfig(fsdp=512, rules=_SHARDED)
FSDP_1024 = MeshConfig(fsdp=1_024, rules=_SHARDED)
