#!/bin/sh
# The dvc of an environment, for when that is not activated: the `python` of its stages is the environment's too.
here=$(dirname -- "$(readlink -f -- "$0")")
PATH="$here:$PATH" exec "$here/python" -m dvc "$@"
