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

# By hardware: one box of 8 GPUs; 8 simulated devices that show three axes at once; pods.
H100_8 = FSDP_8
SIMULATED_8 = MeshConfig(data=1, fsdp=2, context=2, tensor=2)
V5E_256 = MeshConfig(data=1, fsdp=256)
V5P_512 = MeshConfig(data=1, fsdp=64, tensor=8)
V5P_8192 = MeshConfig(data=1, fsdp=1_024, context=2, tensor=4)
V6E_256 = MeshConfig(data=1, fsdp=256)
TPU7X_8192 = MeshConfig(data=2, fsdp=1_024, context=2, tensor=2)  # 4,096 chips, two devices each
H100_8192 = MeshConfig(data=8, fsdp=256, context=4)
