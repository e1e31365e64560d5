"""Order and conflicts as pure functions."""

import pytest

from lightning_privacy.core.conflicts import Environment, find_conflicts, order_defences, raise_conflicts
from lightning_privacy.core.defence import Defence, Slot
from lightning_privacy.errors import DefenceConflictError, UnsupportedStrategyError
from lightning_privacy.properties import Property


def make(name, slots=(), after=(), requires=(), breaks=(), remedies=None):
    cls = type(
        name,
        (Defence,),
        {
            "name": name,
            "slots": frozenset(slots),
            "after": frozenset(after),
            "requires": frozenset(requires),
            "breaks": frozenset(breaks),
            "remedies": remedies or {},
        },
    )
    return cls()


def names(defences):
    return [d.name for d in defences]


def test_order_is_by_slot_then_name_whatever_the_callers_order():
    a = make("a", [Slot.POST_STEP])
    b = make("b", [Slot.SURGERY, Slot.POST_STEP])
    c = make("c", [Slot.OBJECTIVE])
    d = make("d", [Slot.OBJECTIVE])
    for given in ([a, b, c, d], [d, c, b, a], [c, a, d, b]):
        assert names(order_defences(given)) == ["b", "c", "d", "a"]


def test_after_overrides_the_name():
    first = make("z", [Slot.OBJECTIVE])
    second = make("a", [Slot.OBJECTIVE], after=["z", "absent"])
    assert names(order_defences([second, first])) == ["z", "a"]


def test_circle_is_an_error():
    with pytest.raises(DefenceConflictError, match="circle"):
        order_defences([make("a", after=["b"]), make("b", after=["a"])])


def test_double_is_an_error():
    with pytest.raises(DefenceConflictError, match="`a` was given 2 times"):
        order_defences([make("a"), make("b"), make("a")])


def test_all_conflicts_are_told_at_once_with_both_parties_property_and_remedy():
    needs = make("needs", requires=[Property.PLAIN_GRADIENTS, Property.NO_ACCUMULATION, Property.UNSHARDED])
    breaks = make(
        "breaks", breaks=[Property.PLAIN_GRADIENTS], remedies={Property.PLAIN_GRADIENTS: "Set `quiet: true`."}
    )
    found = find_conflicts([needs, breaks], Environment(strategy="FSDPStrategy", accumulate_grad_batches=4))
    assert {c.broken for c in found} == needs.requires
    with pytest.raises(DefenceConflictError) as error:
        raise_conflicts(found)
    text = str(error.value)
    assert not isinstance(error.value, UnsupportedStrategyError)
    for part in (
        "`needs`",
        "`breaks`",
        "Set `quiet: true`.",
        "FSDPStrategy",
        "strategy: ddp",
        "accumulate_grad_batches=4",
    ):
        assert part in text
    assert len(text.splitlines()) == 3


def test_strategy_alone_is_unsupported_strategy():
    found = find_conflicts([make("needs", requires=[Property.UNSHARDED])], Environment(strategy="DeepSpeedStrategy"))
    with pytest.raises(UnsupportedStrategyError):
        raise_conflicts(found)


def test_own_remedy_comes_first_and_own_breaks_do_not_count():
    both = make("both", requires=[Property.PLAIN_GRADIENTS], breaks=[Property.PLAIN_GRADIENTS])
    assert not find_conflicts([both], Environment())
    mine = make("mine", requires=[Property.PLAIN_GRADIENTS], remedies={Property.PLAIN_GRADIENTS: "Mine."})
    (conflict, *_) = [c for c in find_conflicts([both, mine], Environment()) if c.needs == "mine"]
    assert conflict.remedy == "Mine."


def test_no_conflict_raises_nothing():
    raise_conflicts(find_conflicts([make("a", breaks=list(Property))], Environment()))


@pytest.mark.parametrize(
    ("strategy", "broken"),
    [
        ("SingleDeviceStrategy", set()),
        ("DDPStrategy", set()),
        ("DDPStrategy (ddp_spawn)", {Property.LAUNCHER_KEEPS_MODULE}),
        ("FSDPStrategy", {Property.UNSHARDED}),
        ("DeepSpeedStrategy", {Property.UNSHARDED}),
        ("ModelParallelStrategy", {Property.UNSHARDED}),
    ],
)
def test_strategies(strategy, broken):
    assert set(Environment(strategy=strategy).breaks()) == broken
