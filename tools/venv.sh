# Sourced by the other scripts: makes (or reuses) .venv in this checkout, installed from the constraints file.
# The extras to install are the caller's first argument; PYTHON chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${1:-}
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "vimlab needs Python 3.11 or newer; set PYTHON to one, as in PYTHON=python3.11 $0" >&2
  exit 1
}
stamp=.venv/installed-$(cat setup.py constraints.txt <(echo "$extras") | cksum | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
  echo "installing into .venv …"
  "$python" -m venv .venv
  # The constraints are those of Python 3.11; newer ones get newer JAX within setup.py's bounds.
  constraints=()
  if .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then constraints=(-c constraints.txt); fi
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "${constraints[@]}" -e ".${extras:+[$extras]}"
  touch "$stamp"
fi
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
