# qemu 11.1.3, as a client with extended headers, leaves PAYLOAD_LEN out of its WRITE requests, where the protocol's text has the flag set
# on each: a server that goes by the flag to know that a payload follows loses its place. libnbd 1.24.4 sets it. qemu-nbd takes both.
# Seen through a recording proxy. Needs root (chroot), and the lists of Debian unstable with these very versions.
. "$(dirname "$0")/common.sh"
need python3
debian_packages sid qemu-utils=1:11.1.3+ds-1 libnbd-bin=1.24.4-1
cat >proxy.py <<'PY'
"""Passes one connection on, and then prints type and flags of every request with an extended header that has a payload."""
import socket
import sys
import threading

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
client = listener.accept()[0]
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[2])
said = bytearray()


def pump(source, target, keep):
    while data := source.recv(1 << 16):
        if keep:
            said.extend(data)
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


threading.Thread(target=pump, args=(server, client, False), daemon=True).start()
pump(client, server, True)
at = said.find(bytes.fromhex("21e41c71"))
while at >= 0:
    flags, kind = (int.from_bytes(said[at + i : at + i + 2]) for i in (4, 6))
    if kind == 1:
        print(f"WRITE flags {flags:#x}")
    at = said.find(bytes.fromhex("21e41c71"), at + 4)
PY
truncate -s 6G root/tmp/disk
head -c 65536 /dev/zero | tr '\0' x >root/tmp/content
through() {  # COMMAND …: its requests, on one connection to qemu-nbd
    rm -f root/tmp/*.sock
    in_root qemu-nbd -k /tmp/server.sock -f raw --cache=writeback /tmp/disk & started="$started $!"
    until [ -S root/tmp/server.sock ]; do sleep 0.1; done
    python3 proxy.py root/tmp/proxy.sock root/tmp/server.sock >requests & proxy=$!
    until grep -q ready requests; do sleep 0.1; done
    in_root "$@" >command.log 2>&1 || { cat command.log; exit 1; }
    wait "$proxy"
    grep WRITE requests | sort | uniq | tr '\n' ' '
}
expect "qemu" "qemu-io version 11.1.3 (Debian 1:11.1.3+ds-1)" "$(in_root qemu-io --version | head -n 1)"
expect "nbdcopy" "WRITE flags 0x20 " "$(through nbdcopy --connections=1 --threads=1 /tmp/content 'nbd+unix:///?socket=/tmp/proxy.sock')"
expect "qemu-io" "WRITE flags 0x0 " "$(through qemu-io -t writeback -f raw -c 'write 5G 64k' 'nbd+unix:///?socket=/tmp/proxy.sock')"
