#!/usr/bin/env bash
# Run the tests in .venv, which is made first where it is missing, in a process a core (at most 4).
# Arguments go to pytest:
#
#     bash tools/test.sh [tests/labeler -k merge -n 0 ...]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh
# What tests start must not wait for cores that others hold.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile "$@"
