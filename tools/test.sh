#!/usr/bin/env bash
# Runs every test in a fresh clone: makes .venv, installs vimlab with its test extra, lints, runs pytest.
# Arguments go to pytest, as in tools/test.sh tests/test_config.py -k duration.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" test
.venv/bin/ruff check vimlab configs experiments tests tools setup.py
# A process a core, up to four; the tests of a file share what they set up, so they stay together. tests/conftest.py says which come first.
exec .venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
