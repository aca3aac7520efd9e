# Slurm 22.05.8 (Debian 12): a job that sbatch has given a number, with status 0, may be forgotten when slurmctld dies. It writes down what jobs
# there are when the first one comes, and then for 5 s no more: those that come meanwhile are gone after a kill, and their numbers
# are given to others.
# Needs root (chroot, and a process namespace), and the lists of Debian 12.
. "$(dirname "$0")/common.sh"
slurm_lab 1
in_slurm_lab >said <<'LAB'
submit() { sbatch --parsable --output=/dev/null --wrap "sleep 300"; }
again() {
    kill -9 "$ctl"
    wait "$ctl" 2>/dev/null
    controller
    until sinfo -h >/dev/null 2>&1; do sleep 0.2; done
    echo "after a restart: $(squeue -h -o %i | sort | tr '\n' ' ')"
}
sleep 6
echo "submitted: $(submit) $(submit) $(submit)"
again
echo "submitted: $(submit)"
sleep 10
again
LAB
expect "three jobs at once, then one that is given time" \
    "submitted: 1 2 3|after a restart: 1 |submitted: 2|after a restart: 1 2 |" "$(cat said)"
