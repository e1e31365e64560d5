"""Shadow models divided among ranks are those that one process trains, bit for bit."""

import pytest
import torch

from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.errors import PrivacyError
from lightning_privacy.modules.classifier import ImageClassifier
from lightning_privacy.shadows import ShadowPool
from lightning_privacy.testing.toy_data import ToyImages

# With validation: its metrics would wait for the other rank if they thought that they were together.
TRAINER = {"max_epochs": 1, "accelerator": "cpu"}


def build(seed):
    return ImageClassifier("small_cnn", classes=4, channels=3, image_size=8), []


class Prepared(ImageClassifier):
    """Prepares data of its own, around which Lightning holds a barrier."""

    def prepare_data(self):
        pass


def build_prepared(seed):
    return Prepared("small_cnn", classes=4, channels=3, image_size=8), []


def build_failing(seed):
    if torch.distributed.is_initialized() and torch.distributed.get_rank() == 1:
        raise RuntimeError("out of memory")
    return build(seed)


def make_pool(folder, count=4, vectorised=False, build=build):
    split = MembershipSplit(ToyImages(n=24, size=8))
    split.prepare_data()
    split.setup("fit")
    return ShadowPool(build, split, count, trainer=TRAINER, folder=folder, vectorised=vectorised)


def _observe(folder, count):
    pool = make_pool(folder, count)
    trained = pool.train()
    evidence = pool.observe(queries=2)
    return trained, evidence.record_ids, evidence.confidence, evidence.inside


def _uneven(folder):
    pool = make_pool(folder)
    if torch.distributed.get_rank() == 0:  # the other rank's share takes no part in this
        pool.train(share=(0, 2))
    torch.distributed.barrier()
    return make_pool(folder, build=build_prepared).train(), make_pool(folder).train()


def _fail(folder):
    try:
        make_pool(folder, build=build_failing).train()
    except (RuntimeError, PrivacyError) as error:
        return type(error).__name__, str(error)
    return None


@pytest.mark.dist
def test_two_ranks_make_the_scores_of_one(rank_pool, tmp_path):
    single = _observe(tmp_path / "one", 3 + 1)
    both = rank_pool.run(_observe, str(tmp_path / "two"), 4)
    assert [each[0] for each in both] == [[0, 2], [1, 3]]
    assert single[0] == [0, 1, 2, 3]
    for each in both:
        assert each[1] == single[1]
        assert torch.equal(each[2], single[2]) and torch.equal(each[3], single[3])
    files = [{p.name: p.read_bytes() for p in (tmp_path / where).iterdir()} for where in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) == 8


@pytest.mark.dist
def test_a_rank_with_nothing_to_do_waits_for_the_other(rank_pool, tmp_path):
    assert rank_pool.run(_uneven, str(tmp_path)) == [([0, 2], []), ([1, 3], [1, 3])]


@pytest.mark.dist
def test_a_rank_that_fails_is_heard_of_on_all(rank_pool, tmp_path):
    zero, one = rank_pool.run(_fail, str(tmp_path))
    assert one == ("RuntimeError", "out of memory")
    assert zero[0] == "PrivacyError" and "Rank 1" in zero[1] and "out of memory" in zero[1]
