"""Numbers as people write and read them: bytes, seconds, rates, shares."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
BYTES = {"": 1.0} | {unit: 1000.0**power for power, unit in enumerate(BYTE_UNITS)}
SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
BITS_A_SECOND = {"kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}


def quantity(text: str, units: Mapping[str, float]) -> float:
    """The number that is written with one of these units, in capitals or not; NaN for what is none.

    >>> quantity("50 mb", BYTES), quantity("10ms", SECONDS), quantity("10", SECONDS), quantity("1e999s", SECONDS)
    (50000000.0, 0.01, nan, nan)
    """
    match = re.fullmatch(r"([0-9][0-9_.]*(?:e-?[0-9]+)?)\s*([a-zA-Z]*)", text)
    unit = {name.lower(): size for name, size in units.items()}.get(match[2].lower()) if match else None
    if match is None or unit is None:
        return math.nan
    try:
        value = float(match[1]) * unit
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def bytes_text(count: float) -> str:
    """
    >>> bytes_text(999), bytes_text(12_345_678), bytes_text(0)
    ('999 B', '12.3 MB', '0 B')
    """
    power = 0
    while power < len(BYTE_UNITS) - 1 and count >= 999.5:
        count, power = count / 1000, power + 1
    return f"{count:.0f} B" if power == 0 else f"{count:.3g} {BYTE_UNITS[power]}"


def seconds_text(seconds: float) -> str:
    """
    >>> seconds_text(0.5), seconds_text(83.4), seconds_text(7260)
    ('0.50 s', '1 min 23 s', '2 h 1 min')
    """
    if seconds < 59.95:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def short_seconds_text(seconds: float) -> str:
    """
    >>> short_seconds_text(0.01), short_seconds_text(2.5), short_seconds_text(2e-5)
    ('10 ms', '2.5 s', '0.02 ms')
    """
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def rate_text(bits: float) -> str:
    """
    >>> rate_text(50e6), rate_text(2.5e9)
    ('50 Mbit/s', '2.5 Gbit/s')
    """
    unit, size = next((u, s) for u, s in reversed(BITS_A_SECOND.items()) if bits >= s or s == 1e3)
    return f"{bits / size:.3g} {unit}/s"


def loss_text(loss: float) -> str:
    """
    >>> loss_text(0.43712), loss_text(1.5e-7)
    ('0.4371', '1.5e-07')
    """
    return f"{loss:.4g}"


def percent_text(share: float) -> str:
    """
    >>> percent_text(0.81234)
    '81.23%'
    """
    return f"{share:.2%}"


def epsilon_text(epsilon: float | None) -> str:
    """
    >>> epsilon_text(3.14159), epsilon_text(None)
    ('3.142', 'infinite')
    """
    return "infinite" if epsilon is None else f"{epsilon:.4g}"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """
    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7])
    '▁▂▃▄▅▆▇█'
    """
    if not values:
        return ""
    picked = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    picked = list(values) if len(values) <= width else picked
    low, high = min(picked), max(picked)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (v - low) / (high - low)) if high > low else 3] for v in picked)
