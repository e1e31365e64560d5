"""The audit of attribute inference on classifiers that memorised an attribute and on classifiers that did not."""

import hashlib
import json
from collections.abc import Mapping

import lightning.pytorch as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_privacy.attacks.attribute import own_kind
from lightning_privacy.attacks.attribute.inference import AttributeRecords
from lightning_privacy.callbacks.audits.attribute import AttributeAudit
from lightning_privacy.callbacks.audits.attribute_audit import audit_attribute
from lightning_privacy.callbacks.audits.attribute_records import attribute_values, read_records
from lightning_privacy.callbacks.audits.declared_attribute import DeclaredAttribute
from lightning_privacy.callbacks.audits.split_access import role_indices
from lightning_privacy.core.results import AttackResult
from lightning_privacy.core.run_folder import RunFolder
from lightning_privacy.datamodules.membership_split import MembershipSplit
from lightning_privacy.errors import InputError, MissingProtocolError, SplitError
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.tiny_modules import PlainRegressor
from lightning_privacy.testing.toy_data import ToyImages

SHARES = {"member": 0.4, "aux_nonmember": 0.02, "attack_nonmember": 0.25, "val": 0.03, "holdout": 0.3}
WIDTH, WEIGHT = 24, 4.0


class People(Dataset):
    """Features, a class and an attribute, all drawn apart: whatever a model says of the attribute, it has memorised."""

    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        self.known = torch.randn(n, WIDTH, generator=g)
        self.label = torch.randint(2, (n,), generator=g)
        self.smoker = torch.randint(2, (n,), generator=g)
        self.ids = [hashlib.sha256(row.numpy().tobytes()).hexdigest() for row in self.known]

    def record_id(self, i):
        return self.ids[i]

    def __len__(self):
        return len(self.known)

    def __getitem__(self, i):
        return {"image": self.known[i], "label": int(self.label[i]), "smoker": self.smoker[i]}


class AsTuple(People):
    def __getitem__(self, i):
        return self.known[i], int(self.label[i]), self.smoker[i]


class PeopleData(L.LightningDataModule):
    def __init__(self, people, batch_size=512):
        super().__init__()
        self.people, self.batch_size = people, batch_size

    def train_dataloader(self):
        return DataLoader(self.people, self.batch_size, shuffle=True)


def split(n=500, seed=0, batch_size=512, kind=People):
    data = MembershipSplit(PeopleData(kind(n, seed), batch_size), fractions=SHARES)
    data.setup("fit")
    return data


class Classifier(L.LightningModule):
    """Names the class; may read the attribute, or learn to name it too, as a second task."""

    def __init__(self, reads=False, second_task=False, classes=2):
        super().__init__()
        self.reads, self.second_task = reads, second_task
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Linear(WIDTH + 2 * reads, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
            self.head, self.other = nn.Linear(32, classes), nn.Linear(32, classes)

    def embedding(self, batch):
        x, smoker = (batch["image"], batch["smoker"]) if isinstance(batch, Mapping) else (batch[0], batch[2])
        return self.body(torch.cat([x, WEIGHT * F.one_hot(smoker, 2)], 1) if self.reads else x)

    def logits(self, batch):
        return self.head(self.embedding(batch))

    def training_step(self, batch, batch_idx):
        h = self.embedding(batch)
        loss = F.cross_entropy(self.head(h), batch["label"])
        return loss + F.cross_entropy(self.other(h), batch["smoker"]) if self.second_task else loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.cross_entropy(self.logits(batch), batch["label"]), batch_size=len(batch["label"]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def trained(module, data, steps=80):
    (batch,) = data.train_dataloader()
    optimizer = module.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        optimizer.step()
    return module


def groups_of(counts, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        AttributeRecords(torch.randn(n, 3, generator=g), torch.zeros(n).long(), torch.randint(2, (n,), generator=g))
        for n in counts
    ]


SMOKER = DeclaredAttribute("smoker")


def by_name(results):
    return {r.attack: r for r in results}


@pytest.fixture(scope="module")
def memorised():
    """A split, and a model that learnt its members' attribute as a second task."""
    data = split()
    return data, trained(Classifier(second_task=True), data)


@pytest.fixture(scope="module")
def few_people():
    return split(120)


def test_an_embedding_that_stores_members_attribute_is_found_and_one_of_other_people_is_not(memorised):
    data, module = memorised
    results = by_name(audit_attribute(module, data, SMOKER))
    assert list(results) == ["attribute_scores", "attribute_embedding"]
    metrics = results["attribute_embedding"].metrics
    assert metrics["accuracy_member"].value > 0.95
    assert metrics["member_minus_nonmember"].low > 0.3
    assert metrics["above_imputation_member"].low > 0.3
    assert abs(metrics["accuracy_nonmember"].value - 0.5) < 0.15
    assert results["attribute_embedding"].strongest
    assert results["attribute_embedding"].notes == ()
    # The control: the same task on other people.
    elsewhere = trained(Classifier(second_task=True), split(seed=1))
    control = by_name(audit_attribute(elsewhere, data, SMOKER, ["attribute_embedding"]))["attribute_embedding"]
    assert control.metrics["member_minus_nonmember"].low <= 0 <= control.metrics["member_minus_nonmember"].high
    assert any("do better on members" in note for note in control.notes)


def test_a_model_that_reads_the_attribute_betrays_that_of_members_alone(memorised):
    data, _ = memorised
    module = trained(Classifier(reads=True), data)
    results = by_name(audit_attribute(module, data, SMOKER, reads_attribute=True))
    assert list(results) == ["attribute_confidence", "attribute_confidence_prior"]
    metrics = results["attribute_confidence"].metrics
    assert metrics["member_minus_nonmember"].low > 0
    assert metrics["above_imputation_member"].low > 0
    assert abs(metrics["accuracy_nonmember"].value - 0.5) < 0.15
    untrained = by_name(audit_attribute(Classifier(reads=True), data, SMOKER, reads_attribute=True))
    assert untrained["attribute_confidence"].metrics["member_minus_nonmember"].low <= 0


def test_noise_is_rarely_called_a_leak():
    called = 0
    for seed in range(10):
        records = groups_of((60, 60, 50, 60), seed)
        g = torch.Generator().manual_seed(seed)
        answers = [torch.randn(len(x.labels), 3, generator=g) for x in records]
        result = own_kind.infer_by_own_kind("probe", "answers", answers, records, [0, 1], seed=seed)
        called += result.metrics["member_minus_nonmember"].low > 0
    assert called <= 1  # each with a probability of 2.5 %: two of ten have one of 2 %


def test_a_model_that_does_not_read_the_attribute_is_said_not_to(memorised):
    data, module = memorised
    (result,) = audit_attribute(module, data, SMOKER, ["attribute_confidence"], reads_attribute=True)
    assert any("does not read it" in note for note in result.notes)
    assert result.metrics["accuracy_member"] == result.metrics["majority_member"]


def test_the_size_of_batches_changes_nothing(memorised, few_people):
    _, module = memorised
    attacks = ["attribute_embedding", "attribute_confidence_prior"]
    one, two = (
        audit_attribute(module, few_people, SMOKER, attacks, reads_attribute=True, batch_size=size) for size in (4, 37)
    )
    assert [r.metrics for r in one] == [r.metrics for r in two]
    assert [r.strongest for r in one] == [r.strongest for r in two]


def test_judged_records_teach_the_attacker_nothing(memorised, monkeypatch):
    data, module = memorised
    seen = []
    fitted = own_kind.fit_attribute_model

    def watched(features, values, *options):
        seen.append(values.tolist())
        return fitted(features, values, *options)

    monkeypatch.setattr(own_kind, "fit_attribute_model", watched)
    audit_attribute(module, data, SMOKER, ["attribute_embedding"])
    smoker = data.pool.dataset.smoker
    members, others = (smoker[role_indices(data, role)] for role in ("aux_member", "attack_nonmember"))
    imputed, of_members, of_others = seen[-3:]  # after the fits on halves
    assert imputed == [*members.tolist(), *others.tolist()]
    assert of_members == members.tolist()
    assert len(of_others) == len(of_members) < len(others)


def test_members_answers_that_all_moved_alike_are_no_leak():
    records = groups_of((200, 200, 120, 160))
    g = torch.Generator().manual_seed(9)
    answers = [
        # Training took the members elsewhere, by more than the attribute makes of a difference.
        torch.randn(len(x.labels), 4, generator=g) + 4.0 * x.sensitive.unsqueeze(1) + 40.0 * (place in (0, 2))
        for place, x in enumerate(records)
    ]
    result = own_kind.infer_by_own_kind("probe", "answers", answers, records, [0, 1])
    assert result.metrics["accuracy_member"].value > 0.95
    assert result.metrics["accuracy_nonmember"].value > 0.95
    assert result.metrics["above_imputation_nonmember"].low > 0.2
    assert result.extra["learnt_on"] == 120
    assert any("do better on members" in note for note in result.notes)
    with pytest.raises(InputError, match="four groups"):
        own_kind.infer_by_own_kind("probe", "answers", answers[:3], records[:3], [0, 1])


def bin_of(batch):
    return (batch["image"][:, 0] > 0).long()


def put_bin(batch, value):
    image = batch["image"].clone()
    image[:, 0] = image[:, 0].abs() * (1 if value else -1)
    return {**batch, "image": image}


def without_bin(batch):
    return batch["image"][:, 1:]


def test_a_function_may_say_what_the_attribute_is_and_how_it_is_set(memorised):
    data, module = memorised
    declared = DeclaredAttribute(bin_of, put_bin, without_bin)
    (result,) = audit_attribute(module, data, declared, ["attribute_confidence"], reads_attribute=True)
    assert result.extra["attribute"] == "bin_of"
    assert not any("does not read it" in note for note in result.notes)
    (batch,) = data.loader("holdout")
    assert bin_of(put_bin(batch, 1)).tolist() == [1] * len(batch["label"])
    records = read_records(module, data, ["holdout"], declared)["holdout"]
    assert records.known.shape == (len(batch["label"]), WIDTH - 1)
    assert records.sensitive.tolist() == bin_of(batch).tolist()


def test_a_place_in_a_tuple_is_read_and_set():
    data = split(120, kind=AsTuple)
    declared = DeclaredAttribute(2)
    module = Classifier(reads=True)
    (batch,) = data.loader("holdout")
    assert declared.values(batch, len(batch[0])).tolist() == batch[2].tolist()
    assert set(declared.with_value(batch, 1)[2].tolist()) == {1}
    as_text = DeclaredAttribute("2")  # from the command line
    assert as_text.values(batch, len(batch[0])).tolist() == batch[2].tolist()
    assert set(as_text.with_value(batch, 1)[2].tolist()) == {1}
    assert len(audit_attribute(module, data, declared, reads_attribute=True)) == 2


def test_fit_writes_the_lines_and_charts(tmp_path):
    audit = AttributeAudit("smoker", every_n_epochs=1)
    fitted = fit(tmp_path, Classifier(second_task=True), split(120), [audit], max_epochs=2)
    lines = RunFolder(tmp_path).results()
    assert [(r.family, r.attack, r.epoch) for r in lines] == [
        ("attribute", name, epoch) for epoch in (1, 2) for name in ("attribute_scores", "attribute_embedding")
    ]
    last = lines[-1]
    assert last.split_hash == fitted.trainer.datamodule.split_hash
    assert last.n == {"member": 24, "holdout": 36}
    assert last.extra["fit"] == {"member": 24, "nonmember": 30}
    assert sum(last.extra["values"].values()) == 54
    assert last.step == 2
    assert last.created
    assert sum(r.strongest for r in lines[-2:]) == 1
    assert AttackResult.from_json(json.dumps(json.loads(last.to_json()))) == last
    name = "attack/attribute/attribute_embedding/member_minus_nonmember"
    assert fitted.trainer.callback_metrics[name] == pytest.approx(last.metrics["member_minus_nonmember"].value)
    assert audit.result_names(fitted.trainer, fitted.module) == {"attribute_scores", "attribute_embedding"}


@pytest.mark.parametrize(
    ("attribute", "said"),
    [
        (lambda batch: batch["smoker"].double(), "tensor of whole numbers"),
        (lambda batch: batch["smoker"].tolist(), "a list"),
        (lambda batch: batch["smoker"] * 0 + 1, "no two values with at least 2 records"),
        (lambda batch: torch.stack([batch["smoker"]] * 2, 1), "shape .* it must be one"),
        (lambda batch: (batch["image"][:, 0] * 1e6).long(), "more than 50"),
    ],
    ids=["no whole number", "no tensor", "one value", "two a record", "a number of the record"],
)
def test_a_malformed_attribute_is_one_sentence_before_training(attribute, said, few_people, tmp_path):
    module = Classifier()
    before = [p.clone() for p in module.parameters()]
    with pytest.raises(InputError, match=said):
        fit(tmp_path, module, few_people, [AttributeAudit(attribute)])
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


def longer(batch):
    return torch.zeros(len(batch["label"]) + 1, dtype=torch.long)


def test_an_absent_attribute_is_said_with_the_remedy(few_people, tmp_path):
    with pytest.raises(InputError, match=r"no sensitive attribute `sensitive`.*import path of a function"):
        fit(tmp_path, Classifier(), few_people, [AttributeAudit()])
    with pytest.raises(InputError, match="a tuple of 3|a list of 3"):
        fit(tmp_path, Classifier(), split(120, kind=AsTuple), [AttributeAudit(3)])
    with pytest.raises(InputError, match="`longer` has shape"):
        fit(tmp_path, Classifier(), few_people, [AttributeAudit(longer)])
    with pytest.raises(InputError, match="cannot be imported"):
        AttributeAudit("no_such_package.attribute")._declared.values({}, 0)


def test_what_the_module_or_the_split_lacks_is_said_before_training(few_people, tmp_path):
    with pytest.raises(MissingProtocolError, match="logits"):
        fit(tmp_path, PlainRegressor(), few_people, [AttributeAudit("smoker")])
    module = Classifier()
    module.embedding = None
    with pytest.raises(MissingProtocolError, match="embedding"):
        fit(tmp_path, module, few_people, [AttributeAudit("smoker", ["attribute_embedding"])])
    with pytest.raises(SplitError, match="MembershipSplit"):
        fit(tmp_path, Classifier(), ToyImages(n=8, size=8), [AttributeAudit("label")])
    few = AttributeRecords(torch.zeros(3, 1), torch.zeros(3).long(), torch.tensor([0, 1, 0]))
    with pytest.raises(InputError, match="at least 8 records of each"):
        attribute_values([few, few], [few], "smoker")


def test_arguments_that_do_not_belong_together_are_refused():
    with pytest.raises(InputError, match="must read it"):
        AttributeAudit("smoker", ["attribute_confidence"])
    with pytest.raises(InputError, match="different names"):
        AttributeAudit("smoker", ["attribute_magic"])
    with pytest.raises(InputError, match="give `known`"):
        AttributeAudit(bin_of, reads_attribute=True, set_attribute=put_bin)
    with pytest.raises(InputError, match="give `set_attribute`"):
        AttributeAudit(bin_of, reads_attribute=True)
    with pytest.raises(InputError, match="every_n_epochs"):
        AttributeAudit("smoker", every_n_epochs=0)


def test_answers_that_are_not_finite_are_refused(memorised):
    data, _ = memorised
    broken = Classifier()
    with torch.no_grad():
        broken.head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="class scores are not finite"):
        audit_attribute(broken, data, SMOKER)
