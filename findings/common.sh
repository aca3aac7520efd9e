# What the findings share: a temporary folder, pinned packages in it, and a comparison that says what has changed.
# Sourced, not run. 0: the behaviour is as recorded; 1: it has changed; 77: it cannot be tried here, with the reason.
set -eu
work=$(mktemp -d "${TMPDIR:-/var/tmp}/finding.XXXXXX")
started=
clean() {
    for pid in $started; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM
cd "$work"

skip() { echo "skipped: $*"; exit 77; }
need_root() { [ "$(id -u)" = 0 ] || skip "needs root, $1"; }
need() { command -v "$1" >/dev/null || skip "needs the command $1"; }

# python NAME==VERSION …: a virtual environment with these packages; its programs come first on PATH.
python_packages() {
    need "${PYTHON:=python3}"
    "$PYTHON" -m venv "$work/venv" || skip "$PYTHON makes no virtual environment"
    "$work/venv/bin/pip" install --quiet --disable-pip-version-check "$@" 2>"$work/pip.log" ||
        { tail -n 2 "$work/pip.log"; skip "these packages do not install here: $*"; }
    PATH=$work/venv/bin:$PATH
}

# debian_packages SUITE NAME=VERSION …: these Debian packages with all that they depend on, unpacked in $work/root, which is
# no part of this system: apt downloads, `dpkg -x` unpacks. Run what is in it by `in_root`, which needs root for chroot.
debian_packages() {
    need apt-get; need dpkg; need_root "for chroot"
    suite=$1; shift
    mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)}
    mkdir -p apt/lists apt/cache/archives/partial apt/parts root/proc root/dev root/tmp root/usr/bin root/usr/sbin root/usr/lib root/usr/lib64
    for merged in bin sbin lib lib64; do ln -s "usr/$merged" "root/$merged"; done
    : >apt/status
    echo "deb [trusted=yes] $mirror $suite main" >apt/sources.list
    set -- -o Dir::State="$work/apt" -o Dir::State::status="$work/apt/status" -o Dir::Cache="$work/apt/cache" \
        -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts="$work/apt/parts" \
        -o APT::Install-Recommends=0 -o APT::Sandbox::User=root -o Debug::NoLocking=1 -- "$@"
    options=
    while [ "$1" != -- ]; do options="$options $1"; shift; done
    shift
    # shellcheck disable=SC2086 # words, each without spaces
    apt-get $options update -qq >apt.log 2>&1 || skip "no package lists of Debian $suite"
    apt-get $options install -qq -y --download-only base-files coreutils dash "$@" >apt.log 2>&1 || skip "Debian $suite has no longer $*"
    for deb in apt/cache/archives/*.deb; do dpkg -x "$deb" root; done
}
# What it mounts is gone with it.
in_root() {
    unshare --mount sh -euc '
        mount -t proc proc "$0/proc"; mount --bind /dev "$0/dev"
        exec chroot "$0" env -i PATH=/usr/bin:/usr/sbin:/bin:/sbin LC_ALL=C "$@"' "$work/root" "$@"
}

# between_hosts SCRIPT: runs it in namespaces of its own, where `host 1 COMMAND` and `host 2 COMMAND` run on two hosts, 10.77.1.2
# and 10.77.2.2, each with a /tmp of its own. `cut_link` has the router between them drop every packet without a word, `mend_link`
# ends that. When SCRIPT ends all of it is gone, with every process.
between_hosts() {
    need ip; need unshare; need_root "for network namespaces"
    mkdir -p "$work/tmp1" "$work/tmp2"
    # shellcheck disable=SC2016 # for the inner shell
    work=$work unshare --net --mount --pid --fork --kill-child --mount-proc sh -euc '
        mount -t tmpfs tmpfs /run
        ip link set lo up
        echo 1 >/proc/sys/net/ipv4/ip_forward
        for n in 1 2; do
            ip netns add host$n
            ip link add host$n type veth peer name wire netns host$n
            ip address add 10.77.$n.1/24 dev host$n
            ip link set host$n up
            ip -n host$n address add 10.77.$n.2/24 dev wire
            ip -n host$n link set lo up
            ip -n host$n link set wire up
            ip -n host$n route add default via 10.77.$n.1
        done
        host() {
            n=$1; shift
            ip netns exec host$n unshare --mount sh -euc "mount --bind \"\$0\" /tmp; exec \"\$@\"" "$work/tmp$n" "$@"
        }
        cut_link() { for n in 1 2; do ip route add blackhole 10.77.$n.2/32; done; }
        mend_link() { for n in 1 2; do ip route del blackhole 10.77.$n.2/32; done; }
        '"$1"
}

# slurm_lab NODES: Slurm 22.05.8 of Debian 12, in $work/root, as a cluster of so many nodes (n0, n1, …) on this machine: see in_slurm_lab.
# `controller` and `node N` start a daemon, and keep its pid in $ctl and $nodeN.
slurm_lab() {
    debian_packages bookworm slurm-wlm=22.05.8-4+deb12u3 slurm-wlm-basic-plugins=22.05.8-4+deb12u3 munge=0.5.15-2+deb12u1 \
        util-linux mount grep
    last=$(($1 - 1))
    for name in slurmctld slurmd slurmstepd; do ln -s "$name-wlm" "root/usr/sbin/$name"; done
    mkdir -p root/etc/slurm root/etc/munge root/run/munge root/var/lib/munge root/var/log/munge root/var/spool/state
    for n in $(seq 0 "$last"); do mkdir "root/var/spool/n$n"; done
    echo 'root:x:0:0::/root:/bin/sh' >root/etc/passwd
    echo 'root:x:0:' >root/etc/group
    echo '127.0.0.1 localhost' >root/etc/hosts
    head -c 1024 /dev/urandom >root/etc/munge/munge.key
    chmod 600 root/etc/munge/munge.key
    printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=/run/none\n' >root/etc/slurm/cgroup.conf
    cat >root/etc/slurm/slurm.conf <<CONF
ClusterName=lab
SlurmctldHost=localhost
SlurmctldPort=26817
SlurmUser=root
SlurmdUser=root
StateSaveLocation=/var/spool/state
SlurmdSpoolDir=/var/spool/%n
SlurmctldPidFile=/run/ctld.pid
SlurmdPidFile=/run/%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdTimeout=6
InactiveLimit=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=n[0-$last] NodeHostname=localhost Port=[26820-$((26820 + last))] CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    cat >root/lab <<LAB
mount -t proc proc /proc
controller() { slurmctld -D >>/ctld.log 2>&1 & ctl=\$!; }
node() { slurmd -D -N "n\$1" >>"/n\$1.log" 2>&1 & eval "node\$1=\$!"; }
until_node() {  # STATES NODES NUMBER: until sinfo has so many of NODES in one of STATES
    for _ in \$(seq 90); do
        [ "\$(sinfo -h -N -n "\$2" -o %T | grep -cxE "\$1")" = "\$3" ] && return
        sleep 1
    done
    echo "never \$1: \$(sinfo -h -N)" >&2; exit 3
}
begin() {
    munged --force -F >/munged.log 2>&1 &
    until [ -S /run/munge/munge.socket.2 ]; do sleep 0.2; done
    controller
    for n in \$(seq 0 $last); do node "\$n"; done
    until_node idle "n[0-$last]" $1
}
LAB
}
# in_slurm_lab <SCRIPT: runs the commands of standard input there, the cluster begun; what they print, in one line.
in_slurm_lab() {
    { cat root/lab; echo begin; cat; } >root/script
    in_root unshare --pid --fork --kill-child sh /script >seen 2>lab.log ||
        { cat seen; tail -n 20 lab.log; tail -n 6 root/ctld.log; skip "the cluster did not come to be"; }
    tr '\n' '|' <seen
}

# expect WHAT RECORDED SEEN
expect() {
    if [ "$2" = "$3" ]; then
        echo "as recorded: $1: $3"
    else
        echo "changed: $1"; echo "  recorded: $2"; echo "  seen:     $3"
        exit 1
    fi
}
