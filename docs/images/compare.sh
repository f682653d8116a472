#!/usr/bin/env bash
# Makes compare.png beside this file: the top of the page that compares two methods on generated clients over six seeds.
# Needs chromium, and fedscale-local on the PATH. A directory of finished runs may be given instead of new ones.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

runs=${1:-$work/runs}
common="data=synthetic num_clients=30 clients_per_round=10 num_rounds=30 seed=0,1,2,3,4,5"
if [ $# -eq 0 ]; then
	# shellcheck disable=SC2086
	fedscale-local run -m $common strategy=fedavg client.step_size=0.05 hydra.sweep.dir="$runs/fedavg"
	# shellcheck disable=SC2086
	fedscale-local run -m $common scaling=adam scaling.alpha=0.01 client.step_size=0.02 hydra.sweep.dir="$runs/savic"
fi
(cd "$runs" && fedscale-local compare . --out "$work/report.html")
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --user-data-dir="$work/browser" \
	--disable-background-networking --disable-component-update --disable-sync --virtual-time-budget=2000 \
	--blink-settings=preferredColorScheme=1 --window-size=1100,1750 \
	--screenshot="$here/compare.png" "file://$work/report.html"
