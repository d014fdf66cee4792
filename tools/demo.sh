#!/usr/bin/env bash
# The ten-minute demo, in a fresh clone: trains a tokenizer on the embedded emoji on two CPU cores and writes a report.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
workdir=${1:-demo/tokenizer}
.venv/bin/vimlab train --config configs/vitvq_emoji.py --workdir "$workdir"
.venv/bin/vimlab eval --workdir "$workdir"
echo "open $workdir/report.html"
