"""Bytes, seconds and counts as people read them."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """Bytes as people read them: 1.5 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def counted(count: int, noun: str) -> str:
    """A number of things: 1 shard, 2 shards."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def human_seconds(seconds: float) -> str:
    """A length of time as people read it: 0.0012 s, 42.5 s, 12 min, 3 h 20 min, 2 days 5 h."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"
