// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/seed-017344ad/sealedchat"
)

// shown reads the metrics of a gateway: the value of each, by its name and labels.
func shown(t *testing.T, r *running) map[string]float64 {
	t.Helper()
	status, text := get(t, r.metrics)
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	values := make(map[string]float64)
	for line := range strings.Lines(text) {
		if line[0] == '#' {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(strings.TrimSpace(line[i:]), 64)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		values[line[:i]] = v
	}
	return values
}

// A web page that had its own name changed to loopback's address reads no names of accounts.
func TestMetricsHost(t *testing.T) {
	r := start(t, "-upstream", startModel(t).URL+"/v1", "-allow-unauthenticated", "-plain-http",
		"-metrics", "127.0.0.1:0")
	for host, want := range map[string]int{
		"":                    http.StatusOK,
		"localhost:9":         http.StatusOK,
		"LOCALHOST":           http.StatusOK,
		"192.0.2.1:9090":      http.StatusOK, // a port that is passed on
		"[::1]:9090":          http.StatusOK,
		"evil.example":        http.StatusForbidden,
		"evil.example:9090":   http.StatusForbidden,
		"localhost.evil.test": http.StatusForbidden,
		"127.0.0.1.evil.test": http.StatusForbidden,
	} {
		for _, path := range []string{"/metrics", "/readyz", "/healthz"} {
			url := strings.TrimSuffix(r.metrics, "/metrics") + path
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = host
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%q, %s: %d, want %d", host, path, resp.StatusCode, want)
			}
		}
	}
	for address, want := range map[string]bool{
		"127.0.0.1:9090": true, "[::1]:9090": true, "localhost:9090": true,
		":9090": false, "192.0.2.1:9090": false, "gateway:9090": false,
	} {
		if onLoopback(address) != want {
			t.Errorf("%s: not %v", address, want)
		}
	}
}

// Prometheus learns who asked how much, what became of it, and in what time; no content, no key.
func TestMetrics(t *testing.T) {
	m := startModel(t)
	r := start(t, "-upstream", m.URL+"/v1", "-api-keys",
		keyFile(t, "team-a key-of-a\nteam-b key-of-b\n", 0o600), "-plain-http", "-metrics",
		"127.0.0.1:0", "-places", "7")
	for _, p := range protocols {
		for key, want := range map[string]error{"key-of-a": nil, "key-of-b": nil,
			"MARKER": sealedchat.ErrAuthentication} {
			if err := ask(t, clientOf(t, r.url, key, p)); !errors.Is(err, want) {
				t.Errorf("%v, %s: %v", p, key, err)
			}
		}
	}
	go func() {
		for _, word := range []string{"WORD-1", "WORD-2", "WORD-3", ""} {
			m.words <- word
		}
	}()
	if _, err := stream(t, clientOf(t, r.url, "key-of-a", sealedchat.ProtocolOHTTP),
		func(string) {}); err != nil {
		t.Fatal(err)
	}
	until(t, "the last of 7 requests is counted", func() bool { // after its client has the answer
		requests := 0.
		for name, v := range shown(t, r) {
			if strings.HasPrefix(name, "sealedchat_request_duration_seconds_count") {
				requests += v
			}
		}
		return requests == 7
	})
	got := shown(t, r)
	for name, want := range map[string]float64{
		`sealedchat_requests_total{account="team-a",protocol="ohttp",refusal="",` +
			`status="200"}`: 2,
		`sealedchat_requests_total{account="team-b",protocol="ohttp",refusal="",` +
			`status="200"}`: 1,
		`sealedchat_requests_total{account="team-a",protocol="envelope",refusal="",` +
			`status="200"}`: 1,
		`sealedchat_requests_total{account="",protocol="ohttp",refusal="invalid API key",` +
			`status="401"}`: 1,
		`sealedchat_requests_total{account="",protocol="envelope",refusal="invalid API key",` +
			`status="401"}`: 1,
		`sealedchat_request_duration_seconds_count{protocol="ohttp"}`:    4,
		`sealedchat_request_duration_seconds_count{protocol="envelope"}`: 3,
		`sealedchat_first_byte_seconds_count{protocol="ohttp"}`:          4,
		`sealedchat_first_byte_seconds_count{protocol="envelope"}`:       3,
		`sealedchat_places`:                 7,
		`sealedchat_places_in_use`:          0,
		`sealedchat_ready`:                  1,
		`sealedchat_replay_memory_requests`: 5,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v, want %v: %v", name, v, want, got)
		}
	}
	for _, name := range []string{`sealedchat_opened_bytes_total`, `sealedchat_sealed_bytes_total`,
		`sealedchat_key_age_seconds{kind="RSA"}`, `sealedchat_key_age_seconds{kind="X-Wing"}`,
		`sealedchat_secret_memory_bytes{state="in use"}`,
		`go_goroutines`,
	} {
		if got[name] <= 0 {
			t.Errorf("%s is %v", name, got[name])
		}
	}
	if n := got[`sealedchat_piece_gap_seconds_count{protocol="ohttp"}`]; n < 2 {
		t.Errorf("%v gaps between pieces", n)
	}
	_, text := get(t, r.metrics)
	for name, age := range got {
		if strings.HasPrefix(name, "sealedchat_key_age_seconds") && age > 600 {
			t.Errorf("%s is %v", name, age)
		}
	}
	for _, secret := range []string{"MARKER", "key-of", "how are you", "WORD", upstreamKey} {
		if strings.Contains(text, secret) {
			t.Errorf("the metrics hold %q", secret)
		}
	}
}

// Every query of the dashboard asks for metrics that there are.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../deploy/grafana-dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Title  string
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	m := startModel(t)
	r := start(t, "-upstream", m.URL+"/v1", "-allow-unauthenticated", "-plain-http", "-metrics",
		"127.0.0.1:0")
	for _, p := range protocols {
		if err := ask(t, clientOf(t, r.url, "x", p)); err != nil {
			t.Fatal(err)
		}
	}
	_, metrics := get(t, r.metrics)
	asked := 0
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			for _, name := range regexp.MustCompile(`sealedchat_\w+`).FindAllString(target.Expr,
				-1) {
				asked++
				name = regexp.MustCompile(`_bucket$`).ReplaceAllString(name, "")
				if !strings.Contains(metrics, "# TYPE "+name+" ") {
					t.Errorf("%s asks for %s", p.Title, name)
				}
			}
		}
	}
	if asked < 10 || board.Title == "" {
		t.Errorf("%d metrics are asked for", asked)
	}
}

// Only sealed requests are measured; a status that nobody logged is none.
func TestObserve(t *testing.T) {
	m := newMetrics(&service{o: &options{}})
	var logged safeBuffer
	log := slog.New(sampleHandler{slog.NewTextHandler(&logged, nil)})
	served := m.observe(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		log.WithGroup("g").With("a", 1).InfoContext(r.Context(), "another line", "status", 500)
		if r.Header.Get("Silent") == "" {
			log.InfoContext(r.Context(), "request", "status", 200, "inner_status", 403, "account",
				"a", "problem", "permission denied")
		}
		_, _ = w.Write([]byte("x"))
	}))
	for _, c := range []struct{ method, path, silent string }{
		{http.MethodGet, obliviousPath, ""}, {http.MethodGet, "/pki/public_key", ""},
		{http.MethodGet, "/healthz", ""}, {http.MethodPost, obliviousPath, ""},
		{http.MethodPost, envelopePath, "yes"},
	} {
		req := httptest.NewRequestWithContext(t.Context(), c.method, c.path, nil)
		req.Header.Set("Silent", c.silent)
		served.ServeHTTP(httptest.NewRecorder(), req)
	}
	families, err := m.labels()
	if err != nil || len(families) != 2 {
		t.Fatalf("%v, %v", families, err)
	}
	for _, want := range []string{`protocol=ohttp status=403 refusal=permission denied account=a`,
		`protocol=envelope status=none refusal= account=`} {
		if !families[want] {
			t.Errorf("%v lacks %q", families, want)
		}
	}
}

// labels are those of the counter of requests.
func (m *metrics) labels() (map[string]bool, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(m.requests)
	families, err := registry.Gather()
	labels := make(map[string]bool)
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			of := make(map[string]string)
			for _, l := range metric.GetLabel() {
				of[l.GetName()] = l.GetValue()
			}
			labels["protocol="+of["protocol"]+" status="+of["status"]+" refusal="+of["refusal"]+
				" account="+of["account"]] = true
		}
	}
	return labels, err
}

// However often it is asked, the gateway is asked once a second; the log tells of changes alone.
func TestReadiness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log safeBuffer
		asked, answer := 0, error(nil)
		r := &readiness{log: slog.New(slog.NewTextHandler(&log, nil)),
			ask: func(context.Context) error { asked++; return answer }}
		for range 5 {
			if err := r.check(t.Context()); err != nil {
				t.Error(err)
			}
		}
		answer = errors.New("the replay memory: MARKER")
		time.Sleep(time.Second)
		for range 5 {
			w := httptest.NewRecorder()
			r.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, pathReady,
				nil))
			if w.Code != 503 || !strings.Contains(w.Body.String(), `"replay memory"`) ||
				strings.Contains(w.Body.String(), "MARKER") {
				t.Errorf("%d %s", w.Code, w.Body)
			}
			time.Sleep(time.Second)
		}
		answer = nil
		time.Sleep(time.Second)
		if err := r.check(t.Context()); err != nil || asked != 7 {
			t.Errorf("%v, asked %d times", err, asked)
		}
		if strings.Count(log.String(), "not ready") != 1 ||
			strings.Count(log.String(), "ready again") != 1 {
			t.Error(log.String())
		}
		r.drain()
		if err := r.check(t.Context()); !errors.Is(err, errDraining) || asked != 7 {
			t.Errorf("%v, asked %d times", err, asked)
		}
	})
	for text, want := range map[string]string{"the keys: x": "keys", "x": "unknown"} {
		if got := reason(errors.New(text)); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
	if got := reason(sealedchat.ErrClosed); got != "closing" {
		t.Errorf("%q", got)
	}
}

// Without Redis the gateway starts, is not ready, and serves nothing; when Redis comes, it is.
func TestStartWithoutRedis(t *testing.T) {
	server := startRedis(t)
	server.kill()
	m := startModel(t)
	r := start(t, "-upstream", m.URL+"/v1", "-allow-unauthenticated", "-plain-http", "-replay",
		server.url())
	if status, body := get(t, r.url+"/readyz"); status != http.StatusServiceUnavailable ||
		!strings.Contains(body, `"replay memory"`) {
		t.Errorf("without Redis: %d %s", status, body)
	}
	for _, p := range protocols {
		if err := ask(t, clientOf(t, r.url, "x", p)); !errors.Is(err, sealedchat.ErrUnavailable) {
			t.Errorf("%v without Redis: %v", p, err)
		}
	}
	if n := m.served.Load(); n != 0 {
		t.Errorf("%d requests went upstream", n)
	}
	server.start()
	until(t, "ready", func() bool {
		status, _ := get(t, r.url+"/readyz")
		return status == http.StatusOK
	})
	for _, p := range protocols {
		if err := ask(t, clientOf(t, r.url, "x", p)); err != nil {
			t.Errorf("%v with Redis: %v", p, err)
		}
	}
	server.kill()
	until(t, "not ready", func() bool {
		status, _ := get(t, r.url+"/readyz")
		return status == http.StatusServiceUnavailable
	})
}

// A server that forgets is an error at the start; a password comes from the environment.
func TestWrongRedis(t *testing.T) {
	forgets := startRedis(t, "--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
	locked := startRedis(t, "--requirepass", "the-password")
	for _, c := range []struct {
		args     []string
		password string
		want     string
	}{
		{[]string{forgets.url()}, "", "noeviction"},
		{[]string{locked.url(), "-replay-durable"}, "the-password", "appendonly is off"},
		{[]string{forgets.url(), "-replay-durable"}, "", "noeviction"},
		{[]string{locked.url()}, "another-password", "look at -replay and NOMYO_REDIS_PASSWORD"},
		{[]string{locked.url()}, "", "NOAUTH"},
	} {
		var stderr safeBuffer
		p := &gatewayProgram{keyBits: 2048, stdout: &stderr, stderr: &stderr,
			env: func(name string) string {
				return map[string]string{"NOMYO_REDIS_PASSWORD": c.password}[name]
			}}
		status := p.run(t.Context(), append([]string{"-upstream", "https://a.invalid",
			"-allow-unauthenticated", "-listen", "127.0.0.1:0", "-replay"}, c.args...))
		if status != 1 || !strings.Contains(stderr.String(), c.want) ||
			c.password != "" && strings.Contains(stderr.String(), c.password) {
			t.Errorf("%q: status %d, %s, want %q", c.args, status, stderr.String(), c.want)
		}
	}
}
