#!/usr/bin/env bash
# demo.sh: the example on a cluster of its own, two executors in two JVMs; `make cluster-demo` calls it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}

dir=$(mktemp -d "${TMPDIR:-/tmp}/sparkgap-demo-XXXXXX")
trap '"$here/standalone.sh" stop --dir "$dir" && rm -rf -- "$dir" "$dir.data"' EXIT
mkdir -m 700 "$dir.data"
url=$("$here/standalone.sh" start --dir "$dir" --python "$python")
"$python" "$here/../client/examples/digits.py" --remote "$url" --data "$dir.data" "$@"
