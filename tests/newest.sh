#!/bin/sh
# The whole suite on the newest stack: makes a root of Debian unstable, with its Python and its NBD tools, and runs the tests
# there. Needs root and debootstrap; takes some 3 GiB, and 15 minutes the first time. It is not part of CI: unstable changes.
#
#   make test-newest                     # ARGS="-k real_clients" goes to pytest
#   ROOT=/somewhere SUITE=trixie make test-newest
#
# The root stays for the next time; remove its folder to have it made anew. What ran is printed at the end: versions and result.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
suite=${SUITE:-sid}
root=${ROOT:-/var/tmp/memcluster-newest-$suite}
packages="ca-certificates python3 python3-venv python3-dev make gcc libc6-dev procps iproute2 openssl git groff-base"
clients="libnbd-bin python3-libnbd qemu-utils fio nbdkit nbd-client chromium"

[ "$(id -u)" = 0 ] || { echo "test-newest needs root: it makes a root of its own and mounts into it" >&2; exit 2; }
command -v debootstrap >/dev/null || { echo "test-newest needs debootstrap: apt-get install debootstrap" >&2; exit 2; }

if [ ! -e "$root/made" ]; then
    # The mirror that this machine's own apt uses.
    mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)}
    debootstrap --variant=minbase "$suite" "$root" "$mirror" >"$root.log" 2>&1 || { tail -n 5 "$root.log" >&2; exit 1; }
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    # By apt, which knows virtual packages and alternatives; debootstrap does not.
    # shellcheck disable=SC2016,SC2086 # for the inner shell; words
    unshare --mount sh -euc '
        root=$1; shift
        mount -t proc proc "$root/proc"
        chroot "$root" apt-get -o Acquire::Check-Valid-Until=false update  # a mirror may lag
        exec chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
    ' sh "$root" $packages $clients >>"$root.log" 2>&1 || { tail -n 5 "$root.log" >&2; exit 1; }
    touch "$root/made"
fi
# How this machine reaches its package index.
for file in /etc/resolv.conf /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
    [ ! -e "$file" ] || cp -L "$file" "$root$file"
done

rm -rf "$root/work" && git clone -q "$here" "$root/work"
(cd "$here" && git ls-files -z | xargs -0 cp --parents -a -t "$root/work")

# Namespaces of its own: what is mounted is gone with it, and so is whatever it leaves running. The root is a mount, and the
# only one (pivot_root), so that tests may mount in it, too.
exec unshare --mount --pid --ipc --fork --kill-child sh -eu -c '
    root=$1; shift
    mount --bind "$root" "$root"
    mount --bind /dev "$root/dev"
    mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
    mount --bind "$root/dev/pts/ptmx" "$root/dev/ptmx"
    mount -t tmpfs -o size=12g tmpfs "$root/dev/shm"
    mount -t proc proc "$root/proc"
    mount -t tmpfs tmpfs "$root/tmp"
    cd "$root"
    pivot_root . mnt
    umount -l /mnt
    cd /work
    make install-test
    status=0
    MEMCLUSTER_REQUIRE_CLIENTS=1 .venv/bin/python -m pytest -n 2 -q "$@" || status=$?
    echo
    (. /etc/os-release && echo "$PRETTY_NAME")
    .venv/bin/python -VV
    .venv/bin/pip list 2>/dev/null | grep -iE "^(click|hypothesis|prometheus|psutil|pydantic|pytest|pyyaml|rich|setproctitle) "
    dpkg-query -W chromium fio libnbd-bin nbdkit qemu-utils
    exit "$status"
' sh "$root" "$@"
