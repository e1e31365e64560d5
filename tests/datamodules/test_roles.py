"""Assigning roles: exact counts, no record and no picture twice, order that does not matter."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_privacy.datamodules.explicit_roles import explicit_roles
from lightning_privacy.datamodules.roles import (
    DEFAULT_FRACTIONS,
    ROLES,
    apportion,
    assign_roles,
    check_roles,
    resolve_fractions,
)
from lightning_privacy.errors import SplitError

DISJOINT = [role for role in ROLES if role != "aux_member"]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 12), max_size=30),
    weights=st.lists(st.integers(0, 9), min_size=2, max_size=6).filter(any),
)
def test_apportion_is_exact_to_less_than_one_record(sizes, weights):
    shares = [Fraction(weight, sum(weights)) for weight in weights]
    counts = apportion(sizes, shares)
    assert [sum(count) for count in counts] == sizes
    assert all(n >= 0 for count in counts for n in count)
    for share, column in zip(shares, zip(*counts, strict=True), strict=False):
        assert abs(sum(column) - share * sum(sizes)) < len(shares) - 1 or not column


@given(
    contents=st.lists(st.integers(0, 60).map(str), min_size=40, max_size=80),
    labels=st.integers(1, 5),
    seed=st.integers(0, 5),
)
@settings(max_examples=50, deadline=None)
def test_no_content_has_two_roles_and_order_does_not_matter(contents, labels, seed):
    strata = [int(content) % labels for content in contents]
    fractions = resolve_fractions(None)
    roles = assign_roles(contents, strata, fractions, seed)
    check_roles(roles, contents, {})
    assert sorted(i for role in DISJOINT for i in roles[role]) == list(range(len(contents)))
    backwards = assign_roles(contents[::-1], strata[::-1], fractions, seed)
    for role in ROLES:
        assert {contents[i] for i in roles[role]} == {contents[::-1][i] for i in backwards[role]}


def test_every_stratum_is_cut_alike():
    contents, strata = [str(i) for i in range(200)], [i // 10 for i in range(200)]
    roles = assign_roles(contents, strata, resolve_fractions(None), 0)
    assert {role: len(found) for role, found in roles.items()} == {
        "member": 60, "aux_member": 30, "aux_nonmember": 40, "attack_nonmember": 40, "val": 20, "holdout": 40,
    }  # fmt: skip
    for role in DISJOINT:
        assert set(Counter(strata[i] for i in roles[role]).values()) == {10 * DEFAULT_FRACTIONS[role]}


def test_strata_of_three_still_give_the_right_totals():
    contents, strata = [str(i) for i in range(300)], [i // 3 for i in range(300)]
    roles = assign_roles(contents, strata, resolve_fractions(None), 0)
    assert [len(roles[role]) for role in DISJOINT] == [90, 60, 60, 30, 60]
    assert all(
        len({strata[i] for i in roles[role]}) == len(roles[role]) for role in ("aux_nonmember", "holdout", "val")
    )


def test_seeds_vary_the_split_and_every_record_can_be_a_member():
    contents = [str(i) for i in range(40)]
    members = Counter(
        i for seed in range(200) for i in assign_roles(contents, [0] * 40, resolve_fractions(None), seed)["member"]
    )
    # 200 draws at .3: 60 +- 6.5 a record; 5 standard deviations.
    assert len(members) == 40
    assert all(27 < n < 93 for n in members.values())


@pytest.mark.parametrize(
    ("fractions", "match"),
    [
        ({"member": 0.5}, "sum to 1.2"),
        ({"membr": 0.3}, "unknown roles .'membr'."),
        ({"val": -0.1}, "must lie in"),
        ({"val": 1.5}, "whole numbers of records"),
        ({"val": float("nan")}, "must lie in"),
        ({"member": 0}, "nothing would be trained on"),
    ],
)
def test_wrong_fractions(fractions, match):
    with pytest.raises(SplitError, match=match):
        resolve_fractions(fractions)


def test_numbers_above_one_are_counts():
    contents = [str(i) for i in range(96)]
    given = {"member": 32, "aux_member": 12, "aux_nonmember": 16, "attack_nonmember": 16, "val": 8}
    roles = assign_roles(contents, [0] * 96, fractions := resolve_fractions(given), 0)
    check_roles(roles, contents, fractions)
    assert {role: len(roles[role]) for role in given} == given
    with pytest.raises(SplitError, match=r"sum to 1\.2.* of the records.*90 distinct"):
        assign_roles([str(i) for i in range(90)], [0] * 90, {**fractions, "holdout": 36}, 0)


def test_decimal_fractions_that_sum_to_one_are_accepted():
    resolve_fractions({"member": 0.1, "aux_nonmember": 0.2, "attack_nonmember": 0.3, "val": 0.15, "holdout": 0.25})


def test_empty_role_names_role_and_count():
    contents = ["a", "b", "c"]
    roles = assign_roles(contents, [0] * 3, resolve_fractions(None), 0)
    with pytest.raises(SplitError, match=r"`val` \(0 records\), .* of 3 records"):
        check_roles(roles, contents, resolve_fractions(None))
    fractions = resolve_fractions({"val": 0, "holdout": 0.3, "member": 0.3})
    roles = assign_roles([str(i) for i in range(40)], [0] * 40, fractions, 0)
    check_roles(roles, [str(i) for i in range(40)], fractions)  # asked for none, got none
    assert roles["val"] == []


def explicit(given, ids=("a", "b", "c", "d", "a2"), contents=("a", "b", "c", "d", "a")):
    roles = explicit_roles(given, ids, contents, [0] * len(ids), 0.5, 0)
    check_roles(roles, contents, {})
    return roles


def test_explicit_roles_by_index_and_identity():
    roles = explicit({"member": [0, "a2", "b"], "holdout": [2]})
    assert (roles["member"], roles["holdout"], roles["val"]) == ([0, 1, 4], [2], [])
    assert roles["aux_member"] in ([0, 4], [1])  # the two records of one picture stay together


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (
            {"member": [0, 1], "holdout": [4]},
            "Records 0 and 4 hold the same picture and are both `member` and `holdout`",
        ),
        ({"member": [0, 1], "holdout": ["b"]}, "Record 1 is both `member` and `holdout`"),
        ({"member": [0, 1], "aux_member": [2]}, "must be a part of `member`"),
        ({"member": [0, 1, 4], "aux_member": [0]}, "holds the picture of an `aux_member`"),
        ({"member": [9]}, "1 of the 1 records given as `member` are not in the pool of 5 records .first: 9"),
        ({"member": ["zz"]}, "not in the pool"),
        ({"holdout": [1]}, "lists no `member`"),
        ({"member": [0], "train": [1]}, "unknown roles"),
    ],
)
def test_wrong_explicit_roles(given, match):
    with pytest.raises(SplitError, match=match):
        explicit(given)
