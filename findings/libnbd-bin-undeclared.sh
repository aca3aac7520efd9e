# Debian's libnbd-bin depends on less than its programs run. nbdinfo of 1.14.2 and 1.24.4 asks file(1) what the content is: without it
# one line goes to stderr, "content" is left out, and the status is 0. nbdzero and nbddiscard, new in 1.24.4's package, are Python
# scripts that import nbd, which is in python3-libnbd: without it they do not start.
# Needs root (chroot), and the lists of Debian 12 and of Debian unstable with these very versions.
. "$(dirname "$0")/common.sh"
content() { in_root nbdkit -U - memory 1M --run 'nbdinfo "$uri"; echo "status: $?"' 2>&1 | grep -E 'file:|status:' | tr -s '\n\t' ' '; }
debian_packages bookworm nbdkit=1.32.5-1 libnbd-bin=1.14.2-1
expect "nbdinfo 1.14.2" "sh: 1: file: not found status: 0 " "$(content)"
rm -rf "$work/root" "$work/apt"
debian_packages sid nbdkit=1.48.1-1 libnbd-bin=1.24.4-1 python3
expect "nbdinfo 1.24.4" "sh: 1: file: not found status: 0 " "$(content)"
for name in nbdzero nbddiscard; do
    expect "$name" "ModuleNotFoundError: No module named 'nbd'" "$(in_root "$name" --version 2>&1 | tail -n 1)"
done
