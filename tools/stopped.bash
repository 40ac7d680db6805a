# Sourced by each recipe of the Makefile (BASH_ENV). A command that Ctrl-C stopped has said so and ends with 130. To make
# that is a fault, which it would say too; so make gets the signal as well and dies of it, with 130 for who called it.
unset BASH_ENV
trap 'if [ "$?" = 130 ]; then kill -INT "$PPID"; exit 0; fi' EXIT
