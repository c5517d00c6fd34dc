#!/usr/bin/env bash
# What a GPU is asked first: exactness of the masks on CUDA, what a masked step costs, and how much memory it takes.
#
#     bash benchmarks/gpu.sh OUT [REFERENCE]
#
# Writes OUT/gpu-*.json and OUT/gpu-*.log. Needs torch, transformers and pydantic only; no Ray, no DeepSpeed. REFERENCE
# is transformers/src/transformers/models/llama/modeling_llama.py of github.com/Ming-K9/MFT. One command must not cost
# the others: each has its own time limit, and the script exits with the number of those that failed. GPU_ONLY="NAME..."
# runs only these.
# shellcheck disable=SC2086
set -u
cd "$(dirname "$0")/.."
out=$1 failed=0
reference=(${2:+--reference "$2"})
mkdir -p "$out"
export PYTHONPATH=$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

part() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    case " ${GPU_ONLY:-$name} " in *" $name "*) ;; *) return ;; esac
    if timeout "$limit" "$@" > "$out/gpu-$name.log" 2>&1; then echo "$name: done in $((SECONDS - began)) s"; else
        echo "$name: FAILED ($?) after $((SECONDS - began)) s"
        failed=$((failed + 1))
    fi
    tail -n "${LINES_SHOWN:-12}" "$out/gpu-$name.log"
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null
python3 -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
size=${GPU_SHAPES:-llama2-7b llama3.1-8b}
device=${GPU_DEVICE:-cuda}
rounds=${GPU_ROUNDS:-3}
dtype=${GPU_DTYPE:-bfloat16}
tokens=${GPU_TOKENS:-2048}
rest=${GPU_LONG_TOKENS:-16384} # a step as the paper's: its weights are masked once for all of its micro-batches
read -ra besides <<< "${GPU_BESIDES---lora --full}"
part parts 60 python3 benchmarks/step_parts.py --shape "${size##* }" --device "$device"
part parts-uncompiled 60 env TORCH_COMPILE_DISABLE=1 python3 benchmarks/step_parts.py --shape "${size##* }" --device "$device"
for shape in $size; do
    part "step-$shape" 150 python3 benchmarks/step.py --shape "$shape" --dtype "$dtype" --tokens "$tokens" \
        --device "$device" --layers 4-7 20-23 --rounds "$rounds" "${besides[@]}" "${reference[@]}" --out "$out/gpu-step-$shape.json"
    part "long-$shape" 120 python3 benchmarks/step.py --shape "$shape" --dtype "$dtype" --tokens "$rest" --length 512 --accumulation 4 \
        --device "$device" --layers 4-7 20-23 --rounds 1 "${reference[@]}" --out "$out/gpu-long-$shape.json"
    part "memory-$shape" 90 python3 benchmarks/memory.py --shape "$shape" --dtype "$dtype" --layers 4-7 \
        --device "$device" --out "$out/gpu-memory-$shape.json"
    part "waste-$shape" 120 python3 benchmarks/step_waste.py --shape "$shape" --dtype "$dtype" --device "$device" \
        --layers 4-7 20-23 --rounds 1 --batch-size "${GPU_EXAMPLES:-32}" --longest "$tokens" --out "$out/gpu-waste-$shape.json"
done
# Without what the other tests share, which needs Ray; side by side where pytest-xdist is there: 60 s, not minutes.
beside=$(python3 -c 'import os, xdist; print("-n", min(12, os.cpu_count()))' 2>/dev/null)
tests="python3 -m pytest -q --maxfail=40 -p no:cacheprovider -p no:randomly --durations=5 $beside"
part masking 200 env MFT_RAY_TEST_DEVICE="$device" $tests --confcutdir tests/masking tests/masking
part loss 100 $tests --noconftest tests/training/step
# The whole way where Ray is there: a LLaMA with grouped attention, of matrices that are worth a kernel, two trials at a
# time on one card.
runs=$(mktemp -d)
if python3 -c 'import ray, deepspeed' 2>/dev/null; then
    part trainer "${GPU_TRAINER_S:-240}" python3 cluster/local.py -- python3 -m mft_ray.tune --config tune_spaces/quickstart.yaml \
        --set model.architecture.hidden_size="${GPU_HIDDEN:-2048}" --set model.architecture.num_key_value_heads=2 \
        --set model.architecture.intermediate_size="${GPU_INNER:-6144}" --set data.n_validation=500 --set data.n_test=1000 \
        --set fft.train.steps=300 --set fft.train.lr=3e-4 --set fft.train.eval_every=100 --set train.steps=60 --set train.eval_every=30 \
        --set scaling.gpus_per_worker=0.5 --set fft.scaling.gpus_per_worker=1 --set search.trials=3 --set run.dir="$runs/run"
fi
rm -rf "$runs"
exit "$failed"
