"""How a check of the contract suite fails."""

__all__ = ["expect"]


def expect(holds: bool, sentence: str) -> None:
    """Fail with a sentence unless something holds; unlike ``assert``, also under ``python -O``.

    Args:
        holds: What should hold.
        sentence: What to say if it does not.

    Raises:
        AssertionError: it does not hold.
    """
    if not holds:
        raise AssertionError(sentence)
