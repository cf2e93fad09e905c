// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

const fineEvents = testkit.FineEvents

// answerOf is an upstream's answer of unknown length.
func answerOf(kind string, body io.Reader) *http.Response {
	resp := testkit.Respond(200, "", "Content-Type", kind)
	resp.ContentLength, resp.TransferEncoding, resp.Body = -1, []string{"chunked"},
		io.NopCloser(body)
	return resp
}

// pieces is a body that comes piece by piece, and ends with err.
type pieces struct {
	left []string
	err  error
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.left) == 0 {
		if p.err == nil {
			return 0, io.EOF
		}
		return 0, p.err
	}
	n := copy(b, p.left[0])
	if p.left[0] = p.left[0][n:]; p.left[0] == "" {
		p.left = p.left[1:]
	}
	return n, nil
}

const (
	openChoice = `data: {"choices":[{"index":1,"delta":{"content":"a"},"finish_reason":null}]}` +
		"\n\n"
	endedChoice = `data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"
)

// An answer that the upstream did not end does not end at the client's either, and what came of it
// came.
func TestObliviousCutAnswers(t *testing.T) {
	broken := errors.New("connection reset")
	long := strings.Repeat("x", 40<<10)
	for name, c := range map[string]struct {
		path, kind string
		pieces     []string
		err        error
		length     int64 // declared; 0: not
		whole      bool
	}{
		"events": {
			kind: "text/event-stream", pieces: []string{fineEvents}, whole: true,
		},
		"events with a charset": {
			kind: "text/event-stream; charset=utf-8", pieces: []string{fineEvents}, whole: true,
		},
		"events byte by byte": {
			kind: "text/event-stream", pieces: strings.Split(fineEvents, ""), whole: true,
		},
		"events without white space": {
			kind: "text/event-stream", pieces: []string{"data:[DONE]"}, whole: true,
		},
		"events with CRLF": {
			kind: "text/event-stream", pieces: []string{"data: 1\r\n\r\ndata: [DONE]\r\n\r\n"},
			whole: true,
		},
		"events without DONE": {
			kind: "text/event-stream", pieces: []string{"data: {\"a\":1}\n\n"},
		},
		"DONE within an event": {
			kind: "text/event-stream", pieces: []string{"data: say data: [DONE]\n\n"},
		},
		"DONE after too much": {
			kind: "text/event-stream", pieces: []string{"data: " + long + "\ndata: [DONE",
				"x]\n\n"},
		},
		"half of DONE": {
			kind: "text/event-stream", pieces: []string{"data: 1\n\ndata: [DON"},
		},
		"no events": {kind: "text/event-stream"},
		"events, then an error": { // behind [DONE] nothing matters
			kind: "text/event-stream", pieces: []string{fineEvents}, err: broken, whole: true,
		},
		"a choice that ended": {
			kind: "text/event-stream", pieces: []string{endedChoice}, whole: true,
		},
		"one that ended, then cut": {
			kind: "text/event-stream", pieces: []string{endedChoice}, err: broken,
		},
		"one of two that ended": {
			kind: "text/event-stream", pieces: []string{openChoice, endedChoice},
		},
		"another that goes on": {
			kind: "text/event-stream", pieces: []string{endedChoice, openChoice},
		},
		"a finish in content": {
			kind: "text/event-stream", pieces: []string{`data: {"choices":[{"index":0,"delta":` +
				`{"content":"\"finish_reason\":\"stop\""},"finish_reason":null}]}` + "\n\n"},
		},
		"an empty finish": {
			kind:   "text/event-stream",
			pieces: []string{`data: {"choices":[{"index":0,"finish_reason":""}]}` + "\n\n"},
		},
		"an error": {
			kind:   "text/event-stream",
			pieces: []string{`data: {"error":{"message":"x"}}` + "\n\n"}, whole: true,
		},
		"an error of nothing": {
			kind:   "text/event-stream",
			pieces: []string{`data: {"error":{},"choices":[]}` + "\n\n"},
		},
		"a response by type": {
			path: "/v1/responses", kind: "text/event-stream", whole: true,
			pieces: []string{`data: { "n": 1, "type" : "response.completed" }` + "\n\n"},
		},
		"a response by another type": {
			path: "/v1/responses", kind: "text/event-stream", pieces: []string{`data: {"type":` +
				`"response.created","response":{"type":"response.completed"}}` + "\n\n"},
		},
		"a large response": {
			path: "/v1/responses", kind: "text/event-stream", whole: true,
			pieces: []string{`data: {"type":"response.completed","x":"` + long + "\"}\n\n"},
		},
		"JSON as events": {
			kind: "text/event-stream", pieces: []string{` {"a":"data: [DONE]`, `"}`}, whole: true,
		},
		"half of JSON as events": {
			kind: "text/event-stream", pieces: []string{`{"a":"data: [DONE]`},
		},
		"events as JSON": {
			kind: "application/json", pieces: strings.Split(fineEvents, ""), whole: true,
		},
		"events as JSON, cut": {
			kind: "application/json", pieces: []string{"data: {\"a\":[]}\n\n"},
		},
		"events cut": {
			kind: "text/event-stream", pieces: []string{"data: 1\n\n"}, err: io.ErrUnexpectedEOF,
		},
		"a response": {
			path: "/v1/responses", kind: "text/event-stream",
			pieces: []string{"event: response.completed\ndata: {}\n\n"}, whole: true,
		},
		"a failed response": {
			path: "/v1/responses", kind: "text/event-stream",
			pieces: []string{"event: response.failed\ndata: {}\n\n"}, whole: true,
		},
		"a response cut": {
			path: "/v1/responses", kind: "text/event-stream",
			pieces: []string{"event: response.created\ndata: {}\n\n"},
		},
		"a chat is no response": {
			kind: "text/event-stream", pieces: []string{"event: response.completed\ndata: {}\n\n"},
		},
		"JSON": {
			kind: "application/json", pieces: []string{`{"a":"}`, `\"{"}`, "\n"}, whole: true,
		},
		"JSON cut in an object":    {kind: "application/json", pieces: []string{`{"a":{}`}},
		"JSON cut in a string":     {kind: "application/json", pieces: []string{`{"a":"}`}},
		"JSON cut after an escape": {kind: "application/json", pieces: []string{`"\"`}},
		"JSON with too much":       {kind: "application/json", pieces: []string{`{}}`}},
		"no JSON":                  {kind: "application/json", pieces: []string{" \n"}},
		// the upstream's own fault
		"JSON with length": {
			kind: "application/json", pieces: []string{`{"a"`}, length: 4, whole: true,
		},
		"text":                  {kind: "text/plain", pieces: []string{"any"}, whole: true},
		"nothing":               {kind: "text/plain", whole: true},
		"text cut":              {kind: "text/plain", pieces: []string{"any"}, err: broken},
		"shorter than declared": {kind: "text/plain", pieces: []string{"any"}, length: 4},
		"longer than declared":  {kind: "text/plain", pieces: []string{"anything"}, length: 4},
		"too large":             {kind: "text/plain", pieces: []string{long, long}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, pad := range []int{0, 256} {
				r := newRig(t, func(g *Config) {
					g.MaxResponseBytes = 64 << 10
					g.OHTTP.Padding = pad
				})
				r.Answer = func(*http.Request, []byte) (*http.Response, error) {
					resp := answerOf(c.kind, &pieces{append([]string(nil), c.pieces...), c.err})
					if c.length > 0 {
						resp.ContentLength = c.length
					}
					return resp, nil
				}
				s := r.Seal(fakes.Inner{Path: c.path})
				a := s.Open(r.Send(s))
				if c.whole && a.Err != nil || !c.whole && !errors.Is(a.Err, ohttp.ErrTruncated) {
					t.Errorf("pad %d: ended with %v", pad, a.Err)
				}
				want := strings.Join(c.pieces, "")
				switch got := a.Body; {
				case a.Status != 200 && a.Status != 0:
					t.Errorf("pad %d: status %d", pad, a.Status)
				case pad == 0 && c.whole && got != want, !strings.HasPrefix(want, got) && pad == 0:
					t.Errorf("got %q, want %q", got, want)
				case c.whole && withoutComments(got) != want:
					t.Errorf("padded: got %q, want %q", got, want)
				}
				if logged := r.Logged(); !c.whole && !strings.Contains(logged, "level=WARN") {
					t.Errorf("pad %d: the log does not tell: %s", pad, logged)
				}
			}
		})
	}
}

// What the upstream says of itself does not reach the client; what it says of the request does.
func TestObliviousUpstreamAnswers(t *testing.T) {
	broken := errors.New("no connection to 192.0.2.1")
	for name, c := range map[string]struct {
		answer func() (*http.Response, error)
		status int
		body   string // "" is the gateway's own
	}{
		"an error of the request": {func() (*http.Response, error) {
			return testkit.Respond(
				400, `{"error":{"message":"too long"}}`, "Content-Type", "application/json",
			), nil
		}, 400, `{"error":{"message":"too long"}}`},
		"too many": {
			func() (*http.Response, error) {
				return testkit.Respond(429, "{}", "Retry-After", "7"), nil
			},
			429, "{}",
		},
		"a server's error": {
			func() (*http.Response, error) { return testkit.Respond(500, "{}"), nil }, 500, "{}",
		},
		"the gateway's key": {
			func() (*http.Response, error) {
				return testkit.Respond(401, "bad key sk-123"), nil
			}, 502, "",
		},
		"not allowed": {
			func() (*http.Response, error) { return testkit.Respond(403, "secret"), nil }, 502, "",
		},
		"a proxy's key": {
			func() (*http.Response, error) { return testkit.Respond(407, "secret"), nil }, 502, "",
		},
		"a redirect": {
			func() (*http.Response, error) {
				return testkit.Respond(302, "", "Location", "http://evil.test/"), nil
			},
			502, "",
		},
		"switching": {
			func() (*http.Response, error) { return testkit.Respond(101, ""), nil }, 502, "",
		},
		"gzip": {
			func() (*http.Response, error) {
				return testkit.Respond(200, "x", "Content-Encoding", "gzip"), nil
			},
			502, "",
		},
		"declared too large": {func() (*http.Response, error) {
			resp := testkit.Respond(200, "x")
			resp.ContentLength = 1 << 40
			return resp, nil
		}, 502, ""},
		"no answer": {func() (*http.Response, error) { return nil, broken }, 502, ""},
		"nothing":   {func() (*http.Response, error) { return nil, nil }, 502, ""},
		"not in time": {func() (*http.Response, error) {
			return nil, context.DeadlineExceeded
		}, 504, ""},
		"a panic":  {func() (*http.Response, error) { panic("prompt") }, 500, ""},
		"an abort": {func() (*http.Response, error) { panic(http.ErrAbortHandler) }, 500, ""},
		"odd header": {
			func() (*http.Response, error) {
				return testkit.Respond(200, "x", "Content-Type", "a\x00b"), nil
			},
			502, "",
		},
		"other header": {func() (*http.Response, error) {
			return testkit.Respond(200, "x", "Set-Cookie", "a=b", "Server", "vllm"), nil
		}, 200, "x"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, nil)
			r.Answer = func(*http.Request, []byte) (*http.Response, error) { return c.answer() }
			s := r.Seal(fakes.Inner{})
			a := s.Open(r.Send(s))
			if a.Err != nil || a.Status != c.status || c.body != "" && a.Body != c.body {
				t.Fatalf("%+v, want %d", a, c.status)
			}
			if c.body == "" {
				fakes.ProblemOf(t, c.status, a.Header, a.Body)
			}
			for _, bad := range []string{"Set-Cookie", "Server", "Location"} {
				if a.Header.Get(bad) != "" {
					t.Errorf("header %v", a.Header)
				}
			}
			for _, word := range []string{"sk-123", "secret", "192.0.2.1", "prompt"} {
				if strings.Contains(a.Body+r.Logged(), word) {
					t.Errorf("%q is told: %s %s", word, a.Body, r.Logged())
				}
			}
		})
	}
}

// A panic of the upstream's transport when the answer has begun cuts it, and the handler returns.
func TestObliviousPanicMidStream(t *testing.T) {
	for name, value := range map[string]any{"a panic": "boom", "an abort": http.ErrAbortHandler} {
		r := newRig(t, nil)
		r.Answer = func(*http.Request, []byte) (*http.Response, error) {
			return answerOf(
				"text/event-stream",
				io.MultiReader(strings.NewReader("data: 1\n\n"), panicking{value}),
			), nil
		}
		s := r.Seal(fakes.Inner{})
		a := s.Open(r.Send(s))
		if !errors.Is(a.Err, ohttp.ErrTruncated) || a.Body != "data: 1\n\n" {
			t.Errorf("%s: %+v", name, a)
		}
		if !strings.Contains(r.Logged(), "panic survived") {
			t.Errorf("%s: the log does not tell", name)
		}
		r.Answer = nil
		s = r.Seal(fakes.Inner{})
		if a := s.Open(r.Send(s)); a.Status != 200 || a.Err != nil {
			t.Errorf("%s: afterwards: %+v", name, a)
		}
	}
}

type panicking struct{ value any }

func (p panicking) Read([]byte) (int, error) { panic(p.value) }

// Only what is on the lists passes, either way; models are asked for without a body.
func TestObliviousHeaders(t *testing.T) {
	r := newRig(t, nil)
	s := r.Seal(fakes.Inner{Method: http.MethodGet, Path: "/v1/models?limit=3",
		Header: []bhttp.Field{
			{Name: "content-type"},
			{Name: "accept", Value: "application/json"},
			{Name: "cookie", Value: "a=b"},
			{Name: "openai-beta", Value: "x"},
			{Name: "x-forwarded-for", Value: "192.0.2.9"},
			{Name: "user-agent", Value: "sdk/1.0"},
			{Name: "x-security-tier", Value: "standard"},
		}})
	if a := s.Open(r.Send(s)); a.Status != 200 || a.Err != nil {
		t.Fatalf("%+v", a)
	}
	sent := r.Forwarded()[0]
	want := http.Header{
		"Accept":          {"application/json"},
		"Openai-Beta":     {"x"},
		"User-Agent":      {"sealedchat"},
		"Accept-Encoding": {"identity"},
	}
	if sent.URL != "https://upstream.test/v1/models?limit=3" || sent.Body != "" ||
		fmt.Sprint(sent.Header) != fmt.Sprint(want) {
		t.Errorf("upstream got %+v, want %v", sent, want)
	}
}

// Authenticate sees the inner request, and of the outer one the address alone.
func TestObliviousAuthenticateSees(t *testing.T) {
	var seen *http.Request
	r := newRig(t, func(c *Config) {
		c.Authenticate = allow(func(r *http.Request) error {
			seen = r
			r.Header.Set("Openai-Beta", "changed by the callback")
			return nil
		})
	})
	s := r.Seal(fakes.Inner{Path: "/v1/chat/completions?a=b"})
	req := fakes.OHTTPPost(t, bytes.NewReader(s.Body))
	req.Header.Set("Authorization", "Bearer outer")
	req.RemoteAddr = "192.0.2.5:1"
	if a := s.Open(r.Do(req)); a.Status != 200 {
		t.Fatalf("%+v", a)
	}
	if seen.Method != http.MethodPost ||
		seen.URL.String() != "https://gateway.test/v1/chat/completions?a=b" ||
		seen.Host != "gateway.test" ||
		seen.Header.Get("Authorization") != "Bearer key-of-the-client" ||
		seen.RemoteAddr != "192.0.2.5:1" {
		t.Errorf("%+v", seen)
	}
	if n, err := seen.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Error("it sees the body")
	}
	if r.Forwarded()[0].Header.Get("Openai-Beta") != "" {
		t.Error("the callback changed the request")
	}
}

// Pieces reach the client as they come, and a client that does not read holds up the upstream:
// nothing piles up.
func TestObliviousFlushAndBackPressure(t *testing.T) {
	testkit.NoLeaks(t)
	next, done := make(chan int), make(chan error, 1)
	upstream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for size := range next {
			if size < 0 {
				break
			}
			_, _ = w.Write([]byte("data: " + strings.Repeat("x", size) + "\n\n"))
			w.(http.Flusher).Flush()
		}
		block := []byte("data: " + strings.Repeat("y", 32<<10) + "\n\n")
		for range 4096 { // 128 MiB, more than all buffers on the way hold
			if _, err := w.Write(block); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	})
	g := startGateway(t, upstream, func(c *Config) { c.MaxResponseBytes = 256 << 20 })
	server := httptest.NewServer(g)
	defer server.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	r := &rig{Rig: &fakes.Rig{T: t, Handler: g}, s: g}
	s := r.Seal(fakes.Inner{})
	req, _ := http.NewRequest(http.MethodPost, server.URL+ohttp.Path, bytes.NewReader(s.Body))
	req.Header.Set("Content-Type", ohttp.TypeRequest)
	go func() { next <- 1 }()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := s.Call.Response(resp.Body, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	_, content, err := bhttp.ReadResponse(reader, bhttp.Limits{Content: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	for i, size := range []int{1, 0, 5000, 1} {
		if i > 0 {
			next <- size
		}
		// waits for what was flushed, for nothing more
		if _, err := io.ReadFull(content, make([]byte, len("data: \n\n")+size)); err != nil {
			t.Fatal(err)
		}
	}
	next <- -1
	select {
	case err := <-done:
		t.Errorf("the upstream was not held up: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if sealed := g.Stats().BytesSealed; sealed > 32<<20 {
		t.Errorf("%d bytes were read ahead", sealed)
	}
	_ = resp.Body.Close() // the client leaves, and the upstream's work ends
	select {
	case err := <-done:
		if err == nil {
			t.Error("the upstream worked to its end")
		}
	case <-time.After(time.Minute):
		t.Error("the upstream works on for nobody")
	}
}
