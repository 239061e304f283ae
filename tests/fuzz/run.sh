#!/bin/sh
# Run both fuzzers side by side for SECONDS each (default 60) under ASan and UBSan. Corpora are kept in fuzz-corpus/ of the tree.
set -eu
seconds=${1:-60}
cd "$(dirname "$0")/../.."
build=${FNAT_FUZZ_DIR:-fuzz-corpus}
mkdir -p "$build/parse" "$build/forward"
flags="-std=gnu11 -O1 -g -iquote cext -march=x86-64-v3 -fno-strict-aliasing -fsanitize=fuzzer,address,undefined -fno-sanitize=alignment -fno-sanitize-recover=all"
sources=$(ls cext/*.c | grep -v bench.c)
clang $flags tests/fuzz/fuzz_parse.c -o "$build/fuzz_parse"
clang $flags tests/fuzz/fuzz_forward.c $sources cext/drivers/mem.c -o "$build/fuzz_forward"
"$build/fuzz_parse" -max_total_time="$seconds" -max_len=2048 -print_final_stats=1 -artifact_prefix="$build/" "$build/parse" >"$build/parse.log" 2>&1 &
parse=$!
status=0
"$build/fuzz_forward" -max_total_time="$seconds" -max_len=1024 -timeout=20 -print_final_stats=1 -artifact_prefix="$build/" "$build/forward" >"$build/forward.log" 2>&1 || status=$?
wait $parse || status=$?
grep -h "stat::number_of_executed_units\|ERROR\|SUMMARY\|cov:" "$build/parse.log" "$build/forward.log" | grep -v "NEW\|REDUCE\|pulse" | tail -8 || true
exit $status
