# qemu-io 11.1.3 refuses by itself to discard more than 2147483136 bytes (2 GiB less 512) at once, whatever the image is: also over NBD with
# extended headers, which were made for longer requests. `write -z` has the same limit, and an -n that lifts it; discard has none.
# Needs root (chroot), and the lists of Debian unstable with this very version.
. "$(dirname "$0")/common.sh"
debian_packages sid qemu-utils=1:11.1.3+ds-1
truncate -s 6G root/tmp/disk
over_nbd() {  # COMMAND: what qemu-io says of it, without times and speeds
    rm -f root/tmp/server.sock
    in_root qemu-nbd -k /tmp/server.sock -f raw /tmp/disk & started="$started $!"
    until [ -S root/tmp/server.sock ]; do sleep 0.1; done
    in_root qemu-io -f raw -c "$1" 'nbd+unix:///?socket=/tmp/server.sock' 2>&1 | head -n 1
}
expect "discard 3G" "length cannot exceed 2147483136, given 3G" "$(over_nbd 'discard 0 3G')"
expect "discard of the limit" "discard 2147483136/2147483136 bytes at offset 0" "$(over_nbd 'discard 0 2147483136')"
expect "write -z -n 3G" "wrote 3221225472/3221225472 bytes at offset 0" "$(over_nbd 'write -z -n 0 3G')"
