# `qemu-img create -f raw` of an NBD server's export prints "Formatting" and succeeds, with any size up to the export's, and makes
# nothing: the export stays as long as it was, and as full, but for its first 512 bytes, which are zeroes then, so that nobody takes
# what began there for an image's head. With a larger size it fails with "Cannot grow NBD nodes". In 7.2.22
# (Debian 12) and in 11.1.3.
# Needs root (chroot), and the lists of Debian 12 and of Debian unstable with these very versions.
. "$(dirname "$0")/common.sh"
created() {  # SIZE: how it ended, and which bytes of an export of 1 MiB without a zero at the end of any block are others then
    cat >root/tmp/try <<SH
        nbdcopy "\$uri" /tmp/before
        qemu-img create -f raw "\$uri" $1 >/dev/null 2>/tmp/said; echo "ends with \$?"
        sed 's/.*: /says /' /tmp/said
        nbdcopy "\$uri" /tmp/after; stat -c '%s bytes' /tmp/after
SH
    in_root nbdkit -U - --filter=cow pattern 1M --run 'export uri; sh /tmp/try'
    cmp -l root/tmp/before root/tmp/after | sed -n '$s/^ *\([0-9]*\).*/the last changed is byte \1/p'
}
recorded="ends with 0 1048576 bytes the last changed is byte 512"
for of in "bookworm qemu-utils=1:7.2+dfsg-7+deb12u18+b3 nbdkit=1.32.5-1 libnbd-bin=1.14.2-1" \
    "sid qemu-utils=1:11.1.3+ds-1 nbdkit=1.48.1-1 libnbd-bin=1.24.4-1"; do
    rm -rf "$work/root" "$work/apt"
    # shellcheck disable=SC2086 # words
    debian_packages $of sed
    expect "${of%% *}: as long as the export" "$recorded" "$(created 1M | tr '\n' ' ' | sed 's/ $//')"
    expect "${of%% *}: 100 bytes long" "$recorded" "$(created 100 | tr '\n' ' ' | sed 's/ $//')"
    expect "${of%% *}: longer" "ends with 1 says Cannot grow NBD nodes 1048576 bytes" "$(created 2M | tr '\n' ' ' | sed 's/ $//')"
done
