# fio takes whole numbers for spans of time, and drops what stands behind the point without a word: `--runtime=1.5s` is 1 s, and 0.8s is 0, which
# means no limit at all: a job runs to the end of its size, and one that is `time_based` for ever, behind a line on stderr that it
# "requires a runtime/timeout setting". The JSON shows the option as it was written. `800ms` is 800 ms.
# Needs root (chroot), and the lists of Debian 12 and of Debian unstable with these very versions.
. "$(dirname "$0")/common.sh"
runs() {  # RUNTIME: what fio says, and for how long it ran, in seconds
    in_root fio --name=x --ioengine=null --size=200g --runtime="$1" --rw=read --bs=1M --rate=10g --output-format=json >out.json
    ran=$(sed -n 's/.*"job_runtime" : \([0-9]*\).*/\1/p' out.json)
    echo "$(grep -o '"runtime" : ".*"' out.json | head -n 1), $(( (ran + 100) / 1000 )) s"
}
tried() {
    expect "$1, 1.9s" '"runtime" : "1.9s", 1 s' "$(runs 1.9s)"
    expect "$1, 0.8s, until all 200 GiB are read at 10 GiB/s" '"runtime" : "0.8s", 20 s' "$(runs 0.8s)"
}
debian_packages bookworm fio=3.33-3
tried "$(in_root fio --version)"
rm -rf "$work/root" "$work/apt"
debian_packages sid fio=3.41-2
tried "$(in_root fio --version)"
