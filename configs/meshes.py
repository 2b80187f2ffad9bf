"""Meshes: sizes of the named axes, nothing else; `maijax/rules.py` says what lies on each. `--mesh NAME` picks one.

`data=None` or `fsdp=None` takes the devices that the other axes leave.
"""

from maijax.config import MeshConfig

ONE = MeshConfig(data=1)  # one device
DATA = MeshConfig()  # any number of devices, a copy of the weights on each
FSDP = MeshConfig(data=1, fsdp=None)  # any number of devices, one copy of the weights shared out over all

# So many devices share one copy of the weights; further devices hold further copies.
FSDP_8 = MeshConfig(fsdp=8)
FSDP_64 = MeshConfig(fsdp=64)
FSDP_256 = MeshConfig(fsdp=256)
FSDP_512 = MeshConfig(fsdp=512)
FSDP_1024 = MeshConfig(fsdp=1_024)
