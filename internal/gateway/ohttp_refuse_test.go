// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/replay"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func dated(at time.Time) bhttp.Field {
	return bhttp.Field{Name: "date", Value: at.UTC().Format(http.TimeFormat)}
}

// What opens and is refused is refused inside, and goes nowhere.
func TestObliviousInnerRefusals(t *testing.T) {
	keys := onlyKey("key-of-the-client")
	now := time.Now()
	for name, c := range map[string]struct {
		m      fakes.Inner
		change func(*Config)
		status int
		kind   string
	}{
		"no key": {m: fakes.Inner{Header: []bhttp.Field{{Name: "authorization"}}}, status: 401},
		"wrong key": {
			m: fakes.Inner{Header: []bhttp.Field{{Name: "authorization",
				Value: "Bearer other"}}},
			status: 401,
		},
		"not a bearer": {
			m: fakes.Inner{
				Header: []bhttp.Field{{Name: "authorization", Value: "Basic key-of-the-client"}},
			},
			status: 401,
		},
		"forbidden": {change: func(c *Config) {
			c.Authenticate = func(*http.Request) (string, time.Duration, error) {
				return "", 0, fault.ErrPermission
			}
		}, status: 403},
		"rate limited": {change: func(c *Config) {
			c.Authenticate = func(*http.Request) (string, time.Duration, error) {
				return "", 0, fault.ErrRateLimited
			}
		}, status: 429},
		"no date": {
			m: fakes.Inner{Header: []bhttp.Field{{Name: "date"}}}, status: 400,
			kind: ohttp.ProblemDate,
		},
		"a date of words": {
			m: fakes.Inner{Header: []bhttp.Field{{Name: "date", Value: "today"}}}, status: 400,
			kind: ohttp.ProblemDate,
		},
		"two dates": {
			m: fakes.Inner{Header: []bhttp.Field{dated(now), dated(now)}}, status: 400,
			kind: ohttp.ProblemDate,
		},
		"an old date": {
			m: fakes.Inner{
				Header: []bhttp.Field{dated(now.Add(-2*time.Minute - 2*time.Second))}},
			status: 400, kind: ohttp.ProblemDate,
		},
		"a date to come": {
			m: fakes.Inner{Header: []bhttp.Field{dated(now.Add(2*time.Minute +
				10*time.Second))}},
			status: 400, kind: ohttp.ProblemDate,
		},
		"a narrow window": {
			m:      fakes.Inner{Header: []bhttp.Field{dated(now.Add(-5 * time.Second))}},
			change: func(c *Config) { c.OHTTP.DateWindow = 3 * time.Second }, status: 400,
			kind: ohttp.ProblemDate,
		},
		"another path":   {m: fakes.Inner{Path: "/v1/files"}, status: 404},
		"a longer path":  {m: fakes.Inner{Path: "/v1/chat/completions/"}, status: 404},
		"dots":           {m: fakes.Inner{Path: "/v1/chat/../chat/completions"}, status: 404},
		"two slashes":    {m: fakes.Inner{Path: "//v1/chat/completions"}, status: 404},
		"escaped":        {m: fakes.Inner{Path: "/v1/chat%2Fcompletions"}, status: 404},
		"badly escaped":  {m: fakes.Inner{Path: "/v1/%zz"}, status: 400},
		"an option":      {m: fakes.Inner{Method: "OPTIONS", Path: "*"}, status: 404},
		"another method": {m: fakes.Inner{Method: http.MethodDelete}, status: 405},
		"GET of a chat":  {m: fakes.Inner{Method: http.MethodGet}, status: 405},
		"POST of models": {m: fakes.Inner{Path: "/v1/models"}, status: 405},
		"not on the list": {
			change: func(c *Config) { c.OHTTP.Allow = []string{"GET /v1/models"} }, status: 404,
		},
		"an empty list": {change: func(c *Config) { c.OHTTP.Allow = []string{} }, status: 404},
		"a tier too high": {
			m:      fakes.Inner{Header: []bhttp.Field{{Name: "x-security-tier", Value: "maximum"}}},
			status: 403,
		},
		"a tier that is not": {
			m:      fakes.Inner{Header: []bhttp.Field{{Name: "x-security-tier", Value: "top"}}},
			status: 400,
		},
		"content encoding": {
			m:      fakes.Inner{Header: []bhttp.Field{{Name: "content-encoding", Value: "gzip"}}},
			status: 400,
		},
		"a trailer": {
			m: fakes.Inner{Trailer: []bhttp.Field{{Name: "x-late", Value: "1"}}}, status: 400,
		},
		"too much content": {
			m:      fakes.Inner{Body: strings.Repeat("x", 3000)},
			change: func(c *Config) { c.MaxRequestBytes = 2999 }, status: 413,
		},
		"too many fields": {m: fakes.Inner{Header: many(300)}, status: 413},
		"replays unknown": {change: func(c *Config) { c.Replay = deafReplay{} }, status: 503},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(g *Config) {
				g.Authenticate = keys
				if c.change != nil {
					c.change(g)
				}
			})
			s := r.Seal(c.m)
			w := r.Send(s)
			a := s.Open(w)
			if a.Err != nil || a.Status != c.status {
				t.Fatalf("%+v, want status %d", a, c.status)
			}
			kind, _ := fakes.ProblemOf(t, c.status, a.Header, a.Body)
			if want := c.kind; kind != want && (want != "" || kind != "about:blank") {
				t.Errorf("type %q, want %q", kind, want)
			}
			if _, err := http.ParseTime(a.Header.Get("Date")); err != nil ||
				a.Header.Get("X-Security-Tier") != "standard" {
				t.Errorf("header %v", a.Header)
			}
			if c.status == 405 && a.Header.Get("Allow") == "" ||
				c.status == 401 && a.Header.Get("Www-Authenticate") != "Bearer" {
				t.Errorf("header %v", a.Header)
			}
			if a.Header.Get(ohttp.HeaderRefusedBy) != "gateway" {
				t.Errorf("it does not say that it is the gateway's own: %v", a.Header)
			}
			if a.Header.Get(ohttp.HeaderProcessed) != "no" {
				t.Errorf("it does not say that nothing was processed: %v", a.Header)
			}
			if n := len(r.Forwarded()); n != 0 {
				t.Errorf("%d requests went upstream", n)
			}
			for _, word := range []string{"key-of-the-client", "completions", "content\\\"",
				"files"} {
				if strings.Contains(r.Logged(), word) {
					t.Errorf("the log says %q: %s", word, r.Logged())
				}
			}
		})
	}
}

func many(n int) (fields []bhttp.Field) {
	for range n {
		fields = append(fields, bhttp.Field{Name: "x-many", Value: "1"})
	}
	return fields
}

type deafReplay struct{}

func (deafReplay) Claim(context.Context, [32]byte, [32]byte, time.Time) (bool, error) {
	return false, errors.New("no connection")
}
func (deafReplay) Release(context.Context, [32]byte) error { return nil }

// What does not open is refused in the clear, with one answer for every reason.
func TestObliviousOuterRefusals(t *testing.T) {
	r := newRig(t, nil)
	config := r.KeyConfig()
	message := fakes.Inner{}.Encode(t)
	good := fakes.SealFor(t, config, message).Body
	flipped := func(i int) []byte {
		b := bytes.Clone(good)
		b[i] ^= 1
		return b
	}
	key, err := ohttp.GenerateKey(config.ID(), ohttp.XWing)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	const head, enc = 7, 1120
	for name, c := range map[string]struct {
		body   []byte
		header []string
		status int
	}{
		"another key id":         {body: flipped(0), status: 422},
		"another KEM":            {body: flipped(1), status: 422},
		"another KDF":            {body: flipped(4), status: 422},
		"another AEAD":           {body: flipped(6), status: 422},
		"a secret flipped":       {body: flipped(head), status: 422},
		"a secret flipped, late": {body: flipped(head + enc - 1), status: 422},
		"the first byte sealed":  {body: flipped(head + enc + 1), status: 422},
		"the tag":                {body: flipped(len(good) - 1), status: 422},
		"for another gateway":    {body: fakes.SealFor(t, key.Config(), message).Body, status: 422},
		"cut in the final chunk": {body: good[:len(good)-1], status: 422},
		"a byte more":            {body: append(bytes.Clone(good), 0), status: 422},
		"nothing":                {body: nil, status: 400},
		"cut in the head":        {body: good[:head-1], status: 400},
		"cut in the secret":      {body: good[:head+enc-1], status: 400},
		"cut before the chunk":   {body: good[:head+enc], status: 400},
		"an empty chunk":         {body: append(bytes.Clone(good[:head+enc]), 16), status: 400},
		"a huge chunk": {
			body: append(bytes.Clone(good[:head+enc]), 0x80, 1, 0, 0), status: 413,
		},
		"no type": {body: good, header: []string{"Content-Type", ""}, status: 415},
		"not chunked": {
			body: good, header: []string{"Content-Type", "message/ohttp-req"}, status: 415,
		},
		"content encoding": {body: good, header: []string{"Content-Encoding", "gzip"}, status: 415},
	} {
		t.Run(name, func(t *testing.T) {
			req := fakes.OHTTPPost(t, bytes.NewReader(c.body))
			for i := 0; i < len(c.header); i += 2 {
				req.Header.Set(c.header[i], c.header[i+1])
			}
			w := r.Do(req)
			if w.Code != c.status {
				t.Fatalf("%d %s, want %d", w.Code, w.Body, c.status)
			}
			kind, detail := fakes.ProblemOf(t, c.status, w.Header(), w.Body.String())
			if (kind == ohttp.ProblemKey) != (c.status == 422) {
				t.Errorf("type %q", kind)
			}
			if c.status == 422 &&
				detail != "the request cannot be decrypted; fetch the key configurations again" {
				t.Errorf("the reasons can be told apart: %q", detail)
			}
		})
	}
	if n := len(r.Forwarded()); n != 0 {
		t.Errorf("%d requests went upstream", n)
	}
}

// Every bit of a request matters: whichever is flipped, nothing goes upstream.
func TestObliviousBitFlips(t *testing.T) {
	r := newRig(t, func(c *Config) { c.OHTTP.StrangerRate = -1 })
	good := r.Seal(fakes.Inner{}).Body
	step := 7 // coprime to 8: all bits of some bytes, and some of each byte
	for bit := 0; bit < 8*len(good); bit += step {
		b := bytes.Clone(good)
		b[bit/8] ^= 1 << (bit % 8)
		if w := r.Do(fakes.OHTTPPost(t, bytes.NewReader(b))); w.Code < 400 || w.Code == 500 {
			t.Fatalf("bit %d: %d", bit, w.Code)
		}
	}
	if n := len(r.Forwarded()); n != 0 {
		t.Errorf("%d requests went upstream", n)
	}
	if w := r.Do(fakes.OHTTPPost(t, bytes.NewReader(good))); w.Code != 200 ||
		len(r.Forwarded()) != 1 {
		t.Errorf("as it was: %d", w.Code)
	}
}

// A request whose final chunk never comes is not acted on, however complete its message looks. The
// refusal is sealed: a chunk of it has opened.
func TestObliviousWithoutFinalChunk(t *testing.T) {
	r := newRig(t, nil)
	message := fakes.Inner{}.Encode(t)
	half := len(message) / 2
	for name, s := range map[string]*fakes.Sealed{
		"all of the message": fakes.SealChunks(t, r.KeyConfig(), false, message),
		"half of it":         fakes.SealChunks(t, r.KeyConfig(), false, message[:half]),
		"in two": fakes.SealChunks(t, r.KeyConfig(), false, message[:half],
			message[half:]),
		"the end flipped":     fakes.SealChunks(t, r.KeyConfig(), true, message),
		"bytes after the end": fakes.SealChunks(t, r.KeyConfig(), true, message),
		"more than a message": fakes.SealChunks(t, r.KeyConfig(), true, message, []byte("x")),
		"not a message": fakes.SealChunks(t, r.KeyConfig(), true,
			[]byte("nothing of the kind")),
		"half a message": fakes.SealChunks(t, r.KeyConfig(), true, message[:half]),
		"a response": fakes.SealChunks(
			t, r.KeyConfig(), true, append([]byte{1}, message[1:]...),
		),
	} {
		switch name {
		case "the end flipped":
			s.Body[len(s.Body)-1] ^= 1
		case "bytes after the end":
			s.Body = append(s.Body, "more"...)
		}
		a := s.Open(r.Send(s))
		if a.Err != nil || a.Status != 400 {
			t.Errorf("%s: %+v", name, a)
		}
		fakes.ProblemOf(t, 400, a.Header, a.Body)
	}
	if n := len(r.Forwarded()); n != 0 {
		t.Errorf("%d requests went upstream", n)
	}
	// The same in two whole chunks is served.
	s := fakes.SealChunks(t, r.KeyConfig(), true, message[:half], message[half:])
	if a := s.Open(r.Send(s)); a.Err != nil || a.Status != 200 {
		t.Errorf("whole: %+v", a)
	}
}

func TestObliviousReplay(t *testing.T) {
	r := newRig(t, nil)
	s := r.Seal(fakes.Inner{})
	first := r.Send(s)
	again := r.Send(s)
	if n := len(r.Forwarded()); n != 1 {
		t.Errorf("%d requests went upstream", n)
	}
	if a := s.Open(first); a.Status != 200 || a.Err != nil {
		t.Errorf("%+v", a)
	}
	// The refusal opens with the keys of the request that was replayed: it is sealed, and nobody
	// else can read it.
	if again.Code != 200 || again.Header().Get("Content-Type") != ohttp.TypeResponse ||
		strings.Contains(again.Body.String(), "sent before") {
		t.Fatalf("%d %v", again.Code, again.Header())
	}
	s2 := r.Seal(fakes.Inner{})
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		return nil, errors.New("down")
	}
	r.Send(s2) // fails upstream, and stays claimed all the same
	if a := s2.Open(r.Send(s2)); a.Status != 409 || a.Err != nil {
		t.Errorf("%+v", a)
	}
}

// An answer opens for its own request alone.
func TestObliviousSwappedAnswers(t *testing.T) {
	r := newRig(t, nil)
	one, other := r.Seal(fakes.Inner{}), r.Seal(fakes.Inner{})
	w := r.Send(one)
	r.Send(other)
	if a := other.Open(w); !errors.Is(a.Err, ohttp.ErrDecryption) {
		t.Errorf("%+v", a)
	}
}

func TestObliviousReplayCacheFull(t *testing.T) {
	cache := replay.NewMemory(2)
	r := newRig(t, func(c *Config) { c.Replay = cache; c.OHTTP.DateWindow = time.Hour })
	want := []int{200, 200, 503}
	for i, status := range want {
		s := r.Seal(fakes.Inner{})
		if a := s.Open(r.Send(s)); a.Status != status || a.Err != nil {
			t.Errorf("request %d: %+v", i, a)
		}
	}
}

func TestObliviousMethods(t *testing.T) {
	r := newRig(t, nil)
	if w := r.Do(httptest.NewRequest(http.MethodPut, ohttp.Path, nil)); w.Code != 405 ||
		w.Header().Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("PUT: %d %v", w.Code, w.Header())
	}
}

// Closing, too many at a time, and a store that is closed.
func TestObliviousUnavailable(t *testing.T) { synctest.Test(t, testObliviousUnavailable) }

func testObliviousUnavailable(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	r := newRig(t, func(c *Config) { c.MaxConcurrent = 1 })
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		close(began)
		<-release
		return testkit.Respond(200, testkit.FineAnswer), nil
	}
	s := r.Seal(fakes.Inner{})
	done := make(chan *httptest.ResponseRecorder)
	go func() { done <- r.Send(s) }()
	<-began
	second := r.Seal(fakes.Inner{})
	a := second.Open(r.Send(second))
	if a.Err != nil || a.Status != 503 || a.Header.Get("Retry-After") != "1" ||
		a.Header.Get(ohttp.HeaderProcessed) != "no" {
		t.Errorf("too many: %+v", a)
	}
	fakes.ProblemOf(t, 503, a.Header, a.Body)
	third := r.Seal(fakes.Inner{})
	r.Send(third)
	close(release)
	if a := s.Open(<-done); a.Status != 200 {
		t.Errorf("the first: %+v", a)
	}
	// What was refused as not served is not served later on: whoever holds the refusal may repeat
	// it.
	if a := third.Open(r.Send(third)); a.Err != nil || a.Status != 409 ||
		a.Header.Get(ohttp.HeaderProcessed) != "" {
		t.Errorf("the refused one again: %+v", a)
	}
	s = r.Seal(fakes.Inner{})
	r.s.cfg.Keys.Close()
	if w := r.Send(s); w.Code != 503 {
		t.Errorf("without keys: %d", w.Code)
	}
	if w := r.Do(httptest.NewRequest(http.MethodGet, ohttp.Path, nil)); w.Code != 503 {
		t.Errorf("the list without keys: %d", w.Code)
	}
	_ = r.s.Close()
	if w := r.Send(s); w.Code != 503 {
		t.Errorf("closed: %d", w.Code)
	}
}

// A body that does not come in time, before and after a chunk has opened.
func TestObliviousSlowBody(t *testing.T) {
	t.Parallel()
	g := startGateway(
		t,
		testkit.AnswerText("never"),
		func(c *Config) { c.BodyTimeout = 500 * time.Millisecond },
	)
	server := httptest.NewServer(g)
	defer server.Close()
	r := &rig{Rig: &fakes.Rig{T: t, Handler: g}, s: g}
	message := fakes.Inner{}.Encode(t)
	s := fakes.SealChunks(t, r.KeyConfig(), false, message)
	for name, c := range map[string]struct {
		part   []byte
		status int
	}{"nothing opened": {s.Body[:100], 408}, "a chunk opened": {s.Body, 200}} {
		body, in := io.Pipe()
		go func() { _, _ = in.Write(c.part) }()
		req, _ := http.NewRequest(http.MethodPost, server.URL+ohttp.Path, body)
		req.Header.Set("Content-Type", ohttp.TypeRequest)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if resp.StatusCode != c.status {
			t.Errorf("%s: %d, want %d", name, resp.StatusCode, c.status)
		} else if c.status == 200 {
			if a := s.Read(resp.Body); a.Status != 408 || a.Err != nil {
				t.Errorf("%s: %+v", name, a)
			}
		}
		_ = resp.Body.Close()
		_ = in.Close()
	}
}
