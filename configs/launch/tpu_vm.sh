#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU VM slice. Edit the three places, then: configs/launch/tpu_vm.sh
#
# The slice is there already (gcloud compute tpus tpu-vm create NAME --accelerator-type=v5litepod-16
# --version=v2-alpha-tpuv5-lite, or a queued resource), with specjax installed on every host and the
# working directory on storage that all of them mount. Not for TPU7x, which has GKE alone.
set -euo pipefail

# 1. Which slice.
NAME=my-slice
ZONE=us-west4-a
# 2. Where specjax lies on its hosts.
CHECKOUT=specjax # from the home directory there
# 3. What runs there.
COMMAND='python -m experiments.train_drafter --config=configs/train_dflash.py
  --config.mesh=data:16 --config.rows=16 --workdir=/mnt/shared/runs/dflash'

# Each host starts its process again while it ends with 42.
REMOTE="cd $CHECKOUT && exec configs/launch/again.sh $(tr '\n' ' ' <<<"$COMMAND") --coordinator=auto"
exec gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$REMOTE"
