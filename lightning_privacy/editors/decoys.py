"""Wrong keys: what an attacker without the key would try, for training against it and for measuring."""

from lightning_privacy.editors.lock_key import LockSecret
from lightning_privacy.errors import InputError

__all__ = ["decoy_secret"]


def decoy_secret(secret: LockSecret, kind: str, number: int) -> LockSecret:
    """Return a wrong key, a function of the right one, the kind and the number.

    Args:
        secret: The right one.
        kind: ``wrong_prompt`` (another published prompt, the same seed) or ``wrong_seed`` (the same prompt).
        number: Which of them.

    Raises:
        InputError: there is no such kind.

    Example:
        >>> decoy_secret(LockSecret("Monet", 1024), "wrong_seed", 0).prompt
        'Monet'
    """
    if kind == "wrong_seed":
        derived = secret.seed_number("decoy seed", str(number))
        return LockSecret(secret.prompt, derived if isinstance(secret.seed, int) else derived.to_bytes(32, "big"))
    if kind != "wrong_prompt":
        raise InputError(f"There are no decoys of kind {kind!r}, only `wrong_prompt` and `wrong_seed`.")
    from lightning_privacy.editors.published import published_prompts

    others = [p.prompt for p in published_prompts() if p.prompt.lower() not in (secret.prompt or "").lower()]
    first = secret.seed_number("decoy prompt")
    return LockSecret(others[(first + number) % len(others)], secret.seed)
