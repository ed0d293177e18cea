#!/usr/bin/env bash
# End what start.sh started, the jobs first. Usage: stop.sh FOLDER
set -uo pipefail
LAB=$1
export SLURM_CONF=$LAB/slurm.conf
if [ -s "$LAB/pid/slurmctld.pid" ]; then
  timeout 10 scancel --quiet --me
  for _ in $(seq 50); do
    [ -z "$(timeout 5 squeue -h -o %i 2>/dev/null)" ] && break
    sleep 0.2
  done
fi
for file in "$LAB"/pid/*[0-9].pid "$LAB"/pid/{slurmctld,slurmdbd,mariadb,munged}.pid; do
  pid=$(tr -d ' \n' <"$file" 2>/dev/null) || continue
  if [ -z "$pid" ] || ! grep -qE 'slurm|munge|mariadb' "/proc/$pid/cmdline" 2>/dev/null; then continue; fi
  kill "$pid"
  for _ in $(seq 50); do
    if ! kill -0 "$pid" 2>/dev/null || grep -q '^State:[[:space:]]*Z' "/proc/$pid/status"; then break; fi
    sleep 0.1
  done
  kill -KILL "$pid" 2>/dev/null
done
exit 0
