import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_privacy.attacks.attribute.confidence import confidence_inference
from lightning_privacy.attacks.attribute.inference import (
    AttributeRecords,
    infer_from_confidence,
    infer_from_embedding,
)
from lightning_privacy.attacks.attribute.population_model import fit_attribute_model
from lightning_privacy.attacks.attribute.result import Guesses, attribute_result
from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError


def test_the_value_of_the_highest_confidence_in_the_true_class_is_taken():
    scores = {
        3: torch.tensor([[2.0, 0.0], [0.0, 50.0], [1.0, 1.0]]),
        5: torch.tensor([[1.0, 0.0], [0.0, 60.0], [1.0, 1.0]]),
    }
    inferred = confidence_inference(scores.__getitem__, [3, 5], torch.tensor([0, 1, 0]))
    assert inferred.tolist() == [3, 5, 3]  # also where both probabilities are one in float32; the first at ties
    prior = torch.tensor([[-9.0, 0.0], [0.0, -1.0], [-2.0, -1.0]])
    assert confidence_inference(scores.__getitem__, [3, 5], torch.tensor([0, 1, 0]), prior).tolist() == [5, 3, 5]


def test_log_probabilities_serve_as_scores():
    p = {0: torch.tensor([[0.9, 0.1]]), 1: torch.tensor([[0.6, 0.4]])}
    assert confidence_inference(lambda v: p[v].log(), [0, 1], torch.tensor([1])).tolist() == [1]


def test_imputation_reaches_the_bayes_rate_and_knows_rare_values():
    g = torch.Generator().manual_seed(0)
    values = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 900, replacement=True, generator=g)
    x = F.one_hot(values, 3) * 2.0 + torch.randn(900, 3, generator=g)
    model = fit_attribute_model(x[:600], values[:600], [0, 1, 2])
    assert model.converged
    assert model.majority == 0
    oracle = (2 * x + torch.tensor([0.6, 0.3, 0.1]).log())[600:].argmax(1)
    ours, best = ((guess == values[600:]).double().mean() for guess in (model.infer(x[600:]), oracle))
    assert float(ours) > float(best) - 0.04
    assert torch.allclose(model.log_probabilities(x).exp().sum(1), torch.ones(900, dtype=torch.float64))


def test_without_information_imputation_is_the_majority():
    g = torch.Generator().manual_seed(1)
    values = (torch.rand(300, generator=g) < 0.2).long()
    model = fit_attribute_model(torch.randn(300, 4, generator=g), values, [0, 1])
    assert float((model.infer(torch.randn(100, 4, generator=g)) == 0).double().mean()) > 0.97


def test_a_value_with_no_record_is_never_preferred():
    model = fit_attribute_model(torch.randn(20, 2), torch.tensor([0, 1] * 10), [0, 1, 2])
    assert model.log_probabilities(torch.randn(5, 2)).argmax(1).max() < 2


def people(n, seed, dependent=False):
    """Known attributes, a sensitive one (independent of them, or read off the first), and labels that are coin flips."""
    g = torch.Generator().manual_seed(seed)
    known = torch.randn(n, 8, generator=g)
    sensitive = (known[:, 0] > 0).long() if dependent else torch.randint(2, (n,), generator=g)
    return AttributeRecords(known, torch.randint(2, (n,), generator=g), sensitive)


def classifier_of(records, steps=400):
    def inputs(records, value=None):
        s = records.sensitive if value is None else torch.full_like(records.sensitive, value)
        return torch.cat([records.known, 2.0 * F.one_hot(s, 2)], 1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        body = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))
        optimizer = torch.optim.Adam(body.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(body(inputs(records)), records.labels).backward()
            optimizer.step()
    return lambda group: lambda value: body(inputs(group, value)).detach()


def test_a_model_that_memorised_betrays_members_alone():
    members, others, population = people(150, 0), people(300, 1), people(300, 2)
    scores = classifier_of(members)
    result = infer_from_confidence((scores(members), scores(others)), members, others, population, [0, 1])
    metrics = result.metrics
    assert result.family == "attribute"
    assert result.n == {"member": 150, "nonmember": 300}
    assert metrics["accuracy_member"].value > 0.7
    assert abs(metrics["accuracy_nonmember"].value - 0.5) < 0.1
    assert metrics["above_imputation_member"].low > 0
    assert metrics["member_minus_nonmember"].low > 0
    assert result.notes == ()
    assert AttackResult.from_json(result.to_json()).metrics == dict(metrics)


def test_an_attribute_that_anyone_can_impute_is_no_leak():
    # the class gives the attribute away; the model learnt that from other people
    groups = []
    for i, n in enumerate((150, 300, 300, 600)):
        group = people(n, i)
        flipped = torch.rand(n, generator=torch.Generator().manual_seed(50 + i)) < 0.1
        groups.append(AttributeRecords(group.known, group.sensitive ^ flipped.long(), group.sensitive))
    members, others, population, elsewhere = groups
    scores = classifier_of(elsewhere, steps=40)
    result = infer_from_confidence((scores(members), scores(others)), members, others, population, [0, 1])
    assert result.metrics["accuracy_member"].value > 0.8
    assert result.metrics["majority_member"].value < 0.65
    assert result.metrics["above_imputation_member"].low <= 0
    assert "could be inferred of anyone" in result.notes[0]
    assert "do better on members" in result.notes[1]


def test_the_prior_helps_where_the_model_alone_falls_short():
    members, others, population = (people(n, i, dependent=True) for i, n in enumerate((150, 300, 300)))
    scores = classifier_of(members)
    both = (scores(members), scores(others))
    alone, joint = (
        infer_from_confidence(both, members, others, population, [0, 1], use_prior=prior) for prior in (False, True)
    )
    assert joint.attack == "attribute_confidence_prior"
    assert joint.metrics["imputation_member"].value > 0.9
    assert joint.metrics["accuracy_member"].value > alone.metrics["accuracy_member"].value


def test_the_prior_does_not_count_the_class_a_second_time():
    # P(s = 1) = .8, y = s with probability .7, and a model that knows just that: the best guess by Bayes' rule is 1
    def group(n, seed):
        g = torch.Generator().manual_seed(seed)
        sensitive = (torch.rand(n, generator=g) < 0.8).long()
        labels = torch.where(torch.rand(n, generator=g) < 0.7, sensitive, 1 - sensitive)
        return AttributeRecords(torch.randn(n, 2, generator=g), labels, sensitive)

    members, others, population = (group(2000, seed) for seed in range(3))

    def says(group):
        p = torch.tensor([[0.7, 0.3], [0.3, 0.7]])
        return lambda value: p[value].log().expand(len(group.labels), 2)

    found = infer_from_confidence((says(members), says(others)), members, others, population, [0, 1], use_prior=True)
    for side in ("member", "nonmember"):
        assert found.metrics[f"accuracy_{side}"].value == pytest.approx(
            found.metrics[f"majority_{side}"].value, abs=0.01
        )
    assert found.metrics["majority_member"].value > 0.78  # with the class counted twice it was .71


def test_a_model_that_ignores_the_attribute_gives_the_majority_value():
    members, others = people(50, 0), people(50, 1)
    g = torch.Generator().manual_seed(2)
    skewed = AttributeRecords(
        torch.randn(100, 8, generator=g), torch.randint(2, (100,), generator=g), torch.ones(100).long()
    )
    skewed.sensitive[:20] = 0
    same = (lambda value: torch.zeros(50, 2),) * 2
    metrics = infer_from_confidence(same, members, others, skewed, [0, 1]).metrics
    assert metrics["accuracy_member"] == metrics["majority_member"]


def test_noise_is_flagged_in_most_seeds():
    flagged = 0
    for seed in range(10):
        members, others, population = (people(80, 3 * seed + i) for i in range(3))
        g = torch.Generator().manual_seed(seed)
        scores = [{v: torch.randn(80, 2, generator=g) for v in (0, 1)}.__getitem__ for _ in range(2)]
        flagged += len(infer_from_confidence(tuple(scores), members, others, population, [0, 1]).notes) > 0
    assert flagged >= 9


def test_an_embedding_that_stores_members_is_seen_against_others():
    groups = [people(n, i) for i, n in enumerate((200, 200, 300))]
    g = torch.Generator().manual_seed(9)
    embeddings = [
        torch.randn(len(x.labels), 12, generator=g) + weight * F.one_hot(x.sensitive, 12)
        for x, weight in zip(groups, (3.0, 1.0, 1.0), strict=True)
    ]
    result = infer_from_embedding(tuple(embeddings), *groups, [0, 1])
    assert result.attack == "attribute_embedding"
    assert result.metrics["member_minus_nonmember"].low > 0
    assert result.metrics["above_imputation_nonmember"].low > 0  # disclosed of anyone, too
    plain = [torch.randn(len(x.labels), 12, generator=g) for x in groups]
    assert len(infer_from_embedding(tuple(plain), *groups, [0, 1]).notes) == 2


def test_differences_are_paired_and_shares_exact():
    members = Guesses(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 0]))
    others = Guesses(torch.tensor([1, 1]), torch.tensor([1, 0]), torch.tensor([0, 0]))
    values = {k: m.value for k, m in attribute_result("a", "b", members, others, 0).metrics.items()}
    assert values == {
        "accuracy_member": 0.75,
        "majority_member": 0.5,
        "imputation_member": 0.75,
        "above_imputation_member": 0.0,
        "accuracy_nonmember": 0.5,
        "majority_nonmember": 0.0,
        "imputation_nonmember": 0.0,
        "above_imputation_nonmember": 0.5,
        "member_minus_nonmember": 0.25,
    }


def test_errors_name_what_is_wrong():
    labels = torch.tensor([0])
    with pytest.raises(InputError, match="two or more different values"):
        confidence_inference(lambda v: torch.zeros(1, 2), [1, 1], labels)
    with pytest.raises(InputError, match="3 rows of scores for 1 records"):
        confidence_inference(lambda v: torch.zeros(3, 2), [0, 1], labels)
    with pytest.raises(InputError, match="value 7"):
        fit_attribute_model(torch.zeros(5, 1), torch.tensor([0, 1, 0, 1, 7]), [0, 1])
    model = fit_attribute_model(torch.randn(8, 2), torch.tensor([0, 1] * 4), [0, 1])
    with pytest.raises(InputError, match="2 features but is given 3"):
        model.infer(torch.zeros(1, 3))
    empty = Guesses(*[torch.zeros(0, dtype=torch.long)] * 3)
    with pytest.raises(InputError, match="0 and 0"):
        attribute_result("a", "b", empty, empty, 0)
    one, two = people(4, 0), people(5, 1)
    with pytest.raises(InputError, match="one a record"):
        infer_from_embedding((torch.zeros(3, 2), torch.zeros(5, 2), torch.zeros(5, 2)), one, two, two, [0, 1])
