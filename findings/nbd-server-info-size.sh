# nbd-server answers INFO, by which a client looks at an export without opening it, with a size of 0; GO, which opens it, has the true
# one, and so have the bytes. So what a client tells of the size depends on how it asks: nbdinfo asks by GO in 1.14.2 and by INFO in
# 1.24.4, where a file of 1,000,001 bytes has none; with --list both say 0. nbdcopy copies all of it. In 3.24 (Debian 12) and in 3.27.1.
# Needs root (chroot), and the lists of Debian 12 and of Debian unstable with these very versions.
. "$(dirname "$0")/common.sh"
sizes() {
    mkdir -p root/etc
    echo 'root:x:0:0::/root:/bin/sh' >root/etc/passwd
    echo 'root:x:0:' >root/etc/group
    head -c 1000001 /dev/urandom >root/tmp/file
    printf '[generic]\nallowlist = true\nunixsock = /tmp/sock\nport = 10809\n[it]\nexportname = /tmp/file\n' >root/tmp/conf
    cat >root/tmp/try <<'SH'
        nbd-server -C /tmp/conf -M 2 2>/dev/null
        until [ -S /tmp/sock ]; do sleep 0.1; done
        echo "alone $(nbdinfo --size 'nbd+unix:///it?socket=/tmp/sock')"
        echo "in the list $(nbdinfo --list --no-content --json 'nbd+unix:///?socket=/tmp/sock' | sed -n 's/.*"export-size": \([0-9]*\).*/\1/p')"
        nbdcopy 'nbd+unix:///it?socket=/tmp/sock' /tmp/copy
        echo "copied $(stat -c %s /tmp/copy)"
SH
    in_root unshare --net --pid --fork --kill-child sh /tmp/try | tr '\n' ' '
}
debian_packages bookworm nbd-server=1:3.24-1.1 libnbd-bin=1.14.2-1 sed util-linux
expect "nbd-server 3.24, nbdinfo 1.14.2" "alone 1000001 in the list 0 copied 1000001 " "$(sizes)"
rm -rf "$work/root" "$work/apt"
debian_packages sid nbd-server=1:3.27.1-4 libnbd-bin=1.24.4-1 sed util-linux
expect "nbd-server 3.27.1, nbdinfo 1.24.4" "alone 0 in the list 0 copied 1000001 " "$(sizes)"
