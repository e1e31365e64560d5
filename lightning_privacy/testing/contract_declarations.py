"""Contract checks on what a defence says of itself: requirements, arguments, card, fragments."""

import inspect
from pathlib import Path
from typing import Any, ClassVar

import yaml
from jsonargparse import ArgumentParser

from lightning_privacy.core.conflicts import Environment, find_conflicts, raise_conflicts
from lightning_privacy.core.defence import Defence
from lightning_privacy.core.manifest_record import plain_init_args
from lightning_privacy.errors import DefenceConflictError
from lightning_privacy.properties import Property
from lightning_privacy.testing.expect import expect
from lightning_privacy.testing.fitting import fit
from lightning_privacy.testing.settings import DefenceCase

__all__ = [
    "HEADINGS",
    "check_arguments_round_trip",
    "check_card",
    "check_fragments",
    "check_keeps_arguments",
    "check_requirements",
]

HEADINGS = (
    "What it defends against",
    "Use it",
    "What it needs",
    "How it composes",
    "Settings that matter",
    "Deviations from the paper",
    "Measured",
    "Reference",
)
"""The headings of a method card, in order."""
CARD_LINES = 120

# For each property that a trainer or module can break: an environment that breaks it.
_BREAKERS: dict[Property, Environment] = {
    Property.UNSHARDED: Environment(strategy="FSDPStrategy"),
    Property.LAUNCHER_KEEPS_MODULE: Environment(strategy="DDPStrategy (ddp_spawn)"),
    Property.ONE_STEP_PER_CLOSURE: Environment(optimizers=("LBFGS",)),
    Property.AUTOMATIC_OPTIMIZATION: Environment(automatic_optimization=False),
    Property.NO_ACCUMULATION: Environment(accumulate_grad_batches=2),
    Property.TRAINER_CLIPPING_OFF: Environment(gradient_clip_val=1.0),
    Property.NO_CROSS_SAMPLE_LAYERS: Environment(module_breaks={Property.NO_CROSS_SAMPLE_LAYERS: "BatchNorm2d `norm`"}),
}
_OPTIONS: dict[Property, dict[str, Any]] = {
    Property.NO_ACCUMULATION: {"accumulate_grad_batches": 2},
    Property.TRAINER_CLIPPING_OFF: {"gradient_clip_val": 1.0},
}


class _Breaker(Defence):
    name: ClassVar[str] = "breaker"

    def __init__(self, broken: Property) -> None:
        super().__init__()
        self.broken, self.breaks = broken.name, frozenset({broken})


def check_requirements(case: DefenceCase, folder: Path | str) -> None:
    """Each property that it requires, broken once, is refused in a sentence that names both parties and the remedy."""
    for prop in sorted(case.build().requires, key=lambda p: p.name):
        environment = _BREAKERS.get(prop)
        parties = [case.build(), *([] if environment else [_Breaker(prop)])]
        conflicts = find_conflicts(parties, environment or Environment())
        expect(len(conflicts) == 1, f"`{case.name}` requires {prop.name}; broken, it gave {len(conflicts)} conflicts.")
        sentence = conflicts[0].sentence()
        for part in (case.name, prop.name, prop.value, conflicts[0].breaker):
            expect(part in sentence, f"The conflict over {prop.name} does not name {part}: {sentence}")
        expect(len(conflicts[0].remedy) > 10, f"The conflict over {prop.name} proposes no remedy: {sentence}")
        _expect_refusal(lambda c=conflicts: raise_conflicts(c), case.name, prop)
        options = _OPTIONS.get(prop)
        if options is not None or environment is None:
            _expect_refusal(
                lambda p=parties, o=options or {}: fit(folder, case.module(), case.data(8), p, **o), case.name, prop
            )


def _expect_refusal(attempt: Any, name: str, prop: Property) -> None:
    try:
        attempt()
    except DefenceConflictError as conflict:
        expect(name in str(conflict) and prop.name in str(conflict), f"The refusal names neither: {conflict}")
    else:
        expect(False, f"`{name}` ran although {prop.name}, which it requires, was broken.")


def check_keeps_arguments(case: DefenceCase, folder: Path | str) -> None:
    """Every constructor argument is kept under its own name, documented, and enough to build the defence anew."""
    defence = case.build()
    names = list(inspect.signature(case.defence).parameters)
    lost = [n for n in names if not hasattr(defence, n)]
    expect(not lost, f"`{case.name}` does not keep {lost} under their own names.")
    text = inspect.getdoc(case.defence) or ""
    untold = [n for n in names if f"{n}:" not in text]
    expect(not untold, f"The docstring of {case.defence.__name__}, which is its help text, does not explain {untold}.")
    again = defence.fresh()
    expect(type(again) is case.defence and again is not defence, f"`{case.name}`.fresh() is not a new defence.")
    expect(again.init_args == defence.init_args, f"`{case.name}`.fresh() has other arguments.")
    expect(defence.name == case.name and bool(defence.slots), f"{case.defence.__name__} has no name or no slot.")


def check_arguments_round_trip(case: DefenceCase, folder: Path | str) -> None:
    """Its arguments survive the manifest and YAML: YAML -> object -> YAML is the same text."""
    defence = case.build()
    plain = plain_init_args(defence)
    expect(plain_init_args(case.defence(**plain)) == plain, f"`{case.name}` cannot be rebuilt from its manifest entry.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(case.defence, "defence")
    text = yaml.safe_dump({"defence": plain})
    parsed = parser.parse_string(text)
    built = parser.instantiate(parsed).defence
    expect(plain_init_args(built) == plain, f"`{case.name}` built from YAML has other arguments than written.")
    dumped = parser.dump(parsed)
    expect(
        parser.dump(parser.parse_string(dumped)) == dumped, f"The YAML of `{case.name}` changes when read and written."
    )


def check_card(case: DefenceCase, folder: Path | str) -> None:
    """A registered defence has a method card beside its class, with all headings in order, short enough to be read."""
    if not _is_registered(case.name):
        return
    card = Path(inspect.getfile(case.defence)).with_name("README.md")
    expect(card.is_file(), f"`{case.name}` has no method card: {card} is missing.")
    lines = card.read_text(encoding="utf-8").splitlines()
    found = tuple(line.lstrip("#").strip() for line in lines if line.startswith("## "))
    expect(found == HEADINGS, f"The card of `{case.name}` has the headings {found}, not {HEADINGS}.")
    expect(len(lines) <= CARD_LINES, f"The card of `{case.name}` has {len(lines)} lines; {CARD_LINES} are enough.")


def check_fragments(case: DefenceCase, folder: Path | str) -> None:
    """A registered defence has fragments in ``configs/defences``, and each of them builds it."""
    if not _is_registered(case.name):
        return
    fragments = _fragments(case)
    expect(bool(fragments), f"`{case.name}` has no fragment configs/defences/{case.name}.yaml.")
    for fragment in fragments:
        entry = (yaml.safe_load(fragment.read_text(encoding="utf-8")) or {}).get("defences", {}).get(case.name)
        expect(isinstance(entry, dict), f"{fragment.name} has no `defences: {case.name}:` with settings.")
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(case.defence, "defence")
        parser.instantiate(parser.parse_object({"defence": entry}))


def _fragments(case: DefenceCase) -> list[Path]:
    from lightning_privacy.resources import configs_folder

    places = [configs_folder(), *(p / "configs" for p in Path(inspect.getfile(case.defence)).parents)]
    return sorted({path for place in places for path in (place / "defences").glob(f"{case.name}*.yaml")})


def _is_registered(name: str) -> bool:
    from lightning_privacy.core.registry import defence_names

    return name in defence_names()
