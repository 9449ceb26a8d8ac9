"""A trace file as blocks of lines: decompressed, hashed and counted while it streams by."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from ..errors import TraceError
from .document import Document

READ_BYTES = 1 << 20
"""Bytes decompressed at a time: a block of native rows parses to some ten times this in Python objects."""

MAX_LINE_BYTES = 1 << 30
"""A longer line is refused: it is not a trace, and it would have to be held in memory whole."""

_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff")
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive lines without their line ends; `first` is the number of the first one, counted from 1."""

    lines: list[bytes]
    first: int

    def filled(self) -> tuple[list[bytes], list[int]]:
        """The lines that are not blank, and their numbers."""
        numbered = [(line, n) for n, line in enumerate(self.lines, self.first) if line and not line.isspace()]
        return [line for line, _ in numbered], [n for _, n in numbered]


class Source:
    """One trace file, read once from front to back; gzip and Zstandard are recognised by their first bytes.

    A byte-order mark is dropped and the line ends `\\r\\n` and `\\r` count as `\\n`. `sha256` is the digest of the
    decompressed bytes and is known once everything has been read. Path `-` is standard input.
    """

    def __init__(self, path: str | Path) -> None:
        self.name = str(path)
        self.sha256: str | None = None
        self._line = 1
        self._blocks = self._split()
        self._head: Block | None = None
        self._pushed: list[Block] = []
        self._document: Document | None = None

    def head(self) -> Block:
        """The first block, which `blocks` yields again. Raises: TraceError where the file cannot be read."""
        if self._head is None:
            self._head = next(self._blocks, None)
            if self._head is None:
                raise TraceError(f"{self.name}: the file is empty, expected at least one request")
            self._pushed = [self._head]
        return self._head

    def replace_head(self, block: Block) -> None:
        """Let `block` stand for the first one: for formats with lines of their own before the rows."""
        self._pushed = [block]

    def blocks(self) -> Iterator[Block]:
        """Every block that is left, in order. Raises: TraceError where the file is broken."""
        while self._pushed:
            yield self._pushed.pop(0)
        yield from self._blocks

    def document(self, *, lines: bool = False, one_of_many: str = "") -> Document:
        """All that is left as one JSON document, read once.

        `lines`: a file of several objects, one a line, counts as the list of them. `one_of_many`: what to say where
        several objects stand one a line and only one is allowed.

        Raises: TraceError where it is not JSON.
        """
        if self._document is None:
            text = b"\n".join(line for block in self.blocks() for line in block.lines)
            self._document = Document.parse(self.name, text, lines=lines, one_of_many=one_of_many)
        return self._document

    def close(self) -> None:
        """Let go of the file."""
        self._blocks.close()

    def _split(self) -> Generator[Block, None, None]:
        pieces: list[bytes] = []
        held = 0
        for data in self._plain():
            cut = data.rfind(b"\n") + 1
            if not cut:
                pieces.append(data)
                held += len(data)
                if held > MAX_LINE_BYTES:
                    raise TraceError(f"{self.name}:{self._line}: a line of over {MAX_LINE_BYTES} bytes")
                continue
            pieces.append(data[: cut - 1])
            yield self._block(b"".join(pieces))
            pieces, held = [data[cut:]], len(data) - cut
        last = b"".join(pieces)
        if last:
            yield self._block(last)

    def _block(self, text: bytes) -> Block:
        block = Block(text.split(b"\n"), self._line)
        self._line += len(block.lines)
        return block

    def _plain(self) -> Iterator[bytes]:
        """Decompressed pieces without byte-order mark, with `\\n` as the only line end."""
        digest = hashlib.sha256()
        first, cr_held = True, False
        for data in self._decompressed():
            digest.update(data)
            if first:
                self._refuse_wide(data)
                data, first = data.removeprefix(_BOM), False
            if cr_held:
                data = b"\r" + data
            cr_held = data.endswith(b"\r")
            if cr_held:
                data = data[:-1]
            if b"\r" in data:
                data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            if data:
                yield data
        if cr_held:
            yield b"\n"
        self.sha256 = digest.hexdigest()

    def _refuse_wide(self, data: bytes) -> None:
        if data.startswith(_WIDE_BOMS):
            raise TraceError(f"{self.name}:1: got UTF-16 text, expected UTF-8")

    def _decompressed(self) -> Iterator[bytes]:
        try:
            with self._open() as raw:
                yield from _pieces(raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
            raise TraceError(f"{self.name}:{self._line}: broken or truncated gzip data ({problem})") from None
        except _ZstdError as problem:
            raise TraceError(f"{self.name}:{self._line}: broken or truncated zstd data ({problem})") from None
        except IsADirectoryError:
            raise TraceError(f"{self.name}: is a directory, expected a trace file") from None
        except FileNotFoundError:
            raise TraceError(f"{self.name}: no such file") from None
        except (OSError, ValueError) as problem:
            raise TraceError(f"{self.name}: cannot be read ({problem})") from None

    def _open(self) -> BufferedReader:
        return open(0, "rb", closefd=False) if self.name == "-" else Path(self.name).open("rb")


class _ZstdError(Exception):
    """Zstandard data that breaks off or makes no sense."""


def _pieces(raw: BufferedReader) -> Iterator[bytes]:
    start = raw.peek(4)[:4]
    if start.startswith(_GZIP_MAGIC):
        with gzip.GzipFile(fileobj=raw) as plain:
            while data := plain.read(READ_BYTES):
                yield data
    elif start == _ZSTD_MAGIC:
        yield from _unzstd(raw)
    else:
        while data := raw.read(READ_BYTES):
            yield data


def _unzstd(raw: BufferedReader) -> Iterator[bytes]:
    import zstandard

    frame = zstandard.ZstdDecompressor().decompressobj()
    begun = False
    try:
        while data := raw.read(READ_BYTES >> 2):
            while data:
                begun = True
                yield frame.decompress(data)
                data = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame, begun = zstandard.ZstdDecompressor().decompressobj(), False
    except zstandard.ZstdError as problem:
        raise _ZstdError(str(problem)) from None
    if begun:
        raise _ZstdError("the last frame is incomplete")
