"""Helpers for tests of datasets: small trees of text and of files that stand for videos."""

from pathlib import Path

VIDEOS = Path(__file__).parents[1] / "data" / "videos"


def write_tree(root: Path, files: dict[str, str]) -> Path:
    """Text files by path under the root, which is returned."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def touch(root: Path, *names: str) -> None:
    """Files that need not be decoded."""
    write_tree(root, dict.fromkeys(names, "x"))
