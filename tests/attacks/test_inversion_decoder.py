import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_privacy.attacks.inversion import views as views_module
from lightning_privacy.attacks.inversion.decoder import InversionNetwork, map_shape
from lightning_privacy.attacks.inversion.flatness import FlatnessRule, train_until_flat
from lightning_privacy.attacks.inversion.observing import answers_alike
from lightning_privacy.attacks.inversion.picture_loss import box_ssim
from lightning_privacy.attacks.inversion.tap_scale import fit_tap_scale
from lightning_privacy.attacks.inversion.target import InversionAttack, InversionTarget
from lightning_privacy.attacks.inversion.trained_decoder import TrainedDecoder
from lightning_privacy.attacks.inversion.views import ObservedViews, moved_copies
from lightning_privacy.errors import InputError

SHAPE = (1, 8, 8)
QUICK = FlatnessRule(max_steps=400, check_every=25, drops=1)


def blobs(n, seed=0):
    """Smooth pictures: nine numbers blown up."""
    g = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(n, 1, 3, 3, generator=g), (8, 8), mode="bilinear", align_corners=True).clamp(0, 1)


def decoder(steps=400, **options):
    return TrainedDecoder(max_steps=steps, **{"width": 16, "blocks": 1, "views": 1, "rule": QUICK, **options})


def psnr(a, b):
    return float((-10 * (a - b).square().mean((1, 2, 3)).log10()).mean())


@pytest.mark.parametrize(
    "tap", [(8, 8, 8), (5, 4, 4), (3, 7, 7), (2, 13, 9), (4, 40, 40), (12,), (6, 2, 2), (16, 24), (5, 7), (256, 1, 1)]
)
@pytest.mark.parametrize("picture", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 18, 30)])
def test_the_network_reads_any_tap_and_draws_any_picture(tap, picture):
    network = InversionNetwork(tap, picture, width=8, blocks=1)
    made = network(torch.randn(2, *tap))
    assert made.shape == (2, *picture)
    assert made.min() >= 0 and made.max() <= 1


def test_tokens_are_laid_out_where_they_lie():
    assert map_shape((16, 24), (32, 32)) == (24, 4, 4)
    assert map_shape((17, 24), (32, 32)) is None
    network = InversionNetwork((16, 3), (1, 16, 16), width=8, blocks=1)
    tokens = torch.zeros(1, 16, 3)
    tokens[0, 5] = 10  # row 1, column 1 of 4 by 4
    moved = (network(tokens) - network(torch.zeros(1, 16, 3))).abs()[0, 0]
    assert moved[4:8, 4:8].mean() > moved[12:, 12:].mean()


def test_the_start_picture_is_the_answer_where_nothing_is_known():
    picture = blobs(1)[0] * 0.8 + 0.1
    network = InversionNetwork((4,), SHAPE, width=8, blocks=1)
    with torch.no_grad():
        for layer in (network.rise[-2], network.direct[0]):
            layer.weight.zero_(), layer.bias.zero_()
    network.start_at(picture)
    torch.testing.assert_close(network(torch.randn(1, 4))[0], picture)


def test_an_invertible_tap_is_undone():
    own, victims = blobs(300), blobs(50, seed=1)
    target = InversionTarget(lambda x: F.pixel_unshuffle(x, 2) * 3 - 1, "split", SHAPE)
    attack = decoder(250)
    attack.fit(target, own[:250], own[250:], seed=0)
    assert psnr(attack.reconstruct(target, target.observe(victims), 0), victims) > 30


def test_a_tap_that_says_nothing_yields_the_mean_picture():
    own = blobs(200)
    target = InversionTarget(lambda x: torch.ones(len(x), 5), "features", SHAPE)
    attack = decoder(200, ssim_weight=0)
    attack.fit(target, own[:160], own[160:], seed=0)
    made = attack.reconstruct(target, torch.ones(2, 5), 0)
    assert (made - own.mean(0)).abs().max() < 0.05


def test_a_scale_that_differs_by_orders_of_magnitude_does_not_matter():
    own, victims = blobs(200), blobs(20, seed=1)
    size = torch.tensor([1e-4, 1.0, 1e3, 10.0]).view(1, 4, 1, 1)
    found = []
    for scale in (torch.ones_like(size), size):
        target = InversionTarget(lambda x, s=scale: F.pixel_unshuffle(x, 2) * s, "split", SHAPE)
        attack = decoder(100)
        attack.fit(target, own[:160], own[160:], seed=0)
        found.append(attack.reconstruct(target, target.observe(victims), 0))
    torch.testing.assert_close(*found, atol=5e-3, rtol=0)


def test_only_the_attacker_learns():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()  # gradients left on, on purpose
    before = copy.deepcopy(model.state_dict())
    target, own = InversionTarget(model, "split", SHAPE), blobs(64)
    attack, idle = decoder(30), decoder(1, lr=1e-12)
    for a in (attack, idle):
        a.fit(target, own[:48], own[48:], seed=0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not torch.equal(attack.network.body[0].first.weight, idle.network.body[0].first.weight)


def test_a_seed_decides_everything_and_the_global_state_comes_back():
    model = lambda x: x.mean((2, 3)) + 0.1 * torch.randn(len(x), 1)  # noqa: E731
    target, own = InversionTarget(model, "features", SHAPE), blobs(64)
    state, made = torch.get_rng_state(), []
    for seed in (0, 0, 1):
        attack = decoder(30, views=2)
        attack.fit(target, own[:48], own[48:], seed=seed)
        made.append(attack.reconstruct(target, torch.full((1, 1), 0.5), 0))
        torch.rand(3)  # moves the global state between the runs
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    torch.set_rng_state(state)
    decoder(5).fit(target, own[:48], own[48:], seed=0)
    assert torch.equal(state, torch.get_rng_state())


def test_a_decoder_that_was_still_learning_says_so():
    own = blobs(100)
    target = InversionTarget(lambda x: F.pixel_unshuffle(x, 2), "split", SHAPE)
    record = decoder(50).fit(target, own[:80], own[80:], seed=0)
    assert not record.converged and record.steps == 50 and "not flat" in record.note


def test_flat_means_that_checks_in_a_row_gained_nothing():
    weight = nn.Linear(1, 1)
    losses = iter([1.0, 0.5, 0.5, 0.499, 0.3, 0.3, 0.3, 0.3])
    rule = FlatnessRule(max_steps=100, check_every=1, patience=2, gain=0.01, drops=1)
    record = train_until_flat(
        weight, lambda: weight.weight.square().sum() + 0 * weight.bias.sum(), lambda: next(losses), 0.1, rule
    )
    # 0.5, 0.499: two checks without 1 %, the rate falls; then 0.3 is better, and two more are not: flat.
    assert record.converged and record.steps == 7
    assert [v for _, v in record.history] == [1.0, 0.5, 0.5, 0.499, 0.3, 0.3, 0.3]


def test_the_best_weights_are_kept():
    weight = nn.Linear(1, 1, bias=False)
    seen, losses = [], iter([3.0, 1.0, 2.0, 2.0])

    def validate():
        seen.append(weight.weight.item())
        return next(losses)

    train_until_flat(weight, lambda: weight.weight.sum(), validate, 0.1, FlatnessRule(4, check_every=1, patience=9))
    assert weight.weight.item() == seen[1]


def test_a_loss_that_is_not_finite_is_refused():
    weight = nn.Linear(1, 1, bias=False)
    with pytest.raises(InputError, match="lower the rate"):
        train_until_flat(weight, lambda: weight.weight.sum(), lambda: float("nan"), 0.1, FlatnessRule(check_every=1))


def test_noise_is_drawn_anew_each_epoch_and_a_fixed_tap_is_asked_once():
    own, calls = blobs(8), []

    def noisy(x):
        calls.append(len(x))
        return x.flatten(1) + torch.randn(len(x), 64)

    for fixed, asked in ((False, 7), (True, 2)):  # the scale is measured once more
        calls.clear()
        views = ObservedViews(InversionTarget(noisy, "split", SHAPE), own, 2, 1, True, fixed, 8, torch.Generator())
        batches = iter(views)
        first = [next(batches) for _ in range(6)]
        assert len(calls) == asked
        assert first[0][1].sort(0).values.equal(first[2][1].sort(0).values)  # the same view, two epochs later
        assert first[0][0].sort(0).values.equal(first[2][0].sort(0).values) == fixed


def test_views_of_a_fixed_tap_stop_where_memory_ends(monkeypatch):
    monkeypatch.setattr(views_module, "_KEPT_BYTES", 8 * 64 * 4 * 3)
    views = ObservedViews(
        InversionTarget(lambda x: x.flatten(1), "split", SHAPE), blobs(8), 9, 1, True, True, 8, torch.Generator()
    )
    batches = iter(views)
    shown = [next(batches)[1].sort(0).values for _ in range(4)]
    assert torch.equal(shown[0], shown[3]) and not torch.equal(shown[0], shown[1])


def test_whether_a_model_answers_alike_is_measured():
    own = blobs(4)
    assert answers_alike(InversionTarget(lambda x: x * 2, "split", SHAPE), own)
    assert not answers_alike(InversionTarget(lambda x: x + torch.rand_like(x), "split", SHAPE), own)


def test_moves_repeat_the_edge_and_mirror():
    x = torch.arange(9.0).view(1, 1, 3, 3).expand(200, 1, 3, 3)
    moved = moved_copies(x, 1, True, torch.Generator().manual_seed(0)).squeeze(1)
    kinds = {tuple(m.flatten().tolist()) for m in moved}
    assert len(kinds) == 18
    assert (2, 1, 0, 5, 4, 3, 8, 7, 6) in kinds  # mirrored
    assert (0, 0, 1, 3, 3, 4, 6, 6, 7) in kinds  # moved right
    assert (3, 4, 5, 6, 7, 8, 6, 7, 8) in kinds  # moved up


def test_probabilities_are_read_as_logarithms():
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]])
    scaled = fit_tap_scale(p, "probabilities")(p)
    expected = p.log()
    torch.testing.assert_close(scaled, (expected - expected.mean(0)) / expected.std(0, correction=0))
    assert fit_tap_scale(p, "probabilities")(torch.zeros(1, 2)).isfinite().all()


def test_box_ssim_is_that_of_a_uniform_window():
    skimage = pytest.importorskip("skimage.metrics")
    a, b = blobs(1)[0, 0], (blobs(1) * 0.7 + 0.1)[0, 0]
    full = skimage.structural_similarity(
        a.numpy(), b.numpy(), win_size=3, data_range=1.0, use_sample_covariance=False, full=True
    )[1]
    torch.testing.assert_close(
        box_ssim(a[None, None], b[None, None])[0], torch.tensor(full[1:-1:2, 1:-1:2].mean()).float(), atol=1e-4, rtol=0
    )


def test_what_cannot_work_is_refused_in_a_sentence():
    target = InversionTarget(lambda x: x * float("nan"), "split", SHAPE)
    with pytest.raises(InputError, match="NaN"):
        decoder().fit(target, blobs(4), blobs(4), 0)
    with pytest.raises(InputError, match="call `fit`"):
        decoder().reconstruct(target, torch.zeros(1, 4), 0)
    with pytest.raises(InputError, match="views"):
        TrainedDecoder(views=0)
    with pytest.raises(InputError, match="at least 4 pixels"):
        InversionNetwork((4,), (1, 2, 2))
    with pytest.raises(InputError, match="check_every"):
        FlatnessRule(check_every=0)


def test_it_is_an_inversion_attack():
    assert isinstance(TrainedDecoder(), InversionAttack)
