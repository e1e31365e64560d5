"""The table of the most exposed records: what W&B is given, read back from an offline run, and what it is not given."""

import hashlib
import io
import json
import os
from dataclasses import replace

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from PIL import Image
from scipy.stats import binomtest
from torch.utils.data import TensorDataset

from lightning_privacy.callbacks.audits import exposed_records
from lightning_privacy.callbacks.audits.exposed_records import (
    check_exposed_records,
    display_pictures,
    log_exposed_records,
    most_exposed,
    short_id,
)
from lightning_privacy.callbacks.audits.membership import MembershipAudit
from lightning_privacy.callbacks.audits.membership_audit import audit_membership
from lightning_privacy.core.results import AttackResult, Metric
from lightning_privacy.datamodules import MembershipSplit
from lightning_privacy.errors import InputError, SplitError
from lightning_privacy.testing.toy_data import ToyImages

KEY = "attack/membership/exposed"
pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")  # Lightning's from_datasets
RATES = [f"false_positive_rate{suffix}" for suffix in ("", "_low", "_high", "_by_chance")]


class Recorder(WandbLogger):
    """Keeps what W&B would be told."""

    def __init__(self):
        self.tables = []

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.tables.append((key, step, [dict(zip(columns, row, strict=True)) for row in data]))


def result_of(split, members, nonmembers, attack="loss", strongest=True, **fields):
    extra = {"member_scores": members, "nonmember_scores": nonmembers}
    counts = {"member": len(members), "holdout": len(nonmembers)}
    result = AttackResult("membership", attack, "loss", 0, split.split_hash, counts, {"auroc": Metric(0.5)})
    return replace(result, strongest=strongest, step=7, extra=extra, **fields)


@pytest.fixture
def discs():
    split = MembershipSplit(ToyImages(n=60), fractions={"member": 0.4, "aux_nonmember": 0.0, "holdout": 0.3})
    split.prepare_data()
    split.setup("fit")
    return split


@pytest.fixture
def scores(discs):
    """Member 4 above all non-members, members 9 and 2 among them, the rest below."""
    members = [-1.0 - i for i in range(len(discs.indices("eval_member")))]
    members[4], members[9], members[2] = 30.0, 9.5, 7.0
    return members, [float(i) for i in range(1, len(discs.indices("holdout")) + 1)]


def tuples_split(pictures):
    data = TensorDataset(pictures, torch.arange(len(pictures)) % 2)
    split = MembershipSplit(L.LightningDataModule.from_datasets(train_dataset=data, batch_size=3))
    split.setup("fit")
    return split


@pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*")
def test_an_offline_run_holds_the_table_with_order_rates_captions_and_the_right_pictures(
    discs, scores, trainer_of, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_DATA_DIR", raising=False)
    logger = WandbLogger(save_dir=tmp_path, offline=True)
    trainer = trainer_of(logger=[logger, CSVLogger(tmp_path, "csv")])
    members, nonmembers = scores
    weaker = result_of(discs, members[::-1], nonmembers, "weaker", strongest=False)
    log_exposed_records(trainer, discs, [weaker, result_of(discs, members, nonmembers)], 3)
    logger.experiment.finish()

    # W&B stages the table and its pictures under meaningless names; the table knows the pictures by their sha256.
    # It stages the same table twice.
    staged = {path.read_bytes() for path in (tmp_path / "wandb/artifacts/staging").iterdir() if path.is_file()}
    pictures = {hashlib.sha256(file).hexdigest(): file for file in staged if file.startswith(b"\x89PNG")}
    (table,) = [json.loads(file) for file in staged if file.startswith(b"{") and b'"columns"' in file]
    assert len(pictures) == 3
    assert table["columns"] == ["rank", "record", "picture", "label", "caption", "attack", "score", *RATES]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["rank"], row["score"]) for row in rows] == [(1, 30.0), (2, 9.5), (3, 7.0)]
    n, dataset = len(nonmembers), discs.pool.dataset
    assert n == 18 and [row["false_positive_rate"] for row in rows] == pytest.approx([0, 9 / n, 12 / n])
    for row, position in zip(rows, (4, 9, 2), strict=True):
        index = discs.indices("eval_member")[position]
        assert row["record"] == discs.record_ids[index][:12] and row["attack"] == "loss"
        assert (row["caption"], row["label"]) == (dataset[index]["caption"], dataset[index]["label"])
        pixels = np.asarray(Image.open(io.BytesIO(pictures[row["picture"]["sha256"]]))) / 255
        assert np.abs(pixels - dataset[index]["image"].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6

    (media,) = (tmp_path / "wandb").glob("offline-run-*/files/media/table/attack/membership/exposed_*.table.json")
    assert [row[0] for row in json.loads(media.read_text())["data"]] == [1, 2, 3]
    everything = b"".join(path.read_bytes() for path in (tmp_path / "wandb").rglob("*") if path.is_file())
    assert not any(discs.record_ids[i].encode() in everything for i in discs.indices("member"))
    assert not (tmp_path / "home").exists() and "WANDB_DATA_DIR" not in os.environ
    assert not (tmp_path / "csv").exists()


def test_rates_and_intervals_are_those_of_counting_and_of_scipy():
    draw = np.random.default_rng(0)
    members, nonmembers = draw.normal(0.5, 1, 40).round(1), draw.normal(0, 1, 30).round(1)
    found = most_exposed(members.tolist(), nonmembers.tolist(), 40)
    assert [r.score for r in found] == sorted(members.tolist(), reverse=True)
    assert [r.position for r in found] == np.argsort(-members, kind="stable").tolist()
    for record in found:
        count = int((nonmembers >= record.score).sum())
        exact = binomtest(count, 30).proportion_ci(method="exact")
        assert (record.false_positive_rate, record.low, record.high) == pytest.approx((count / 30, *exact))


def test_the_rate_by_chance_is_what_noise_gives():
    draw = np.random.default_rng(1)
    found = [most_exposed(draw.normal(size=9).tolist(), draw.normal(size=9).tolist(), 3) for _ in range(600)]
    rates = np.array([[r.false_positive_rate for r in one] for one in found]).mean(0)
    assert [r.by_chance for r in found[0]] == pytest.approx([0.1, 0.2, 0.3])
    assert rates == pytest.approx([0.1, 0.2, 0.3], abs=0.03)  # more than three standard errors


def test_every_wandb_logger_gets_the_audits_own_strongest_scores(diffusion, split, trainer_of):
    diffusion.leak = 0.1
    results = audit_membership(
        diffusion, split, ["averaged_loss", "calibrated_loss"], timesteps=[200, 600], bootstrap=20
    )
    first, second = Recorder(), Recorder()
    log_exposed_records(trainer_of(logger=[first, second]), split, results, 4, key="x", batch_size=3)
    assert len(first.tables) == len(second.tables) == 1
    key, step, rows = first.tables[0]
    assert (key, step) == ("x", 0) and {row["attack"] for row in rows} == {"calibrated_loss"}
    top = sorted(results[1].extra["member_scores"], reverse=True)[:4]
    assert [row["score"] for row in rows] == top and {row["false_positive_rate"] for row in rows} == {0.0}
    assert [row["record"] for row in rows] == [row["record"] for row in second.tables[0][2]]
    assert not {id(row["picture"]) for row in rows} & {id(row["picture"]) for row in second.tables[0][2]}


def test_more_than_there_are_are_all_of_them(discs, scores, trainer_of):
    logger = Recorder()
    log_exposed_records(trainer_of(logger=logger), discs, [result_of(discs, *scores)], 999)
    assert len(logger.tables[0][2]) == len(scores[0])


def test_tuples_of_grey_pictures_have_a_label_and_no_caption(trainer_of):
    split = tuples_split(torch.rand(40, 1, 5, 4))
    positions = range(len(split.indices("eval_member")))
    logger = Recorder()
    log_exposed_records(
        trainer_of(logger=logger), split, [result_of(split, [float(i) for i in positions], [0.5] * 8)], 2
    )
    _, _, rows = logger.tables[0]
    expected = [split.indices("eval_member")[i] % 2 for i in (len(positions) - 1, len(positions) - 2)]
    assert [row["label"] for row in rows] == expected and "caption" not in rows[0]
    assert rows[0]["picture"].image.size == (4, 5) and rows[0]["picture"].image.mode == "RGB"


class Unreadable:
    def loader(self, role, batch_size=None):
        raise AssertionError("the data was read")


@pytest.mark.parametrize("logging", ["wandb, switched off", "csv", "none"])
def test_nothing_is_read_or_logged_when_off_or_without_wandb(logging, trainer_of, tmp_path):
    recorder = Recorder()
    logger, count = {"wandb, switched off": (recorder, 0), "csv": (CSVLogger(tmp_path, "csv"), 3)}.get(
        logging, (False, 3)
    )
    trainer = trainer_of(logger=logger)
    check_exposed_records(trainer, Unreadable(), count)
    log_exposed_records(trainer, Unreadable(), [], count)
    assert recorder.tables == [] and not (tmp_path / "csv").exists()


def test_data_without_pictures_is_refused_at_the_start(trainer_of, split):
    trainer = trainer_of(logger=Recorder())
    with pytest.raises(InputError, match=r"shape \(1, 6\) where pictures have .*`exposed: 0`"):
        check_exposed_records(trainer, tuples_split(torch.rand(40, 6)), 5)
    with pytest.raises(InputError, match=r"shape \(1, 2, 4, 4\)"):
        check_exposed_records(trainer, tuples_split(torch.rand(40, 2, 4, 4)), 5)
    split.loader = lambda role, batch_size: iter([{"tokens": torch.zeros(1, 3)}])
    with pytest.raises(InputError, match=r"`exposed: 0`.*\['tokens'\], in which no pictures"):
        check_exposed_records(trainer, split, 5)


def test_the_start_says_what_will_be_uploaded_and_refuses_what_cannot_be(trainer_of, split, monkeypatch):
    said = []
    monkeypatch.setattr(exposed_records, "rank_zero_info", said.append)
    trainer = trainer_of(logger=Recorder())
    check_exposed_records(trainer, split, 5)
    assert len(said) == 1 and "W&B the pictures of the 5 training records" in said[0]
    with pytest.raises(InputError, match="is -1"):
        check_exposed_records(trainer, split, -1)
    split.roles["holdout"] = list(range(5001))
    with pytest.raises(InputError, match="at most 5000 records a side, and there are 5001"):
        check_exposed_records(trainer, split, 5)


def test_results_that_cannot_be_shown_are_refused(discs, scores, trainer_of):
    trainer, good = trainer_of(logger=Recorder()), result_of(discs, *scores)
    for results in ([], [replace(good, strongest=False)], [replace(good, extra={})], [good, good]):
        with pytest.raises(InputError, match="strongest membership attack"):
            log_exposed_records(trainer, discs, results, 3)
    with pytest.raises(SplitError, match="other records"):
        log_exposed_records(trainer, discs, [replace(good, split_hash="0" * 64)], 3)


def test_a_loader_in_another_order_is_refused_and_shows_nobody_elses_picture(split, trainer_of):
    members, logger = [0.0] * 10, Recorder()
    split.roles["member"].reverse()
    shuffled = split.loader("eval_member")
    split.roles["member"].sort()
    split.loader = lambda role, batch_size: shuffled
    with pytest.raises(SplitError, match="other records"):
        log_exposed_records(trainer_of(logger=logger), split, [result_of(split, members, members)], 3)
    assert logger.tables == []


def test_normalised_pictures_are_shown_on_one_scale_and_plain_ones_as_they_are():
    plain = torch.rand(3, 4, 4)
    assert torch.equal(display_pictures([plain])[0], (plain * 255).round().byte().permute(1, 2, 0))
    bright, dark = display_pictures([torch.full((3, 2, 2), 3.0), torch.full((1, 2, 2), -2.0)])
    assert int(bright[0, 0, 0]) == 255 and int(dark[0, 0, 0]) == 0 and dark.shape == (2, 2, 3)
    assert int(display_pictures([torch.full((1, 2, 2), 200, dtype=torch.uint8)])[0][0, 0, 0]) == 200


def test_an_identity_that_is_no_digest_is_hashed():
    assert short_id("ab" * 32) == "ab" * 6
    assert len(short_id("patient 0007")) == 12 and "patient" not in short_id("patient 0007")


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers", "ignore:The number of training")
@pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode", "ignore:You defined a `validation_step`")
@pytest.mark.parametrize("exposed", [0, 2])
def test_the_audit_shows_them_once_of_the_final_model_and_only_where_asked(
    exposed, diffusion, split, trainer_of, monkeypatch
):
    logger = Recorder()
    monkeypatch.setattr(exposed_records, "_wandb_loggers", lambda trainer: [logger])
    options = {"timesteps": [200], "draws": 1, "bootstrap": 0, "every_n_epochs": 1}
    audit = MembershipAudit(["averaged_loss"], exposed=exposed, **options)
    trainer_of(audit, max_epochs=2).fit(diffusion, datamodule=split)
    assert [(key, len(rows)) for key, _, rows in logger.tables] == ([(KEY, 2)] if exposed else [])
