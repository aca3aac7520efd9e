# Slurm 22.05.8 (Debian 12): a step with --no-kill outlives one of its nodes, and `srun`, which prints that the node failed, ends with
# status 0 all the same, as if every task had ended well. The node that failed and came back is idle for others, but is not given
# back to the allocation it failed in, not even while that waits with nothing on the node: a step there is refused.
# Needs root (chroot, and a process namespace), and the lists of Debian 12.
. "$(dirname "$0")/common.sh"
slurm_lab 3
in_slurm_lab >said <<'LAB'
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
expect "the job" "nodes before: n[0-2]|srun: 0|state: idle|nodes after: n[0,2]|step there: 1|" "$(cat said)"
cat root/srun.log root/again.log
