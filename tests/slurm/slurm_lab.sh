#!/usr/bin/env bash
# A real, throw-away Slurm on one machine, for the tests: two nodes on loopback with pretended GPUs. As root; no systemd, no
# cgroups, no terminal. Needs the packages slurmctld, slurmd, slurm-client and munge (Debian 12: Slurm 22.05).
#   tests/slurm/slurm_lab.sh start DIR    DIR is made, short, and holds everything; prints the value for SLURM_CONF
#   tests/slurm/slurm_lab.sh stop DIR     ends the jobs and exactly these daemons
set -euo pipefail
command=${1:-} lab=${2:-}
nodes=2 cpus=2 gpus=2 # of each node; none of it needs to exist

is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

free_ports() { # the first of so many in a row
  local first port
  for first in $(shuf --input-range=20000-30000 --head-count=50); do
    for port in $(seq "$first" $((first + $1))); do is_free "$port" || continue 2; done
    echo "$first"
    return
  done
  echo "no free ports" >&2
  exit 1
}

configure() {
  local port i
  port=$(free_ports "$nodes")
  mkdir -p "$lab"/{state,log,run,munge,dev}
  chmod 755 "$lab"
  (umask 077; head -c 1024 /dev/urandom >"$lab/munge/key")
  {
    cat <<EOF
ClusterName=lab
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$lab/munge/socket
CredType=cred/munge
StateSaveLocation=$lab/state
SlurmdSpoolDir=$lab/spool-%n
SlurmctldPidFile=$lab/run/slurmctld.pid
SlurmdPidFile=$lab/run/slurmd-%n.pid
SlurmctldLogFile=$lab/log/slurmctld.log
SlurmdLogFile=$lab/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
JobRequeue=1
KillWait=30
MinJobAge=3600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=gpu Nodes=ALL Default=YES MaxTime=1-00:00:00 State=UP GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=1-00:00:00 State=UP PriorityTier=10 PreemptMode=OFF
EOF
    for i in $(seq "$nodes"); do
      echo "NodeName=n$i NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=$cpus RealMemory=4000 Gres=gpu:$gpus State=UNKNOWN"
    done
  } >"$lab/slurm.conf"
  # A pretended GPU is a character device: a copy of /dev/null under the name of a real one.
  for i in $(seq 0 $((gpus - 1))); do mknod "$lab/dev/nvidia$i" c 1 3; done
  echo "NodeName=n[1-$nodes] Name=gpu File=$lab/dev/nvidia[0-$((gpus - 1))]" >"$lab/gres.conf"
}

start() {
  local i
  configure
  export SLURM_CONF=$lab/slurm.conf
  {
    munged --key-file="$lab/munge/key" --socket="$lab/munge/socket" --pid-file="$lab/munge/pid" \
      --log-file="$lab/munge/log" --seed-file="$lab/munge/seed" --num-threads=2 --force
    slurmctld -c -f "$SLURM_CONF"
    for i in $(seq "$nodes"); do slurmd -N "n$i" -f "$SLURM_CONF"; done
  } </dev/null >"$lab/log/start" 2>&1
  for i in $(seq 150); do
    if [ "$(timeout 5 sinfo -h -t idle -o %D 2>/dev/null)" = "$nodes" ]; then
      echo "$SLURM_CONF"
      return
    fi
    sleep 0.2
  done
  { sinfo -Nl || true; tail -n 20 "$lab"/log/*; } >&2
  stop
  exit 1
}

runs() { grep -qs '^State:.[^ZX]' "/proc/$1/status"; } # kill -0 says yes to a zombie that nobody reaps

stop() {
  local file pid
  export SLURM_CONF=$lab/slurm.conf
  timeout 10 scancel --user=root >/dev/null 2>&1 || true
  for _ in $(seq 100); do [ -n "$(timeout 5 squeue -h 2>/dev/null)" ] || break; sleep 0.2; done
  for file in "$lab"/run/slurmd-*.pid "$lab/run/slurmctld.pid" "$lab/munge/pid"; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do runs "$pid" || break; sleep 0.1; done
    if runs "$pid"; then kill -9 "$pid" || true; fi
  done
}

[ -n "$lab" ] || command=help
case $command in
  start) start ;;
  stop) stop ;;
  *) sed -n '2,5s/^# //p' "$0"; exit 2 ;;
esac
