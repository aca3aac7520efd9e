# `nbdinfo --size` of a server that lets nobody in without TLS says with libnbd 1.14.2 what is wrong. 1.24.4 says
# that the size was not returned and "you need to connect to the server first", of a server that it was connected to; a plain
# `nbdinfo` of the same version says it. Scripts ask for --size, so it is their users who are misled.
# Needs root (chroot), the command openssl, and the lists of Debian 12 and of Debian unstable with these very versions.
. "$(dirname "$0")/common.sh"
need openssl
said() {  # OPTION: nbdinfo's words, of nbdkit that requires TLS
    mkdir -p root/tmp/keys
    openssl req -x509 -newkey rsa:2048 -nodes -keyout root/tmp/keys/server-key.pem -out root/tmp/keys/server-cert.pem \
        -subj /CN=localhost -days 30 2>/dev/null
    cp root/tmp/keys/server-cert.pem root/tmp/keys/ca-cert.pem
    in_root nbdkit -U - --tls=require --tls-certificates=/tmp/keys --tls-verify-peer memory 1M --run "nbdinfo ${1:-} \"nbd+unix://?socket=\$unixsocket\"" 2>&1 || true
}
debian_packages bookworm nbdkit=1.32.5-1 libnbd-bin=1.14.2-1
expect "1.14.2" "nbdinfo: nbd_connect_uri: handshake: server requires TLS encryption first: Operation not supported" "$(said --size)"
rm -rf root apt
debian_packages sid nbdkit=1.48.1-1 libnbd-bin=1.24.4-1
expect "1.24.4" \
    "nbdinfo: nbd_get_size: server has not returned export size, you need to connect to the server first: Invalid argument" \
    "$(said --size)"
expect "1.24.4 without --size" \
    "nbdinfo: nbd_opt_go: the server requires TLS encryption first: Operation not supported for the default export" \
    "$(said | grep opt_go)"
