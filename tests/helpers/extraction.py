"""Helpers for tests that extract: what is stored, and the same options as a command line."""

import sys
from pathlib import Path

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.format.commits import committed_paths, read_shard_index
from vfz.pipeline.progress import SilentProgress


class Notes(SilentProgress):
    """Keeps what an extraction tells, in `lines`."""

    def __init__(self):
        self.lines = []

    def note(self, text):
        self.lines.append(text)


def all_tokens(path):
    """The stored bytes of every array of every video that can be read, by id."""
    cache = FeatureCache(path, allow_incomplete=True)
    return {
        row.id: {key: value.tobytes() for key, value in cache.read(row.id).arrays.items()} for row in cache.ok_videos()
    }


def num_ok(path):
    """How many videos a cache holds, whatever else is to be made."""
    return len(FeatureCache(path, allow_incomplete=True).ok_videos())


def command_line(options):
    """What runs the same extraction in a process of its own."""
    arguments = ["extract"]
    for field in options.option_fields():
        value = getattr(options, field.name)
        if value is not None and value != field.default:
            arguments += [field.flag]
            if field.kind is not bool:
                arguments += [",".join(value) if field.many else str(value)]
    return [sys.executable, "-m", "vfz.cli", *arguments]


def shard_files(path):
    """SHA-256 of every file of every shard, by shard; what a shard's data folder is called does not count."""
    cache = Path(path)
    return {
        key: {name: file.sha256 for name, file in index.data.files.items()} if index.data else {}
        for key, index_path in committed_paths(cache).items()
        for index in [read_shard_index(index_path)]
    }
