#!/usr/bin/env bash
# Builds and checks the image, with what there is: Docker, or Buildah and Podman. From anywhere:
#
#   bash deploy/build.sh tools           install Buildah, Podman and mmdebstrap (Debian, as root)
#   bash deploy/build.sh base            make the base image of Debian's packages, where no registry can be reached
#   bash deploy/build.sh [cpu|cuda]      build localhost/mno:VERSION-cpu, then check it
#   bash deploy/build.sh check [cpu]     only check it: read-only, without privileges, answers, drains
#   bash deploy/build.sh pins            write deploy/image/pins.txt anew, with uv
#
# BASE_IMAGE, PIP_FIND_LINKS and TORCH_INDEX_URL are handed on: see deploy/Dockerfile. IMAGE names another image,
# ENGINE (docker, buildah) another tool.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -n 1)
LOCAL_BASE=localhost/base:bookworm
EXTRAS="training,tracing,object-store"

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

has() {
    command -v "$1" >/dev/null
}

engine() {
    if [ -n "${ENGINE:-}" ]; then
        echo "$ENGINE"
    elif has docker && docker info >/dev/null 2>&1; then
        echo docker
    elif has buildah && has podman; then
        echo buildah
    else
        fail "expected a Docker engine, or buildah and podman, found neither; on Debian: bash deploy/build.sh tools"
    fi
}

install_tools() {
    apt-get update
    apt-get install --yes --no-install-recommends buildah podman runc mmdebstrap ca-certificates
}

# Debian's Python is 3.11, which PyTorch's wheels fit
make_base() {
    has mmdebstrap || fail "expected mmdebstrap, found none; on Debian: bash deploy/build.sh tools"
    local archive
    archive=$(mktemp --suffix=.tar)
    # shellcheck disable=SC2064  # the name is known now
    trap "rm -f '$archive'" EXIT
    mmdebstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$archive"
    podman import "$archive" "$LOCAL_BASE"
}

# folders and files of this machine that pip reads its packages and settings from, one a line
pip_places() {
    local pip="${PYTHON:-python3} -m pip" word
    for word in ${PIP_FIND_LINKS:-} $($pip config list 2>/dev/null | grep -o "file://[^' ]*" || true); do
        word=${word#file://}
        # a folder of an index is below one that has them all, such as .../simple
        if [ -d "$word" ]; then echo "$word"; fi
    done
    for word in /etc/pip.conf /etc/ssl/certs /etc/hosts /etc/resolv.conf; do
        if [ -e "$word" ]; then echo "$word"; fi
    done
}

# pip's own settings of this user, as variables of the build: the root of the image has other ones
pip_index() {
    "${PYTHON:-python3}" -m pip config get global.extra-index-url 2>/dev/null || true
}

build() {
    local device=$1 image=$2 tool base epoch place
    tool=$(engine)
    base=${BASE_IMAGE:-}
    if [ -z "$base" ] && [ "$tool" = buildah ] && podman image exists "$LOCAL_BASE"; then
        base=$LOCAL_BASE
    fi
    # the same commit gives the same image: its files have the time of the commit
    epoch=$(git log -1 --format=%ct 2>/dev/null || date +%s)
    local -a arguments=(
        --file deploy/Dockerfile
        --build-arg "DEVICE=$device"
        --build-arg "EXTRAS=$EXTRAS"
        --build-arg "VERSION=$VERSION"
        --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)"
        --tag "$image"
    )
    if [ -n "$base" ]; then arguments+=(--build-arg "BASE_IMAGE=$base"); fi
    if [ -n "${TORCH_INDEX_URL:-}" ]; then arguments+=(--build-arg "TORCH_INDEX_URL=$TORCH_INDEX_URL"); fi
    # the wheels at hand are for the CPU: CUDA's torch comes from the index
    if [ "$device" = cpu ] && [ -n "${PIP_FIND_LINKS:-}" ]; then
        arguments+=(--build-arg "PIP_FIND_LINKS=$PIP_FIND_LINKS")
    fi
    if [ "$tool" = docker ]; then
        SOURCE_DATE_EPOCH=$epoch docker build "${arguments[@]}" .
        return
    fi
    # --format docker: OCI's has no HEALTHCHECK
    arguments+=(--format docker --runtime runc --network host --ulimit nofile=20000:20000 --timestamp "$epoch")
    arguments+=(--build-arg "PIP_EXTRA_INDEX_URL=$(pip_index)")
    while read -r place; do
        arguments+=(--volume "$place:$place:ro")
    done < <(pip_places | sort -u)
    buildah bud "${arguments[@]}" .
}

# whether a container of the image does what is promised of it
check() {
    local image=$1 device=$2 runner=podman name
    local -a options=()
    if [ "$(engine)" = docker ]; then runner=docker; else options+=(--runtime runc); fi
    options+=(
        --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --memory 3g --cpus 2
        # Podman asks for more than a root without privileges of its own may give
        --ulimit nofile=20000:20000 --ulimit nproc=20000:20000
    )
    run_once() { "$runner" run --rm --no-healthcheck "${options[@]}" --entrypoint "$1" "$image" "${@:2}"; }

    echo "layers and size:"
    "$runner" history --human "$image"
    echo "size in bytes: $("$runner" image inspect --format '{{.Size}}' "$image")"
    [ "$(run_once id -u)" = 10001 ] || fail "expected user 10001"
    ! run_once sh -c 'command -v gcc || command -v g++ || command -v cc || command -v pip' \
        || fail "expected neither a compiler nor pip in the image"
    ! run_once sh -c 'touch /opt/mno/x 2>/dev/null' || fail "expected a root that cannot be written"
    run_once python -c "import json; print(len(json.load(open('/opt/mno/sbom.cdx.json'))['components']), 'components in the SBOM')"
    run_once python -c "import torch; print('torch', torch.__version__, 'CUDA', torch.version.cuda)"
    run_once python -c "from operators.scan import native; print('scan kernel:', native.__name__)"

    name="mno-check-$$"
    # shellcheck disable=SC2064  # the name is known now
    trap "'$runner' rm -f '$name' >/dev/null 2>&1 || true" EXIT
    local began
    began=$(date +%s)
    "$runner" run --detach --name "$name" "${options[@]}" --publish 127.0.0.1::8080 --env MNO_SECURITY__OPEN=true \
        --env MNO_DEVICE="${CHECK_DEVICE:-cpu}" "$image" >/dev/null
    local seconds=0
    until "$runner" exec "$name" python /opt/mno/health.py 2>/dev/null; do
        [ $((seconds += 1)) -lt 300 ] || { "$runner" logs "$name"; fail "expected an answer within 300 s"; }
        sleep 1
    done
    echo "answers $(($(date +%s) - began)) s after its start"
    # Docker does so by itself, Podman where there is systemd
    [ "$runner" = docker ] || "$runner" healthcheck run "$name" || fail "expected a container that is healthy"
    "$runner" exec --interactive "$name" python - <<'CODE' || fail "expected a solution"
import io
import urllib.request

import numpy as np

body = io.BytesIO()
np.save(body, np.ones((128, 128), "float32"))
headers = {"Content-Type": "application/x-npy", "Accept": "application/x-npy"}
request = urllib.request.Request("http://127.0.0.1:8080/v1/problems/darcy/solve", body.getvalue(), headers)
pressure = np.load(io.BytesIO(urllib.request.urlopen(request, timeout=60).read()))
assert pressure.shape == (128, 128) and np.isfinite(pressure).all() and (pressure > 0).all()
print("solves: largest pressure", pressure.max())
CODE
    "$runner" stats --no-stream "$name"
    "$runner" stop --time 60 "$name" >/dev/null
    [ "$("$runner" inspect --format '{{.State.ExitCode}}' "$name")" = 0 ] \
        || { "$runner" logs "$name"; fail "expected SIGTERM to drain and to end with status 0"; }
    echo "SIGTERM drains, exit status 0"
    if [ "$device" = cpu ]; then
        run_once python -c "import torch; assert torch.version.cuda is None; print('torch.version.cuda is None')" \
            || fail "expected the CPU build of torch"
    fi
    echo "$image is as it should be"
}

write_pins() {
    local uv=.venv/bin/uv folder device
    [ -x "$uv" ] || fail "expected $uv, found none: make setup"
    folder=$(mktemp -d)
    # shellcheck disable=SC2064  # the name is known now
    trap "rm -rf '$folder'" EXIT
    for device in cpu cuda; do
        # the wheels at hand are for the CPU
        UV_FIND_LINKS=$([ "$device" = cuda ] || echo "${PIP_FIND_LINKS:-}") "$uv" pip compile --quiet \
            --no-annotate --no-header --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
            --constraint constraints.txt --extra training --extra tracing --extra object-store pyproject.toml \
            --output-file "$folder/$device"
    done
    {
        echo "# What the image has beside the direct dependencies, whose versions are in constraints.txt: of both variants, for"
        echo "# Python 3.11 on Linux. \`bash deploy/build.sh pins\` writes it anew."
        sort -u "$folder"/* | grep -v -x -i -f <(sed -n 's/==.*/==.*/p' constraints.txt)
    } >deploy/image/pins.txt
}

device=cpu
case "${1:-cpu}" in
    tools) install_tools ;;
    base) make_base ;;
    pins) write_pins ;;
    check)
        device=${2:-cpu}
        check "${IMAGE:-localhost/mno:$VERSION-$device}" "$device"
        ;;
    cpu | cuda)
        device=${1:-cpu}
        if [ -z "${BASE_IMAGE:-}" ] && [ "$(engine)" = buildah ] && ! podman image exists "$LOCAL_BASE" && has mmdebstrap; then
            make_base
        fi
        build "$device" "${IMAGE:-localhost/mno:$VERSION-$device}"
        check "${IMAGE:-localhost/mno:$VERSION-$device}" "$device"
        ;;
    *) fail "expected tools, base, cpu, cuda, check or pins, got $1" ;;
esac
