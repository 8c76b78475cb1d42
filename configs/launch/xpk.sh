#!/usr/bin/env bash
# One run on a slice of a GKE cluster, by XPK. Edit the three places, then: configs/launch/xpk.sh
#
# XPK starts a workload again where it ends with 42, or with 127 to 255; with 0, 1 or 2 it is over.
set -euo pipefail

# 1. Which cluster, and the name of this run.
CLUSTER=my-cluster
ZONE=us-west4-a
PROJECT=my-project
WORKLOAD=dflash
# 2. How many chips, and an image with specjax installed. /mnt/shared is a Filestore or the like that
# the cluster mounts into every workload (xpk storage attach ... --auto-mount=true).
TPU_TYPE=v5litepod-16
IMAGE=us-docker.pkg.dev/my-project/images/specjax:latest
# 3. What runs there.
COMMAND='python -m experiments.train_drafter --config=configs/train_dflash.py
  --config.mesh=data:16 --config.rows=16 --workdir=/mnt/shared/runs/dflash'

# exec, and nothing behind it: the shell would keep SIGTERM, and exit with another status.
exec xpk workload create --cluster="$CLUSTER" --zone="$ZONE" --project="$PROJECT" \
  --workload="$WORKLOAD" --tpu-type="$TPU_TYPE" --num-slices=1 --docker-image="$IMAGE" \
  --max-restarts=100 --command="exec $(tr '\n' ' ' <<<"$COMMAND")"
