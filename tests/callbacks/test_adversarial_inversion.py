import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_privacy.callbacks import AdversarialInversion
from lightning_privacy.callbacks.adversarial_inversion.decoder import InversionDecoder
from lightning_privacy.callbacks.adversarial_inversion.functional import hidden_error, reconstruction_error
from lightning_privacy.errors import InputError
from lightning_privacy.properties import Property
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import plain_images
from lightning_privacy.testing.tiny_classifier import TinyClassifier
from lightning_privacy.testing.toy_data import ToyImages

SMALL = {"tap": "network.conv1", "width": 4, "measure": "mse"}


def pictures(n=6, size=8, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_errors_are_of_each_picture():
    x, guess = pictures(), pictures(seed=1)
    mse = reconstruction_error(guess, x)
    assert mse.tolist() == pytest.approx([(g - p).pow(2).mean().item() for g, p in zip(guess, x, strict=True)])
    big, other = pictures(3, 16), pictures(3, 16, seed=1)
    ssim = reconstruction_error(other, big, "ssim")
    for i in range(3):
        expected = structural_similarity_index_measure(other[i : i + 1], big[i : i + 1], data_range=1.0)
        assert 1 - ssim[i].item() == pytest.approx(float(expected), abs=1e-5)


def test_gradient_of_either_error_reaches_the_guess():
    for measure in ("mse", "ssim"):
        guess = pictures(seed=1).requires_grad_()
        reconstruction_error(guess, pictures(), measure).sum().backward()
        assert guess.grad is not None and guess.grad.abs().sum() > 0


def test_a_hidden_picture_pulls_no_more():
    error = torch.tensor([0.01, 0.04, 0.2], requires_grad=True)
    value = hidden_error(error, 0.05)
    value.backward()
    assert value.item() == pytest.approx((0.01 + 0.04 + 0.05) / 3)
    assert error.grad is not None and error.grad.tolist() == pytest.approx([1 / 3, 1 / 3, 0])


@pytest.mark.parametrize("shape", [(5, 4, 4), (5, 8, 8), (5, 16, 16), (12,), (7, 9)])
@pytest.mark.parametrize("size", [(8, 8), (9, 14)])
def test_the_decoder_takes_any_layer_and_any_picture(shape, size):
    out = InversionDecoder(shape, (3, *size), width=4)(torch.randn(2, *shape))
    assert out.shape == (2, 3, *size) and out.min() > 0 and out.max() < 1
    assert InversionDecoder(shape, (3, *size), width=4)(torch.zeros(2, *shape)).isfinite().all()


def test_the_decoder_cannot_be_blinded_by_a_smaller_scale():
    torch.manual_seed(0)
    decoder, z = InversionDecoder((5, 4, 4), (3, 8, 8), width=4), torch.randn(2, 5, 4, 4)
    with torch.no_grad():
        decoder.inward.weight[:, -1] = 0  # the input that tells the scale
        torch.testing.assert_close(decoder(z), decoder(1e-3 * z), rtol=1e-3, atol=1e-4)


def test_the_decoder_learns_and_the_model_learns_to_hide(tmp_path):
    def error(strength, ceiling=None):
        defence = AdversarialInversion(strength=strength, ceiling=ceiling, decoder_steps=5, lr=1e-2, **SMALL)
        fitted = fit(tmp_path, TinyClassifier(), plain_images(16), [defence], max_epochs=12)
        return float(fitted.trainer.callback_metrics["defence/adversarial_inversion/mse_error"])

    undefended = error(0.0)
    first = InversionDecoder((4, 8, 8), (3, 8, 8), width=4)
    assert undefended < 0.8 * reconstruction_error(first(torch.zeros(6, 4, 8, 8)), pictures()).mean().item()
    assert error(20.0, 1.0) > 1.2 * undefended


def test_the_decoders_weights_move_and_stay_out_of_the_models_optimizer(tmp_path):
    defence = AdversarialInversion(**SMALL)
    fitted = fit(tmp_path, TinyClassifier(), plain_images(8), [defence], max_steps=1)
    learner = defence._learner
    assert learner is not None and learner.steps == 3
    weights = {id(p) for p in learner.module.parameters()}
    in_optimizer = {id(p) for o in fitted.trainer.optimizers for g in o.param_groups for p in g["params"]}
    assert not weights & (in_optimizer | {id(p) for p in fitted.module.parameters()})
    again = AdversarialInversion(**SMALL)
    fit(tmp_path, TinyClassifier(), plain_images(8), [again], max_steps=2)
    moved = [
        not torch.equal(a, b)
        for a, b in zip(learner.module.parameters(), again._learner.module.parameters(), strict=True)
    ]
    assert all(moved)


def test_the_strength_reaches_the_network_up_to_the_tap_alone(tmp_path):
    def trained(defences):
        return fit(tmp_path, TinyClassifier(), plain_images(8), defences, max_steps=1).weights

    plain, defended = trained([]), trained([AdversarialInversion(ceiling=1.0, **SMALL)])
    moved = {name for name in plain if not torch.equal(plain[name], defended[name])}
    assert moved and all(name.startswith("network.conv1") for name in moved)


def test_beyond_the_ceiling_the_model_is_trained_undefended(tmp_path):
    def trained(defences):
        return fit(tmp_path, TinyClassifier(), plain_images(8), defences, max_steps=3).weights

    plain, defended = trained([]), trained([AdversarialInversion(ceiling=1e-9, **SMALL)])
    assert all(torch.equal(plain[name], defended[name]) for name in plain)


def test_its_decoder_has_seen_the_members():
    assert AdversarialInversion("x").breaks == {Property.SIDE_STATE_PRIVATE}


def test_wrong_arguments_and_pictures_out_of_range_are_said(tmp_path):
    for wrong in ({"strength": -1}, {"ceiling": 0}, {"decoder_steps": 0}, {"width": 0}, {"lr": 0}):
        with pytest.raises(InputError, match=f"`{next(iter(wrong))}`"):
            AdversarialInversion("network.conv1", **wrong)

    class Shifted(ToyImages):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return {**batch, "image": 2 * batch["image"] - 1}

    with pytest.raises(InputError, match=r"reconstructs pictures in \[0, 1\]"):
        fit(tmp_path, TinyClassifier(), Shifted(32, size=8), [AdversarialInversion(**SMALL)])
