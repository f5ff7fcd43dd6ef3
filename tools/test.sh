#!/usr/bin/env bash
# Run the tests in .venv, which is made first where it is missing. Arguments go to pytest:
#
#     bash tools/test.sh [tests/labeler -k merge ...]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash tools/setup_env.sh
exec .venv/bin/python -m pytest "$@"
