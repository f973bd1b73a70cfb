#!/bin/sh
# Runs the programs that `amc profile programs=phone` wrote on an Android phone, by adb:
#
#   RUNNER=path/to/executor_runner sh executorch_phone.sh phone
#
# RUNNER is ExecuTorch's executor_runner, built for the phone with XNNPACK and, for integers, with
# -DEXECUTORCH_BUILD_DEVTOOLS=ON -DEXECUTORCH_ENABLE_EVENT_TRACER=ON. What it prints of 7.pte comes
# into 7.log, its events into 7.etdump. What ran already is passed over: killed, it goes on.
# ADB, SERIAL, FLAGS and SECONDS_BETWEEN may be set: another adb, one of several phones (its serial
# number), the runner's flags, a pause for the phone to cool.
set -eu
folder=${1:?give the folder of the programs} runner=${RUNNER:?RUNNER must name executor_runner}
flags=${FLAGS:---num_executions=30 --cpu_threads=1 --print_output=none}
place=/data/local/tmp/amc
if [ -n "${SERIAL:-}" ]; then export ANDROID_SERIAL="$SERIAL"; fi # read by adb itself
adb() { command "${ADB:-adb}" "$@"; }

adb shell "mkdir -p $place"
adb push "$runner" "$place/executor_runner" > /dev/null
adb shell "chmod +x $place/executor_runner"
model=$(adb shell getprop ro.product.model | tr -d '\r')
chip=$(adb shell getprop ro.soc.model | tr -d '\r')
echo "$model ($chip), ExecuTorch, $flags" > "$folder/machine"

for program in "$folder"/*.pte; do
    name=${program%.pte}
    if [ -f "$name.log" ]; then continue; fi
    adb push "$program" "$place/program.pte" > /dev/null
    adb shell "rm -f $place/model.etdump"
    adb logcat -c || true # there the runner's messages go, where its build says so
    if ! adb shell "cd $place && ./executor_runner --model_path=program.pte $flags" \
        < /dev/null > "$name.part" 2>&1; then
        echo "amc: executor_runner ended badly" >> "$name.part"
    fi
    adb logcat -d -s ExecuTorch >> "$name.part" || true
    if adb shell "[ -f $place/model.etdump ]"; then
        adb pull "$place/model.etdump" "$name.etdump.part" > /dev/null
        mv "$name.etdump.part" "$name.etdump"
    fi
    mv "$name.part" "$name.log"
    sleep "${SECONDS_BETWEEN:-0}"
done
