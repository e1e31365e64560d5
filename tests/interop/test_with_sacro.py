"""What SACRO-ML itself makes of our files: in its own environment, which SACRO_PYTHON names."""

import json
import subprocess

import numpy as np
import pytest
import torch
import yaml

from lightning_privacy.attacks.membership.lira import LiraOffline, LiraOnline
from lightning_privacy.core.results import Signals
from lightning_privacy.interop import export_target, read_report, write_report
from lightning_privacy.interop.sacro_metrics import sacro_metrics
from lightning_privacy.metrics.membership import auroc

TRAINING = {"epochs": 2, "optimizer": "SGD", "lr": 0.1}

LOAD = """
import json, sys, numpy as np
from sacroml.attacks.target import Target
target = Target(); target.load("target")
far = {s: float(np.abs(target.model.predict_proba(getattr(target, "X_" + s)) - getattr(target, "proba_" + s)).max())
       for s in ("train", "test")}
print(json.dumps({"far": far, "name": target.model.model_name, "batch": target.batch_size,
    "shape": target.X_train.shape, "gap": target.get_generalisation_gap(), "classes": len(target.model.get_classes())}))
"""

METRICS = """
import json, sys, numpy as np
from sacroml.metrics import get_metrics
given = np.load(sys.argv[1]); p, y = given["p"], given["y"]
found = []
for k in range(len(p)):
    m = get_metrics(np.column_stack([1 - p[k], p[k]]), y[k])
    found.append({name: float(v) for name, v in m.items() if np.ndim(v) == 0})
print(json.dumps(found))
"""

SUMMARIES = """
import json, sys
from sacroml.attacks.attack_report_formatter import (
    GenerateTextReport, SummariseAUCPvalsModule, SummariseUnivariateMetricsModule)
text = GenerateTextReport(); text.process_attack_target_json("out/report.json", "target/target.yaml")
text.export_to_file("summary.txt")
report = json.load(open("out/report.json"))
print(json.dumps({"text": open("summary.txt").read(), "one": SummariseUnivariateMetricsModule(report).process_dict(),
    "p": SummariseAUCPvalsModule(report).process_dict()}, default=float))
"""

META = """
import json, sys
from sacroml.attacks.meta_attack import MetaAttack
from sacroml.attacks.target import Target
target = Target(); target.load("target")
meta = MetaAttack([("lira", {}), ("qmia", {})], behaviour="use_existing_only", report_dir="out", output_dir="meta",
    keep_separate=True)
found = meta.attack(target)
frame = meta.vulnerability_df
one = found["attack_experiment_logger"]["attack_instance_logger"]["instance_0"]
print(json.dumps({"AUC": one["AUC"], "columns": list(frame.columns), "lira": frame["lira_mean"].tolist(),
    "member": frame["is_member"].tolist()}, default=float))
"""

LIRA = """
import json, sys, numpy as np
from sacroml.attacks.likelihood_attack import LIRAAttack
given = np.load(sys.argv[1])
phi, inside = given["phi"], given["inside"]
n = len(phi)
found = {}
for mode in ("offline", "online-carlini"):
    attack = LIRAAttack(output_dir="lira", write_report=False, mode=mode)
    out_conf = {i: list(phi[i][~inside[i]]) for i in range(n)}
    in_conf = {i: list(phi[i][inside[i]]) for i in range(n)}
    scores, _ = attack._compute_scores(given["labels"], given["probabilities"], out_conf, in_conf)
    found[mode] = [float(score[1]) for score in scores]
print(json.dumps(found))
"""


def run_attacks(sacro, folder, *attacks):
    (folder / "attacks.yaml").write_text(yaml.safe_dump({"attacks": list(attacks)}))
    command = [sacro.executable, "run", "target", "attacks.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def test_sacro_loads_a_full_target_and_gets_identical_probabilities(sacro, tmp_path, split, make_classifier):
    export_target(make_classifier(), split, tmp_path / "target", kind="full", training=TRAINING)
    found = sacro(LOAD, folder=tmp_path)
    assert found["name"] == "Network" and found["batch"] == 7 and found["classes"] == 4
    assert found["shape"] == [18, 3, 8, 8]
    assert max(found["far"].values()) < 1e-6  # exactly zero where both use one release of torch
    described = yaml.safe_load((tmp_path / "target" / "target.yaml").read_text())
    assert found["gap"] == pytest.approx(described["generalisation_gap"])


def test_sacro_attacks_exported_probabilities_from_its_command_line(sacro, tmp_path, split, make_classifier):
    export_target(make_classifier(), split, tmp_path / "target")
    run_attacks(sacro, tmp_path, {"name": "worstcase", "params": {"n_reps": 3, "output_dir": "out"}})
    (found,) = read_report(tmp_path / "out")
    assert found.attack == "sacro_worstcase" and found.extra["repetitions"] == 3
    assert 0 <= found.metrics["auroc"].value <= 1 and "tpr_at_fpr_0.001" in found.metrics


def test_sacro_trains_shadow_models_of_a_full_target_from_its_command_line(sacro, tmp_path, split, make_classifier):
    export_target(make_classifier(), split, tmp_path / "target", kind="full", training=TRAINING)
    lira = {"n_shadow_models": 3, "output_dir": "out", "report_individual": True}
    run_attacks(sacro, tmp_path, {"name": "lira", "params": lira})
    (found,) = read_report(tmp_path / "out")
    assert found.attack == "sacro_lira" and found.n == {"member": 18, "holdout": 12}
    sides = [torch.tensor(found.extra[f"{side}_scores"], dtype=torch.float64) for side in ("member", "nonmember")]
    assert auroc(*sides) == pytest.approx(found.metrics["auroc"].value, abs=1e-6)
    assert found.roc[0] == (0, 0) and found.roc[-1] == (1, 1)
    # Its shadow models learn: one is not the same as another, nor an untrained network.
    assert len(list((tmp_path / "out" / "shadow_models").iterdir())) == 3


def test_metrics_are_those_of_sacro(sacro, tmp_path):
    rng = np.random.default_rng(0)
    p = rng.random((20, 300))
    p[10:] = np.round(p[10:], 4)  # no ties yet, but coarser
    y = (rng.random((20, 300)) < np.linspace(0.2, 0.8, 20)[:, None]).astype(np.int64)
    p[::2] = 0.7 * p[::2] + 0.3 * y[::2]
    np.savez(tmp_path / "given.npz", p=p, y=y)
    for theirs, one_p, one_y in zip(sacro(METRICS, tmp_path / "given.npz", folder=tmp_path), p, y, strict=True):
        ours = sacro_metrics(one_p, one_y)
        assert set(ours) == set(theirs)
        if len(np.unique(one_p)) < len(one_p):  # ties at the edge of a tenth: ours does not depend on the order
            theirs = {name: value for name, value in theirs.items() if name[:4] not in ("FMAX", "FMIN", "FDIF", "PDIF")}
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), name


def test_sacros_summaries_and_meta_attack_read_our_report(sacro, tmp_path, split, make_classifier, make_result):
    export_target(make_classifier(), split, tmp_path / "target", kind="full", members="eval_member", training=TRAINING)
    members, nonmembers = len(split.indices("eval_member")), len(split.indices("holdout"))
    attacks = ("lira_offline", "quantile_regression", "rmia_online")
    results = [make_result(name, members, nonmembers, 2.0, seed) for seed, name in enumerate(attacks)]
    path = write_report(results, tmp_path / "out")
    sections = json.loads(path.read_text())
    numbers = {
        key: s["attack_experiment_logger"]["attack_instance_logger"]["instance_0"] for key, s in sections.items()
    }

    summaries = sacro(SUMMARIES, folder=tmp_path)
    assert set(summaries["one"]) == set(sections)
    for key, found in summaries["one"].items():
        assert found["AUC"]["mean"] == numbers[key]["AUC"]
    assert summaries["p"]["n_total"] == 3 and summaries["p"]["n_sig_uncorrected"] == 3
    assert "Evidence supporting rejection:\n>10% AUC are statistically significant" in summaries["text"]

    meta = sacro(META, folder=tmp_path)
    lira = next(numbers[key] for key in numbers if key.startswith("LiRA Attack_"))
    assert meta["lira"] == lira["individual"]["member_prob"] and meta["member"] == lira["individual"]["member"]
    assert {"lira_mean", "qmia_mean", "mia_mean"} <= set(meta["columns"])
    qmia = next(numbers[key] for key in numbers if key.startswith("QMIA Attack_"))
    both = np.mean([one["individual"]["member_prob"] for one in (lira, qmia)], axis=0)
    member = torch.tensor(meta["member"]) == 1
    assert meta["AUC"] == pytest.approx(
        auroc(torch.from_numpy(both)[member], torch.from_numpy(both)[~member]), abs=1e-7
    )
    assert [each.attack for each in read_report(tmp_path / "meta")] == ["sacro_meta"]


def test_likelihood_ratios_rank_records_as_sacros_do(sacro, tmp_path):
    generator = torch.Generator().manual_seed(0)
    records, shadows = 400, 32
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inside = torch.rand(records, shadows, generator=generator).argsort(1) < shadows // 2  # as many IN as OUT
    hardness = 2 * normal(records, 1)
    phi = hardness + 1.5 * inside + (0.7 + 0.3 * torch.rand(records, 1, generator=generator)) * normal(records, shadows)
    member = torch.arange(records) < records // 2
    target = (hardness[:, 0] + 1.5 * member + 0.8 * normal(records)).unsqueeze(1)
    logits = torch.cat([target, torch.zeros_like(target)], 1).float()
    labels = torch.zeros(records, dtype=torch.long)
    signals = Signals(
        tuple(map(str, range(records))),
        logits=logits.unsqueeze(1),
        labels=labels,
        shadow_confidence=phi.unsqueeze(2),
        shadow_in=inside,
    )
    given = {"phi": phi, "inside": inside, "labels": labels, "probabilities": logits.double().softmax(1)}
    np.savez(tmp_path / "given.npz", **{name: value.numpy() for name, value in given.items()})
    theirs = sacro(LIRA, tmp_path / "given.npz", folder=tmp_path)
    for attack, mode in ((LiraOffline(variance_floor=0), "offline"), (LiraOnline(variance_floor=0), "online-carlini")):
        attack.fit(signals, signals)
        ours, other = attack.score(signals), torch.tensor(theirs[mode], dtype=torch.float64)
        ranks = torch.stack([ours.argsort().argsort(), other.argsort().argsort()]).double()
        assert float(torch.corrcoef(ranks)[0, 1]) > 0.999
        assert auroc(ours[member], ours[~member]) == pytest.approx(auroc(other[member], other[~member]), abs=0.005)
