"""``wsi cluster``: what starts workers on a cluster's machines."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.cli.console import out

app = typer.Typer(no_args_is_help=True, help="Start workers on the machines of a cluster.")

SBATCH = """#!/bin/bash
#SBATCH --job-name=slidewright
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={per_node}
#SBATCH --cpus-per-task={cores}
{gpus}#SBATCH --time={hours}:00:00
#SBATCH --output=slidewright-%j.log
# Made by: wsi cluster slurm. Edit the last line, then: sbatch run.sbatch
set -euo pipefail

FILE="$PWD/scheduler-$SLURM_JOB_ID.json"  # on a disk that all nodes see
# else the scheduler keeps a history that grows with every slide
export DASK_DISTRIBUTED__DIAGNOSTICS__COMPUTATIONS__MAX_HISTORY=0
dask scheduler --scheduler-file "$FILE" --port 0 --no-dashboard &
SCHEDULER=$!
trap 'kill $SCHEDULER 2>/dev/null || true; rm -f "$FILE"' EXIT
# one worker for each task, one task at a time in each: the network uses the cores, or the GPU
srun --kill-on-bad-exit=0 dask worker --scheduler-file "$FILE" --nthreads 1 --memory-limit 0 --no-dashboard &

wsi score COHORT --out OUT --scheduler-file "$FILE"
"""


@app.callback()
def _group() -> None:
    """Start workers on the machines of a cluster."""


@app.command("slurm")
def slurm(
    nodes: Annotated[int, typer.Option(min=1, help="The number of machines.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each machine; each gets a worker.")] = 0,
    cores: Annotated[int, typer.Option(min=1, help="Cores of each worker.")] = 8,
    hours: Annotated[int, typer.Option(min=1, help="The longest time that the job may take.")] = 24,
) -> None:
    """Print a batch script for SLURM: a scheduler, a worker for each machine or GPU, and the command.

    What is not done when the time is over is done by the same job, submitted again.

    Examples:
    wsi cluster slurm --nodes 8 --gpus 1 > run.sbatch
    """
    text = SBATCH.format(
        nodes=nodes,
        per_node=max(1, gpus),
        cores=cores,
        hours=hours,
        gpus=f"#SBATCH --gpus-per-node={gpus}\n#SBATCH --gpus-per-task=1\n" if gpus else "",
    )
    out.print(text, end="", markup=False)
