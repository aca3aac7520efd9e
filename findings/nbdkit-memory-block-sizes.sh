# The same plugin of nbdkit tells clients nothing of block sizes in 1.32.5 (Debian 12), and in 1.48.1 a minimum of 1, a preferred
# size of 32 KiB and a maximum of 4 GiB less one: a client that asks and believes the maximum sends requests 128 times as long as
# the 32 MiB that a server which says nothing may be sent. Neither speaks extended headers, which such lengths would call for.
# Needs root (chroot), and the lists of Debian 12 and of Debian unstable with these very versions.
. "$(dirname "$0")/common.sh"
told() {  # PATTERN
    in_root nbdkit -U - memory 1M --run 'nbdinfo --no-content --json "$uri"' 2>/dev/null |
        tr -d ' \t",' | grep -E "^($1):" | sort | tr '\n' ' '
}
debian_packages bookworm nbdkit=1.32.5-1 libnbd-bin=1.14.2-1
expect "nbdkit" "nbdkit 1.32.5" "$(in_root nbdkit --version)"
expect "size and block sizes" "export-size:1048576 " "$(told 'export-size|block_.*')"
rm -rf "$work/root" "$work/apt"
debian_packages sid nbdkit=1.48.1-1 libnbd-bin=1.24.4-1
expect "nbdkit" "nbdkit 1.48.1" "$(in_root nbdkit --version)"
expect "size and block sizes" \
    "block_size_maximum:4294967295 block_size_minimum:1 block_size_preferred:32768 export-size:1048576 " \
    "$(told 'export-size|block_.*')"
expect "headers" "extended:false structured:true " "$(told 'extended|structured')"
