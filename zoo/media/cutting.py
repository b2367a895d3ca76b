"""Cut the seconds of a film out of its file, without decoding: the packets of its picture are copied.

Frames are read by decoding a file from its start (`zoo.media.frames`), which is exact but takes long for an utterance
at the end of a film. The piece begins at a frame that can be decoded by itself, at or before the seconds that are
wanted; the times of its frames differ from the film's by an offset alone.

Imported by the decoding process, which must start fast: no torch, and nothing of the zoo.
"""

from __future__ import annotations

import io
import os
from fractions import Fraction
from typing import Any

import av
import numpy as np

from zoo.media.container import Unreadable, clip_start, first_stream, open_container, open_file

MAX_BYTES = 256 * 2**20  # of a piece
REORDERED = 2  # seconds by which a frame may be stored before its time
NO_TIMES = "stores no times of its frames, so no part can be cut out; convert it to MP4"


def cut_picture(path: str | os.PathLike[str], start: float, end: float) -> tuple[np.ndarray, float]:
    """Copy the picture of a film from ``start`` to ``end``, in seconds, into a file of its own.

    Returns:
        the bytes of the piece, uint8 (N,), an MP4 or a Matroska; and the second of the film at which it begins, at or
        before ``start``, or where the picture of the film begins, if that is later.

    Raises:
        Unreadable: no video, frames without times of their own, none in these seconds, or a piece that is too large.
    """
    with open_file(path) as fd:
        for seek in (True, False):  # a file without an index is read from its start
            with open_container(fd) as container:
                stream = first_stream(path, container, "video")
                zero, tick = clip_start(container), stream.time_base
                first, last = ((Fraction(time) + zero) / tick for time in (start, end))
                if container.format.name == "avi":  # it stores no times
                    raise Unreadable(path, NO_TIMES)
                if seek:
                    try:
                        container.seek(max(0, int(first)), stream=stream, backward=True)
                    except av.FFmpegError:
                        continue
                packets = _packets(path, container, stream, first, last)
                if packets and packets[0].pts <= first or not seek:
                    break
        if not packets or packets[0].pts >= last or max(p.pts + (p.duration or 1 / tick) for p in packets) <= first:
            raise Unreadable(path, f"has no frames from {start:g} to {end:g} s")
        begin = packets[0].pts
        with open_container(fd) as container:
            piece = io.BytesIO()
            kind = "mp4" if "mp4" in container.format.name else "matroska"
            with av.open(piece, "w", format=kind) as out:
                copy = out.add_stream_from_template(first_stream(path, container, "video"))
                rising = sorted(packet.pts for packet in packets)
                ahead = max(time - packet.pts for time, packet in zip(rising, packets, strict=True))
                for time, packet in zip(rising, packets, strict=True):
                    packet.pts, packet.dts = packet.pts - begin, time - ahead - begin  # Matroska stores no dts
                    packet.stream = copy
                    out.mux(packet)
        return np.frombuffer(piece.getvalue(), np.uint8), float(begin * tick - zero)


def _packets(
    path: str | os.PathLike[str], container: av.container.InputContainer, stream: Any, first: Fraction, last: Fraction
) -> list[Any]:
    """Return the packets from the last key frame at or before ``first`` to ``last``, both in ticks."""
    packets: list[Any] = []
    size, reordered = 0, REORDERED / stream.time_base
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:
            continue
        if packet.pts is None:
            raise Unreadable(path, NO_TIMES)
        if (packet.pts - reordered if packet.dts is None else packet.dts) > last:
            break
        if packet.is_keyframe and (not packets or packet.pts <= first):
            packets, size = [], 0
        elif not packets or packet.pts < packets[0].pts:
            continue  # it needs frames that come before the piece
        packets.append(packet)
        size += packet.size
        if size > MAX_BYTES:
            raise Unreadable(path, f"has over {MAX_BYTES >> 20} MiB from one key frame to the next; convert it")
    return packets
