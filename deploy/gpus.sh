#!/usr/bin/env bash
# Spark runs this as a GPU discovery script on each worker and executor, and reads one JSON object from its output.
set -euo pipefail
addresses=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -sd,)
printf '{"name": "gpu", "addresses": [%s]}\n' "$addresses"
