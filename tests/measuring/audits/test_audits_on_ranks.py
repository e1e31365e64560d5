import pytest
import torch

from lightning_privacy.callbacks.audits.membership import audit_membership
from lightning_privacy.callbacks.audits.untouched import gather_parts, on_rank_zero, rank


def audited():
    """Scores of an audit, and how many records this rank has looked at itself."""
    from lightning_privacy.testing.settings import split_images
    from lightning_privacy.testing.tiny_modules import TinyDenoiser

    module, split = TinyDenoiser(), split_images(4)
    split.prepare_data()
    split.setup("fit")
    seen = []
    error = module.per_sample_error
    module.per_sample_error = lambda batch, draw=None: (seen.append(len(batch["image"])), error(batch, draw))[1]
    with torch.no_grad():
        module.up.weight += 0.1
    options = {"timesteps": (20, 60), "draws": 2, "bootstrap": 50, "batch_size": 5}
    results = audit_membership(module, split, ["averaged_loss", "calibrated_loss"], **options)
    return [(r.attack, r.extra["member_scores"], r.metrics["auroc"].low) for r in results], sum(seen)


def fails_on_zero():
    parts = gather_parts({rank(): rank() * 10})

    def attack():
        raise ValueError("no luck")

    try:
        on_rank_zero(attack)
    except ValueError as error:
        return parts, str(error)


@pytest.mark.dist
def test_two_ranks_share_the_work_and_agree_with_one(rank_pool):
    alone, all_seen = audited()
    (first, seen_first), (second, seen_second) = rank_pool.run(audited)
    assert first == second
    assert first == alone
    assert seen_first + seen_second == all_seen
    assert min(seen_first, seen_second) > 0.3 * all_seen


@pytest.mark.dist
def test_an_error_on_rank_zero_reaches_every_rank(rank_pool):
    assert rank_pool.run(fails_on_zero) == [([0, 10], "no luck")] * 2
