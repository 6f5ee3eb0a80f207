"""`vfz predict`: options in, one call, rows out as they come.

The call is `vfz.temporal.prediction.predict.predict`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from vfz.cli.options import Session, command, printable
from vfz.pipeline.errors import HangUp, RunInterruptedError, TooManyFailuresError
from vfz.pipeline.progress import counted
from vfz.temporal.prediction.options import PredictOptions

if TYPE_CHECKING:
    from vfz.temporal.prediction.rows import Prediction, Rows


@command(
    PredictOptions,
    name="predict",
    argument="videos",
    example="vfz predict clip.mp4 more/ --run runs/my-run\n"
    "vfz predict more/ --probe my-probe --top-k 3 --out answers.csv\n"
    "vfz predict --run my-run --cache k400-vit_small-0123456789ab --split val --out answers.jsonl",
)
def predict_command(options: PredictOptions, session: Session) -> None:
    """Ask a run of vfz train-temporal, or a result of vfz probe, about videos: files, folders, or those of a cache.

    One row for each video, written as it is answered for. One that cannot be decoded has its reason in the column
    `error`, and the exit code is then 3.
    """
    from vfz.cli.console import print_json, progress, show
    from vfz.pipeline.progress import SilentProgress
    from vfz.temporal.checks import check_prediction
    from vfz.temporal.lookup import find_probe, find_run

    check_prediction(options)  # a slip of the pen is told before torch is imported
    asked = find_probe(options.probe) if options.run is None else find_run(options.run)
    kept: list[tuple[Prediction, Rows]] = []
    printer = _Printer()
    num_answered = 0

    def on_video(prediction: Prediction, rows: Rows) -> None:
        nonlocal num_answered
        num_answered += 1
        if session.json:
            kept.append((prediction, rows))
        elif options.out is None:
            printer.show(prediction, rows)

    with progress() as shown:  # rows on a terminal tell themselves how far it is
        shown.note(f"loading {asked}{' and its encoder' if options.videos else ''}")
        from vfz.temporal.prediction.predict import predict

        silent = options.out is None and not session.json and sys.stdout.isatty()
        try:
            report = predict(options, progress=SilentProgress() if silent else shown, on_video=on_video)
        except KeyboardInterrupt as stopped:
            raise _interrupted(options, num_answered, stopped) from None
    summary = {"from": report.path, "task": report.task, "num_videos": report.num_videos,
               "num_failed": report.num_failed, "out": report.out}  # fmt: skip
    if session.json:
        print_json(summary | {"videos": [rows.values(prediction) for prediction, rows in kept]})
    elif options.out is not None:
        answered = f"{report.num_videos - report.num_failed} of {counted(report.num_videos, 'video')}"
        show(f"predict {report.task}", {"from": report.path, "answered": answered, "written": report.out})
    if report.num_failed:
        raise TooManyFailuresError(
            f"{report.num_failed} of {counted(report.num_videos, 'video')} have no answer; their rows say why, the "
            "others are whole"
        )


def _interrupted(options: PredictOptions, num_answered: int, stopped: KeyboardInterrupt) -> RunInterruptedError:
    where = f"in {options.out}; --force begins it anew" if options.out else "written"
    error = RunInterruptedError(f"interrupted; the rows of {counted(num_answered, 'video')} are {where}")
    error.exit_code = stopped.exit_code if isinstance(stopped, HangUp) else error.exit_code
    return error


class _Printer:
    """Rows of CSV on stdout; on a terminal what is not printable in them is escaped."""

    def __init__(self) -> None:
        self._has_header = False

    def show(self, prediction: Prediction, rows: Rows) -> None:
        """Writes the rows of a video, at the first one the names of the columns."""
        lines = [] if self._has_header else [rows.header()]
        self._has_header = True
        for cells in [*lines, *rows.cells(prediction)]:
            shown = [printable(cell) if isinstance(cell, str) and sys.stdout.isatty() else cell for cell in cells]
            sys.stdout.write(rows.csv_line(shown))
        sys.stdout.flush()
