#!/bin/sh
# Installs what this folder and those beside it carry, without a network:
#   ./install.sh                    into the environment of python3
#   ./install.sh --target FOLDER    into a folder, for PYTHONPATH
#   PYTHON=/path/to/python ./install.sh
exec "${PYTHON:-python3}" "$(dirname "$0")/carried" install "$@"
