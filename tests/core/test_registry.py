"""Names of defences and audits."""

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from lightning_privacy.core import registry as module
from lightning_privacy.core.registry import Registry
from lightning_privacy.errors import InputError


class One:
    pass


class Two:
    pass


@pytest.fixture
def registry():
    return Registry("defence", "lightning_privacy.tests.none", built_ins=None)


def test_registered_classes_come_back_in_order(registry):
    registry.register("zeta", One)
    registry.register("alpha", "collections:OrderedDict")
    assert registry.names() == ["zeta", "alpha"]
    assert [c.__name__ for c in registry.classes().values()] == ["One", "OrderedDict"]


@pytest.mark.parametrize("name", ["SMP", "smp-lora", "_x", "x_", "a__b", "1a", "", "smp lora"])
def test_names_are_snake_case(registry, name):
    with pytest.raises(InputError, match="snake case"):
        registry.register(name, One)


def test_a_name_belongs_to_one_class(registry):
    registry.register("one", One)
    registry.register("one", One)
    with pytest.raises(InputError, match=r"`one` is wanted by .*:Two and taken by .*:One"):
        registry.register("one", Two)


def test_path_and_class_of_the_same_are_the_same(registry):
    registry.register("odd", "collections:OrderedDict")
    from collections import OrderedDict

    registry.register("odd", OrderedDict)
    registry.register("odd", "collections:OrderedDict")
    assert registry.load("odd") is OrderedDict


def test_unknown_name_lists_those_that_exist(registry):
    registry.register("one", One)
    with pytest.raises(InputError, match=r"no defence `two`. Registered: one"):
        registry.load("two")


def test_listing_names_imports_nothing(registry):
    registry.register("missing", "no_such_package.module:Class")
    assert registry.names() == ["missing"]
    with pytest.raises(InputError, match=r"`missing` cannot be imported .*ModuleNotFoundError: .*no_such_package"):
        registry.classes()


def test_entry_points_follow_ours_and_broken_ones_are_named(registry, monkeypatch):
    points = [
        EntryPoint("theirs", "collections:Counter", registry.group),
        EntryPoint("broken", "collections:NoSuchClass", registry.group),
    ]
    monkeypatch.setattr(module, "entry_points", lambda group: [p for p in points if p.group == group])
    registry.register("ours", One)
    assert registry.names() == ["ours", "broken", "theirs"]
    assert registry.load("theirs").__name__ == "Counter"
    with pytest.raises(InputError, match=r"defence `broken` cannot be imported from collections:NoSuchClass"):
        registry.classes()


def test_an_entry_point_cannot_take_our_name(registry, monkeypatch):
    monkeypatch.setattr(module, "entry_points", lambda group: [EntryPoint("ours", "collections:Counter", group)])
    registry.register("ours", One)
    with pytest.raises(InputError, match=r"`ours` is wanted by collections:Counter and taken by"):
        registry.names()


def test_what_is_registered_must_be_a_class(registry):
    registry.register("function", "json:dumps")
    with pytest.raises(InputError, match="must be a class"):
        registry.load("function")


def test_names_of_built_ins_cost_no_torch():
    code = "import sys; from lightning_privacy.core.registry import defence_names, audit_names; "
    code += "defence_names(); audit_names(); print('torch' in sys.modules, 'lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
