// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// Respond is a response with a body; header is names and values in turn.
func Respond(status int, body string, header ...string) *http.Response {
	r := &http.Response{
		StatusCode: status, Header: http.Header{}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)),
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// RoundTrip is a function as an [http.RoundTripper].
type RoundTrip func(*http.Request) (*http.Response, error)

// RoundTrip implements [http.RoundTripper].
func (f RoundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// NeverUsed fails the test if anything is sent through it.
func NeverUsed(t testing.TB) http.RoundTripper {
	return RoundTrip(func(r *http.Request) (*http.Response, error) {
		t.Errorf("%s %s was sent", r.Method, r.URL)
		return nil, errors.New("must not be used")
	})
}

// AnswerText is an upstream that answers every chat with text.
func AnswerText(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, CompletionJSON(text, ""))
	}
}

// CompletionJSON is a chat.completion; more is put behind its members: `,"_metadata":{…}`.
func CompletionJSON(text, more string) string {
	content, _ := json.Marshal(text)
	return `{"id":"chatcmpl-1","object":"chat.completion","created":1765250382,` +
		`"model":"test-model",` +
		`"choices":[{"index":0,"message":{"role":"assistant","content":` + string(content) +
		`},"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":10,"completion_tokens":20,"total_tokens":30}` + more + `}`
}

// UUID is a fresh random UUID.
func UUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// Long reports whether SEALEDCHAT_LONG is set: tests with real time take longer.
func Long() bool { return os.Getenv("SEALEDCHAT_LONG") != "" }

// DialRaw is a connection that fails when nothing comes for 20 seconds.
func DialRaw(t testing.TB, srv *httptest.Server) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// Leak begins every text that no error and no log line may repeat.
const Leak = "Leak-4d1f"

// Leaks reports whether text holds [Leak], in letters or in hexadecimal digits.
func Leaks(text string) bool {
	lower := strings.ToLower(text)
	return strings.Contains(lower, strings.ToLower(Leak)) ||
		strings.Contains(lower, hex.EncodeToString([]byte(Leak)))
}

// FineEvents is an event stream of a chat with its end.
const FineEvents = "data: {\"a\":1}\n\ndata: {\"b\":2}\n\ndata: [DONE]\n\n"
