"""What a configured trainer would do, read from the configuration as text: nothing is built, so it works anywhere."""

from typing import Any

import lightning.pytorch as L

from lightning_privacy.core.conflicts import Environment

__all__ = ["environment_of", "strategy_name"]


def environment_of(config: Any, model: L.LightningModule) -> Environment:
    """Return what defences are judged against.

    Args:
        config: A verb's parsed configuration.
        model: The module, built without its weights.
    """
    trainer = config["trainer"]
    optimizer = config.get("model.init_args.optimizer")
    class_path = optimizer.get("class_path") if hasattr(optimizer, "get") else None
    return Environment(
        strategy=strategy_name(trainer.get("strategy")),
        accumulate_grad_batches=trainer.get("accumulate_grad_batches") or 1,
        gradient_clip_val=trainer.get("gradient_clip_val"),
        automatic_optimization=model.automatic_optimization,
        optimizers=(class_path.rpartition(".")[2],) if class_path else (),
    )


def strategy_name(value: Any) -> str:
    """Return a strategy as text: its short name, or its class name where it was given as a class."""
    class_path = value.get("class_path") if hasattr(value, "get") else None
    return str(class_path or value or "auto").rpartition(".")[2]
