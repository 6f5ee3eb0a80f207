"""Video files to frames: decoders behind one protocol, the rules that choose frames, and the processes they run in.

A new decoder is one file beside this one with a `Decoder` in it, and one line in `DECODERS`. It is imported when it is
asked for, so that the libraries of a decoder are needed only by those who use it.
"""

from __future__ import annotations

from vfz.pipeline.decoding.base import Decoder, VideoFrame
from vfz.pipeline.registry import Registry

__all__ = ["DECODERS", "DEFAULT_DECODER", "Decoder", "VideoFrame", "get_decoder"]

DEFAULT_DECODER = "pyav"
DECODERS: Registry[type[Decoder]] = Registry("decoder")
DECODERS.register_place("pyav", "vfz.pipeline.decoding.pyav:PyAVDecoder")


def get_decoder(name: str) -> Decoder:
    """The decoder of that name.

    Raises:
        UnknownNameError: when there is none; offers the nearest.
    """
    return DECODERS[name]()
