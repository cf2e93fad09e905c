# What the steps of .ci/run have in common. It is sourced, and runs with "set -e" inside a step.
# shellcheck shell=bash
staticcheck_version=v0.8.2
crypto_version=48.0.0
nomyo_version=0.2.9
httpx_version=0.28.1
openai_python_version=3.57.0
openai_node_version=6.49.0

# skip REASON: what was left out, for the end.
skip() {
	printf '%s\n' "$*" >>"$tools/skipped"
	printf 'skipped: %s\n' "$*"
}

# install PACKAGE…: Debian's, where CI may install anything.
install() {
	local sudo=()
	[ -n "${CI:-}" ] && command -v apt-get >/dev/null || return 0
	[ "$(id -u)" = 0 ] || sudo=(sudo -n)
	{ "${sudo[@]}" apt-get update && DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y "$@"; } >"$tools/install.out" 2>&1 ||
		tail -n 3 "$tools/install.out"
}

need_staticcheck() {
	[ -x "$tools/staticcheck" ] || GOBIN="$tools" go install "honnef.co/go/tools/cmd/staticcheck@$staticcheck_version"
}

# need_python sets python, and reports whether it has the packages.
need_python() {
	python="$tools/venv/bin/python"
	[ ! -e "$tools/python.ok" ] || return 0
	make_venv() { python3 -m venv "$tools/venv" >"$tools/venv.out" 2>&1; }
	if ! make_venv; then
		install python3 python3-venv
		make_venv || { cat "$tools/venv.out"; return 1; }
	fi
	"$python" -m pip install -q --disable-pip-version-check \
		"cryptography==$crypto_version" "nomyo==$nomyo_version" "httpx==$httpx_version" || return 1
	: >"$tools/python.ok"
}

# list_tests writes "PACKAGE NAME" of every test and fuzz target of this module to $tools/tests, once.
list_tests() {
	[ ! -s "$tools/tests" ] || return 0
	go test -list . ./... >"$tools/list.out" || { cat "$tools/list.out"; return 1; }
	awk '/^(Test|Fuzz)/ { names[n++] = $1 }
		/^ok/ { for (i = 0; i < n; i++) print $2, names[i]; n = 0 }' "$tools/list.out" >"$tools/tests"
	[ -s "$tools/tests" ] || { echo 'no test was found'; return 1; }
}

# must_run NAME… runs these tests in whichever packages have them, and wants each to pass: not to be skipped, and not to be
# gone. Their output is in $tools/must.out.
must_run() {
	list_tests || return 1
	: >"$tools/must.out"
	local name package names
	for name in "$@"; do
		grep -q " $name\$" "$tools/tests" || { echo "$name is gone"; return 1; }
	done
	for package in $(awk -v wanted=" $* " 'index(wanted, " " $2 " ") { print $1 }' "$tools/tests" | sort -u); do
		names=$(awk -v package="$package" -v wanted=" $* " '$1 == package && index(wanted, " " $2 " ") { print $2 }' "$tools/tests")
		if ! go test -count=1 -timeout 20m -v -run "^(${names//$'\n'/|})\$" "$package" >"$tools/must.one" 2>&1; then
			grep -v '^=== ' "$tools/must.one"
			return 1
		fi
		grep -E '^ +[a-z_]+_test.go:[0-9]+: |^ok' "$tools/must.one" || true
		for name in $names; do
			grep -q "^--- PASS: $name " "$tools/must.one" || { echo "$name did not pass: skipped, or gone"; return 1; }
		done
		cat "$tools/must.one" >>"$tools/must.out"
	done
}

# fuzz PACKAGE TARGET. The fuzzer itself sometimes takes the end of its time for a failure: without a failing input that is tried again.
fuzz() {
	local tries
	for tries in 1 2 3; do
		if go test -run '^$' -fuzz "^$2\$" -fuzztime "$fuzztime" -fuzzminimizetime 10x "$1" >"$tools/fuzz.out" 2>&1; then
			return 0
		fi
		grep -q 'context deadline exceeded' "$tools/fuzz.out" && ! grep -q 'Failing input' "$tools/fuzz.out" || return 1
	done
	return 1
}
