#!/usr/bin/env bash
# Runs every test in a fresh clone: makes .venv, installs vimlab with its test extra, lints, runs pytest.
# Arguments go to pytest, as in tools/test.sh tests/test_config.py -k duration.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" test
.venv/bin/ruff check vimlab configs experiments tests tools setup.py
exec .venv/bin/python -m pytest "$@"
