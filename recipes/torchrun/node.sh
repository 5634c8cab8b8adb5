#!/usr/bin/env bash
# A command of the pipeline with one process for each GPU of each machine: run this on every machine.
#
#   NODES=2 HEAD=machine-0 JOB=any-word recipes/torchrun/node.sh harvest -c gemma-2-2b-layer8
#   NODES=2 HEAD=machine-0 JOB=any-word recipes/torchrun/node.sh train -c gemma-2-2b-layer8 --set train.parallel=data
#
# The second line trains one coder on all GPUs (docs/scale.md); a restart resumes it.
#
# NODES: machines. HEAD: the name of one of them, the same everywhere. JOB: a word, the same everywhere. PROCESSES: on
# each machine (one for each GPU). A process that dies is started again, with all others, at most three times; what is
# committed stays.
set -euo pipefail

: "${NODES:?how many machines}" "${HEAD:?the name of one of them}" "${JOB:?a word that all share}"
exec torchrun --nnodes "$NODES" --nproc-per-node "${PROCESSES:-gpu}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:${PORT:-29500}" --rdzv-id "$JOB" \
    -m sparse_pipeline "$@"
