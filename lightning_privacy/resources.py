"""Shipped files: recipes, configuration fragments, method cards, the bundled tiny Stable Diffusion. No torch here."""

import importlib.util
from pathlib import Path

from lightning_privacy.errors import InputError

__all__ = ["configs_folder", "method_card", "recipe", "recipes", "recipes_folder", "tiny_stable_diffusion"]

_PACKAGE = Path(__file__).resolve().parent


def recipes_folder() -> Path:
    """Return the folder of complete, runnable YAMLs.

    Raises:
        InputError: neither the installed package nor a source tree around it holds them.
    """
    return _folder("recipes")


def configs_folder() -> Path:
    """Return the folder of YAML fragments to combine.

    Raises:
        InputError: neither the installed package nor a source tree around it holds them.
    """
    return _folder("configs")


def recipes() -> dict[str, Path]:
    """Return all recipes and fragments by name: ``smp_lora_faces``, ``trainer/ddp``, ``slurm/one_node.sbatch``."""
    found = {path.stem: path for path in sorted(recipes_folder().glob("*.yaml"))}
    root = configs_folder()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")):
        name = path.relative_to(root)
        found[str(name.with_suffix("") if name.suffix == ".yaml" else name)] = path
    return found


def recipe(name: str) -> Path:
    """Return one recipe or fragment by name, with or without its ending.

    Raises:
        InputError: there is none of that name.
    """
    every = recipes()
    found = every.get(name) or every.get(name.removesuffix(".yaml"))
    if found is None:
        raise InputError(f"There is no recipe `{name}`. `lightning-privacy recipes ls` lists them.")
    return found


def method_card(name: str) -> str:
    """Return a defence's method card as Markdown.

    Args:
        name: The registered name; the card is the README.md beside the class.

    Raises:
        InputError: no such defence, or it has no card.
    """
    from lightning_privacy.core.registry import DEFENCES

    cls = DEFENCES.load(name)
    spec = importlib.util.find_spec(cls.__module__)
    if spec is None or spec.origin is None:
        raise InputError(f"Defence `{name}` ({cls.__module__}) lies in no file, so it has no card beside it.")
    card = Path(spec.origin).parent / "README.md"
    if not card.is_file():
        raise InputError(f"Defence `{name}` has no method card: {card} is missing. Ask its author for one.")
    return card.read_text(encoding="utf-8")


def tiny_stable_diffusion() -> Path:
    """Return the folder of the bundled tiny Stable Diffusion, in the diffusers layout.

    Raises:
        InputError: the weights were not installed.
    """
    folder = _PACKAGE / "assets" / "tiny_sd"
    if not any(folder.rglob("*.safetensors")):
        raise InputError(
            f"The tiny Stable Diffusion is missing from {folder}. Install the wheel, which holds it, or train it with "
            "`lightning-privacy fit --config recipes/pretrain_tiny_sd.yaml`."
        )
    return folder


def _folder(name: str) -> Path:
    for folder in (_PACKAGE / f"_{name}", _PACKAGE.parent / name):
        if folder.is_dir():
            return folder
    raise InputError(f"The folder `{name}` is neither in {_PACKAGE} nor beside it. Reinstall lightning-privacy.")
