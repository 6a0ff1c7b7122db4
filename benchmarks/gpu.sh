#!/usr/bin/env bash
# Everything to measure on a GPU, in one call of ten minutes at most:
#     OUT=DIRECTORY benchmarks/gpu.sh [STAGE ...]
# Stages: speed (config G in bfloat16: images/s, compile time, memory, utilization),
# profile, ladder (A to G on photos, trained, evaluated and compared), parity (losses of
# config G on digits-tiny in float32, to compare with a CPU's). A stage that fails or takes
# too long does not stop the others. Results lie in $OUT.
set -uo pipefail
cd "$(dirname "$0")/.."
: "${OUT:?set OUT to a directory for the results}"
PYTHON=${PYTHON:-python3}
export PYTHONPATH="$PWD:${PYTHONPATH:-}" PYTHONUNBUFFERED=1 TFDS_DATA_DIR=${TFDS_DATA_DIR:-/tmp/tfds}
export JAX_COMPILATION_CACHE_DIR=/tmp/xla
RUNS=/tmp/gpu-runs

measure() {  # NAME SECONDS CONFIG [OPTION ...]
  echo "== $1 at ${SECONDS} s"
  timeout "$2" "$PYTHON" benchmarks/train_step.py "--config=$3" "${@:4}" >"$OUT/$1.json" 2>"$OUT/$1.log"
  echo "exit $?"; tail -c 600 "$OUT/$1.log"; cat "$OUT/$1.json"
}

speed() {
  measure xs 170 configs/config_g.py:imagenet512-xs --config.optimizer.batch_size=512 \
    --config.training.microbatches=2 --steps=4 --rounds=5
  measure s 200 configs/config_g.py:imagenet512-s --config.optimizer.batch_size=256 \
    --config.training.microbatches=2 --steps=4 --rounds=5
}

profile() {
  measure xs-profile 150 configs/config_g.py:imagenet512-xs --config.optimizer.batch_size=256 \
    --steps=3 --rounds=2 --profile=/tmp/profile
  find /tmp/profile -name '*.trace.json.gz' -exec cp {} "$OUT/trace.json.gz" \;
}

ladder() {
  echo "== ladder at ${SECONDS} s"
  timeout 300 "$PYTHON" experiments/launch.py --study=ladder --workload=photos --seeds=0 \
    --workers=7 --runs=$RUNS/ladder-photos "${@}" 2>&1 | tail -20
  timeout 60 "$PYTHON" experiments/compare.py $RUNS/ladder-photos --out=/tmp/report 2>&1 | tail -3
  tar -C $RUNS --exclude=checkpoints --exclude=snapshots -czf "$OUT/ladder.tar.gz" .
}

parity() {
  echo "== parity at ${SECONDS} s"
  timeout 150 "$PYTHON" experiments/train.py --config=configs/config_g.py:digits-tiny \
    --run=$RUNS/parity/g-seed0 2>&1 | tail -3
  cp $RUNS/parity/g-seed0/metrics.jsonl "$OUT/parity.jsonl"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$PYTHON" -c 'import jax; print("jax", jax.__version__, jax.devices())'
for stage in "${@:-speed}"; do "$stage"; done
echo "== done at ${SECONDS} s"
