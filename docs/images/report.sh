#!/usr/bin/env bash
# Makes report.png beside this file: the top of the report of `fedscale-local run experiment=quickstart`.
# Needs chromium, and fedscale-local on the PATH. A directory of a finished run may be given instead of a new run.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run_dir=${1:-$work/run}
[ $# -gt 0 ] || fedscale-local run experiment=quickstart run_dir="$run_dir"
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --user-data-dir="$work/browser" \
	--disable-background-networking --disable-component-update --disable-sync --virtual-time-budget=2000 \
	--blink-settings=preferredColorScheme=1 --window-size=1100,1240 \
	--screenshot="$here/report.png" "file://$(realpath "$run_dir")/report.html"
