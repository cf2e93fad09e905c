// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build interop

package nomyo

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// certificates is a certificate authority of the test, with a server certificate for 127.0.0.1.
type certificates struct {
	authority string // path of the authority's PEM
	chain     string // paths of the server's PEM files, for Python
	key       string
	server    tls.Certificate // the same, for Go
	pool      *x509.CertPool  // with the authority alone
}

func newCertificates(t *testing.T) *certificates {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	now := time.Now()
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "interop test authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	ca, err = x509.ParseCertificate(caDER)
	must(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	must(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(err)

	dir := t.TempDir()
	c := &certificates{
		authority: filepath.Join(dir, "ca.pem"), chain: filepath.Join(dir, "server.pem"),
		key:    filepath.Join(dir, "key.pem"),
		server: tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: key},
		pool:   x509.NewCertPool(),
	}
	c.pool.AddCert(ca)
	for path, block := range map[string]*pem.Block{
		c.authority: {Type: "CERTIFICATE", Bytes: caDER},
		c.chain:     {Type: "CERTIFICATE", Bytes: leafDER},
		c.key:       {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		must(os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
	}
	return c
}

// listen serves h on loopback until the test ends: https with certs, http without.
func listen(t *testing.T, h http.Handler, certs *certificates) *httptest.Server {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	if certs == nil {
		srv.Start()
	} else {
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{certs.server}}
		srv.StartTLS()
	}
	t.Cleanup(srv.Close)
	return srv
}

// site is a gateway with its upstream, and a record of the requests to both.
type site struct {
	url      string
	upstream *upstream
	wire     *recorder
}

// newSite starts a site. change and front may be nil. front stands between the recorder and the
// gateway.
func newSite(t *testing.T, certs *certificates, up *upstream,
	change func(*sealedchat.GatewayConfig), front func(http.Handler) http.Handler) *site {
	t.Helper()
	c := sealedchat.GatewayConfig{
		Upstream: listen(t, up, nil).URL + "/v1", AllowUnauthenticated: true, Keys: gatewayKeys,
	}
	if change != nil {
		change(&c)
	}
	gateway, err := sealedchat.NewGateway(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gateway.Close() })
	s := &site{upstream: up, wire: &recorder{next: gateway}}
	if front != nil {
		s.wire.next = front(gateway)
	}
	s.url = listen(t, s.wire, certs).URL
	return s
}

// arrival is a request as it arrived from a client.
type arrival struct {
	method, path string
	header       http.Header
	body         []byte
	at           time.Time
}

type recorder struct {
	next http.Handler

	mu   sync.Mutex
	seen []arrival
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		// no client may take it for an answer of the gateway
		w.WriteHeader(http.StatusTeapot)
		return
	}
	r.mu.Lock()
	r.seen = append(r.seen, arrival{req.Method, req.URL.Path, req.Header.Clone(), body, time.Now()})
	r.mu.Unlock()
	req.Body = io.NopCloser(bytes.NewReader(body))
	r.next.ServeHTTP(w, req)
}

// arrivals returns the requests with this method, in their order.
func (r *recorder) arrivals(method string) []arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []arrival
	for _, a := range r.seen {
		if a.method == method {
			found = append(found, a)
		}
	}
	return found
}

// upstream is an OpenAI-compatible server. It answers with the text of the last message, with a
// call of the first tool if there are tools, or with the result of answer.
type upstream struct {
	fail       []int  // statuses for the first requests, one each
	retryAfter string // sent with them
	// if set, the first request gets no answer, and the channel is closed when it hangs
	hang   chan struct{}
	answer func(text string) (reply any) // nil = text

	mu     sync.Mutex
	bodies [][]byte
}

// requests returns the bodies of all requests so far.
func (u *upstream) requests() [][]byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([][]byte(nil), u.bodies...)
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil || r.URL.Path != "/v1/chat/completions" {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	u.mu.Lock()
	n := len(u.bodies)
	u.bodies = append(u.bodies, body)
	u.mu.Unlock()
	if u.hang != nil && n == 0 {
		close(u.hang)
		select {
		case <-r.Context().Done():
		case <-time.After(scriptDeadline):
		}
		return
	}
	if n < len(u.fail) {
		if u.retryAfter != "" {
			w.Header().Set("Retry-After", u.retryAfter)
		}
		w.WriteHeader(u.fail[n])
		_, _ = io.WriteString(w,
			`{"error":{"message":"words of the upstream","type":"x","param":null,"code":null}}`)
		return
	}
	reply, err := u.reply(body)
	if err != nil {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(reply)))
	_, _ = w.Write(reply)
}

func (u *upstream) reply(request []byte) ([]byte, error) {
	var q struct {
		Messages []struct{ Role, Content string }
		Tools    []struct{ Function struct{ Name string } }
	}
	if err := json.Unmarshal(request, &q); err != nil {
		return nil, err
	}
	last := q.Messages[len(q.Messages)-1]
	message, finish := map[string]any{"role": "assistant", "content": last.Content}, "stop"
	switch {
	case u.answer != nil:
		message["content"] = u.answer(last.Content)
	case len(q.Tools) > 0 && last.Role == "user":
		message["content"], finish = nil, "tool_calls"
		message["tool_calls"] = []any{map[string]any{"id": "call_1", "type": "function",
			"function": map[string]any{
				"name": q.Tools[0].Function.Name, "arguments": `{"city": "Zürich"}`,
			}}}
	}
	return json.Marshal(map[string]any{
		"id": "chatcmpl-1", "object": "chat.completion", "created": 1765250382,
		"model":   "test-model",
		"choices": []any{map[string]any{"index": 0, "message": message, "finish_reason": finish}},
		"usage":   map[string]int{"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
	})
}
