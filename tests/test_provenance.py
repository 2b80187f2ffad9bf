"""Every value's origin, against what the configuration files really say."""

import dataclasses

from maijax import overrides, plain, provenance, registry
from maijax.config import OptimConfig


def explain(name: str, *settings: str) -> dict[str, str]:
    base = registry.get(name)
    return provenance.explain(overrides.apply(base, settings), base)


def test_every_value_has_one_origin():
    for name in registry.names():
        experiment = registry.get(name)
        origins = provenance.explain(experiment)
        assert list(origins) == list(plain.flatten(experiment))
        assert provenance.COMMAND_LINE not in origins.values()


def test_named_blocks_hold_what_is_said_of_them():
    blocks = registry.building_blocks()
    for name in registry.names():
        experiment = registry.get(name)
        values = plain.flatten(experiment)
        for path, origin in provenance.explain(experiment).items():
            if origin.startswith("configs."):
                _, _, inner = path.partition(".")
                theirs = dict(plain.leaves(blocks[origin]))
                assert theirs[inner] == values[path], f"{name}: {path} is not that of {origin}"


def test_the_five_origins():
    origins = explain("mai_500b", "model.attention.qk_norm=true", "train.seed=0")
    assert origins["model.d_model"] == "configs.models.MAI_500B"
    assert origins["model.remat"] == "experiment mai_500b"
    assert origins["optim.lr"].startswith("rule: Step Law")
    assert origins["optim.b1"] == "default"
    assert origins["optim.spike_sigmas"] == "configs.optimizers.ADAMW_LARGE"
    assert origins["mesh.fsdp"] == "configs.meshes.FSDP_1024"
    assert origins["data.sources[0].uri"] == "configs.data.CORPUS"
    assert origins["model.attention.qk_norm"] == "command line"
    assert origins["train.seed"] == "default"  # set to what it was


def test_a_default_put_back_is_the_experiments_own():
    base = registry.get("phi_tiny")
    changed = dataclasses.replace(base, model=dataclasses.replace(base.model, tied_head=False))
    assert provenance.explain(changed)["model.tied_head"] == "experiment phi_tiny"


def test_a_block_that_no_name_fits_is_the_experiments_own():
    base = registry.get("phi_tiny")
    changed = dataclasses.replace(base, optim=OptimConfig(lr=0.123, warmup=7))
    origins = provenance.explain(changed)
    assert origins["optim.lr"] == origins["optim.warmup"] == "experiment phi_tiny"
    assert origins["optim.b2"] == "default"


def test_a_block_or_source_added_on_the_command_line():
    origins = explain("phi_tiny", "data.sources=tfds:maijax_stories,more.txt@0.5", 'model.moe={"num_experts":4,'
                      '"top_k":2,"d_ff":8}')
    assert origins["data.sources[0].uri"] == "configs.data.STORIES"
    assert origins["data.sources[1].uri"] == origins["model.moe.top_k"] == "command line"
