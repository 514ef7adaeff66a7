#!/usr/bin/env bash
# Builds the wheel, installs it in an environment of its own, and solves a field with it, away from the source tree.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
here=$PWD
export UV_FIND_LINKS="${PIP_FIND_LINKS:-}"

# a copy, so that neither build/ nor a kernel built earlier gets into the wheel
mkdir "$folder/source"
tar -cf - --exclude={./.git,./.venv,./build,./data,./runs,./reports,__pycache__,'*.so','*.egg-info'} . \
    | tar -xf - -C "$folder/source"
"$BIN/python" -m pip wheel --quiet --no-deps --wheel-dir "$folder/wheel" "$folder/source"

"$PYTHON" -m venv "$folder/venv"
"$BIN/uv" pip install --quiet --python "$folder/venv/bin/python" -c constraints.txt "$folder"/wheel/*.whl \
    || "$folder/venv/bin/python" -m pip install --quiet -c "$here/constraints.txt" "$folder"/wheel/*.whl

cd "$folder"
venv/bin/mno --version
venv/bin/mno store verify
venv/bin/python - <<'CODE'
import numpy as np

field = np.where(np.random.default_rng(0).random((128, 128)) < 0.5, 0.1, 1.0)
np.save("permeability.npy", np.kron(field[:16, :16], np.ones((8, 8))))
CODE
venv/bin/mno solve darcy permeability.npy pressure.npy
venv/bin/python - <<'CODE'
import numpy as np

pressure = np.load("pressure.npy")
assert pressure.shape[-2:] == (128, 128), pressure.shape
assert np.isfinite(pressure).all()
assert (pressure > 0).all()
print("the installed wheel solves: largest pressure", pressure.max())
CODE
