# Sourced by each recipe of the Makefile (BASH_ENV). A command that Ctrl-C stopped has said so and ends with 130. To make
# that is a fault, which it would say too; so make gets the signal as well and dies of it, with 130 for who called it.
# Were the shell gone before make hears of the signal, make would say that it misses a child: so the shell stays a moment.
# A make that was started in the background of a script ignores it: the fault ends that one.
unset BASH_ENV
trap 'if [ "$?" = 130 ] && [ -z "$(trap -p INT)" ]; then kill -INT "$PPID"; sleep 0.5; exit 0; fi' EXIT
