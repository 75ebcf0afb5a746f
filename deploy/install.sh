#!/bin/sh
# On every node, by setup_commands: ~/venv with the packages of deploy/requirements.lock. Costs nothing when they are there.
# The project itself is not installed: PYTHONPATH of ray.env leads to the checkout that `ray up` copies.
set -eu
# `ray down` says "ray stop" to a shell that knows nothing of ray.env, and nobody hears that there is no such command.
grep -qs '^\. ~/ray.env' "$HOME/.bashrc" || { echo '. ~/ray.env'; cat "$HOME/.bashrc" 2>/dev/null || true; } > "$HOME/.bashrc.new"
if [ -e "$HOME/.bashrc.new" ]; then mv "$HOME/.bashrc.new" "$HOME/.bashrc"; fi
lock=$HOME/keystone/deploy/requirements.lock
mark=$HOME/venv/.installed
if cmp -s "$lock" "$mark"; then exit 0; fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "keystone needs Python 3.11 or newer on every node; this one has $(python3 --version)" >&2; exit 1; }
test -x "$HOME/venv/bin/python" || python3 -m venv "$HOME/venv"
# A folder ~/wheels, if you copy one there, serves nodes without a network: pip download -d wheels -r deploy/requirements.lock
if [ -d "$HOME/wheels" ]; then set -- --no-index --find-links "$HOME/wheels"; else set --; fi
"$HOME/venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: "$@" --requirement "$lock"
cp "$lock" "$mark"
