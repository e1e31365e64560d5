"""Properties that one defence may need and another may destroy; conflicts are found by these, not by names."""

from enum import Enum

__all__ = ["Property"]


class Property(Enum):
    """What can hold of a training run; the value is the sentence used in errors and in the composition matrix."""

    PER_SAMPLE_SEPARABLE = "the loss is a mean of terms, each a function of one record (given frozen side state)"
    NO_CROSS_SAMPLE_LAYERS = "no layer mixes records within a batch (no BatchNorm in training mode)"
    SIDE_STATE_PRIVATE = "what is trained on members beside the model is itself private or never sees them"
    UNSHARDED = "every rank holds the whole model (no FSDP, DeepSpeed or tensor parallelism)"
    LAUNCHER_KEEPS_MODULE = "ranks are started as processes of their own (not ddp_spawn), so patches reach each of them"
    ONE_STEP_PER_CLOSURE = "the optimizer evaluates the training step once a step (not LBFGS)"
    AUTOMATIC_OPTIMIZATION = "Lightning runs backward and the optimizer step (no manual optimization)"
    NO_ACCUMULATION = "gradients are not accumulated over several training steps"
    TRAINER_CLIPPING_OFF = "the Trainer does not clip gradients"
    PLAIN_GRADIENTS = "the gradient that reaches the optimizer is that of the loss (nothing clips or adds noise to it)"
    ORIGINAL_NORM_LAYERS = "normalisation layers are those of the original model"
    STABLE_STATE_DICT = "the names and shapes in the state dict are those of the original model"
