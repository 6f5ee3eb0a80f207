"""What is shown keeps its lines and colours, whatever the names, reasons and paths in it are."""

from __future__ import annotations

import io
import json
import sys

import pytest
from rich.console import Console

from vfz.cli.console import LiveProgress, PlainProgress, print_json, show, table
from vfz.cli.main import main
from vfz.cli.options import printable

pytestmark = pytest.mark.quick

HOSTILE = "a\x1b[31mred\x9b2J\nb\tc\r\x07\u202e\udcff [bold]x[/bold] :smile: \\d é 視"
SHOWN = "a\\x1b[31mred\\x9b2J\\nb\\tc\\r\\x07\\u202e\\udcff [bold]x[/bold] :smile: \\d é 視"
PLAIN = "train [bold]x[/bold] :smile:"


def test_what_is_not_printable_is_escaped_and_nothing_else():
    assert printable(HOSTILE) == SHOWN
    assert printable(SHOWN) == SHOWN


def test_tables_keep_their_lines(capsys):
    table(HOSTILE, ["video", "reason"], [(HOSTILE, 1), ("v", HOSTILE)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert [line.count(SHOWN) for line in lines] == [1, 0, 1, 1]
    show("title", {HOSTILE: HOSTILE})
    assert capsys.readouterr().out.splitlines()[1].count(SHOWN) == 2


def test_tables_that_go_to_a_file_have_a_header_and_columns_that_stand_below_each_other(capsys):
    table("title", ["video", "frames", ""], [("視", 12, "x" * 500), ("ab", 7, "")])
    assert capsys.readouterr().out.splitlines() == [
        "title",
        "video  frames",
        f"視         12  {'x' * 500}",
        "ab          7",
    ]
    show("", {"name": "value", "longer name": 1})
    assert capsys.readouterr().out.splitlines() == ["name         value", "longer name  1"]


def test_tables_on_a_terminal_are_coloured_by_nobody_else(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    table("title", ["video"], [(HOSTILE,)])
    out = capsys.readouterr().out
    assert SHOWN in out
    assert "\x1b[31m" not in out
    assert "\x9b" not in out


def test_json_is_valid_and_gives_back_what_was_shown(capsys):
    print_json({HOSTILE: [HOSTILE, "\U000e0001"]})
    out = capsys.readouterr().out
    assert json.loads(out) == {HOSTILE: [HOSTILE, "\U000e0001"]}
    assert all(line.isprintable() for line in out.splitlines())
    assert "é 視" in out


def test_plain_progress_writes_one_line_per_note(capsys):
    shown = PlainProgress()
    shown.start(HOSTILE, total=1, unit="videos")
    shown.note(f"failed: {HOSTILE}")
    shown.advance(1, figures={"at": HOSTILE})
    shown.finish()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(SHOWN in line for line in lines)


def test_live_progress_reads_no_markup():
    file = io.StringIO()
    shown = LiveProgress(Console(file=file, force_terminal=True, width=300, color_system="truecolor"))
    shown.start(f"{PLAIN} {HOSTILE}", total=2, unit="[i]videos[/i]")
    shown.advance(1, figures={"split": f"{PLAIN} {HOSTILE}"})
    shown.note(HOSTILE)
    shown.finish()
    written = file.getvalue()
    assert written.count(f"{PLAIN} {SHOWN}") >= 2
    assert "[i]videos[/i]" in written
    assert f"{SHOWN}\n" in written
    assert "\x1b[31m" not in written


@pytest.mark.parametrize("verbosity", [[], ["-v"], ["-vv"]])
def test_an_error_is_one_line_that_is_printable(capsys, verbosity):
    code = main([*verbosity, "cache", "info", "no\x1b[31m\nwhere [bold]"])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert lines[-1].startswith(r"vfz: error: no\x1b[31m\nwhere [bold] is not a folder, ")
    assert all(line.isprintable() for line in lines)
    assert (len(lines) == 1) is (not verbosity)
