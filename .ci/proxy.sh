# The local endpoint, as its users and its enemies reach it. It is sourced by .ci/run.
# shellcheck shell=bash

step_proxy() {
	need_staticcheck
	(
		cd examples/proxy
		go mod tidy -diff
		go vet ./...
		"$tools/staticcheck" ./...
		go test -count=1 -v ./... >"$tools/proxy.tests" 2>&1 || { grep -v '^=== ' "$tools/proxy.tests"; exit 1; }
		grep -E '^ok|when wiped|SKIP' "$tools/proxy.tests" || true
		go build -o "$tools/proxy" .
	)
	grep -q 'SKIP: TestMemory' "$tools/proxy.tests" && skip "the memory of a proxy: it may not be read here"
	(umask 077 && echo a-token-of-some-length >"$tools/proxy.token")
	"$tools/proxy" -listen 127.0.0.1:0 -token "$tools/proxy.token" >"$tools/proxy.out" 2>"$tools/proxy.err" &
	local pid=$! base="" status=0 i
	for ((i = 0; i < 300 && ${#base} == 0; i++)); do
		sleep 0.1
		base=$(sed -n 's/^base URL: //p' "$tools/proxy.out")
	done
	[ -n "$base" ] || { cat "$tools/proxy.err"; kill "$pid"; return 1; }
	ask_proxy "$base" || status=1
	kill -TERM "$pid"
	wait "$pid" || { echo "the proxy's exit status at the end: $?"; status=1; }
	[ "$status" = 0 ] || cat "$tools/proxy.err"
	return "$status"
}

# ask_proxy BASE asks by curl and by SDKs.
ask_proxy() {
	local base=$1 token=a-token-of-some-length failed=0
	if command -v curl >/dev/null; then
		curl_proxy "$base" "$token" || failed=1
	else
		skip "the local endpoint by curl: no curl"
	fi
	# a venv of its own: the other one's packages want other versions
	if need_python && "$python" -m venv "$tools/openai" &&
		"$tools/openai/bin/python" -m pip install -q --disable-pip-version-check "openai==$openai_python_version"; then
		"$tools/openai/bin/python" examples/proxy/testdata/sdk.py "$base" "$token" || failed=1
	else
		skip "the local endpoint from Python: no venv with openai $openai_python_version"
	fi
	command -v npm >/dev/null || install --no-install-recommends nodejs npm
	mkdir -p "$tools/node"
	cp examples/proxy/testdata/sdk.mjs "$tools/node/"
	if (cd "$tools/node" && echo '{"private":true}' >package.json && npm install --silent "openai@$openai_node_version"); then
		(cd "$tools/node" && node sdk.mjs "$base" "$token") || failed=1
	else
		skip "the local endpoint from Node: no npm with openai $openai_node_version"
	fi
	return "$failed"
}

# curl_proxy BASE TOKEN asks as a user, and as a page of another origin has a browser ask.
curl_proxy() {
	local base=$1 failed=0 answer
	local url=$base/chat/completions auth="Authorization: Bearer $2" json="Content-Type: application/json"
	local body='{"model":"demo","messages":[{"role":"user","content":"Capital of France?"}]}'
	answer=$(curl -sS "$url" -H "$auth" -H "$json" -d "$body")
	case $answer in *"capital of France is Paris"*) ;; *) echo "curl got: $answer"; failed=1 ;; esac
	answer=$(curl -sSN "$url" -H "$auth" -H "$json" -d "${body/\{/\{\"stream\":true,}")
	case $answer in *'data: [DONE]'*) ;; *) echo "curl's stream: $answer"; failed=1 ;; esac
	answer=$(curl -sS "${base%/v1}/sealed" -H "$auth")
	case $answer in *'"protocol":"ohttp"'*) ;; *) echo "/sealed: $answer"; failed=1 ;; esac
	wants() { # STATUS WHAT ARGUMENT…
		local want=$1 what=$2 got
		shift 2
		got=$(curl -sS -o "$tools/proxy.answer" -D "$tools/proxy.header" -w '%{http_code}' "$@")
		if [ "$got" != "$want" ] || grep -qi '^access-control' "$tools/proxy.header" || ! grep -q '"error":{' "$tools/proxy.answer"; then
			echo "$what: status $got, want $want"
			cat "$tools/proxy.header" "$tools/proxy.answer"
			failed=1
		fi
	}
	wants 403 "a name bound anew" "$url" -H "$auth" -H "$json" -d "$body" -H 'Host: evil.example'
	wants 403 "a preflight" "$url" -X OPTIONS -H 'Origin: https://evil.example' -H 'Access-Control-Request-Method: POST'
	wants 403 "a script of another site" "$url" -H "$auth" -H "$json" -d "$body" -H 'Origin: https://evil.example'
	wants 403 "an image" "$base/models" -H "$auth" -H 'Sec-Fetch-Site: cross-site'
	wants 403 "a page of another port" "${base%/v1}/sealed" -H "$auth" -H 'Sec-Fetch-Site: same-site'
	wants 415 "a form" "$url" -H "$auth" -d 'a=b'
	wants 415 "a form of plain text" "$url" -H "$auth" -H 'Content-Type: text/plain' -d "$body"
	wants 401 "no token" "$base/models"
	[ "$failed" = 1 ] || echo "curl: answers, streams, and what pages may not do"
	return "$failed"
}
