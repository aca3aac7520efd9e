# A client of a unix socket that asks the kernel who is at the other side (SO_PEERCRED) hears of whoever called listen() last, not of
# who answers. Of a server that was handed a listening socket it is the one who handed it: with socketserver, nbdkit 1.32.5 and qemu-nbd
# 7.2. With asyncio it is the server, because `start_unix_server(sock=…)` calls listen() on what listens already. So a client that
# knows its server by the process or the user refuses it, or not, by the library that it is written with.
# Needs root (chroot), and the lists of Debian 12 with these very versions.
. "$(dirname "$0")/common.sh"
cat >handing.py <<'PY'
"""Hands a listening socket to a server as descriptor 3, by the rules of socket activation, and says whom a client sees."""
import os
import socket
import struct
import subprocess
import sys

path = "/tmp/door"
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
os.dup2(listener.fileno(), 3)
words = ["sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh", *sys.argv[1:]]
server = subprocess.Popen(words, pass_fds=(3,), stderr=subprocess.DEVNULL)
for _ in range(2):  # at the second time it serves for sure
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    pid = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    assert client.recv(1)
    client.close()
print({os.getpid(): "who handed it", server.pid: "the server"}[pid])
server.kill()
server.wait()
os.unlink(path)
PY
cat >by_asyncio.py <<'PY'
import asyncio
import socket


async def answer(_, writer):
    writer.write(b"x")
    await writer.drain()
    writer.close()


async def main():
    server = await asyncio.start_unix_server(answer, sock=socket.socket(fileno=3))
    await server.serve_forever()


asyncio.run(main())
PY
cat >by_socketserver.py <<'PY'
import socket
import socketserver


class Answer(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"x")


server = socketserver.UnixStreamServer("", Answer, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=3)
server.serve_forever()
PY
debian_packages bookworm python3.11=3.11.2-6+deb12u8 nbdkit=1.32.5-1 qemu-utils=1:7.2+dfsg-7+deb12u18+b3
cp handing.py by_asyncio.py by_socketserver.py root/tmp
truncate -s 1M root/tmp/disk
seen() { in_root python3.11 /tmp/handing.py "$@"; }
expect "nbdkit 1.32.5" "who handed it" "$(seen nbdkit -f memory 1M)"
expect "qemu-nbd 7.2" "who handed it" "$(seen qemu-nbd -t -f raw /tmp/disk)"
expect "socketserver, Python 3.11.2" "who handed it" "$(seen python3.11 /tmp/by_socketserver.py)"
expect "asyncio, Python 3.11.2" "the server" "$(seen python3.11 /tmp/by_asyncio.py)"
