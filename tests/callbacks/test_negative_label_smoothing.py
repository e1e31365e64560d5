import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_privacy.callbacks import NegativeLabelSmoothing
from lightning_privacy.callbacks.negative_label_smoothing.functional import margin_over_mean, scheduled_factor
from lightning_privacy.errors import InputError, MissingProtocolError
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import plain_images
from lightning_privacy.testing.tiny_classifier import TinyClassifier
from lightning_privacy.testing.tiny_modules import PlainRegressor

AT_ONCE = {"warmup": 0.0, "ramp": 0.0}


def smoothed_by_hand(logits, labels, alpha):
    targets = F.one_hot(labels, logits.shape[1]) * (1 - alpha) + alpha / logits.shape[1]
    return -(targets * logits.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
def test_positive_factors_are_torchs_label_smoothing(alpha):
    logits, labels = 3 * torch.randn(50, 7), torch.randint(7, (50,))
    ours = F.cross_entropy(logits, labels) + alpha * margin_over_mean(logits, labels).mean()
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, label_smoothing=alpha))


@pytest.mark.parametrize("alpha", [-0.05, -2.0])
def test_negative_factors_are_the_cross_entropy_against_the_sharpened_label(alpha):
    logits, labels = 3 * torch.randn(50, 7), torch.randint(7, (50,))
    ours = F.cross_entropy(logits, labels) + alpha * margin_over_mean(logits, labels).mean()
    torch.testing.assert_close(ours, smoothed_by_hand(logits, labels, alpha))


def test_the_schedule():
    assert [scheduled_factor(-1.0, epoch / 100, 0.5, 0.25) for epoch in (0, 49, 50, 60, 75, 99)] == pytest.approx(
        [0, 0, 0, -0.4, -1, -1]
    )
    assert scheduled_factor(-1.0, 0.0, 0.0, 0.0) == -1.0
    assert scheduled_factor(-1.0, 0.5, 0.5, 0.0) == -1.0


def test_training_equals_torchs_label_smoothing(tmp_path):
    class Smoothed(TinyClassifier):
        def __init__(self):
            super().__init__()
            self.label_smoothing = 0.2

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.logits(batch), batch["label"], label_smoothing=0.2)

    expected = fit(tmp_path, Smoothed(), plain_images(8)).weights
    found = fit(
        tmp_path, TinyClassifier(), plain_images(8), [NegativeLabelSmoothing(0.2, tap="scores", **AT_ONCE)]
    ).weights
    torch.testing.assert_close(found, expected)


class WithDropout(TinyClassifier):
    """Counts its forward passes; a second one would draw another mask."""

    shares = False

    def __init__(self):
        super().__init__()
        self.dropout, self.passes = nn.Dropout(0.5), 0

    def logits(self, batch):
        self.passes += 1
        return self.dropout(super().logits(batch))

    def training_step(self, batch, batch_idx):
        logits = self.logits(batch)
        loss = F.cross_entropy(logits, batch["label"])
        return {"loss": loss, "logits": logits} if self.shares else {"loss": loss}


class Sharing(WithDropout):
    shares = True


@pytest.mark.parametrize(
    ("module", "tap", "passes"), [(WithDropout, None, 8), (WithDropout, "dropout", 4), (Sharing, None, 4)]
)
def test_a_second_forward_pass_is_paid_only_where_no_logits_are_shared(tmp_path, module, tap, passes):
    defence = NegativeLabelSmoothing(-0.1, tap=tap, **AT_ONCE)
    assert fit(tmp_path, module(), plain_images(8), [defence], limit_val_batches=0).module.passes == passes


def test_shared_logits_and_tapped_logits_train_the_same(tmp_path):
    tapped = fit(tmp_path, WithDropout(), plain_images(8), [NegativeLabelSmoothing(-0.1, tap="dropout", **AT_ONCE)])
    shared = fit(tmp_path, Sharing(), plain_images(8), [NegativeLabelSmoothing(-0.1, **AT_ONCE)])
    assert all(torch.equal(v, shared.weights[k]) for k, v in tapped.weights.items())


def test_training_is_undefended_before_the_warm_up_ends(tmp_path):
    class Factors(L.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_end(self, trainer, *args):
            self.seen.append(round(float(trainer.callback_metrics["defence/negative_label_smoothing/factor"]), 6))

    factors, module = Factors(), WithDropout()
    defence = NegativeLabelSmoothing(-0.1, warmup=0.5, ramp=0.25)
    fit(tmp_path, module, plain_images(32), [defence, factors], max_epochs=8, limit_val_batches=0)
    assert factors.seen == [0, 0, 0, 0, 0, -0.05, -0.1, -0.1]
    assert module.passes == 8 + 3  # a second pass at factor 0 would move the random state


def test_factor_0_with_dropout_is_undefended_bit_for_bit(tmp_path):
    plain = fit(tmp_path, WithDropout(), plain_images(8))
    idle = fit(tmp_path, WithDropout(), plain_images(8), [NegativeLabelSmoothing(0.0, **AT_ONCE)])
    assert all(torch.equal(v, idle.weights[k]) for k, v in plain.weights.items())


def test_a_negative_factor_makes_the_model_surer_and_a_positive_one_less_sure(tmp_path):
    def margin(factor):
        defence = NegativeLabelSmoothing(factor, tap="scores", **AT_ONCE)
        trainer = fit(tmp_path, TinyClassifier(), plain_images(32), [defence], max_epochs=20).trainer
        return float(trainer.callback_metrics["defence/negative_label_smoothing/margin"])

    assert margin(-0.2) > margin(-1e-9) > margin(0.2)


def test_what_cannot_work_is_said(tmp_path):
    for wrong in ({"factor": 1.5}, {"factor": -float("inf")}, {"warmup": 1.0}, {"warmup": 0.9, "ramp": 0.2}):
        with pytest.raises(InputError, match=f"`{next(iter(wrong))}`"):
            NegativeLabelSmoothing(**wrong)
    with pytest.raises(MissingProtocolError, match=r"PlainRegressor\.logits"):
        fit(tmp_path, PlainRegressor(), plain_images(8), [NegativeLabelSmoothing(**AT_ONCE)])
    with pytest.raises(InputError, match=r"it needs one row of class scores a record"):
        fit(
            tmp_path,
            TinyClassifier(),
            plain_images(8),
            [NegativeLabelSmoothing(tap="network.conv1", **AT_ONCE)],
        )
    with pytest.warns(UserWarning, match="1 epochs end within the warm-up of 0.5"):
        fit(tmp_path, TinyClassifier(), plain_images(8), [NegativeLabelSmoothing()])
    with pytest.raises(InputError, match="this trainer has no end"):
        fit(
            tmp_path,
            TinyClassifier(),
            plain_images(8),
            [NegativeLabelSmoothing()],
            max_epochs=-1,
            max_time="00:00:00:05",
        )


def test_max_steps_is_an_end_too(tmp_path):
    defence = NegativeLabelSmoothing(-0.1, tap="scores", warmup=0.5, ramp=0.0)
    fitted = fit(tmp_path, TinyClassifier(), plain_images(8), [defence], max_epochs=-1, max_steps=4)
    assert float(fitted.trainer.callback_metrics["defence/negative_label_smoothing/factor"]) == pytest.approx(-0.1)
