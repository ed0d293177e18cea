#!/usr/bin/env bash
# Bring up a real Slurm cluster on this machine alone: loopback, no systemd, two "nodes" with fake GPUs.
# Usage: start.sh FOLDER PORT...   (a port for the controller, then one for each node; needs root)
# A second call starts what has died meanwhile. Afterwards: export SLURM_CONF=FOLDER/slurm.conf
# Environment: NODE (the nodes' name but for their numbers, default n; two clusters on one machine must differ in it, for
# control groups are named after nodes), GPUS (per node, default 2), CPUS (per node, default 4), NODE_TIMEOUT (seconds,
# default 5), JOB_AGE (seconds that the controller remembers ended jobs, default 300), ACCOUNTING (a port: with slurmdbd
# and MariaDB, and only the account `lab` may run jobs)
set -euo pipefail
LAB=$1 CONTROL=$2
shift 2
NODES=$# NODE=${NODE:-n} GPUS=${GPUS:-2} CPUS=${CPUS:-4} HOST=$(hostname -s)
export SLURM_CONF=$LAB/slurm.conf
umask 022
mkdir -p "$LAB"/{log,pid,dev,munge,state,spool}

alive() { [ -s "$1" ] && kill -0 "$(tr -d ' \n' <"$1")" 2>/dev/null && ! grep -q '^State:[[:space:]]*Z' "/proc/$(tr -d ' \n' <"$1")/status"; }
wait_for() { # seconds command...
  local end=$((SECONDS + $1))
  shift
  until timeout 3 "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || { echo "not in time: $*" >&2; tail -n 20 "$LAB"/log/* >&2; return 1; }
    sleep 0.1
  done
}

# munge: our own key and socket, beside a system-wide one if there is any
if [ ! -s "$LAB/munge/key" ]; then
  head -c 128 /dev/urandom >"$LAB/munge/key"
  chmod 600 "$LAB/munge/key"
fi
chmod 755 "$LAB/munge"
alive "$LAB/pid/munged.pid" || munged --force --key-file="$LAB/munge/key" --socket="$LAB/munge/socket" \
  --pid-file="$LAB/pid/munged.pid" --log-file="$LAB/log/munged.log" --seed-file="$LAB/munge/seed"
wait_for 5 munge -n -S "$LAB/munge/socket"

# a GPU has to be a real device node: null devices, or where those are forbidden the stock ones
DEVICES=$LAB/dev/nvidia[0-$((GPUS - 1))]
for ((gpu = 0; gpu < GPUS; gpu++)); do
  [ -c "$LAB/dev/nvidia$gpu" ] || mknod -m 666 "$LAB/dev/nvidia$gpu" c 1 3 2>/dev/null ||
    { DEVICES=$(printf '%s,' /dev/null /dev/zero /dev/full /dev/random | cut -d, -f1-"$GPUS"); break; }
done
echo "NodeName=${NODE}[1-$NODES] Name=gpu File=$DEVICES" >"$LAB/gres.conf"

# a freezer cgroup ends re-parented processes too
TRACKING=linuxproc
[ -w /sys/fs/cgroup/freezer ] && TRACKING=cgroup
printf 'CgroupAutomount=no\nCgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\n' >"$LAB/cgroup.conf"
{
  cat <<END
ClusterName=lab
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$CONTROL
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$LAB/munge/socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmdParameters=config_overrides
MpiDefault=none
ProctrackType=proctrack/$TRACKING
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
ReturnToService=2
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldPidFile=$LAB/pid/slurmctld.pid
SlurmdPidFile=$LAB/pid/%n.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/%n.log
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
EnforcePartLimits=ALL
PriorityType=priority/multifactor
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=${JOB_AGE:-300}
KillWait=2
SlurmctldTimeout=30
SlurmdTimeout=${NODE_TIMEOUT:-5}
InactiveLimit=0
GresTypes=gpu
END
  [ -z "${ACCOUNTING:-}" ] || cat <<END
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$ACCOUNTING
AccountingStoragePass=$LAB/munge/socket
AccountingStorageEnforce=associations,limits
END
  number=0
  for port in "$@"; do
    number=$((number + 1))
    echo "NodeName=$NODE$number NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$port CPUs=$CPUS RealMemory=4000 Gres=gpu:$GPUS State=UNKNOWN"
  done
  echo "PartitionName=main Nodes=${NODE}[1-$NODES] Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF"
  echo "PartitionName=spare Nodes=${NODE}[1-$NODES] MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=10"
} >"$SLURM_CONF"

# shellcheck source=accounting.sh
[ -z "${ACCOUNTING:-}" ] || . "$(dirname "${BASH_SOURCE[0]}")/accounting.sh"
alive "$LAB/pid/slurmctld.pid" || slurmctld
wait_for 15 scontrol ping
for ((node = 1; node <= NODES; node++)); do
  alive "$LAB/pid/$NODE$node.pid" || slurmd -N "$NODE$node"
done
# shellcheck disable=SC2016  # for the inner shell
wait_for 30 bash -c '[ "$(sinfo -h -N -t idle,mix,alloc -o %N | sort -u | wc -l)" = "$0" ]' "$NODES"
