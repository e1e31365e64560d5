import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lightning_privacy.core.randomness import derive_seed, seeded_generator


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4), st.integers(0, 3))
def test_every_part_changes_the_seed(parts, position):
    changed = list(parts)
    changed[position % len(parts)] ^= 1
    assert 0 <= derive_seed(*parts) < 2**63 and derive_seed(*parts) != derive_seed(*changed)


def test_parts_do_not_run_together():
    assert len({derive_seed(1, 23), derive_seed(12, 3), derive_seed("1", 23), derive_seed(123)}) == 4


def test_numbers_of_any_library_are_numbers():
    assert derive_seed("record", np.int64(3)) == derive_seed("record", 3)
    assert seeded_generator(0, "x").initial_seed() == derive_seed(0, "x")
