#!/usr/bin/env bash
# From a model folder and files of rows to a masked model:  examples/own_data.sh MODEL TRAIN.jsonl TEST.jsonl FOLDER
set -euo pipefail
model=$1 train=$2 test=$3 out=$4

mkdir -p "$out"
mft-ray init --model "$model" --train "$train" --test "$test" --fine-tuned --out "$out/search.yaml"
mft-ray tune --config "$out/search.yaml" --set run.dir="$out/run" --set search.trials="${TRIALS:-16}"
mft-ray export --backbone "$model" --mask "$out/run/best/mask.safetensors" --out "$out/masked"
mft-ray score --config "$out/search.yaml" --model "$out/masked" --split test
