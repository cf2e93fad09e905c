# The step "places" of .ci/run: the tests run as user 65534 in a checkout that is another's and cannot be written, with the
# usual limits, with no byte or 64 KiB to lock (ulimit -l), and with SIGINT ignored. They may skip what cannot be had there.
# Without root's rights the same user does it, in a copy that cannot be written. It is sourced.
# shellcheck shell=bash

step_places() {
	local place=$tools/place modules
	modules=$(go env GOMODCACHE)
	mkdir "$place" "$place/mod" "$place/cache" "$place/bin" "$place/tmp"
	chmod 755 "$tools" "$place"
	mkdir "$place/src"
	tar -c --exclude ./.git . | tar -x -C "$place/src"
	# A repository of another owner, which "go build" asks about.
	if command -v git >/dev/null; then git -C "$place/src" init -q; fi
	(cd "$place/src" && GOMODCACHE="$place/mod" GOPROXY="file://$modules/cache/download,$(go env GOPROXY)" GONOSUMDB='*' GOFLAGS=-modcacherw go mod download)
	chmod -R a+rX,a-w "$place/src" "$place/mod"
	as=(env)
	if [ "$(id -u)" = 0 ] && command -v setpriv >/dev/null; then
		as=(setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/nonexistent)
		chown 65534:65534 "$place/cache" "$place/bin" "$place/tmp"
	else
		skip "the tests as user 65534: only root can become it"
	fi
	as+=(GOCACHE="$place/cache" GOMODCACHE="$place/mod" GOPROXY=off GOFLAGS= TMPDIR="$place/tmp")
	if ! "${as[@]}" go version >/dev/null 2>&1; then
		skip "the tests in other places: user 65534 cannot run $(command -v go)"
		return 0
	fi
	# A test program for each package: "go test" takes the ignored signal away from what it starts.
	local package dirs=() n=0 status=0
	while read -r package; do
		dirs[n]=$package
		"${as[@]}" bash -c "cd '$place/src' && go test -c -o '$place/bin/$n.test' '$package'"
		n=$((n + 1))
	done < <(cd "$place/src" && go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.Dir}}{{end}}' ./... | sed "s|^$place/src|.|" | grep .)
	[ "$n" -gt 5 ] || { echo "only $n packages have tests"; return 1; }
	# All three at once, since most tests wait. What runs in the background has SIGINT ignored.
	local jobs=() job
	in_place 2 "nothing can be locked, SIGINT ignored" "ulimit -l 0; trap '' INT" >"$place/2.log" & jobs+=($!)
	in_place 3 "64 KiB can be locked" "ulimit -l 64" >"$place/3.log" & jobs+=($!)
	in_place 1 "as it is" "" || status=1
	for job in "${jobs[@]}"; do wait "$job" || status=1; done
	cat "$place"/[23].log
	return "$status"
}

# in_place N WHAT SETUP runs all test programs behind some shell commands. What passes says nothing else.
in_place() {
	local i status=0 begun=$SECONDS
	for i in "${!dirs[@]}"; do
		if ! (eval "$3"; exec "${as[@]}" bash -c "cd '$place/src/${dirs[i]}' && exec '$place/bin/$i.test' -test.timeout 10m") >"$tools/place$1.out" 2>&1; then
			printf '%s, %s:\n' "$2" "${dirs[i]}"
			tail -n 60 "$tools/place$1.out"
			status=1
		elif grep -qv '^PASS$' "$tools/place$1.out"; then
			printf '%s, %s passes and says:\n' "$2" "${dirs[i]}"
			cat "$tools/place$1.out"
			status=1
		fi
	done
	printf '%s: %s packages, %s s\n' "$2" "${#dirs[@]}" "$((SECONDS - begun))"
	return "$status"
}
