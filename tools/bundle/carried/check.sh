#!/bin/sh
# Runs `python -m bench.gpu` with what was installed; takes its options, as --minutes 3 or --dry-run.
exec "${PYTHON:-python3}" "$(dirname "$0")/carried" check "$@"
