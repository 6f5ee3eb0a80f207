"""Flags, TOML and Python go through one dataclass: same names, same defaults, same checks."""

import dataclasses
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from vfz.cli.options import command
from vfz.pipeline.config import COMMANDS, Options, option, read_toml
from vfz.pipeline.errors import UsageError
from vfz.pipeline.extraction.options import ExtractOptions
from vfz.pipeline.maintenance.options import ConvertOptions, InfoOptions, LsOptions, RepairOptions, VerifyOptions
from vfz.temporal.prediction.options import PredictOptions
from vfz.temporal.probes.options import CompareOptions, DemoOptions, ProbeOptions
from vfz.temporal.training.options import EvaluateOptions, TrainOptions
from vfz.temporal.workflow.options import RunOptions

pytestmark = pytest.mark.quick


@dataclasses.dataclass(frozen=True, kw_only=True)
class Small(Options):
    word: str = option("a", help="A word.", choices=("a", "b"))
    count: int = option(3, help="A count.", minimum=1, maximum=9)
    rate: float = option(1.0, help="A rate.", above=0)
    layers: tuple[str, ...] | None = option(None, help="Some layers.")
    deep: bool = option(default=False, help="Whether.")


@pytest.fixture
def run(tmp_path):
    seen = []

    @command(Small, name="extract", example="vfz extract")
    def small(options, session):
        """Small."""
        seen.append(options)

    def invoke(*arguments, toml=None):
        if toml is not None:
            (tmp_path / "c.toml").write_text(toml)
            arguments = (*arguments, "--config", str(tmp_path / "c.toml"))
        seen.clear()
        CliRunner().invoke(small, arguments, catch_exceptions=False, standalone_mode=False)
        return seen[0]

    return invoke


def test_nothing_given_means_the_defaults(run):
    assert run() == Small()


def test_flags_are_parsed_by_the_dataclass(run):
    assert run("--count", "5", "--layers", "2,5", "--deep") == Small(count=5, layers=("2", "5"), deep=True)


@pytest.mark.parametrize("toml", ["count = 5\nlayers = [2, 5]", '[extract]\ncount = 5\nlayers = "2,5"\n[probe]\nx = 1'])
def test_toml_uses_the_same_names(run, toml):
    assert run(toml=toml) == Small(count=5, layers=("2", "5"))


def test_flags_beat_the_file(run):
    assert run("--count", "7", "--no-deep", toml="count = 5\ndeep = true") == Small(count=7)


def test_an_unknown_key_is_refused_with_the_nearest_valid_name(run):
    with pytest.raises(UsageError, match=r"'cuont'.*did you mean count"):
        run(toml="cuont = 5")


def test_an_unknown_table_is_refused(run):
    with pytest.raises(UsageError, match=r"'extrat'.*did you mean extract"):
        run(toml="[extrat]\ncount = 5")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"count": 0}, "least is 1"),
        ({"count": 10}, "most is 9"),
        ({"count": 2.5}, "whole number"),
        ({"count": True}, "whole number"),
        ({"rate": 0}, "above 0"),
        ({"rate": float("nan")}, "not a finite number"),
        ({"rate": float("inf")}, "not a finite number"),
        ({"word": "c"}, "choose from a, b"),
        ({"deep": 1}, "true or false"),
    ],
)
def test_bad_values_are_refused_alike_in_python_and_toml(run, values, words):
    with pytest.raises(UsageError, match=words):
        Small(**values)
    name, value = next(iter(values.items()))
    shown = "true" if value is True else f"'{value}'" if isinstance(value, str) else value
    with pytest.raises(UsageError, match=words):
        run(toml=f"{name} = {shown}")


@pytest.mark.parametrize(
    ("toml", "words"), [("count = ", "not valid TOML"), ("count = 1\n[probe]", "outside its tables")]
)
def test_a_file_that_cannot_be_understood_is_refused(run, toml, words):
    with pytest.raises(UsageError, match=words):
        run(toml=toml)


@pytest.mark.parametrize("toml", ["[cache]\nverify = 3", "[[cache]]\nverify = 3"])
def test_a_value_where_a_table_is_meant_is_refused(tmp_path, toml):
    (tmp_path / "c.toml").write_text(toml)
    with pytest.raises(UsageError, match=r"c\.toml: cache\.verify is not one table; write \[cache\.verify\]"):
        read_toml(tmp_path / "c.toml", command="cache.verify")


@pytest.mark.parametrize(
    "options_type",
    [ExtractOptions, TrainOptions, ProbeOptions, DemoOptions, LsOptions, InfoOptions, VerifyOptions, RepairOptions],
)
def test_every_option_has_a_helpful_sentence_and_a_default_that_passes_its_own_checks(options_type):
    for field in options_type.option_fields():
        assert field.info.help.endswith((".", ")"))
        if not field.required:
            assert field.parse(field.default) == field.default


def test_every_command_may_have_a_table_in_a_config_file():
    from vfz.cli.main import cli

    assert set(cli.list_commands(click.Context(cli))) == COMMANDS


PATHS = [
    (kind, field)
    for kind in (ExtractOptions, TrainOptions, EvaluateOptions, ProbeOptions, CompareOptions, DemoOptions, LsOptions,
                 PredictOptions, InfoOptions, VerifyOptions, RepairOptions, ConvertOptions, RunOptions)
    for field in kind.option_fields()
    if field.kind is Path
]  # fmt: skip


@pytest.mark.parametrize(("kind", "field"), PATHS, ids=[f"{kind.__name__}.{field.name}" for kind, field in PATHS])
def test_an_address_is_refused_by_every_option_that_takes_a_path(kind, field):
    for address in ("s3://bucket/x", "gs://bucket/x", "hf://datasets/x", "https://host/x", Path("s3://bucket/x")):
        with pytest.raises(UsageError, match=rf"{field.flag} '.*' is an address, and vfz reads and writes files"):
            field.parse([address] if field.many else address)
    for path in ("x", "/x/y", "C/x", "a:b", "x:y/z", "./s3/x"):
        assert field.parse(path) == ((Path(path),) if field.many else Path(path))


def test_paths_begin_at_home_where_they_say_so_and_are_never_empty(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    (out,) = (field for field in ExtractOptions.option_fields() if field.name == "out")
    assert out.parse("~/caches") == Path("/home/me/caches")
    assert out.parse("./~/caches") == Path("~/caches")
    with pytest.raises(UsageError, match="--out '' cannot be a path"):
        out.parse("")
    with pytest.raises(UsageError, match="'~nobody-of-that-name/x' begins with ~ and no user of that name"):
        out.parse("~nobody-of-that-name/x")


def test_a_file_with_a_byte_order_mark_is_read_and_one_in_utf16_is_told(run, tmp_path):
    assert run(toml="\ufeffcount = 5\r\n") == Small(count=5)
    (tmp_path / "c.toml").write_bytes("count = 5".encode("utf-16"))
    with pytest.raises(UsageError, match=r"c\.toml is not UTF-8 text, as TOML is; save the file as UTF-8"):
        run("--config", str(tmp_path / "c.toml"))
    with pytest.raises(UsageError, match=r"the config file 's3:/bucket/c\.toml' is an address"):
        run("--config", "s3://bucket/c.toml")


def test_a_file_with_a_comma_in_its_name_is_one_path_and_others_are_taken_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a, b.mp4").write_text("")
    options = PredictOptions(run="r", videos=["a, b.mp4", "c.mp4, d.mp4"])
    assert options.videos == (Path("a, b.mp4"), Path("c.mp4"), Path("d.mp4"))
