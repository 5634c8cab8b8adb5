#!/usr/bin/env bash
# Harvest with a job array, then train, then analyze: three jobs, each of which waits for the one before.
#
#   recipes/slurm/submit.sh SETTINGS [TASKS] [NAME]      e.g. recipes/slurm/submit.sh gemma-2-2b-layer8 8
#
# SETTINGS: a preset or a settings file. TASKS: processes that harvest together (8). NAME: of the run (SETTINGS).
# Start it in a folder that every node sees: cache/, runs/ and reports/ go there. Options for every job, such as
# --partition or --account, come from the environment: SBATCH_PARTITION, SBATCH_ACCOUNT.
set -euo pipefail

settings=${1:?"usage: submit.sh SETTINGS [TASKS] [NAME]"}
tasks=${2:-8}
name=${3:-$(basename "$settings" .yaml)}
step=$(cd "$(dirname "$0")" && pwd)/step.sbatch

harvest=$(sbatch --parsable --job-name="harvest-$name" --array="0-$((tasks - 1))" \
    "$step" harvest -c "$settings" --ranks array)
train=$(sbatch --parsable --job-name="train-$name" --dependency="afterok:$harvest" \
    --export="ALL,RESUME_IF=runs/$name/config.yaml" "$step" train -c "$settings" --name "$name")
analyze=$(sbatch --parsable --job-name="analyze-$name" --dependency="afterok:$train" \
    "$step" analyze -c "$settings" "$name")
echo "harvest $harvest ($tasks tasks), train $train, analyze $analyze"
