// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

const (
	gatewayDirVar      = "SEALEDCHAT_TEST_GATEWAY" // its folder, in the process that is one
	gatewayUpstreamVar = "SEALEDCHAT_TEST_UPSTREAM"
)

// TestGatewayChild is the gateway that other tests run in a process of its own.
func TestGatewayChild(t *testing.T) {
	dir := os.Getenv(gatewayDirVar)
	if dir == "" {
		t.Skip("it is for the tests that start processes")
	}
	childGateway(t, dir, os.Getenv(gatewayUpstreamVar))
}

// gatewayProcess is a process that is not started yet. It is killed when the test ends.
func gatewayProcess(t testing.TB, dir, upstream string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(testkit.Within(t, 5*time.Minute), exe,
		"-test.run=^TestGatewayChild$", "-test.v=false", "-test.count=1")
	cmd.Env = append(os.Environ(), gatewayDirVar+"="+dir, gatewayUpstreamVar+"="+upstream)
	cmd.Stderr = os.Stderr
	return cmd
}

// childGateway is a gateway on a folder, in front of the upstream that arg names, until it is
// killed.
func childGateway(t *testing.T, dir, arg string) {
	keys, err := sealedchat.OpenKeyStore(t.Context(), dir,
		secret(t, "correct horse battery staple"), &sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	defer keys.Close()
	config := sealedchat.GatewayConfig{Upstream: arg, AllowUnauthenticated: true, Keys: keys}
	srv := httptest.NewServer(newGateway(t, config))
	defer srv.Close()
	fmt.Println(srv.URL)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// startGatewayProcess returns the gateway's URL, and the process.
func startGatewayProcess(t *testing.T, dir, upstream string) (string, *exec.Cmd) {
	t.Helper()
	cmd := gatewayProcess(t, dir, upstream)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal("the gateway says:", err)
	}
	return strings.TrimSpace(line), cmd
}

// wire stands between clients and whatever gateway runs at the time, and keeps what is posted.
type wire struct {
	mu   sync.Mutex
	to   string
	sent []*http.Request
	body [][]byte
}

func (w *wire) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	if r.Method == http.MethodPost {
		w.sent, w.body = append(w.sent, r), append(w.body, body)
	}
	resp, err := w.pass(r, body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	for name, values := range resp.Header {
		out.Header()[name] = values
	}
	out.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(out, resp.Body)
}

func (w *wire) pass(r *http.Request, body []byte) (*http.Response, error) {
	req, err := http.NewRequest(r.Method, w.to+r.URL.Path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = r.Header.Clone()
	return http.DefaultTransport.RoundTrip(req)
}

// TestReplayAfterKill captures requests of both protocols, kills the gateway, and sends them to the
// next one.
func TestReplayAfterKill(t *testing.T) {
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	dir := newKeyFolder(t)
	var mu sync.Mutex
	served := 0
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		served++
		mu.Unlock()
		testkit.AnswerText("fine")(w, r)
	}))
	t.Cleanup(upstream.Close)
	url, gateway := startGatewayProcess(t, dir, upstream.URL+"/v1")
	on := &wire{to: url}
	proxy := httptest.NewServer(on)
	t.Cleanup(proxy.Close)
	for _, protocol := range []sealedchat.Protocol{sealedchat.ProtocolEnvelope,
		sealedchat.ProtocolOHTTP} {
		client := startClient(t, proxy.URL, func(c *sealedchat.Config) { c.Protocol = protocol })
		if _, err := client.Chat(testkit.Within(t, 20*time.Second), ask("hi")); err != nil {
			t.Fatal(err)
		}
	}
	// One more, whose refusal can be read here.
	list, err := http.Get(url + ohttp.Path)
	if err != nil {
		t.Fatal(err)
	}
	configs, err := io.ReadAll(list.Body)
	list.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ohttp.ParseConfigs(configs)
	if err != nil {
		t.Fatal(err)
	}
	chosen, err := ohttp.Choose(parsed)
	if err != nil {
		t.Fatal(err)
	}
	ours := fakes.SealFor(t, chosen, fakes.Inner{}.Encode(t))
	send := func() *http.Response {
		t.Helper()
		resp, err := on.pass(fakes.OHTTPPost(t, nil), ours.Body)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		if resp.StatusCode != http.StatusOK ||
			resp.Header.Get("Content-Type") != ohttp.TypeResponse {
			t.Fatalf("outside: %d %v", resp.StatusCode, resp.Header)
		}
		return resp
	}
	// only one answer to a request opens
	if _, err := io.Copy(io.Discard, send().Body); err != nil {
		t.Fatal(err)
	}
	had := served
	if had != 3 {
		t.Fatalf("%d served, want 3", had)
	}

	if err := gateway.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = gateway.Wait()
	on.to, _ = startGatewayProcess(t, dir, upstream.URL+"/v1")
	for i, r := range on.sent {
		for what, key := range map[string]string{
			"as it was":          r.Header.Get("X-Public-Key"),
			"with another's key": hybrid.PercentEncode(testkit.PublicPEM(t, "rsa-3072")),
		} {
			again := r.Clone(t.Context())
			want := http.StatusOK // whose inside is sealed
			if r.URL.Path == hybrid.PathCompletion {
				want = http.StatusConflict
				again.Header.Set("X-Public-Key", key)
			}
			resp, err := on.pass(again, on.body[i])
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s, %s: %d", r.URL.Path, what, resp.StatusCode)
			}
		}
	}
	if a := ours.Read(send().Body); a.Status != http.StatusConflict || a.Err != nil {
		t.Errorf("sealed: %+v", a)
	}
	if served != had || len(on.sent) != 2 {
		t.Errorf("%d served, %d before; %d were captured", served, had, len(on.sent))
	}
}

// folderRig is a rig whose keys are in a folder.
func folderRig(t *testing.T, dir string) *rig {
	t.Helper()
	keys, err := sealedchat.OpenKeyStore(t.Context(), dir,
		secret(t, "correct horse battery staple"), &sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keys.Close() })
	return newRig(t, func(c *sealedchat.GatewayConfig) { c.Keys = keys })
}

func newKeyFolder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "keys")
	keys, err := sealedchat.CreateKeyStore(t.Context(), dir,
		secret(t, "correct horse battery staple"), &sealedchat.KeyStoreOptions{Bits: 2048})
	if err != nil {
		t.Fatal(err)
	}
	keys.Close()
	return dir
}

// Two gateways of one machine share what they served with the folder, and a restart in order keeps
// it.
func TestReplaySharedByFolder(t *testing.T) {
	testkit.NoLeaks(t)
	dir := newKeyFolder(t)
	one, two := folderRig(t, dir), folderRig(t, dir)
	s, later := one.Seal(fakes.Inner{}), one.Seal(fakes.Inner{})
	one.Send(s)
	one.Send(later)
	if n := len(one.Forwarded()); n != 2 {
		t.Fatalf("%d served, want 2", n)
	}
	if a := s.Open(two.Send(s)); a.Status != 409 {
		t.Errorf("the other: %+v", a)
	}
	if err := one.g.Close(); err != nil {
		t.Error(err)
	}
	next := folderRig(t, dir)
	if a := later.Open(next.Send(later)); a.Status != 409 {
		t.Errorf("the next: %+v", a)
	}
	if len(two.Forwarded())+len(next.Forwarded()) != 0 {
		t.Error("served twice")
	}
}

// A folder in which nothing can be kept has the gateway serve nobody, and say what to do.
func TestReplayFileFails(t *testing.T) {
	dir := newKeyFolder(t)
	if err := os.Mkdir(filepath.Join(dir, "replays"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := folderRig(t, dir)
	s := r.Seal(fakes.Inner{})
	if a := s.Open(r.Send(s)); a.Status != 503 {
		t.Errorf("%+v", a)
	}
	key, err := r.keys.Public(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e, err := sealTo(key, []byte(fakes.FineRequest))
	if err != nil {
		t.Fatal(err)
	}
	fakes.Refused(t, "v1", r.Do(fakes.PostBody(t, bytes.NewReader(envelope.Append(nil, e)))), 503)
	if n := strings.Count(r.Logged(), "set Replay"); n != 2 || len(r.Forwarded()) != 0 {
		t.Errorf("%d lines say what to do: %s", n, r.Logged())
	}
}
