# Slurm 22.05.8 (Debian 12): a step with --no-kill outlives one of its nodes, and `srun`, which prints that the node failed, ends with
# status 0 all the same, as if every task had ended well. The node that failed and came back is idle for others, but is not given
# back to the allocation it failed in, not even while that waits with nothing on the node: a step there is refused.
# Needs root (chroot, and a process namespace), and the lists of Debian 12.
. "$(dirname "$0")/common.sh"
debian_packages bookworm slurm-wlm=22.05.8-4+deb12u3 slurm-wlm-basic-plugins=22.05.8-4+deb12u3 munge=0.5.15-2+deb12u1 util-linux mount grep
for name in slurmctld slurmd slurmstepd; do ln -s "$name-wlm" "root/usr/sbin/$name"; done
mkdir -p root/etc/slurm root/etc/munge root/run/munge root/var/lib/munge root/var/log/munge root/var/spool/state
for n in 0 1 2; do mkdir "root/var/spool/n$n"; done
echo 'root:x:0:0::/root:/bin/sh' >root/etc/passwd
echo 'root:x:0:' >root/etc/group
echo '127.0.0.1 localhost' >root/etc/hosts
head -c 1024 /dev/urandom >root/etc/munge/munge.key
chmod 600 root/etc/munge/munge.key
printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=/run/none\n' >root/etc/slurm/cgroup.conf
cat >root/etc/slurm/slurm.conf <<'CONF'
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
NodeName=n[0-2] NodeHostname=localhost Port=[26820-26822] CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
cat >root/lab <<'LAB'
mount -t proc proc /proc
node() { slurmd -D -N "n$1" >"/n$1.log" 2>&1 & eval "node$1=$!"; }
until_node() {  # STATES NODES: until sinfo has NODES in one of STATES
    for _ in $(seq 90); do
        [ "$(sinfo -h -N -n "$2" -o %T | grep -cxE "$1")" = "$3" ] && return
        sleep 1
    done
    echo "never $1: $(sinfo -h -N)" >&2; exit 3
}
munged --force -F >/munged.log 2>&1 &
until [ -S /run/munge/munge.socket.2 ]; do sleep 0.2; done
slurmctld -D >/ctld.log 2>&1 &
for n in 0 1 2; do node $n; done
until_node idle n0,n1,n2 3
salloc --quiet --no-kill -N3 sleep infinity & 
until job=$(squeue -h -t running -o %i) && [ "$job" ]; do sleep 0.2; done
srun --quiet --jobid="$job" --no-kill -N3 -n3 sh -c 'echo $PPID $$ >/task.$SLURMD_NODENAME.part; mv /task.$SLURMD_NODENAME.part /task.$SLURMD_NODENAME; exec sleep 60' >/srun.log 2>&1 & step=$!
until [ -e /task.n0 ] && [ -e /task.n1 ] && [ -e /task.n2 ]; do sleep 0.2; done
echo "nodes before: $(squeue -h -j "$job" -o %N)"
# The node's failure: all that runs on it is gone at once.
# shellcheck disable=SC2046
kill -9 "$node1" $(cat /task.n1)
until_node 'down[*]?' n1 1
wait "$step" && code=0 || code=$?
echo "srun: $code"
node 1
until_node 'idle' n1 1
echo "state: $(sinfo -h -N -n n1 -o %T)"
echo "nodes after: $(squeue -h -j "$job" -o %N)"
srun --jobid="$job" -w n1 -N1 -n1 true >/again.log 2>&1 && code=0 || code=$?
echo "step there: $code"
LAB
in_root unshare --pid --fork --kill-child sh /lab >seen 2>lab.log || { cat seen; tail -n 20 lab.log; tail -n 6 root/ctld.log root/srun.log; skip "the cluster did not come to be"; }
expect "the job" "nodes before: n[0-2]|srun: 0|state: idle|nodes after: n[0,2]|step there: 1|" "$(tr '\n' '|' <seen)"
cat root/srun.log root/again.log
