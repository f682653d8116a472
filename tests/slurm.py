"""A cluster of one node without Slurm: the programs of Slurm that submitit calls, each a few lines of shell.

`sbatch` runs the very script that it is given, the tasks of an array one after the other, each in a process group of
its own with the variables that Slurm sets; `srun` runs a command with the output where it is asked for; `sacct` says
in which state jobs are; `scancel` kills. What was asked of them is in the folder that SLURM_STUB names.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PROGRAMS = {
    "sbatch": r"""
script=$1
id=$(( $(cat "$SLURM_STUB/last" 2>/dev/null || echo 100) + 1 ))
echo $id > "$SLURM_STUB/last"
cp "$script" "$SLURM_STUB/$id.sh"
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\)%[0-9]*$/\1/p' "$script")
jobs=$id
[ -z "$last" ] || jobs=$(seq -f "${id}_%g" 0 "$last")
for job in $jobs; do echo PENDING > "$SLURM_STUB/$job.state"; done
(
    for job in $jobs; do
        [ "$(cat "$SLURM_STUB/$job.state")" = PENDING ] || continue
        echo RUNNING > "$SLURM_STUB/$job.state"
        export SLURM_JOB_ID=$id SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
        export SLURM_JOB_NODELIST=node1 SLURM_STUB_JOB=$job
        [ "$job" = "$id" ] || export SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=${job#*_}
        setsid bash "$script" & echo $! > "$SLURM_STUB/$job.pid"
        if wait $!; then ended=COMPLETED; else ended=FAILED; fi
        [ "$(cat "$SLURM_STUB/$job.state")" = CANCELLED ] || echo $ended > "$SLURM_STUB/$job.state"
    done
) < /dev/null > "$SLURM_STUB/$id.out" 2>&1 &
echo "Submitted batch job $id"
""",
    "srun": r"""
named() { echo "$1" | sed "s/%A_%a/$SLURM_STUB_JOB/g; s/%j/$SLURM_STUB_JOB/g; s/%t/0/g"; }
while [[ $1 == --* ]]; do
    case $1 in
        --output) out=$(named "$2"); shift 2 ;;
        --error) err=$(named "$2"); shift 2 ;;
        *) shift ;;
    esac
done
exec "$@" >> "$out" 2>> "$err"
""",
    "sacct": r"""
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
    if [ "$1" = -j ]; then
        for file in "$SLURM_STUB/$2".state "$SLURM_STUB/$2"_*.state; do
            [ ! -e "$file" ] || echo "$(basename "$file" .state)|$(cat "$file")|node1"
        done
        shift
    fi
    shift
done
""",
    "scancel": r"""
echo CANCELLED > "$SLURM_STUB/$1.state"
[ ! -e "$SLURM_STUB/$1.pid" ] || kill -KILL -- "-$(cat "$SLURM_STUB/$1.pid")"
""",
}


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the programs first on PATH, for this test; returns the folder of what they tell."""
    (folder / "bin").mkdir(parents=True)
    for name, text in PROGRAMS.items():
        program = folder / "bin" / name
        program.write_text("#!/bin/bash" + text)
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_STUB", str(folder))
    return folder


def states(folder: Path) -> dict[str, str]:
    """Job -> its state, as sacct would say."""
    return {path.stem: path.read_text().strip() for path in sorted(folder.glob("*.state"))}
