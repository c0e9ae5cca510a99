#!/bin/sh
# The whole recipe: data, two fits, model card. Usage, from the repository root:
#   benchmarks/embedded_base/train.sh [FOLDER WITH THE PUBLIC SOURCES]
# The sources are not needed where runs/embedded_base/data is there already.
set -eu
here=benchmarks/embedded_base
data=runs/embedded_base/data
[ -f "$data/chat/train.jsonl" ] || python "$here/prepare.py" --data "${1:-../shared/data}" --output "$data"
lightning-ft fit --config "$here/base.yaml"
lightning-ft fit --config "$here/chat.yaml"
python "$here/card.py" --data "$data" --model runs/embedded_base/chat/final_model
