"""Numbers as people read them, for titles, annotations and tables."""

import math


def readable(value: float, digits: int = 3) -> str:
    """Write a number with a few significant digits, and a power of ten only where it is far from one.

    Args:
        value: Any real number.
        digits: Significant digits, at least 1.

    Returns:
        The number as text; ``"not finite"`` for NaN and the infinities.

    Example:
        >>> readable(10234.0), readable(0.03123), readable(3.2e-7)
        ('10,234', '0.0312', '3.20e-07')
    """
    if not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if not -4 <= magnitude < 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def plus_minus(value: float, standard_error: float) -> str:
    """Write an estimate with its standard error, rounded to two significant digits of the error.

    Args:
        value: The estimate.
        standard_error: Its standard error in the same unit, not negative.

    Returns:
        ``"value ± error"``; the value alone where the error is zero or not finite.

    Raises:
        ValueError: If the standard error is negative.

    Example:
        >>> plus_minus(-812.3456, 0.4321), plus_minus(1234.5, 56.7)
        ('-812.35 ± 0.43', '1,234 ± 57')
    """
    if standard_error < 0:
        message = f"a standard error must not be negative, got {standard_error}"
        raise ValueError(message)
    if not math.isfinite(value) or not math.isfinite(standard_error) or standard_error == 0:
        return readable(value, digits=4)
    decimals = 1 - math.floor(math.log10(standard_error))
    if decimals > 8:
        return f"{value:.6g} ± {standard_error:.1e}"
    decimals = max(0, decimals)
    return f"{value:,.{decimals}f} ± {standard_error:,.{decimals}f}"
