import random

import numpy as np
import pytest
import torch

from lightning_privacy.attacks.membership.averaged_loss import AveragedLoss
from lightning_privacy.callbacks.audits.draw_plan import DrawPlan
from lightning_privacy.callbacks.audits.signals import available_signals, compute_signals, pooled_map
from lightning_privacy.callbacks.audits.untouched import untouched
from lightning_privacy.errors import InputError, MissingProtocolError, SplitError
from lightning_privacy.protocols import Draw

EVERYTHING = {"loss", "reference_loss", "error_map", "reference_error_map"}
PLAN = DrawPlan((100, 500), 2, 3)


def random_states():
    # Python's own is looked at apart: beartype draws from it at every check of a container.
    return torch.get_rng_state().tolist(), str(np.random.get_state())  # noqa: NPY002


def test_shapes_order_and_values(diffusion, split):
    signals = compute_signals(diffusion, split, ["eval_member", "holdout"], EVERYTHING, plan=PLAN)
    member = signals["eval_member"]
    assert member.record_ids == tuple(split.record_ids[i] for i in split.indices_of("eval_member"))
    assert member.loss.shape == member.reference_loss.shape == (10, 4)
    assert member.error_map.shape == (10, 4, 3 * 8 * 8)
    assert member.timesteps.tolist() == [100, 100, 500, 500]
    # one record by hand, from the plan's own noise
    diffusion.eval()
    index = split.indices_of("eval_member")[7]
    batch = {"image": split.images[index : index + 1], "record": torch.tensor([split.records[index]])}
    draw = PLAN.draws(diffusion, batch, [split.record_ids[index]])[2]
    assert draw.timesteps.tolist() == [500]
    with torch.no_grad():
        error = diffusion.per_sample_error(batch, draw)
    assert float(member.loss[7, 2]) == pytest.approx(float(error.mean()), rel=1e-5)
    assert torch.allclose(member.error_map[7, 2], error.flatten(), atol=1e-6)


def test_draws_do_not_depend_on_batches_or_order(diffusion, split):
    small = compute_signals(diffusion, split, ["val", "holdout"], {"loss"}, plan=PLAN, batch_size=3)
    large = compute_signals(diffusion, split, ["holdout"], {"loss"}, plan=PLAN, batch_size=10)
    assert torch.allclose(small["holdout"].loss, large["holdout"].loss, atol=1e-6)
    other = compute_signals(diffusion, split, ["holdout"], {"loss"}, plan=DrawPlan((100, 500), 2, 4))
    assert not torch.allclose(other["holdout"].loss, large["holdout"].loss)
    noises = [d.noise for d in PLAN.draws(diffusion, next(iter(split.loader("val"))), ["a", "b", "c", "d"])]
    flat = torch.stack(noises).flatten(2).flatten(0, 1)
    assert float((torch.corrcoef(flat) - torch.eye(16)).abs().max()) < 0.4  # no two draws or records share noise


def test_reference_uses_the_same_draws_and_is_cached(diffusion, split):
    cache = {}
    signals = compute_signals(diffusion, split, ["holdout"], EVERYTHING, plan=PLAN, cache=cache)["holdout"]
    assert torch.equal(signals.loss, signals.reference_loss)  # nothing is tuned yet
    with torch.no_grad():
        diffusion.tuned.weight += 0.3
    diffusion.calls = 0
    again = compute_signals(diffusion, split, ["holdout"], EVERYTHING, plan=PLAN, cache=cache)["holdout"]
    assert diffusion.calls == 3 * len(PLAN)  # three batches, no reference forwards
    assert torch.equal(again.reference_loss, signals.reference_loss)
    assert torch.equal(again.reference_error_map, signals.reference_error_map)
    assert not torch.equal(again.loss, signals.loss)


def test_nothing_is_left_behind(diffusion, split):
    diffusion.train()
    modes = [m.training for m in diffusion.modules()]
    assert True in modes
    assert False in modes
    state = {k: v.clone() for k, v in diffusion.state_dict().items()}
    before = random_states()
    compute_signals(diffusion, split, ["holdout"], EVERYTHING, plan=PLAN)
    assert [m.training for m in diffusion.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in diffusion.state_dict().items())
    assert random_states() == before
    assert all(p.grad is None for p in diffusion.parameters())


def test_every_random_stream_comes_back(diffusion):
    context = untouched(diffusion)
    before = random.getstate(), random_states()
    with context:
        random.random()
        np.random.rand()  # noqa: NPY002
        torch.rand(3)
        assert not torch.is_grad_enabled()
    assert (random.getstate(), random_states()) == before


def test_an_error_inside_restores_the_mode(diffusion, split):
    diffusion.train()
    diffusion.per_sample_error = lambda batch, draw=None: 1 / 0
    with pytest.raises(ZeroDivisionError):
        compute_signals(diffusion, split, ["holdout"], {"loss"}, plan=PLAN)
    assert diffusion.norm.training
    assert not diffusion.base.training


def test_a_deterministic_classifier_has_one_draw(classifier, split):
    found = available_signals(classifier)
    assert found == {"loss", "error_map", "logits", "labels"}
    signals = compute_signals(classifier, split, ["holdout"], {"loss", "error_map", "logits"})["holdout"]
    assert signals.loss.shape == (10, 1)
    assert signals.error_map.shape == (10, 1, 1)
    assert signals.logits.shape == (10, 1, 3)
    assert signals.timesteps is None
    classifier.sample_draw = lambda batch, generator: Draw()
    assert compute_signals(classifier, split, ["holdout"], {"loss"})["holdout"].loss.shape == (10, 1)


def test_a_module_that_draws_by_itself_is_pinned(diffusion, split):
    diffusion.sample_draw = None

    def own(module, batch, draw):
        assert draw is None
        noise = torch.randn_like(batch["image"])
        return (module.tuned(batch["image"]) - noise).square()

    first, second = (
        compute_signals(diffusion, split, ["holdout"], {"loss", "reference_loss"}, plan=PLAN, error_fn=own)["holdout"]
        for _ in range(2)
    )
    assert first.loss.shape == (10, 4)
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.loss, first.reference_loss)
    assert not torch.equal(first.loss[:, 0], first.loss[:, 1])
    assert first.timesteps is None


def test_missing_protocols_are_named(classifier, split):
    with pytest.raises(MissingProtocolError, match=r"ToyClassifier.*reference"):
        compute_signals(classifier, split, ["holdout"], {"reference_loss"})
    classifier.per_sample_error = None
    with pytest.raises(MissingProtocolError, match="cross_entropy"):
        compute_signals(classifier, split, ["holdout"], AveragedLoss.requires)


def test_a_loader_out_of_order_is_refused(diffusion, split):
    honest = split.loader
    split.loader = lambda role, batch_size=None: honest("val", batch_size)
    with pytest.raises(SplitError, match="holdout"):
        compute_signals(diffusion, split, ["holdout"], {"loss"}, plan=PLAN)
    split.loader = lambda role, batch_size=None: list(honest(role, batch_size))[:-1]
    with pytest.raises(SplitError, match="yields 8 records"):
        compute_signals(diffusion, split, ["holdout"], {"loss"}, plan=PLAN)


def test_pooling():
    assert pooled_map(torch.ones(2, 4, 64, 64)).shape == (2, 256)
    assert pooled_map(torch.ones(2, 4, 8, 8)).shape == (2, 256)
    assert pooled_map(torch.ones(2, 4, 5, 96)).shape == (2, 160)
    assert pooled_map(torch.ones(2)).shape == (2, 1)
    halves = torch.cat([torch.zeros(1, 1, 8, 16), torch.ones(1, 1, 8, 16)], 2)
    assert pooled_map(halves).tolist() == [[0.0] * 32 + [1.0] * 32]


def test_default_timesteps_follow_the_schedule(diffusion, split):
    batch = next(iter(split.loader("val")))
    diffusion.register_buffer("alphas_cumprod", torch.ones(1000), persistent=False)
    assert DrawPlan().fit_to(diffusion, batch).timesteps == tuple(range(50, 951, 100))
    diffusion.alphas_cumprod = torch.ones(100)
    assert DrawPlan().fit_to(diffusion, batch).timesteps == tuple(range(5, 96, 10))
    with pytest.raises(InputError, match=r"\[5, 100\].*100 steps"):
        DrawPlan((5, 100)).fit_to(diffusion, batch)
    del diffusion.alphas_cumprod
    guessed = DrawPlan().fit_to(diffusion, batch).timesteps
    assert len(guessed) == 10
    assert max(abs(a - b) for a, b in zip(guessed, range(50, 951, 100), strict=True)) < 60
