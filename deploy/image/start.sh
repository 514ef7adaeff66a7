#!/bin/sh
# What was compiled with the image gets a place that can be written, where its libraries look for it; then `mno`.
set -eu
if [ ! -e "$HOME/.cache" ]; then
    cp -R /opt/mno/cache "$HOME/.cache" \
        || echo "mno-start: expected a HOME that can be written, such as --tmpfs /tmp, got $HOME; solvers are compiled anew" >&2
fi
exec mno "$@"
