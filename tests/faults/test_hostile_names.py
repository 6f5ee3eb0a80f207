"""Names and files that someone's disk really has: each ends in ok, failed or missing, and what is ok can be read."""

import dataclasses
import os
import re
import shutil
import subprocess

import pytest
from helpers.extraction import command_line
from helpers.video_files import write_video

from vfz.pipeline.cache.feature_cache import FeatureCache
from vfz.pipeline.errors import DatasetError
from vfz.pipeline.extraction.extract import extract
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.maintenance.verify import verify_cache

NAMES = (
    "-x",
    "--help",
    "-",
    "zażółć gęślą 漢字 🎬",
    "cafe\u0301",  # composed and decomposed are two names on Linux
    "caf\u00e9",
    "  two  spaces ",
    "tab\tand\nnewline\r",
    'it\'s "quoted" `touch owned` $(touch owned); rm -rf *',
    "100%s %d %% %(x)s {0} {id}",
    "a..",
    "a.b.c",
    "back\\slash..\\..\\up",
    "CON",
    "[bold]markup[bold]",
    "\x1b[31mred\x07",
    "\u202egnp.exe",
    "#?&=+,:;@|<>*",
    "https:",
    "x.tar::y",
    "v" * 240,
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A real video of three small frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, [0, 40, 80])
    return path


@pytest.fixture(params=["zarr", "webdataset"])
def options(request, tmp_path):
    return ExtractOptions(
        dataset="folder", root=tmp_path / "clips", encoder="vit_tiny_patch16_224", random_weights=True, image_size=64,
        layers=("2",), parts=("patch",), fps=25, batch_size=16, shard_videos=8, store=request.param,
        out=tmp_path / "caches", max_failures=100,
    )  # fmt: skip


def _class_folder(options, name="a class"):
    folder = options.root / "train" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cache_in(options):
    (path,) = options.out.iterdir()
    return path


def _verified(path):
    """The rows by id of a cache that is intact and whose ok videos can all be read by their ids."""
    report = verify_cache(path)
    assert report.intact, report
    cache = FeatureCache(path, checksums="always")
    for row in cache.ok_videos():
        assert cache.read(row.id).tokens(2).shape == (row.num_frames, 16, 192)
    return {row.id: row for row in cache.videos}


def test_any_name_is_an_id(options, clip):
    """By the command line, in a process of its own."""
    for name in NAMES:
        shutil.copy(clip, _class_folder(options) / f"{name}.mp4")
    shutil.copy(clip, _class_folder(options, "-- it's\n'another' 100% 類") / "same.mp4")
    ran = subprocess.run(command_line(options), capture_output=True, text=True, cwd=options.root.parent)
    assert ran.returncode == 0, ran.stderr
    rows = _verified(_cache_in(options))
    assert set(rows) == {f"train/a class/{name}" for name in NAMES} | {"train/-- it's\n'another' 100% 類/same"}
    assert {(row.status, row.num_frames) for row in rows.values()} == {("ok", 3)}
    assert {place.name for place in options.root.parent.iterdir()} == {"clips", "caches"}, "no name became a place"


def test_what_is_no_video_file_fails_or_is_missing_with_a_reason(options, clip):
    folder = _class_folder(options)
    shutil.copy(clip, folder / "good.mp4")
    (folder / "linked.mp4").symlink_to(folder / "good.mp4")
    (folder / "gone.mp4").symlink_to(folder / "nowhere.mp4")
    (folder / "circle.mp4").symlink_to(folder / "ring.mp4")
    (folder / "ring.mp4").symlink_to(folder / "circle.mp4")
    (folder / "to a folder.mp4").symlink_to(options.root.parent)
    (folder / "device.mp4").symlink_to("/dev/zero")
    (folder / "process.mp4").symlink_to("/proc/self/mem")  # opens, and every read of it is an error
    os.mkfifo(folder / "pipe.mp4")
    (folder / "empty.mp4").touch()
    (folder / "text -x.mp4").write_text("this is no video")
    (folder / "up").symlink_to(options.root)  # a loop of folders
    options = dataclasses.replace(options, video_timeout=20.0)
    for _ in range(2):  # the second time nothing is read again that would block
        extract(options)
    rows = _verified(_cache_in(options))
    found = {video_id.rpartition("/")[2]: row.status for video_id, row in rows.items()}
    assert found.pop("to a folder", "failed") == "failed"  # a kind of dataset may leave folders out
    assert found == {
        "good": "ok", "linked": "ok", "gone": "missing", "circle": "missing", "ring": "missing", "device": "failed",
        "process": "failed", "pipe": "failed", "empty": "failed", "text -x": "failed",
    }  # fmt: skip
    for video_id, row in rows.items():
        assert bool(row.reason) == (row.status != "ok"), video_id
        assert "\n" not in row.reason
    assert re.search(r"no regular file", rows["train/a class/pipe"].reason)


def _as_someone_without_rights():
    """In front of a command: root may read everything, unless it gives that up."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and setpriv is not here")
    return ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]


def test_a_video_that_may_not_be_read_fails_and_a_folder_is_refused(options, clip):
    folder = _class_folder(options)
    for name in ("good", "secret"):
        shutil.copy(clip, folder / f"{name}.mp4")
    (folder / "secret.mp4").chmod(0)
    command = [*_as_someone_without_rights(), *command_line(options)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    rows = _verified(_cache_in(options))
    assert {video_id: row.status for video_id, row in rows.items()} == {
        "train/a class/good": "ok",
        "train/a class/secret": "failed",
    }
    assert rows["train/a class/secret"].reason == "secret.mp4: cannot be read (Permission denied)"
    locked = _class_folder(options, "locked")
    locked.chmod(0)
    ran = subprocess.run(command, capture_output=True, text=True)
    locked.chmod(0o755)
    assert ran.returncode == 1
    assert ran.stderr == f"vfz: error: cannot read {locked}: Permission denied; check its permissions\n"


def test_an_id_that_two_videos_have_is_refused_before_anything_is_made(options, clip):
    shutil.copy(clip, _class_folder(options) / "one.mp4")
    shutil.copy(clip, _class_folder(options) / "one.webm")
    with pytest.raises(DatasetError, match=r"two videos have the id 'train/a class/one': one\.mp4 and one\.webm"):
        extract(options)
    assert not options.out.exists()


def test_a_name_that_is_no_text_is_refused_before_anything_is_made(options, clip):
    shutil.copy(clip, os.fsencode(_class_folder(options)) + b"/\xff\xfe.mp4")
    with pytest.raises(DatasetError, match=r"not valid UTF-8; rename it"):
        extract(options)
    assert not options.out.exists()


def test_names_that_differ_only_where_a_file_system_may_not_tell_them_apart_keep_their_own_tokens(options, tmp_path):
    """Upper and lower case, composed and decomposed accents: each has as many frames as its own file."""
    names = ("Video", "video", "caf\u00e9", "cafe\u0301", "a b", "a_b", "a-b")
    for number, name in enumerate(names, start=2):
        write_video(_class_folder(options) / f"{name}.mp4", [40 * frame for frame in range(number)])
    extract(options)
    rows = _verified(_cache_in(options))
    assert {video_id: row.num_frames for video_id, row in rows.items()} == {
        f"train/a class/{name}": number for number, name in enumerate(names, start=2)
    }


def test_an_id_never_becomes_a_path(options, clip, tmp_path):
    """A table may call a video anything; nothing is written outside of the cache."""
    ids = ("../../../up", "..", ".", "/etc/passwd", "~root", "a/../../b", "c:\\d", "-x,y", "shards/00000", "vfz.json")
    options.root.mkdir()
    shutil.copy(clip, options.root / "clip.mp4")
    lines = [f'clip.mp4,"{video_id}"' for video_id in ids]
    (options.root / "train.csv").write_text("\n".join(["path,id", *lines]))
    before = set(tmp_path.rglob("*"))
    extract(dataclasses.replace(options, dataset="csv"))
    cache = _cache_in(options)
    assert set(_verified(cache)) == set(ids)
    made = set(tmp_path.rglob("*")) - before - {options.out}
    assert all(path.is_relative_to(cache) for path in made)
