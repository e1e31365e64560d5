import json

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from lightning_privacy.callbacks.quality import extractors as extractor_file
from lightning_privacy.callbacks.quality.extractors import METRICS, build_extractor
from lightning_privacy.callbacks.quality.grids import picture_grid, save_grid
from lightning_privacy.callbacks.quality.image_quality import ImageQuality
from lightning_privacy.callbacks.quality.picture_sets import batch_pictures, generated_set, spread
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.errors import InputError, MissingProtocolError, SplitError
from lightning_privacy.metrics.frechet import frechet_distance, kernel_distance
from lightning_privacy.metrics.functional.reconstruction import paired_similarity

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


class Quadrants(nn.Module):
    def forward(self, pictures):
        return nn.functional.adaptive_avg_pool2d(pictures, 2).flatten(1)


@pytest.fixture
def quadrants(monkeypatch):
    """A tiny extractor in place of the real one, which is tested once below."""
    built = []

    def build(name, weights=None):
        built.append(name)
        return Quadrants()

    monkeypatch.setattr("lightning_privacy.callbacks.quality.image_quality.build_extractor", build)
    return built


def lines_of(folder):
    return {m["name"]: m for m in RunFolder(folder).measurements()}


def test_values_counts_and_files(diffusion, split, trainer_of, tmp_path, quadrants):
    quality = ImageQuality(n=24, batch_size=10, grid=6, seed=3)
    logger = CSVLogger(tmp_path, "csv", version=0)
    shown = []
    logger.log_image = lambda key, images, step=None: shown.append((key, images, step))
    trainer = trainer_of(quality, max_epochs=1, logger=logger)
    trainer.fit(diffusion, datamodule=split)
    found = lines_of(tmp_path)
    assert set(found) == quality.result_names(trainer, diffusion)
    prompts = [f"picture {i % 3}" for i in range(10)]
    parts = [diffusion.generate(["x"] * k, seed=3 + start) for start, k in ((0, 10), (10, 10), (20, 4))]
    fake = Quadrants()(torch.cat(parts))
    real = Quadrants()(split.images[split.indices_of("holdout")])
    members = Quadrants()(split.images[split.indices_of("eval_member")])
    assert len(prompts) == len(real)
    fd = found["fd_efficientnet_lite0"]
    assert fd["value"] == pytest.approx(frechet_distance(real, fake), rel=1e-6)
    assert fd["n"] == {"generated": 24, "real": 10}
    assert (fd["kind"], fd["step"], fd["epoch"], fd["valid"]) == ("quality", 5, 1, True)
    assert found["fd_efficientnet_lite0_member"]["value"] == pytest.approx(frechet_distance(members, fake), rel=1e-6)
    assert found["fd_efficientnet_lite0_floor"]["value"] == pytest.approx(frechet_distance(members, real), rel=1e-6)
    kid = found["kid_efficientnet_lite0"]
    assert kid["value"] == pytest.approx(kernel_distance(real, fake)[0], rel=1e-6)
    assert kid["low"] < kid["value"] < kid["high"]
    assert float(trainer.callback_metrics["quality/fd_efficientnet_lite0"]) == pytest.approx(fd["value"])
    assert "quality/kid_efficientnet_lite0" in (tmp_path / "csv" / "version_0" / "metrics.csv").read_text()
    with Image.open(tmp_path / "pictures" / "samples-epoch-0001.png") as image:
        sheet = np.asarray(image)
    assert sheet.shape == (18, 28, 3)  # six pictures of 8 x 8 in rows of three, two pixels apart
    assert sheet[:8, :8].tolist() == (parts[0][0] * 255).round().byte().permute(1, 2, 0).tolist()
    assert [(key, step) for key, _, step in shown] == [("quality/samples", 5)]


def test_training_goes_on_as_if_nothing_had_happened(diffusion, split, trainer_of, quadrants, tmp_path):
    import copy

    import lightning.pytorch as L

    finals = []
    for callbacks in ([], [ImageQuality(n=4, every_n_epochs=1)]):
        module = copy.deepcopy(diffusion)
        L.seed_everything(5, verbose=False)
        trainer_of(*callbacks, max_epochs=2).fit(module, datamodule=split)
        finals.append((module.state_dict(), [m.training for m in module.modules()], torch.get_rng_state().tolist()))
    assert all(torch.equal(finals[0][0][k], finals[1][0][k]) for k in finals[0][0])
    assert finals[0][1:] == finals[1][1:]
    assert not any("extractor" in name for name in finals[1][0])
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "measurements.jsonl").read_text().splitlines()]
    assert sorted(set(epochs)) == [1, 2]
    assert len(epochs) == 12  # two metrics, three lines each, two epochs: the end is not measured twice


def test_pictures_of_two_calls_differ(diffusion):
    both = generated_set(diffusion, ["x"] * 8, 0, 4, {"q": Quadrants()})
    assert len(both.features["q"].unique(dim=0)) == 8
    again = generated_set(diffusion, ["x"] * 8, 0, 4, {"q": Quadrants()})
    assert torch.equal(both.features["q"], again.features["q"])


def test_real_features_are_cached_by_content(diffusion, split, trainer_of, quadrants, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    trainer_of(ImageQuality(n=4, cache_dir=cache), max_epochs=1).fit(diffusion, datamodule=split)
    first = lines_of(tmp_path)["fd_efficientnet_lite0_floor"]["value"]
    files = sorted(cache.iterdir())
    assert len(files) == 6  # three batches of each of two roles

    calls = []
    forward = Quadrants.forward
    monkeypatch.setattr(Quadrants, "forward", lambda self, x: (calls.append(len(x)), forward(self, x))[1])
    trainer_of(ImageQuality(n=4, cache_dir=cache), max_epochs=1).fit(diffusion, datamodule=split)
    assert calls == [4]  # the generated pictures alone
    assert lines_of(tmp_path)["fd_efficientnet_lite0_floor"]["value"] == first
    split.images += 0.5
    split.images.clamp_(0, 1)
    trainer_of(ImageQuality(n=4, cache_dir=cache), max_epochs=1).fit(diffusion, datamodule=split)
    assert lines_of(tmp_path)["fd_efficientnet_lite0_floor"]["value"] != first


def test_what_is_missing_is_said_before_training(diffusion, classifier, split, trainer_of, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"fvd.*fid, kid, fd_efficientnet_lite0"):
        ImageQuality(["fvd"])
    with pytest.raises(InputError, match="n=2"):
        ImageQuality(n=2)
    with pytest.raises(MissingProtocolError, match=r"ToyClassifier\.generate"):
        trainer_of(ImageQuality()).fit(classifier, datamodule=split)
    with pytest.raises(SplitError, match="ImageQuality must know"):
        trainer_of(ImageQuality()).fit(diffusion, split.train_dataloader())
    with pytest.raises(InputError, match=r"nowhere\.pth.*fd_efficientnet_lite0"):
        trainer_of(ImageQuality(["fid"], inception_weights="nowhere.pth")).fit(diffusion, datamodule=split)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="other weights"):
        trainer_of(ImageQuality(["kid"], inception_weights=tmp_path / "other.pth")).fit(diffusion, datamodule=split)
    (tmp_path / "broken.pth").write_bytes(b"no pickle")
    with pytest.raises(InputError, match="cannot be read"):
        build_extractor("inception", tmp_path / "broken.pth")

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", unreachable)
    with pytest.raises(InputError, match=r"could not be downloaded.*no route"):
        trainer_of(ImageQuality(["fid"])).fit(diffusion, datamodule=split)
    assert not (tmp_path / "measurements.jsonl").exists()


def test_inception_weights_from_a_file(tmp_path):
    """Weights of the right shape (random here) load, and pictures reach the network as torchmetrics feeds it."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    load = FeatureExtractorInceptionV3.load_state_dict
    with torch.random.fork_rng():
        torch.manual_seed(0)
        FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
        try:
            torch.save({}, tmp_path / "empty.pth")
            net = FeatureExtractorInceptionV3("i", ["2048"], feature_extractor_weights_path=str(tmp_path / "empty.pth"))
        finally:
            FeatureExtractorInceptionV3.load_state_dict = load
    torch.save(net.state_dict(), tmp_path / "inception.pth")
    extractor = build_extractor("inception", tmp_path / "inception.pth").train()
    assert not extractor.net.training
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.rand(3, 3, 40, 40, generator=generator), torch.rand(3, 3, 40, 40, generator=generator) ** 2
    extractor.net.num_features = 2048
    theirs = FrechetInceptionDistance(extractor.net)
    for pictures, side in ((real, True), (fake, False)):
        theirs.update((pictures * 255).round().byte(), real=side)
    with torch.no_grad():
        features = [extractor(x) for x in (real, fake)]
    assert features[0].shape == (3, 2048)
    mean = theirs.real_features_sum / 3
    assert torch.allclose(features[0].double().mean(0), mean, rtol=1e-5, atol=1e-7)


def test_the_wheels_extractor_sees_a_difference():
    extractor = build_extractor("efficientnet_lite0")
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 4, 4, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear").clamp(0, 1)
    noisy = (smooth + 0.5 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)
    other = nn.functional.interpolate(coarse.flip(0, 3), size=(32, 32), mode="bilinear").clamp(0, 1)
    a, b, c = (extractor(x) for x in (smooth, noisy, other))
    assert a.shape == (4, 1280)
    assert frechet_distance(a, b) > 2 * frechet_distance(a, c)


def test_only_inception_is_called_fid():
    assert {name for name, (extractor, _) in METRICS.items() if extractor == "inception"} == {"fid", "kid"}
    assert extractor_file.METRICS["fd_efficientnet_lite0"][1] == "frechet"


def test_prompts_are_spread_over_the_captions():
    assert spread(["a", "b", "c"], 7) == ["a", "b", "c", "a", "b", "c", "a"]
    assert spread([str(i) for i in range(10)], 5) == ["0", "2", "4", "6", "8"]


def test_pictures_outside_the_range_are_refused():
    with pytest.raises(InputError, match=r"\[0, 1\].*-1.00 to 1.00"):
        batch_pictures({"image": torch.tensor([-1.0, 1.0] * 6).view(1, 3, 2, 2)})
    with pytest.raises(InputError, match="`image`"):
        batch_pictures({"pixels": torch.zeros(1, 3, 2, 2)})
    assert batch_pictures((torch.ones(1, 3, 2, 2), 0)).shape == (1, 3, 2, 2)


def test_pairs_equal_scikit_image():
    generator = torch.Generator().manual_seed(0)
    originals = torch.rand(3, 3, 32, 32, generator=generator)
    pictures = (originals + 0.1 * torch.randn(originals.shape, generator=generator)).clamp(0, 1)
    found = paired_similarity(pictures, originals)
    for i in range(3):
        a, b = (x[i].permute(1, 2, 0).numpy().astype(np.float64) for x in (pictures, originals))
        assert float(found["psnr"][i]) == pytest.approx(peak_signal_noise_ratio(b, a, data_range=1.0), abs=1e-3)
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        expected = structural_similarity(b, a, data_range=1.0, channel_axis=2, **options)
        assert float(found["ssim"][i]) == pytest.approx(expected, abs=5e-3)
        assert float(found["mse"][i]) == pytest.approx(float(((a - b) ** 2).mean()), rel=1e-4)
    assert torch.isinf(paired_similarity(originals, originals)["psnr"]).all()
    with pytest.raises(InputError, match="equal shapes"):
        paired_similarity(pictures, originals[:2])
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        paired_similarity(pictures * 2, originals)


def test_grid_places_pictures_in_rows(tmp_path, trainer_of):
    pictures = torch.arange(5).view(5, 1, 1, 1).expand(5, 3, 4, 6) / 8
    sheet = picture_grid(pictures, columns=2)
    assert sheet.shape == (3, 16, 14)
    assert float(sheet[0, 6, 8]) == 3 / 8
    assert float(sheet[0, 5, 0]) == 1.0  # the gap
    assert float(sheet[0, 15, 13]) == 1.0  # the empty place
    path = save_grid(trainer_of(), pictures, "sheet")
    assert path == tmp_path / "pictures" / "sheet.png"
    with Image.open(path) as image:
        assert image.size == (22, 10)
