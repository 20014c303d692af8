#!/usr/bin/env bash
# The first minutes on a card: what is worth most comes first, and all output is kept.
#
#     bash benchmarks/first_run.sh FOLDER [SECONDS [STEP ...]]
#
# FOLDER gets first_run.log and the benchmarks' JSON files. All steps together take at most SECONDS
# (570), each at most its own limit. The last ones get what is left: run those again by name.
#
#     card       the card, the driver, the versions
#     correct    logits beside the CPU's, the captured step beside the forward pass
#     tests      pytest -m gpu
#     memcheck   compute-sanitizer over short generations with the captured step
#     racecheck  the same, for races in shared memory
#     speed      decoding, prefill, scoring, a circuits sweep, and their ceilings
#     peers      PyTorch, eager and compiled with CUDA graphs, and transformers
#
# Only by name, since it needs no card:
#
#     cpu        decoding and prefill on the CPU with 1 to 16 threads, beside transformers
set -uo pipefail
declare -A limits=([card]=30 [correct]=180 [tests]=180 [memcheck]=60 [racecheck]=60 [speed]=180
                   [peers]=330 [cpu]=240)
order=(card correct tests memcheck racecheck speed peers)
[ $# -ge 1 ] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 2; }
out=$(mkdir -p "$1" && cd "$1" && pwd) || exit 2
total=${2:-570}
[ $# -le 2 ] || order=("${@:3}")
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}

card() {
    timeout -k 5 "$(($1 / 2))" nvidia-smi
    timeout -k 5 "$(($1 / 2))" "$python" - <<'PROGRAM'
import platform
from importlib.metadata import distributions
names = "cupy", "numpy", "torch", "transformers", "triton", "cuda-", "nvidia-cu", "pytest"
print("Python", platform.python_version(), platform.processor())
print(*sorted(f"{d.name} {d.version}" for d in distributions() if d.name.startswith(names)), sep="\n")
PROGRAM
}

parts() {  # FILE SECONDS PART...
    timeout -k 5 "$2" "$python" benchmarks/gpu.py --output "$out/$1.json" --parts "${@:3}" \
        --minutes "$(awk "BEGIN { print ($2 - 5) / 60 }")"
}
correct() { parts correct "$1" device correct; }
tests() { parts tests "$1" tests; }
speed() { parts speed "$1" device decode prefill score circuits; }
peers() { parts peers "$1" pytorch transformers torch_prefill; }

sanitize() {  # TOOL SECONDS
    timeout -k 5 "$2" compute-sanitizer --tool "$1" --error-exitcode 1 --print-limit 20 \
        "$python" -c '
import sys
import cupy
cupy.cuda.set_allocator(None)  # no pool: an array ends where its memory does
sys.path[:0] = [".", "tests"]
import gpt2_np
from random_model import map_params, random_model
host = random_model(gpt2_np.Config(n_vocab=601, n_ctx=150, n_embd=40, n_head=8, n_layer=2))
for dtype in "float32", "float16":
    params = map_params(lambda array: cupy.asarray(array.astype(dtype)), host.params)
    model = gpt2_np.Model(host.config, params)
    for prompts in [[1, 2, 3]], [[1, 2, 3], [4], [5] * 70]:
        for options in {}, {"temperature": 0.9, "top_k": 20, "seed": 1}:
            print(dtype, gpt2_np.generate_batch(model, prompts, 6, **options), flush=True)
    assert not vars(model)["_decoder"].unusable
'
}
memcheck() { sanitize memcheck "$1"; }
racecheck() { sanitize racecheck "$1"; }

cpu() {
    local cache n status=0 end=$((SECONDS + $1))
    cache=$(mktemp -d)  # of the weights
    for n in 16 1 4 8 2; do
        ((n <= $(nproc))) || continue
        timeout -k 5 $((end > SECONDS ? end - SECONDS : 1)) "$python" benchmarks/run.py \
            --python "$python" --quick --only decode,prefill --peers transformers --threads "$n" \
            --cache "$cache" --output "$out/cpu-$n.json" || { status=$?; break; }
    done
    rm -r "$cache"
    return "$status"
}

run() {
    local name limit left began status failed=
    for name in "${order[@]}"; do
        limit=${limits[$name]:?no such step: $name} left=$((total - SECONDS)) began=$SECONDS
        if ((left < 15)); then
            echo "== $name: no time was left"
            failed+=" $name"
            continue
        fi
        ((limit < left)) || limit=$left
        echo "== $name: $limit s at most"
        "$name" "$limit"
        status=$?
        ((status == 0)) || failed+=" $name"
        echo "== $name: status $status after $((SECONDS - began)) s"
    done
    [ -z "$failed" ] || { echo "== not all went well:$failed"; return 1; }
}
run 2>&1 | tee "$out/first_run.log"
