"""The two attribute inferences: from a classifier that reads the attribute, and from a model's embedding."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from lightning_privacy.attacks.attribute.confidence import ScoresWith, confidence_inference
from lightning_privacy.attacks.attribute.population_model import fit_attribute_model
from lightning_privacy.attacks.attribute.result import Guesses, attribute_result
from lightning_privacy.core.results import AttackResult
from lightning_privacy.errors import InputError

__all__ = ["AttributeRecords", "infer_from_confidence", "infer_from_embedding"]


@dataclass(frozen=True)
class AttributeRecords:
    """Records with a sensitive attribute.

    Args:
        known: What is known of a record without the model: its other attributes, or for pictures any features that do
            not come from the audited model (a public model's, the pixels).
        labels: True classes, which the attacker knows.
        sensitive: The sensitive attribute, whole numbers.
    """

    known: Float[Tensor, "records features"]
    labels: Int[Tensor, " records"]
    sensitive: Int[Tensor, " records"]

    def features(self, classes: int) -> Float[Tensor, "records features_and_classes"]:
        """Return what an imputation reads: the known attributes and the class."""
        return torch.cat([self.known.double(), F.one_hot(self.labels, classes).double()], 1)


def _classes(*groups: AttributeRecords) -> int:
    return 1 + max(int(group.labels.max()) for group in groups if len(group.labels))


def infer_from_confidence(
    scores_with: tuple[ScoresWith, ScoresWith],
    members: AttributeRecords,
    nonmembers: AttributeRecords,
    population: AttributeRecords,
    candidates: Sequence[int],
    *,
    use_prior: bool = False,
    seed: int = 0,
    split_hash: str = "",
) -> AttackResult:
    """Attack a classifier that has the sensitive attribute among its inputs.

    Args:
        scores_with: The model on the members and on the others: called with a candidate value it returns the class
            scores of those records with the attribute set to it.
        members: Records of the training data.
        nonmembers: Others, not those of the population.
        population: The attacker's own records, none of them a member, for the imputation.
        candidates: Values that the attribute can have.
        use_prior: Add the log probability of the value given what is known besides the class, log P(s | x), to the
            model's log p(y | x, s): for a model that is calibrated the sum is the log posterior of the value, by Bayes'
            rule. It is the stronger attack on such a model; where the model's confidence comes from memory, the prior
            can outvote it. The imputation that is the baseline reads the class too; as a prior it would count the class
            twice.
        seed: Of the imputation's fit and of the intervals.
        split_hash: sha256 of the split record.

    Source:
        arXiv 1806.01246, arXiv 2012.03404; the baseline, arXiv 2209.01292; the prior times the model's probability of the
        class is the rule of Fredrikson et al., USENIX Security 2014.
    """
    classes = _classes(members, nonmembers, population)
    model = fit_attribute_model(population.features(classes), population.sensitive, candidates, seed)
    prior = fit_attribute_model(population.known, population.sensitive, candidates, seed) if use_prior else None
    # Among values that tie the most frequent one wins.
    ordered = sorted(map(int, candidates), key=lambda value: value != model.majority)
    columns = [model.candidates.index(value) for value in ordered]
    guesses: list[Guesses] = []
    for scores, group in zip(scores_with, (members, nonmembers), strict=True):
        log_prior = None if prior is None else prior.log_probabilities(group.known)[:, columns]
        said = confidence_inference(scores, ordered, group.labels, log_prior)
        guesses.append(Guesses(group.sensitive, said, model.infer(group.features(classes))))
    name = "attribute_confidence_prior" if use_prior else "attribute_confidence"
    access = "class probabilities for every value of the attribute, all other attributes and the true class"
    return attribute_result(
        name,
        access,
        guesses[0],
        guesses[1],
        model.majority,
        seed=seed,
        split_hash=split_hash,
        converged=model.converged and (prior is None or prior.converged),
    )


def infer_from_embedding(
    embeddings: tuple[Float[Tensor, "members dim"], Float[Tensor, "nonmembers dim"], Float[Tensor, "population dim"]],
    members: AttributeRecords,
    nonmembers: AttributeRecords,
    population: AttributeRecords,
    candidates: Sequence[int],
    *,
    seed: int = 0,
    split_hash: str = "",
) -> AttackResult:
    """Attack a model's embedding: a probe for the attribute, learnt on the population, judged on members and others.

    For pictures, whose attribute is seen in them and is no separate input. What the probe reads beyond imputation from
    ``known`` is what the embedding discloses of anyone; only the difference of members and others is what training on
    a record discloses of it.

    Args:
        embeddings: Of the members, the others and the population under the audited model.
        members: Records of the training data.
        nonmembers: Others, not those of the population.
        population: The attacker's own records, none of them a member, on which the probe is fitted.
        candidates: Values that the attribute can have.
        seed: Of the fits and of the intervals.
        split_hash: sha256 of the split record.

    Raises:
        InputError: a group's embeddings are not one row a record.

    Source:
        arXiv 1805.04049 (attributes from representations); the baseline, arXiv 2209.01292.
    """
    groups = (members, nonmembers, population)
    for embedding, group in zip(embeddings, groups, strict=True):
        if len(embedding) != len(group.labels):
            raise InputError(
                f"There are {len(embedding)} embeddings for {len(group.labels)} records; give one a record."
            )
    classes = _classes(*groups)
    probe = fit_attribute_model(embeddings[2], population.sensitive, candidates, seed)
    imputation = fit_attribute_model(population.features(classes), population.sensitive, candidates, seed)
    guesses = [
        Guesses(group.sensitive, probe.infer(embedding), imputation.infer(group.features(classes)))
        for embedding, group in zip(embeddings[:2], groups[:2], strict=True)
    ]
    return attribute_result(
        "attribute_embedding",
        "the model's embedding of the record, and records of the population whose attribute is known",
        guesses[0],
        guesses[1],
        imputation.majority,
        seed=seed,
        split_hash=split_hash,
        converged=probe.converged and imputation.converged,
    )
