"""Opening a video file: what is taken as one, and that it leads nowhere else.

FFmpeg also reads playlists, scripts and lists of pictures, whatever their names end in. Those are no videos: what they
show lies in other files, which can change, or be anything that the computer can read. So only formats of `FORMATS` are
taken, each of which holds its pictures itself, and nothing but the file is opened.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import av
from av.codec.context import ThreadType
from av.stream import Disposition

from vfz.pipeline.decoding.base import refuse_odd_files
from vfz.pipeline.errors import DecodeError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from vfz.pipeline.decoding.base import VideoSource

FORMATS = (
    "mov,matroska,webm,avi,mpegts,mpeg,flv,live_flv,kux,asf,asf_o,ogg,rm,ivr,mxf,gxf,lxf,nut,nsv,nuv,wtv,dv,dhav,ty,"
    "pva,pmp,swf,ivf,yuv4mpegpipe,"
    "gif,apng,webp_pipe,jpegxl_anim,"
    # Elementary streams, which have no times.
    "h264,hevc,vvc,evc,apv,av1,obu,mpegvideo,m4v,mjpeg,mjpeg_2000,h261,h263,vc1,vc1test,dirac,cavsvideo,avs2,avs3,"
    # Of games and of old programs.
    "4xm,bink,smk,roq,flic,film_cpk,wc3movie,mtv,rpl,thp,jv,mods,moflex,ser,cine,anm,bfi,bethsoftvid,c93,cdxl,dfa,"
    "dsicin,dxa,ea,filmstrip,gdv,hnm,idcin,ipmovie,lmlm4,mm,mv,mvi,paf,rl2,sga,siff,smush,tmv,txd,vivo,vividas,vmd,xmv,"
    "yop,usm,mxg,msnwctcp,smjpeg,tiertexseq,simbiosis_imx,ifv,luodat,pdv"
)
"""Formats of videos that lie in one file, by FFmpeg's names with commas between. Single pictures are none."""
MAX_PIXELS = 8192 * 8192
"""Of one frame: twice what 8K has. A damaged header can ask for gigabytes."""
_STRICT = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
"""Without `explode`, decoders invent what is missing and report success."""
_NUMBERS_ONLY = {"skip_idct": "all", "skip_loop_filter": "all"}
"""The same frames at the same times, with wrong pixels, in less time."""


@contextlib.contextmanager
def opened_container(source: VideoSource) -> Iterator[InputContainer]:
    """The file, open.

    Raises:
        DecodeError: it is no regular file, is empty, or is of no format that is taken.
        av.FFmpegError, OSError, ValueError: it is not there, or cannot be read.
    """
    refuse_odd_files(source)
    # `file:` and the whitelists: a name with a colon is no protocol, and what is inside opens nothing else.
    url = f"file:{source.path}"
    if source.member is not None:
        end = source.offset + (source.num_bytes or 0)
        url = f"subfile,,start,{source.offset},end,{end},,:{url}"
    options = {
        "protocol_whitelist": "file" if source.member is None else "file,subfile",
        "format_whitelist": FORMATS,
    }
    try:
        container = av.open(url, options=options, metadata_errors="replace")
    except av.ArgumentError as error:
        raise DecodeError(
            f"{source.name}: is no video file; pictures, playlists and scripts that name other files are not taken"
        ) from error
    with container:
        yield container


@contextlib.contextmanager
def opened_video(source: VideoSource, *, numbers_only: bool = False) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file, and its first video stream that is no cover picture, set to decode in one thread and to hide no damage.

    Args:
        source: the video.
        numbers_only: only which frames are shown, and when, is wanted: their pixels may be wrong.

    Raises:
        DecodeError: as `opened_container`, or it has no video, or one of an unknown codec.
        av.FFmpegError, OSError, ValueError: it is not there, or cannot be read.
    """
    with opened_container(source) as container:
        stream = video_stream(container)
        if stream is None:
            raise DecodeError(f"{source.name}: holds no video stream")
        if stream.codec_context is None:
            raise DecodeError(f"{source.name}: its video codec is unknown, and cannot be decoded")
        stream.codec_context.thread_type = ThreadType.NONE
        stream.codec_context.thread_count = 1
        stream.codec_context.options = _STRICT | (_NUMBERS_ONLY if numbers_only else {})
        yield container, stream


def packets_of(container: InputContainer, *streams: VideoStream) -> Iterator[Packet[Any]]:
    """The packets of some streams, or of all, and of each stream one without data behind them."""
    try:
        yield from container.demux(*streams)
    except IndexError:
        return  # PyAV ends streams of an MPEG-TS that it did not know at the beginning, behind those that it knew


def video_stream(container: InputContainer) -> VideoStream | None:
    """The first video stream that is no cover picture; None where there is none."""
    streams = (stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic)
    return next(streams, None)


def format_names(container: InputContainer) -> set[str]:
    """FFmpeg's names of the file's format."""
    return set(container.format.name.split(","))
