# The checks by name. CI runs `just check`; without `just`, the plain cargo
# commands below do the same.

set shell := ["bash", "-euo", "pipefail", "-c"]

target := env("CARGO_TARGET_DIR", justfile_directory() / "target")
steadfast := target / "debug/steadfast"

# list the recipes
_default:
    @just --list --unsorted

# everything that CI checks
check: fmt lint test harness doc deny configs metrics

# the formatting, without changing it
fmt:
    cargo fmt --all --check

# warnings are errors here, and only here
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# the README's own command
test:
    cargo test

# the harness that the tests stand on
harness:
    cargo test -p steadfast-harness

# the library's documentation builds without a warning
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# licences, sources and banned crates
deny:
    cargo deny --workspace check bans licenses sources

# known vulnerabilities; fetches the advisory database
advisories:
    cargo deny --workspace check advisories

# the binary that the tests use: asking for the tests as well gives the
# dependencies the same features, so nothing is built twice
_binary:
    cargo build --quiet --bins --tests

# `steadfast check` over every config that is shipped
configs: _binary
    #!/usr/bin/env bash
    set -euo pipefail
    mapfile -t configs < <(git ls-files 'src/config/*.toml' '*.toml.example' 'examples/*.toml' 'docs/*.toml' 'packaging/*.toml')
    (( ${#configs[@]} > 0 )) || { echo "no shipped config was found" >&2; exit 1; }
    for config in "${configs[@]}"; do
        echo "$config"
        {{ steadfast }} check --config "$config"
    done
    echo "${#configs[@]} shipped configs are right"

# `promtool check metrics` over a scrape of the running binary
metrics: _binary
    #!/usr/bin/env bash
    set -euo pipefail
    folder=$(mktemp -d)
    cat > "$folder/config.toml" <<'TOML'
    [http]
    listen = ["127.0.0.1:0"]
    [[route]]
    path = "/*"
    status = true
    [admin]
    listen = ["127.0.0.1:0"]
    [log]
    target = "stderr"
    TOML
    {{ steadfast }} run --config "$folder/config.toml" 2> "$folder/log" &
    daemon=$!
    trap 'kill "$daemon" 2> /dev/null || true; wait "$daemon" || true; rm -r "$folder"' EXIT
    address() { sed -n "/listening/{/child=\"\?$1\"\?/s/.*address=\"\?\([^ \"]*\).*/\1/p}" "$folder/log" | head -n 1; }
    for _ in {1..600}; do
        [[ -z $(address http) || -z $(address admin) ]] || break
        kill -0 "$daemon" || { cat "$folder/log" >&2; exit 1; }
        sleep 0.1
    done
    [[ -n $(address admin) ]] || { echo "no admin address in:" >&2; cat "$folder/log" >&2; exit 1; }
    # Metrics that only requests bring forth are checked as well.
    curl -fsS "http://$(address http)/" "http://$(address http)/some/path" > /dev/null
    curl -fsS "http://$(address admin)/metrics" > "$folder/scrape"
    [[ -s $folder/scrape ]] || { echo "the scrape is empty" >&2; exit 1; }
    promtool check metrics < "$folder/scrape"
    echo "promtool accepts $(grep -c '^# TYPE' "$folder/scrape") metrics"
