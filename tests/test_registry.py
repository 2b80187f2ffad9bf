"""Registration and discovery: one name one function, found by path, and a person's own mistakes told in one line."""

import sys
import textwrap

import pytest

from maijax import registry, scaling
from maijax.config import Experiment
from maijax.errors import UserError

LADDER = {
    "phi_test", "phi_tiny", "phi_10m", "phi_30m", "phi_125m", "phi_350m", "phi_1b", "phi3_mini", "mai_7b",
    "phi3_medium", "mai_70b", "mai_500b", "mai_500b_moe", "mai_moe_3m", "mai_moe_1b", "mai_moe_16b", "llama3_405b",
    "ladder_2", "ladder_3", "ladder_4", "ladder_5", "ladder_6",
}


def write_module(folder, name: str, body: str):
    file = folder / f"{name}.py"
    file.write_text("from maijax.registry import get, register\n" + textwrap.dedent(body))
    return file


@pytest.fixture
def here(tmp_path, monkeypatch, clean_registry):
    """An empty folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_whole_ladder_is_there():
    assert LADDER <= set(registry.names())


def test_the_template_is_not_loaded():
    assert "template" not in registry.names()
    assert "experiments._template" not in sys.modules


@pytest.mark.parametrize("name", sorted(LADDER))
def test_each_experiment_says_what_it_asks_and_costs(name):
    question, *rest = registry.entry(name).doc.splitlines()
    assert question.endswith(("?", "."))
    for heading in ("Command: maijax run " + name, "Hardware: ", "Time: ", "Expected: "):
        assert any(line.startswith(heading) for line in rest), f"{name} lacks {heading!r}"


@pytest.mark.parametrize("depth", range(2, 7))
def test_a_rung_of_the_ladder_says_its_size(depth):
    name = f"ladder_{depth}"
    assert f"{scaling.parameters(registry.get(name).model).total:,} parameters" in registry.entry(name).make.__doc__


def test_get_gives_a_complete_value_with_its_functions_name():
    made = registry.get("phi_10m")
    assert isinstance(made, Experiment) and made.name == "phi_10m"
    assert made == registry.get("phi_10m")


@pytest.mark.parametrize(("name", "near"), [("phi_tny", "phi_tiny"), ("mai500b", "mai_500b"), ("PHI_TINY", None)])
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(UserError, match=f"no experiment {name!r}; " + (f"did you mean {near}" if near else "")):
        registry.get(name)


def test_mesh_presets():
    assert registry.mesh("FSDP_8").fsdp == 8
    with pytest.raises(UserError, match="no mesh 'FSPD'; configs/meshes.py has ONE, DATA, FSDP"):
        registry.mesh("FSPD")


def test_building_blocks_are_all_named_values():
    found = registry.building_blocks()
    assert found["configs.models.PHI_TINY"] == registry.get("phi_tiny").model
    assert {name.split(".")[1] for name in found} == {"models", "optimizers", "data", "meshes", "chips"}


def test_a_module_of_ones_own(here):
    write_module(here, "my_lab", """
        import dataclasses

        @register
        def mine():
            "Mine?"
            return dataclasses.replace(get("phi_tiny"), rules=())
    """)
    registry.load_module("my_lab")
    assert registry.get("mine").name == "mine"
    assert registry.entry("mine").file == str(here / "my_lab.py")


def test_the_same_name_twice_names_both_files(here):
    file = write_module(here, "again", """
        @register
        def phi_tiny():
            return get("phi_test")
    """)
    with pytest.raises(UserError) as caught:
        registry.load_module("again")
    assert "phi_tiny is registered twice" in str(caught.value)
    assert f"{file}:3" in str(caught.value) and registry.entry("phi_tiny").file in str(caught.value)


def test_a_function_that_returns_something_else(here):
    file = write_module(here, "wrong", """
        @register
        def odd():
            return 3
    """)
    registry.load_module("wrong")
    with pytest.raises(UserError, match="odd must return an Experiment, not int") as caught:
        registry.get("odd")
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("x = 1 / 0\n", ":2: ZeroDivisionError: division by zero"),
        ("import no_such_thing\n", ":2: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("def f(:\n", ":2: SyntaxError"),
    ],
)
def test_a_module_that_fails_is_told_by_file_and_line(here, body, words):
    file = write_module(here, "broken", body)
    with pytest.raises(UserError) as caught:
        registry.load_module("broken")
    assert f"{file}{words}" in str(caught.value)


@pytest.mark.parametrize("name", ["nosuch", "nosuch.runs", "", "os.path.nosuch", ".x"])
def test_a_module_that_is_not_there(here, name):
    with pytest.raises(UserError, match="no such module"):
        registry.load_module(name)


def test_another_package_of_the_name_is_refused_with_both_paths(here, monkeypatch):
    foreign = here / "configs"
    foreign.mkdir()
    (foreign / "__init__.py").touch()
    for name in [n for n in sys.modules if n.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(here))
    import configs

    assert configs.__path__ == [str(foreign)]
    with pytest.raises(UserError) as caught:
        registry.building_blocks()
    assert str(foreign) in str(caught.value) and str(registry._folder("configs")) in str(caught.value)


def test_another_package_of_the_name_that_is_only_on_the_path_does_no_harm(here, monkeypatch):
    foreign = here / "configs"
    foreign.mkdir()
    (foreign / "__init__.py").write_text("raise SystemExit('the wrong one')")
    for name in [n for n in sys.modules if n.partition(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(here))
    assert "configs.models.PHI_TINY" in registry.building_blocks()
