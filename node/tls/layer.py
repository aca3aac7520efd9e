"""One side of a TLS connection, without I/O: sealed bytes in, plain bytes out, and the other way round.

Python's `ssl` does the cryptography, between two buffers in memory. Nothing here grows with what the other side sends:
sealed bytes are taken as they are read, PIECE at a time, and a peer that has itself answered and takes no answers (new
keys in a loop) is cut off.
"""

from __future__ import annotations

import errno
import ssl
from collections.abc import Callable, Iterator, Sequence

from memcluster.node.nbd.wire import Buffer

RECORD = 1 << 14
"""Plain bytes of a record, at most."""
PIECE = 1 << 16
"""Bytes that are sealed, or taken to be opened, in one go. OpenSSL's buffers keep the size they once had: some 90 KiB a
direction for a connection that has moved that much."""


UNTRUSTED = range(18, 22)
"""OpenSSL's codes for a certificate that is signed by itself, or by nobody known (X509_V_ERR_…)."""


class TLSError(OSError):
    """TLS cannot go on: what the other side sent was not right, or it has said that ours was not. With `untrusted`
    nobody whom this side knows has signed its certificate."""

    def __init__(self, message: str, *, untrusted: bool = False) -> None:
        self.message = message
        self.untrusted = untrusted
        super().__init__(errno.EPROTO, message)


class Layer:
    """Made by a context of context.py. First `shake_hands`, whenever something was `received`, until it says so; then
    `open_into` and `seal`."""

    def __init__(self, context: ssl.SSLContext, *, server: bool, hostname: str | None = None) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=server, server_hostname=hostname)
        self.more = False
        """There may be plain bytes to be had from what was received."""
        self.ended = False
        """The other side has said that nothing more comes."""

    def received(self, data: bytes) -> None:
        """Take sealed bytes."""
        self._incoming.write(data)
        self.more = True

    def unsent(self) -> bytes:
        """What TLS itself has to say: the handshake, an alert, the end."""
        return self._outgoing.read()

    def shake_hands(self) -> bool:
        """Go on with the handshake; whether it is done. Raises TLSError, and then an alert is `unsent`."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self.more = False
            return False
        except ssl.SSLCertVerificationError as error:
            raise TLSError(explain(error), untrusted=error.verify_code in UNTRUSTED) from error
        except ssl.SSLError as error:
            raise TLSError(explain(error)) from error
        return True

    def open_into(self, buffer: memoryview) -> int:
        """Put plain bytes there, as many as there are or as fit. Nothing of a record that was tampered with gets there:
        it is opened elsewhere first. Raises TLSError."""
        read: Callable[[int, memoryview], int] = self._ssl.read  # type: ignore[assignment]  # typeshed knows bytearrays
        done, end = 0, len(buffer)
        try:
            while done < end:
                count = read(end - done, buffer[done:] if done else buffer)
                if not count:
                    self.ended = True
                    break
                done += count
                if not self._incoming.pending and not self._ssl.pending():
                    break
            else:
                return done
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise TLSError(explain(error)) from error
        self.more = False
        if self._outgoing.pending > PIECE:
            raise TLSError("the other side asks for new keys again and again")
        return done

    def seal(self, plain: Buffer) -> bytes:
        """The sealed form of all of it, behind what TLS itself has to say. Raises TLSError."""
        try:
            self._ssl.write(plain)
        except ssl.SSLError as error:
            raise TLSError(explain(error)) from error
        return self._outgoing.read()

    def end(self) -> None:
        """Say that nothing more comes: that is `unsent` then."""
        try:
            self._ssl.unwrap()
        except ssl.SSLError:
            pass  # it waits for the other side's word, or the handshake was not over

    @property
    def cipher(self) -> str:
        """What was agreed on, for people."""
        found = self._ssl.cipher()
        return f"{found[1]} {found[0]}" if found else "no TLS yet"


def pieces(buffers: Sequence[Buffer], skip: int) -> Iterator[Buffer]:
    """What is to be sealed in one go each, of the buffers but their first `skip` bytes: small ones are joined, as each
    would be a record of its own, and of large ones views, which are sealed from where they lie."""
    small: list[Buffer] = []
    size = 0
    for each in buffers:
        buffer: Buffer = memoryview(each)[skip:] if skip else each
        skip = 0
        length = len(buffer)
        if length < RECORD:
            small.append(buffer)
            size += length
            if size >= PIECE:
                yield b"".join(small)
                small, size = [], 0
            continue
        view, start = memoryview(buffer), 0
        if small:
            start = PIECE - size
            yield b"".join([*small, view[:start]])
            small, size = [], 0
        for at in range(start, length, PIECE):
            yield view[at : at + PIECE]
    if size:
        yield b"".join(small)


_WORDS = {
    "CERTIFICATE_VERIFY_FAILED": "the other side's certificate is not accepted: {}",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the other side has no certificate, and must have one",
    "TLSV1_ALERT_UNKNOWN_CA": "the other side does not know who signed our certificate",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other side wants a certificate of ours, and there is none",
    "SSLV3_ALERT_BAD_CERTIFICATE": "the other side does not accept our certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the other side says that our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "the other side does not accept our certificate",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "the other side finds no way that both can do",
    "UNSUPPORTED_PROTOCOL": "the other side does not speak TLS 1.3",
    "SSLV3_ALERT_ILLEGAL_PARAMETER": "the other side does not accept what we said; our shared key is another there",
    "TLSV1_ALERT_DECRYPT_ERROR": "the other side does not accept what we said; our shared key is another there",
    "BINDER_DOES_NOT_VERIFY": "the other side has another shared key, or is nobody who has one",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "the other side has no shared key, and no way that both can do",
    "NO_SHARED_CIPHER": "the other side finds no cipher that both can do",
    "WRONG_VERSION_NUMBER": "the other side does not speak TLS",
    "HTTP_REQUEST": "the other side does not speak TLS",
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": "a record is not as it was sent",
    "RECORD_LAYER_FAILURE": "a record is not as it was sent",
}


def explain(error: ssl.SSLError) -> str:
    """OpenSSL's word as a sentence."""
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: {_WORDS['CERTIFICATE_VERIFY_FAILED'].format(error.verify_message)}"
    return f"TLS: {_WORDS.get(reason, reason.lower().replace('_', ' ') or 'it cannot go on')}"
