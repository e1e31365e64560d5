"""Building shadow models from a run's configuration."""

from collections.abc import Collection
from typing import Any

import lightning.pytorch as L
import yaml
from jsonargparse import Namespace

from lightning_privacy.cli.run_config import dump_config
from lightning_privacy.core.defence import Defence

__all__ = ["ShadowBuild"]

_DECIDES = ("model", "data", "defences")


class ShadowBuild:
    """Makes new models, with new defences, as a parsed configuration says.

    Args:
        parser: Of the verb.
        config: The verb's configuration, complete.
    """

    def __init__(self, parser: Any, config: Namespace) -> None:
        self._parser = parser
        self._config = Namespace(model=config["model"], defences=config.get("defences") or Namespace())
        from lightning_privacy.shadows.content import NO_MATTER  # seconds, and only where shadow models are wanted

        every = yaml.safe_load(dump_config(self._parser, config))
        decides = {key: every.get(key) for key in _DECIDES}
        self.signature = yaml.safe_dump({**decides, "data": _without(decides["data"], NO_MATTER)})
        """What decides how a model comes out, as text; the trainer's part is told apart."""

    def __call__(self, seed: int) -> tuple[L.LightningModule, list[L.Callback]]:
        """Return a new model and its defences.

        Args:
            seed: Of the shadow; whoever trains it has seeded the global random state.
        """
        built = self._parser.instantiate(self._config.clone())
        defences = built.get("defences") or Namespace()
        return built["model"], [d for d in vars(defences).values() if isinstance(d, Defence)]


def _without(value: Any, names: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(part, names) for key, part in value.items() if key not in names}
    return [_without(part, names) for part in value] if isinstance(value, list) else value
