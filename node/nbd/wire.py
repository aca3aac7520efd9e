"""The words of the NBD protocol: numbers, flags and fixed-size frames, in the order of the specification.

Source: the NBD project's doc/proto.md. All integers are big-endian. Nothing here knows a socket, a session or a memory.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

Buffer = bytes | bytearray | memoryview
"""What can be sent; memoryviews are of bytes (format B), so that len() counts bytes."""

# -- handshake ---------------------------------------------------------------------------------------------------

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x0003E889045565A9

MAX_STRING = 4096
"""Bytes in an export name, a query or an error message, at most."""

GREETING = Struct(">QQH")  # NBDMAGIC, IHAVEOPT, handshake flags
CLIENT_FLAGS = Struct(">I")
OPTION = Struct(">QII")  # IHAVEOPT, option, length
OPTION_REPLY = Struct(">QIII")  # OPTION_REPLY_MAGIC, option, reply type, length
EXPORT_NAME_REPLY = Struct(">QH")  # size, transmission flags; 124 zero bytes follow unless NO_ZEROES
EXPORT_NAME_PADDING = 124


class HandshakeFlag(IntFlag):
    """Flags of the greeting; the client's flags (u32) have the same two bits."""

    FIXED_NEWSTYLE = 1
    NO_ZEROES = 2


class Option(IntEnum):
    """What a client may ask for before transmission."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Rep(IntEnum):
    """Types of option replies; errors have bit 31 set and carry a readable message."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_PLATFORM = 0x80000004
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_SHUTDOWN = 0x80000007
    ERR_BLOCK_SIZE_REQD = 0x80000008
    ERR_TOO_BIG = 0x80000009
    ERR_EXT_HEADER_REQD = 0x8000000A


REP_ERROR = 0x80000000


class Info(IntEnum):
    """Information types of INFO and GO."""

    EXPORT = 0  # u64 size, u16 transmission flags
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3  # u32 minimum, preferred, maximum


INFO_EXPORT = Struct(">HQH")  # Info.EXPORT, size, flags
INFO_BLOCK_SIZE = Struct(">HIII")  # Info.BLOCK_SIZE, minimum, preferred, maximum


class TransmissionFlag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1
    READ_ONLY = 2
    SEND_FLUSH = 4
    SEND_FUA = 8
    ROTATIONAL = 16
    SEND_TRIM = 32
    SEND_WRITE_ZEROES = 64
    SEND_DF = 128
    CAN_MULTI_CONN = 256
    SEND_RESIZE = 512
    SEND_CACHE = 1024
    SEND_FAST_ZERO = 2048
    BLOCK_STATUS_PAYLOAD = 4096


# -- transmission ------------------------------------------------------------------------------------------------

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
CHUNK_MAGIC = 0x668E33EF
EXTENDED_REQUEST_MAGIC = 0x21E41C71
EXTENDED_CHUNK_MAGIC = 0x6E8A278C

REQUEST = Struct(">IHHQQI")  # REQUEST_MAGIC, command flags, command, cookie, offset, length
SIMPLE_REPLY = Struct(">IIQ")  # SIMPLE_REPLY_MAGIC, error, cookie
CHUNK = Struct(">IHHQI")  # CHUNK_MAGIC, flags, type, cookie, length of what follows
CHUNK_DATA = Struct(">IHHQIQ")  # CHUNK, then OFFSET_DATA's offset; the bytes follow
HOLE = Struct(">QI")  # OFFSET_HOLE's offset and length
ERROR = Struct(">IH")  # error, length of the message that follows
EXTENT = Struct(">II")  # BLOCK_STATUS: length, status flags

EXTENDED_REQUEST = Struct(">IHHQQQ")  # EXTENDED_REQUEST_MAGIC, command flags, command, cookie, offset, length
EXTENDED_CHUNK = Struct(">IHHQQQ")  # EXTENDED_CHUNK_MAGIC, flags, type, cookie, request's offset, length
EXTENDED_CHUNK_DATA = Struct(">IHHQQQQ")  # EXTENDED_CHUNK, then OFFSET_DATA's offset; the bytes follow
EXTENDED_EXTENTS = Struct(">II")  # BLOCK_STATUS_EXT: context, number of extents that follow
EXTENDED_EXTENT = Struct(">QQ")  # length, status flags


class CommandFlag(IntFlag):
    """Flags of a request."""

    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8
    FAST_ZERO = 16
    PAYLOAD_LEN = 32
    """Of an extended request: `length` bytes follow."""


class Command(IntEnum):
    """Types of requests."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


class ChunkFlag(IntFlag):
    """Flags of a structured reply's chunk."""

    DONE = 1


class Chunk(IntEnum):
    """Types of a structured reply's chunks; errors have bit 15 set."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    BLOCK_STATUS_EXT = 6
    ERROR = 32769
    ERROR_OFFSET = 32770


CHUNK_ERROR = 1 << 15


class Status(IntFlag):
    """Flags of an extent in the context base:allocation."""

    DATA = 0
    HOLE = 1
    ZERO = 2


BASE_ALLOCATION = "base:allocation"
OWNER = "memcluster:owner"
"""Another context: the status of an extent is the number of the server that holds it."""


class Error(IntEnum):
    """Error numbers on the wire: Linux's values, whatever the host's are."""

    OK = 0
    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108


MIN_BLOCK = 1
PREFERRED_BLOCK = 4096
MAX_PAYLOAD = 32 * 1024 * 1024
"""Bytes in one READ or WRITE, at most; the other commands move no payload and may cover more."""
