#!/usr/bin/env bash
# The demo, in a fresh clone, on two CPU cores: trains a tokenizer on the embedded emoji, then a small Parti on its tokens, and
# writes a report on each; the second ends with prompts and the pictures drawn for them.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
demo=${1:-demo}
vimlab=.venv/bin/vimlab
parti=configs/parti_emoji.py:tokenizer=$demo/tokenizer,tokens=$demo/tokens
"$vimlab" train --config configs/vitvq_emoji.py --workdir "$demo/tokenizer"
"$vimlab" eval --workdir "$demo/tokenizer"
[[ -d $demo/tokens ]] || "$vimlab" tokenize --config "$parti" --out "$demo/tokens"
"$vimlab" train --config "$parti" --workdir "$demo/parti"
"$vimlab" sample --workdir "$demo/parti" --num 4 --guidance 2 --temperature 0.6 --prompt "grinning face" --prompt "red heart" --prompt "green apple" \
  --prompt "blue heart" --prompt "cat face" --prompt "sun" --prompt "soccer ball" --prompt "woman"
"$vimlab" eval --workdir "$demo/parti"
echo "open $demo/tokenizer/report.html and $demo/parti/report.html"
