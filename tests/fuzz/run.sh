#!/bin/sh
# Run both fuzzers side by side for SECONDS each (default 60) under ASan and UBSan.
# Corpora, logs and crashing inputs are kept in FNAT_FUZZ_DIR (default fuzz-corpus/ of the tree); FNAT_CAPTURES: a directory of
# pcap files whose frames join the first inputs. The exit status is not 0 when an invariant broke.
set -eu
seconds=${1:-60}
cd "$(dirname "$0")/../.."
build=${FNAT_FUZZ_DIR:-fuzz-corpus}
mkdir -p "$build/parse" "$build/forward"
flags="-std=gnu11 -O1 -g -iquote cext -march=x86-64-v3 -fno-strict-aliasing -fsanitize=fuzzer,address,undefined -fno-sanitize=alignment -fno-sanitize-recover=all"
sources=$(ls cext/*.c | grep -v bench.c)
clang $flags tests/fuzz/fuzz_parse.c -o "$build/fuzz_parse"
clang $flags tests/fuzz/fuzz_forward.c $sources cext/drivers/mem.c -o "$build/fuzz_forward"
python3 tests/fuzz/seeds.py "$build" ${FNAT_CAPTURES:+"$FNAT_CAPTURES"/*.pcap}
"$build/fuzz_parse" -max_total_time="$seconds" -max_len=2048 -print_final_stats=1 -artifact_prefix="$build/" "$build/parse" >"$build/parse.log" 2>&1 &
parse=$!
status=0
"$build/fuzz_forward" -max_total_time="$seconds" -max_len=1024 -timeout=20 -print_final_stats=1 -artifact_prefix="$build/" "$build/forward" >"$build/forward.log" 2>&1 || status=$?
wait $parse || status=$?
for name in parse forward; do
	grep -h "stat::number_of_executed_units\|ERROR\|SUMMARY\|fuzz_.*\.c:[0-9]*: \|runtime error\|DONE" "$build/$name.log" | sed "s/^/$name: /" | tail -6 || true
done
exit $status
