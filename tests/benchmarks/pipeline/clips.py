"""A real scene as a video of any size and length, for measuring."""

from fractions import Fraction

import av
from helpers.video_files import VIDEOS


def write_clip(path, *, side, seconds):
    """The street scene as H.264 of 30 frames/s, as often as it takes."""
    with av.open(str(VIDEOS / "bikes.mp4")) as source:
        pictures = [frame.reformat(side, side, format="yuv420p") for frame in source.decode(video=0)]
    with av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=30)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for number in range(30 * seconds):
            frame = pictures[number % len(pictures)]
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, 30), 0
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return path
