#!/usr/bin/env bash
# Runs a command inside a Slurm cluster of one node, this machine, that lives only as long as the
# command: munged, slurmctld and slurmd with all of their files in a temporary folder.
#
#   slurm_cluster.sh COMMAND [ARGUMENT...]
#
# The command finds the cluster through SLURM_CONF. Works as root and as a user, without systemd and
# without cgroups. Exit code: the command's, or 77 with the reason on stderr when Slurm is not
# installed or does not start here.
set -euo pipefail

readonly kSkip=77
PATH="$PATH:/usr/sbin:/sbin"

skip() {
  printf 'skipped: %s\n' "$1" >&2
  [ $# -lt 2 ] || tail -n 20 "$2" >&2 || true
  exit "$kSkip"
}

for tool in munged slurmctld slurmd sbatch sinfo scancel python3 setpriv; do
  command -v "$tool" >/dev/null ||
    skip "$tool is not installed (Debian: slurmctld slurmd slurm-client munge)"
done

folder=$(mktemp -d /tmp/sw-slurm.XXXXXX)
daemons=()

cleanup() {
  trap - EXIT
  scancel --user "$(id -un)" 2>/dev/null || true
  local i
  for ((i = ${#daemons[@]} - 1; i >= 0; --i)); do kill "${daemons[i]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$folder"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Starts a daemon that ends with this script, however this script ends.
start() {
  local name=$1
  shift
  setpriv --pdeathsig KILL "$@" >"$folder/$name.out" 2>&1 &
  daemons+=($!)
}

# Waits up to 20 s until a command succeeds; fails at once when the last daemon has died.
await() {
  local tries
  for ((tries = 0; tries < 200; ++tries)); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    kill -0 "${daemons[-1]}" 2>/dev/null || return 1
    sleep 0.1
  done
  return 1
}

# munged wants folders that others cannot write to, and sockets that others can reach.
chmod 755 "$folder"
mkdir "$folder/state" "$folder/spool"
head -c 128 /dev/urandom >"$folder/munge.key"
chmod 600 "$folder/munge.key"
start munged munged --foreground --key-file="$folder/munge.key" --socket="$folder/munge.socket" \
  --pid-file="$folder/munged.pid" --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
await test -S "$folder/munge.socket" || skip "munged does not start" "$folder/munged.out"

read -r control_port node_port < <(python3 - <<'PYTHON'
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)
host=$(hostname -s)
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$control_port
SlurmdPort=$node_port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
# Version 23 can do without; before it, the plugin of version 1 starts where there is no cgroup.
cgroups=disabled
[[ $(slurmctld -V) =~ ' '2[0-2]\. ]] && cgroups=cgroup/v1
echo "CgroupPlugin=$cgroups" >"$folder/cgroup.conf"
export SLURM_CONF="$folder/slurm.conf"

start slurmctld slurmctld -D -f "$SLURM_CONF"
await sinfo --noheader || skip "slurmctld does not start" "$folder/slurmctld.out"
start slurmd slurmd -D -f "$SLURM_CONF" -N "$host"
await sh -c 'sinfo --noheader --format=%t | grep -qx idle' ||
  skip "slurmd does not start" "$folder/slurmd.out"

"$@"
