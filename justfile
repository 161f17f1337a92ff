# The checks by name. CI runs `just check`; without `just`, the plain cargo
# commands below do the same.

set shell := ["bash", "-euo", "pipefail", "-c"]

target := env("CARGO_TARGET_DIR", justfile_directory() / "target")
steadfast := target / "debug/steadfast"

# list the recipes
_default:
    @just --list --unsorted

# everything that CI checks
check: fmt lint test newcomer harness fleet versions scanners tls-idle faults soak doc package deb deny instructions configs kubernetes balancer metrics fuzz

# the formatting, without changing it
fmt:
    cargo fmt --all --check
    cargo fmt --manifest-path fuzz/Cargo.toml --check

# warnings are errors here, and only here
lint:
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy --features faults --all-targets -- -D warnings

# the README's own command
test:
    cargo test

# the README's other command: it serves, and Ctrl-C ends it. In a network of its own, where the ports are free
newcomer:
    #!/usr/bin/env bash
    set -euo pipefail
    cargo build --release
    unshare --map-root-user --net bash -euo pipefail <<'SH'
    ip link set lo up
    cargo run --release &
    run=$!
    trap 'kill "$run" 2> /dev/null || true' EXIT
    ask="curl -fsS --retry 60 --retry-delay 1 --retry-connrefused"
    [[ $($ask http://127.0.0.1:8080/) == *"Hello World"* ]]
    [[ $($ask http://127.0.0.1:8080/some/where) == '{"status":"ok","uri":"/some/where"}' ]]
    main=$($ask http://127.0.0.1:9090/status | sed -n 's/.*"main_process":{"pid":\([0-9]*\).*/\1/p')
    kill -INT "$main"
    wait "$run"
    trap - EXIT
    echo "it served, and Ctrl-C has ended it"
    SH

# the harness that the tests stand on
harness:
    cargo test -p steadfast-harness

# three machines behind a real HAProxy, which are restarted, maintained and killed one after the other
fleet:
    cargo test --test fleet

# up- and downgrades over the versions of the handover's format, with programs built of earlier commits
versions:
    cargo test --test systemd versions:: -- --ignored --nocapture

# testssl.sh and sslyze find nothing to complain about at the defaults of TLS
scanners:
    cargo test --test systemd tls::scanners:: -- --include-ignored --nocapture

# 15,000 idle connections over TLS, over a restart and a reload of the release build: how long these take, and what each
# connection costs
tls-idle:
    cargo build --release
    STEADFAST_RELEASE={{ target / "release/steadfast" }} cargo test --test systemd tls::idle:: -- --ignored --nocapture

# every fault of every child in every situation. One at a time: each has load, and deadlines of a few seconds
faults:
    RUST_TEST_THREADS=1 cargo test --features faults --test faults

# load, restarts, reloads, faults and hostile clients at random: `just soak 30m`
soak length="60s":
    STEADFAST_SOAK_LENGTH={{ length }} cargo test --features faults --test soak

# the library's documentation builds without a warning
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

# what crates.io would get builds by itself; nothing is sent
package:
    cargo publish --dry-run

# the Debian package, and what judges it, its manual and its scripts
deb: shell
    mandoc -T lint packaging/man/*
    rm -f {{ target }}/debian/steadfast*
    cargo deb --quiet --locked
    lintian --fail-on error,warning {{ target }}/debian/steadfast_*.deb
    # What these ask for cargo-deb has no place for.
    lintian --fail-on error,warning --suppress-tags no-changelog,no-copyright-file,unknown-priority {{ target }}/debian/steadfast-dbgsym_*

# the scripts that are run or shipped
shell:
    shellcheck .ci/run packaging/*.sh packaging/*/*.sh packaging/debian/{preinst,postinst,prerm,postrm}
    shellcheck --shell=sh tests/harness/src/machine.sh

# what is published of a commit, in target/dist/published
release commit="HEAD":
    packaging/release.sh {{ commit }} {{ target }}/dist

# a release made twice, in two folders, is the same to the byte
reproducible commit="HEAD":
    #!/usr/bin/env bash
    set -euo pipefail
    folder=$(mktemp -d)
    trap 'rm -r "$folder"' EXIT
    commit=$(git rev-parse {{ commit }}) # HEAD may be another one by the second time
    packaging/release.sh "$commit" "$folder/one"
    packaging/release.sh "$commit" "$folder/another/of/another/depth"
    diff --recursive "$folder/one/published" "$folder/another/of/another/depth/published"
    echo "both are the same"

# steadfast measured beside other servers, all of it or some groups: `just bench files`
bench *groups:
    cargo run --release -p steadfast-bench -- {{ if groups == "" { "" } else { "--only " + groups } }}

# the instructions that each part takes, judged by the stored counts; `just instructions --renew` stores them anew
instructions *flags:
    cargo test --quiet --profile bench -p steadfast-benches
    cargo bench --quiet -p steadfast-benches -- {{ flags }}

# licences, sources and banned crates
deny:
    cargo deny --workspace check bans licenses sources

# known vulnerabilities; fetches the advisory database
advisories:
    cargo deny --workspace check advisories

# A stable compiler does, for nothing is sanitized. What was found before is
# where the next run begins.

# every fuzz target for so many seconds
fuzz seconds="20":
    #!/usr/bin/env bash
    set -euo pipefail
    export RUSTC_BOOTSTRAP=1
    cargo fuzz build --sanitizer none --dev --target-dir "{{ target }}/fuzz"
    built={{ target }}/fuzz/$(rustc -vV | sed -n 's/^host: //p')/debug
    run() {
        local name=$1
        shift
        echo "fuzzing $name for {{ seconds }} s"
        mkdir -p "fuzz/corpus/$name" "fuzz/artifacts/$name"
        "$built/$name" -max_total_time={{ seconds }} -timeout=20 -rss_limit_mb=1024 -verbosity=0 -print_funcs=0 -print_final_stats=1 \
            -artifact_prefix="fuzz/artifacts/$name/" "fuzz/corpus/$name" "$@"
    }
    run config tests/config/valid tests/config/invalid
    run parcels fuzz/seeds/parcels
    run records -max_len=1024 fuzz/seeds/records
    run connection -max_len=8192 -dict=fuzz/seeds/http.dict fuzz/seeds/connection

# the binary that the tests use: asking for the tests as well gives the
# dependencies the same features, so nothing is built twice
_binary:
    cargo build --quiet --bins --tests

# `steadfast check` over every config that is shipped, also within the YAML of a ConfigMap
configs: _binary
    #!/usr/bin/env bash
    set -euo pipefail
    mapfile -t configs < <(git ls-files 'src/config/*.toml' '*.toml.example' 'examples/*.toml' 'docs/*.toml' 'packaging/*.toml')
    (( ${#configs[@]} > 0 )) || { echo "no shipped config was found" >&2; exit 1; }
    folder=$(mktemp -d)
    trap 'rm -r "$folder"' EXIT
    # A text under a key that ends with ".toml", at a greater indent than the key.
    mapfile -t maps < <(git grep -l '^ *[a-z-]*\.toml: |$' -- 'packaging/*.yaml')
    (( ${#maps[@]} > 0 )) || { echo "no ConfigMap was found" >&2; exit 1; }
    for map in "${maps[@]}"; do
        mkdir -p "$folder/$(dirname "$map")"
        awk 'match($0, /^ *[a-z-]+\.toml: \|$/) { inside = 1; depth = match($0, /[^ ]/); next }
            inside && NF && match($0, /[^ ]/) <= depth { inside = 0 }
            inside { print substr($0, depth + 2) }' "$map" > "$folder/$map.toml"
        [[ -s $folder/$map.toml ]] || { echo "no config in $map" >&2; exit 1; }
        configs+=("$folder/$map.toml")
    done
    for config in "${configs[@]}"; do
        echo "${config#"$folder/"}"
        {{ steadfast }} check --config "$config"
    done
    echo "${#configs[@]} shipped configs are right"

# the files for Kubernetes by its published schemas, of the oldest version that they are for and of a recent one
kubernetes: _podmonitor
    for version in 1.27 1.37; do \
        ls packaging/kubernetes/*.yaml | grep -v /podmonitor | xargs kubernetes-validate --strict -k "$version"; \
    done

# A custom resource is in no schema of Kubernetes. PyPI has the Prometheus Operator's
# own, as models; what these do not name is refused here, as with --strict above.
_podmonitor:
    #!/usr/bin/env python3
    import jsonschema, yaml
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor

    def refuse_unknown(schema):
        for part in schema.values() if isinstance(schema, dict) else schema:
            if isinstance(part, (dict, list)):
                refuse_unknown(part)
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)

    schema = PodMonitor.model_json_schema(by_alias=True)
    refuse_unknown(schema)
    with open("packaging/kubernetes/podmonitor.yaml") as file:
        monitor = yaml.safe_load(file)
    check = jsonschema.Draft202012Validator(schema)
    check.validate(monitor)
    print("podmonitor.yaml passed for", monitor["kind"])
    # It would notice.
    monitor["spec"]["podMetricsEndpoints"][0]["intervall"] = "15s"
    assert not check.is_valid(monitor)

# HAProxy has nothing to say about the config that is shipped for it
balancer:
    HOST1=192.0.2.11 HOST2=192.0.2.12 HOST3=192.0.2.13 haproxy -c -dW -f packaging/haproxy/haproxy.cfg

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
