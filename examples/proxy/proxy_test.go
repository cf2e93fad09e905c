// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestDemo(t *testing.T) {
	testkit.NoLeaks(t)
	for _, protocol := range []string{"ohttp", "envelope"} {
		r := start(t, nil, "-protocol", protocol)
		a := r.do("POST", "/v1/chat/completions", question)
		if a.StatusCode != 200 || !strings.Contains(a.text, "Paris") {
			t.Errorf("%s: %d %s", protocol, a.StatusCode, a.text)
		}
		a = r.do("POST", "/v1/chat/completions", streamed)
		if a.err != nil || a.Header.Get("Content-Type") != "text/event-stream; charset=utf-8" ||
			!strings.HasSuffix(a.text, "data: [DONE]\n\n") {
			t.Errorf("%s: %v %s", protocol, a.err, a.text)
		}
		a = r.do("GET", "/v1/models", "")
		if a.StatusCode != 200 || !strings.Contains(a.text, `"id":"demo"`) {
			t.Errorf("%s: %d %s", protocol, a.StatusCode, a.text)
		}
		s := r.sealed()
		if s.Protocol != protocol || s.Trust != "pin" || s.Key == "" || s.Attestation != "none" ||
			(s.Signer == "") != (protocol == "envelope") || s.Client.Requests < 2 ||
			s.Failed != 0 || s.Running != 0 {
			t.Errorf("%s: %+v", protocol, s)
		}
		if status := r.stop(); status != 0 {
			t.Errorf("%s: exit status %d, %s", protocol, status, r.stderr.String())
		}
	}
}

func TestPage(t *testing.T) {
	r := start(t, nil)
	const browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	for accept, page := range map[string]bool{browser: true, "": false, "*/*": false,
		"application/json": false, "application/json, text/html": false, "text/html;;;": true} {
		a := r.do("GET", "/sealed", "", "Accept", accept)
		kind := a.Header.Get("Content-Type")
		if a.StatusCode != 200 || page != strings.HasPrefix(kind, "text/html") ||
			page != strings.Contains(a.text, "<th align=\"left\">Signer</th>") {
			t.Errorf("%q: %s %s", accept, kind, a.text)
		}
		if strings.Contains(a.text, "<script") {
			t.Errorf("%q: has a script", accept)
		}
		wantNoRights(t, accept, a.Header)
	}
}

// Every path travels over Oblivious HTTP; what the gateway does not serve is answered in OpenAI's
// shape.
func TestPaths(t *testing.T) {
	r := start(t, nil)
	a := r.do("POST", "/v1/embeddings", `{"model":"demo","input":["a","b"]}`)
	if a.StatusCode != 200 || !strings.Contains(a.text, `"embedding":[`) {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
	if a := r.do("HEAD", "/v1/models", ""); a.StatusCode != 405 || a.text != "" {
		t.Errorf("HEAD: %d", a.StatusCode)
	}
	for _, path := range []string{"/v1/nothing", "/v2/chat", "/v1/models/demo", "/v1//models",
		"/v1/models/..%2f..%2fsealed", "/sealed/", "/SEALED"} {
		r.do("GET", path, "").wantError(t, path, 404, "not_found_error")
	}
	for _, path := range []string{"/", "/favicon.ico"} {
		r.do("GET", path, "").wantError(t, path, 404, "not_found")
	}
	r.do("POST", "/v1/chat/completions", `{"model":`).wantError(t, "no JSON", 400,
		"invalid_request")
	r.do("DELETE", "/v1/models/demo", "").wantError(t, "DELETE", 404, "not_found_error")
}

func TestPathsOverV1(t *testing.T) {
	remote := newRemote(t, sealedchat.ProtocolEnvelope, nil)
	r := start(t, nil, remote.args("-protocol", "envelope", "-models", "one,two/three")...)
	var list struct{ Data []struct{ ID, Object string } }
	if err := json.Unmarshal([]byte(r.do("GET", "/v1/models", "").text), &list); err != nil ||
		len(list.Data) != 2 || list.Data[1].ID != "two/three" || list.Data[0].Object != "model" {
		t.Errorf("%v %+v", err, list)
	}
	if a := r.do("GET", "/v1/models/two/three", ""); a.StatusCode != 200 {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
	r.do("GET", "/v1/models/three", "").wantError(t, "a model", 404, "model_not_found")
	for _, path := range []string{"/v1/embeddings", "/v1/responses"} {
		if a := r.do("POST", path, "{}"); a.StatusCode != 404 ||
			!strings.Contains(a.text, `"error":{`) {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.text)
		}
	}
}

// The server gets the proxy's key, or with -pass-key the client's, and nothing else.
func TestKeys(t *testing.T) {
	remote := newRemote(t, sealedchat.ProtocolOHTTP, nil)
	inEnv := map[string]string{"NOMYO_API_KEY": serverKey}
	file := writePrivate(t, serverKey+"\n")
	for name, c := range map[string]struct {
		env  map[string]string
		args []string
		sent string // by the client
		want string
	}{
		"the environment":     {inEnv, nil, "", "Bearer " + serverKey},
		"beside a client's":   {inEnv, nil, "Bearer local", "Bearer " + serverKey},
		"a file":              {nil, []string{"-key-file", file}, "Bearer local", "Bearer " + serverKey},
		"a file, by name":     {map[string]string{"NOMYO_API_KEY_FILE": file}, nil, "", "Bearer " + serverKey},
		"none":                {nil, nil, "Bearer local", ""},
		"the client's":        {inEnv, []string{"-pass-key"}, "Bearer local", "Bearer local"},
		"the client has none": {inEnv, []string{"-pass-key"}, "", ""},
		"another scheme":      {inEnv, []string{"-pass-key"}, "Basic bG9jYWw6", ""},
	} {
		r := start(t, c.env, remote.args(c.args...)...)
		a := r.do("POST", "/v1/chat/completions", question, "Authorization", c.sent, "X-Api-Key",
			"local", "Cookie", "a=local")
		if a.StatusCode != 200 || remote.lastKey() != c.want {
			t.Errorf("%s: %d, the server got %q, want %q", name, a.StatusCode, remote.lastKey(),
				c.want)
		}
		if s := r.stderr.String(); strings.Contains(s, serverKey) || strings.Contains(s, "local\n") {
			t.Errorf("%s: %s", name, s)
		}
		r.stop()
	}
}

// Each piece is there before the model makes the next one.
func TestPiecesAsTheyCome(t *testing.T) {
	next := make(chan struct{})
	remote := newRemote(t, sealedchat.ProtocolOHTTP, pieces(func(send func(string)) {
		for i := range 3 {
			send(fmt.Sprint("piece", i))
			<-next
		}
	}))
	r := start(t, nil, remote.args()...)
	resp, err := r.client.Do(r.request("POST", "/v1/chat/completions", streamed))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for i := range 3 {
		for lines.Scan() && !strings.Contains(lines.Text(), fmt.Sprint("piece", i)) {
		}
		next <- struct{}{} // would wait for ever if the proxy kept the piece back
	}
	for lines.Scan() {
		if lines.Text() == "data: [DONE]" {
			return
		}
	}
	t.Errorf("the stream did not end: %v", lines.Err())
}

// pieces is a model that streams what f sends.
func pieces(f func(send func(string))) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Access-Control-Allow-Origin", "*")
		w.Header().Set("Set-Cookie", "a=b")
		w.Header().Set("Refresh", "0; url=http://evil.example")
		w.Header().Set("X-Request-Id", "seven")
		f(func(text string) {
			_, _ = fmt.Fprintf(w, `data: {"id":"c","object":"chat.completion.chunk","created":1,`+
				`"model":"m","choices":[{"index":0,"delta":{"content":"%s"},`+
				`"finish_reason":null}]}`+"\n\n", text)
			_ = http.NewResponseController(w).Flush()
		})
		_, _ = io.WriteString(w, `data: {"id":"c","object":"chat.completion.chunk","created":1,`+
			`"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}`+
			"\n\ndata: [DONE]\n\n")
	}
}

// A server cannot give pages rights, and a stream that it cuts does not end like a whole one.
func TestServersHeadersAndCuts(t *testing.T) {
	testkit.NoLeaks(t)
	whole := newRemote(t, sealedchat.ProtocolOHTTP, pieces(func(send func(string)) { send("a") }))
	r := start(t, nil, whole.args()...)
	a := r.do("POST", "/v1/chat/completions", streamed)
	if a.err != nil || a.StatusCode != 200 {
		t.Errorf("%v %s", a.err, a.text)
	}
	wantNoRights(t, "a stream", a.Header)
	for _, name := range []string{"Set-Cookie", "Refresh"} {
		if a.Header.Get(name) != "" {
			t.Errorf("%s: %s", name, a.Header.Get(name))
		}
	}
	r.stop()

	cut := newRemote(t, sealedchat.ProtocolOHTTP, func(w http.ResponseWriter, r *http.Request) {
		pieces(func(send func(string)) { send("genuine") })(&shortened{w, 1}, r)
	})
	r = start(t, nil, cut.args()...)
	a = r.do("POST", "/v1/chat/completions", streamed)
	if a.err == nil || !strings.Contains(a.text, "genuine") || strings.Contains(a.text, "[DONE]") ||
		!strings.Contains(a.text, "\n\ndata: {\"error\":{\"code\":\"answer_cut\"") {
		t.Errorf("%v %s", a.err, a.text)
	}
	if s := r.sealed(); s.Failed != 1 {
		t.Errorf("%+v", s)
	}
}

// shortened drops all writes but the first few.
type shortened struct {
	http.ResponseWriter
	left int
}

func (s *shortened) Unwrap() http.ResponseWriter { return s.ResponseWriter }

func (s *shortened) Write(b []byte) (int, error) {
	if s.left--; s.left < 0 {
		return len(b), nil
	}
	return s.ResponseWriter.Write(b)
}

// A client that leaves ends the request at the server.
func TestClientLeaves(t *testing.T) {
	begun, left := make(chan struct{}), make(chan struct{})
	remote := newRemote(t, sealedchat.ProtocolOHTTP, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(begun)
		<-r.Context().Done()
		close(left)
	})
	r := start(t, nil, remote.args()...)
	ctx, leave := context.WithCancel(t.Context())
	req := r.request("POST", "/v1/chat/completions", question).WithContext(ctx)
	go func() {
		<-begun
		leave()
	}()
	if resp, err := r.client.Do(req); err == nil {
		resp.Body.Close()
		t.Error("there was an answer")
	}
	select {
	case <-left:
	case <-time.After(time.Minute):
		t.Error("the model works on")
	}
}

// At the end, a stream that runs gets its time, and nothing new begins.
func TestGracefulEnd(t *testing.T) {
	next := make(chan struct{})
	remote := newRemote(t, sealedchat.ProtocolOHTTP, pieces(func(send func(string)) {
		send("one")
		<-next
		send("two")
	}))
	r := start(t, nil, remote.args()...)
	resp, err := r.client.Do(r.request("POST", "/v1/chat/completions", streamed))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r.end()
	for { // the listener closes
		c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
		if err != nil {
			break
		}
		c.Close()
		time.Sleep(time.Millisecond)
	}
	close(next)
	text, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasSuffix(string(text), "data: [DONE]\n\n") {
		t.Errorf("%v %s", err, text)
	}
	if status := <-r.status; status != 0 {
		t.Errorf("status %d, %s", status, r.stderr.String())
	}
	r.ended.Do(func() {})
}

func TestLargeBodies(t *testing.T) {
	r := start(t, nil, "-max-body", "1000")
	long := `{"model":"demo","messages":[{"role":"user","content":"` + strings.Repeat("a", 3000) +
		`"}]}`
	r.do("POST", "/v1/chat/completions", long).wantError(t, "announced", 413, "request_too_large")
	req := r.request("POST", "/v1/chat/completions", long)
	req.Body, req.ContentLength, req.GetBody = io.NopCloser(strings.NewReader(long)), -1, nil
	resp, err := r.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	answer{resp, string(text), nil}.wantError(t, "in chunks", 413, "request_too_large")
}

// A body that does not arrive is given up. The time for it does not bound the answer.
func TestSlowBodies(t *testing.T) {
	const bodyTime = 100 * time.Millisecond
	remote := newRemote(t, sealedchat.ProtocolOHTTP, pieces(func(send func(string)) {
		for range 4 {
			send("a")
			time.Sleep(bodyTime)
		}
	}))
	r := startWith(t, func(p *proxy) { p.bodyTime = bodyTime }, nil, remote.args()...)
	c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"+
		"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	answer{resp, string(text), nil}.wantError(t, "half a body", 408, "request_timeout")

	for range 2 { // over one connection
		a := r.do("POST", "/v1/chat/completions", streamed)
		if a.err != nil || !strings.HasSuffix(a.text, "data: [DONE]\n\n") {
			t.Errorf("%v %s", a.err, a.text)
		}
	}
}

// A server whose own proxy cannot reach it yet does not end the program, and one that is none does.
func TestServerIsNotThere(t *testing.T) {
	for status, want := range map[int]int{502: -1, 503: -1, 404: 1, 200: 1} {
		srv := testkit.TLSServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
		}))
		args := []string{"-url", srv.URL, "-cacert", writeCert(t, srv)}
		if want == -1 {
			r := start(t, nil, args...)
			if !strings.Contains(r.stderr.String(), "warning: ") {
				t.Errorf("%d: %s", status, r.stderr.String())
			}
			continue
		}
		var stderr safeBuffer
		p := &proxy{env: func(string) string { return "" }, stdout: io.Discard, stderr: &stderr,
			maxRetries: -1}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		got := p.run(ctx, append(args, "-listen", "127.0.0.1:0"))
		cancel()
		if got != want {
			t.Errorf("%d: exit status %d, %s", status, got, stderr.String())
		}
	}
}

func TestUnixSocket(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the mode of a socket says nothing on Windows")
	}
	dir, err := os.MkdirTemp("", "p") // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "proxy.sock")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close() // its file stays, as after kill -9
	r := start(t, nil, "-listen", "unix:"+path)
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left in the folder: %v", left)
	}
	r.client.Transport.(*http.Transport).DialContext = func(ctx context.Context, _,
		_ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
	r.url = "http://localhost"
	if a := r.do("POST", "/v1/chat/completions", question); a.StatusCode != 200 {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
	r.do("GET", "/sealed", "", "Host", "evil.example").wantError(t, "Host", 403, "host_not_allowed")

	var second safeBuffer
	p := &proxy{env: func(string) string { return "" }, stdout: io.Discard, stderr: &second}
	if status := p.run(t.Context(), []string{"-listen", "unix:" + path}); status != 1 ||
		!strings.Contains(second.String(), "another program listens") {
		t.Errorf("a second proxy: status %d, %s", status, second.String())
	}
	if status := r.stop(); status != 0 {
		t.Errorf("status %d, %s", status, r.stderr.String())
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

// What keeps an answer from coming is an error in OpenAI's shape.
func TestNoServer(t *testing.T) {
	remote := newRemote(t, sealedchat.ProtocolOHTTP, nil)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	r := start(t, nil, "-url", "https://"+gone.Addr().String(), "-pin", remote.pin)
	a := r.do("POST", "/v1/chat/completions", question)
	a.wantError(t, "nobody there", 502, "connection_error")
	if a.Header.Get("X-Should-Retry") != "false" ||
		!strings.Contains(r.stderr.String(), "warning: ") {
		t.Errorf("%v, %s", a.Header, r.stderr.String())
	}
	if s := r.sealed(); s.Failed != 1 || s.Key != "" {
		t.Errorf("%+v", s)
	}

	var stderr safeBuffer
	p := &proxy{env: func(string) string { return "" }, stdout: io.Discard, stderr: &stderr,
		maxRetries: -1}
	status := p.run(t.Context(), []string{"-listen", "127.0.0.1:0", "-url", remote.url, "-cacert",
		remote.cacert, "-pin", strings.Repeat("0", 64)})
	if status != 1 || !strings.Contains(stderr.String(), "no prompt was sent") {
		t.Errorf("a key that is not pinned: status %d, %s", status, stderr.String())
	}
}

func TestWiper(t *testing.T) {
	wiped := make(chan struct{}, 9)
	w := &wiper{after: time.Millisecond, wipe: func() { wiped <- struct{}{} }}
	w.begin()
	w.begin()
	w.end()
	select {
	case <-wiped:
		t.Error("wiped while a request ran")
	case <-time.After(20 * time.Millisecond):
	}
	w.end()
	<-wiped
	w.after = time.Hour
	w.begin()
	w.end()
	w.close()
	w.begin()
	w.end()
	w.close()
	if len(wiped) > 0 {
		t.Error("wiped after close")
	}
}
