"""What all errors of this package have in common."""


class EsperError(Exception):
    """Base of the errors of this package."""


def listed(names: tuple[str, ...]) -> str:
    """`a, b` or `none`."""
    return ", ".join(names) if names else "none"
