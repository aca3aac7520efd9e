# Slurm 22.05.8 (Debian 12): slurmd does not start where no cgroups are mounted, also when nothing that it is configured for uses them
# (proctrack/pgid, task/none, no accounting), as in a container or a namespace without /sys. With version 1 of them named in
# cgroup.conf, and a mount point that is not there either, it starts.
# Needs root (chroot), and the lists of Debian 12.
. "$(dirname "$0")/common.sh"
slurm_lab 1
started() {  # what a node says of cgroups and of its start
    in_root timeout 5 slurmd -D -N n0 >slurmd.log 2>&1 || true
    grep -oE "cgroup filesystem not mounted in .*|slurmd initialization failed|slurmd started" slurmd.log | tr '\n' '|'
}
expect "mount point that is not there" "slurmd started|" "$(started)"
rm root/etc/slurm/cgroup.conf
expect "without cgroup.conf" "cgroup filesystem not mounted in /sys/fs/cgroup/|slurmd initialization failed|" "$(started)"
