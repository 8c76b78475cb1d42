#!/usr/bin/env bash
# One run on nodes with GPUs. Edit the three places, then: sbatch configs/launch/slurm.sh
#
# One process a node has all of its GPUs. Two minutes before its time is over, or when it is
# preempted, every process gets SIGTERM, saves, and ends with 42: then the job queues again.
#
# 1. How many nodes and GPUs of each, and for how long.
#SBATCH --nodes=2
#SBATCH --gres=gpu:8
#SBATCH --time=12:00:00
#SBATCH --job-name=dflash
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail

# 2. Where specjax lies, and its environment.
cd "${SPECJAX_CHECKOUT:-$HOME/specjax}" || exit 2
# shellcheck disable=SC1091
[[ -e .venv/bin/activate ]] && source .venv/bin/activate
# 3. What runs there.
COMMAND=(python -m experiments.train_drafter --config=configs/train_dflash.py
  --config.mesh=data:16 --config.rows=16 --workdir=/shared/runs/dflash)

# Where one task ends all do, by themselves: what Slurm kills would not end with 42. specjax finds its
# place in what srun leaves in the environment.
srun --kill-on-bad-exit=0 "${COMMAND[@]}"
status=$?
if [[ $status -eq 42 ]]; then
  echo "saved; queueing again" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
