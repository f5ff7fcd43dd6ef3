#!/usr/bin/env bash
# Set up .venv where it is missing, then go the whole way on sample photographs:
# label, register, train, evaluate, report. --fresh repeats what is up to date as well.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh
export PYTHONWARNINGS=ignore::FutureWarning:torch.jit._script # timm's, nothing to act on
exec .venv/bin/python tools/quickstart.py "$@"
