// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// problemOf reads a refusal and checks its form.
func problemOf(t testing.TB, status int, header http.Header, body string) (kind, detail string) {
	t.Helper()
	var p struct {
		Type, Title, Detail string
		Status              int
		Error               *struct{ Message, Type string }
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil || header.Get("Content-Type") != ohttp.TypeProblem || p.Status != status ||
		p.Title != http.StatusText(status) || p.Type == "" || p.Error == nil || p.Error.Message != p.Detail {
		t.Errorf("not a problem document of status %d: %v, %s, %v", status, header, body, err)
	}
	return p.Type, p.Detail
}

func dated(at time.Time) bhttp.Field {
	return bhttp.Field{Name: "date", Value: at.UTC().Format(http.TimeFormat)}
}

// What opens and is refused is refused inside, and goes nowhere.
func TestObliviousInnerRefusals(t *testing.T) {
	keys, err := AuthenticateKeys(secret(t, "key-of-the-client"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for name, c := range map[string]struct {
		m      innerRequest
		change func(*GatewayConfig)
		status int
		kind   string
	}{
		"no key":             {m: innerRequest{header: []bhttp.Field{{Name: "authorization"}}}, status: 401},
		"wrong key":          {m: innerRequest{header: []bhttp.Field{{Name: "authorization", Value: "Bearer other"}}}, status: 401},
		"not a bearer":       {m: innerRequest{header: []bhttp.Field{{Name: "authorization", Value: "Basic key-of-the-client"}}}, status: 401},
		"forbidden":          {change: func(c *GatewayConfig) { c.Authenticate = func(*http.Request) error { return ErrPermission } }, status: 403},
		"rate limited":       {change: func(c *GatewayConfig) { c.Authenticate = func(*http.Request) error { return ErrRateLimited } }, status: 429},
		"no date":            {m: innerRequest{header: []bhttp.Field{{Name: "date"}}}, status: 400, kind: ohttp.ProblemDate},
		"a date of words":    {m: innerRequest{header: []bhttp.Field{{Name: "date", Value: "today"}}}, status: 400, kind: ohttp.ProblemDate},
		"two dates":          {m: innerRequest{header: []bhttp.Field{dated(now), dated(now)}}, status: 400, kind: ohttp.ProblemDate},
		"an old date":        {m: innerRequest{header: []bhttp.Field{dated(now.Add(-2*time.Minute - 2*time.Second))}}, status: 400, kind: ohttp.ProblemDate},
		"a date to come":     {m: innerRequest{header: []bhttp.Field{dated(now.Add(2*time.Minute + 10*time.Second))}}, status: 400, kind: ohttp.ProblemDate},
		"a narrow window":    {m: innerRequest{header: []bhttp.Field{dated(now.Add(-5 * time.Second))}}, change: func(c *GatewayConfig) { c.OHTTP.DateWindow = 3 * time.Second }, status: 400, kind: ohttp.ProblemDate},
		"another path":       {m: innerRequest{path: "/v1/files"}, status: 404},
		"a longer path":      {m: innerRequest{path: "/v1/chat/completions/"}, status: 404},
		"dots":               {m: innerRequest{path: "/v1/chat/../chat/completions"}, status: 404},
		"two slashes":        {m: innerRequest{path: "//v1/chat/completions"}, status: 404},
		"escaped":            {m: innerRequest{path: "/v1/chat%2Fcompletions"}, status: 404},
		"badly escaped":      {m: innerRequest{path: "/v1/%zz"}, status: 400},
		"an option":          {m: innerRequest{method: "OPTIONS", path: "*"}, status: 404},
		"another method":     {m: innerRequest{method: http.MethodDelete}, status: 405},
		"GET of a chat":      {m: innerRequest{method: http.MethodGet}, status: 405},
		"POST of models":     {m: innerRequest{path: "/v1/models"}, status: 405},
		"not on the list":    {change: func(c *GatewayConfig) { c.OHTTP.Allow = []string{"GET /v1/models"} }, status: 404},
		"an empty list":      {change: func(c *GatewayConfig) { c.OHTTP.Allow = []string{} }, status: 404},
		"a tier too high":    {m: innerRequest{header: []bhttp.Field{{Name: "x-security-tier", Value: "maximum"}}}, status: 403},
		"a tier that is not": {m: innerRequest{header: []bhttp.Field{{Name: "x-security-tier", Value: "top"}}}, status: 400},
		"content encoding":   {m: innerRequest{header: []bhttp.Field{{Name: "content-encoding", Value: "gzip"}}}, status: 400},
		"a trailer":          {m: innerRequest{trailer: []bhttp.Field{{Name: "x-late", Value: "1"}}}, status: 400},
		"too much content":   {m: innerRequest{body: strings.Repeat("x", 3000)}, change: func(c *GatewayConfig) { c.MaxRequestBytes = 2999 }, status: 413},
		"too many fields":    {m: innerRequest{header: many(300)}, status: 413},
		"replays unknown":    {change: func(c *GatewayConfig) { c.Replay = deafReplay{} }, status: 503},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(g *GatewayConfig) {
				g.Authenticate = keys
				if c.change != nil {
					c.change(g)
				}
			})
			s := r.seal(c.m)
			w := r.send(s)
			a := s.open(w)
			if a.err != nil || a.status != c.status {
				t.Fatalf("%+v, want status %d", a, c.status)
			}
			kind, _ := problemOf(t, c.status, a.header, a.body)
			if want := c.kind; kind != want && (want != "" || kind != "about:blank") {
				t.Errorf("type %q, want %q", kind, want)
			}
			if _, err := http.ParseTime(a.header.Get("Date")); err != nil || a.header.Get("X-Security-Tier") != "standard" {
				t.Errorf("header %v", a.header)
			}
			if c.status == 405 && a.header.Get("Allow") == "" || c.status == 401 && a.header.Get("Www-Authenticate") != "Bearer" {
				t.Errorf("header %v", a.header)
			}
			if a.header.Get(ohttp.HeaderProcessed) != "no" {
				t.Errorf("it does not say that nothing was processed: %v", a.header)
			}
			if n := len(r.forwarded()); n != 0 {
				t.Errorf("%d requests went upstream", n)
			}
			for _, word := range []string{"key-of-the-client", "completions", "content\\\"", "files"} {
				if strings.Contains(r.logged(), word) {
					t.Errorf("the log says %q: %s", word, r.logged())
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
	config := r.keyConfig()
	message := innerRequest{}.encode(t)
	good := sealFor(t, config, message).body
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
		"for another gateway":    {body: sealFor(t, key.Config(), message).body, status: 422},
		"cut in the final chunk": {body: good[:len(good)-1], status: 422},
		"a byte more":            {body: append(bytes.Clone(good), 0), status: 422},
		"nothing":                {body: nil, status: 400},
		"cut in the head":        {body: good[:head-1], status: 400},
		"cut in the secret":      {body: good[:head+enc-1], status: 400},
		"cut before the chunk":   {body: good[:head+enc], status: 400},
		"an empty chunk":         {body: append(bytes.Clone(good[:head+enc]), 16), status: 400},
		"a huge chunk":           {body: append(bytes.Clone(good[:head+enc]), 0x80, 1, 0, 0), status: 413},
		"no type":                {body: good, header: []string{"Content-Type", ""}, status: 415},
		"not chunked":            {body: good, header: []string{"Content-Type", "message/ohttp-req"}, status: 415},
		"content encoding":       {body: good, header: []string{"Content-Encoding", "gzip"}, status: 415},
	} {
		t.Run(name, func(t *testing.T) {
			req := obliviousPost(t, bytes.NewReader(c.body))
			for i := 0; i < len(c.header); i += 2 {
				req.Header.Set(c.header[i], c.header[i+1])
			}
			w := r.do(req)
			if w.Code != c.status {
				t.Fatalf("%d %s, want %d", w.Code, w.Body, c.status)
			}
			kind, detail := problemOf(t, c.status, w.Header(), w.Body.String())
			if (kind == ohttp.ProblemKey) != (c.status == 422) {
				t.Errorf("type %q", kind)
			}
			if c.status == 422 && detail != "the request cannot be decrypted; fetch the key configurations again" {
				t.Errorf("the reasons can be told apart: %q", detail)
			}
		})
	}
	if n := len(r.forwarded()); n != 0 {
		t.Errorf("%d requests went upstream", n)
	}
}

// Every bit of a request matters: whichever is flipped, nothing goes upstream.
func TestObliviousBitFlips(t *testing.T) {
	r := newRig(t, func(c *GatewayConfig) { c.OHTTP.StrangerRate = -1 })
	good := r.seal(innerRequest{}).body
	step := 7 // coprime to 8: all bits of some bytes, and some of each byte
	for bit := 0; bit < 8*len(good); bit += step {
		b := bytes.Clone(good)
		b[bit/8] ^= 1 << (bit % 8)
		if w := r.do(obliviousPost(t, bytes.NewReader(b))); w.Code < 400 || w.Code == 500 {
			t.Fatalf("bit %d: %d", bit, w.Code)
		}
	}
	if n := len(r.forwarded()); n != 0 {
		t.Errorf("%d requests went upstream", n)
	}
	if w := r.do(obliviousPost(t, bytes.NewReader(good))); w.Code != 200 || len(r.forwarded()) != 1 {
		t.Errorf("as it was: %d", w.Code)
	}
}

// chunkedRequest seals a message in the given pieces, without the final chunk if finish is false.
func chunkedRequest(t testing.TB, c *ohttp.Config, finish bool, pieces ...[]byte) *sealedTest {
	t.Helper()
	q, err := ohttp.NewRequest(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	var body bytes.Buffer
	w, err := q.Writer(&body)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, p := range pieces {
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if finish {
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
	}
	return &sealedTest{t: t, q: q, body: body.Bytes()}
}

// A request whose final chunk never comes is not acted on, however complete its message looks. The refusal is sealed: a
// chunk of it has opened.
func TestObliviousWithoutFinalChunk(t *testing.T) {
	r := newRig(t, nil)
	message := innerRequest{}.encode(t)
	half := len(message) / 2
	for name, s := range map[string]*sealedTest{
		"all of the message":  chunkedRequest(t, r.keyConfig(), false, message),
		"half of it":          chunkedRequest(t, r.keyConfig(), false, message[:half]),
		"in two":              chunkedRequest(t, r.keyConfig(), false, message[:half], message[half:]),
		"the end flipped":     chunkedRequest(t, r.keyConfig(), true, message),
		"bytes after the end": chunkedRequest(t, r.keyConfig(), true, message),
		"more than a message": chunkedRequest(t, r.keyConfig(), true, message, []byte("x")),
		"not a message":       chunkedRequest(t, r.keyConfig(), true, []byte("nothing of the kind")),
		"half a message":      chunkedRequest(t, r.keyConfig(), true, message[:half]),
		"a response":          chunkedRequest(t, r.keyConfig(), true, append([]byte{1}, message[1:]...)),
	} {
		switch name {
		case "the end flipped":
			s.body[len(s.body)-1] ^= 1
		case "bytes after the end":
			s.body = append(s.body, "more"...)
		}
		a := s.open(r.send(s))
		if a.err != nil || a.status != 400 {
			t.Errorf("%s: %+v", name, a)
		}
		problemOf(t, 400, a.header, a.body)
	}
	if n := len(r.forwarded()); n != 0 {
		t.Errorf("%d requests went upstream", n)
	}
	// The same in two whole chunks is served.
	s := chunkedRequest(t, r.keyConfig(), true, message[:half], message[half:])
	if a := s.open(r.send(s)); a.err != nil || a.status != 200 {
		t.Errorf("whole: %+v", a)
	}
}

func TestObliviousReplay(t *testing.T) {
	r := newRig(t, nil)
	s := r.seal(innerRequest{})
	first := r.send(s)
	again := r.send(s)
	if n := len(r.forwarded()); n != 1 {
		t.Errorf("%d requests went upstream", n)
	}
	if a := s.open(first); a.status != 200 || a.err != nil {
		t.Errorf("%+v", a)
	}
	// The refusal opens with the keys of the request that was replayed: it is sealed, and nobody else can read it.
	if again.Code != 200 || again.Header().Get("Content-Type") != ohttp.TypeResponse || strings.Contains(again.Body.String(), "sent before") {
		t.Fatalf("%d %v", again.Code, again.Header())
	}
	s2 := r.seal(innerRequest{})
	r.answer = func(*http.Request, []byte) (*http.Response, error) { return nil, errors.New("down") }
	r.send(s2) // fails upstream, and stays claimed all the same
	if a := s2.open(r.send(s2)); a.status != 409 || a.err != nil {
		t.Errorf("%+v", a)
	}
}

// An answer opens for its own request alone.
func TestObliviousSwappedAnswers(t *testing.T) {
	r := newRig(t, nil)
	one, other := r.seal(innerRequest{}), r.seal(innerRequest{})
	w := r.send(one)
	r.send(other)
	if a := other.open(w); !errors.Is(a.err, ohttp.ErrDecryption) {
		t.Errorf("%+v", a)
	}
}

func TestObliviousReplayCacheFull(t *testing.T) {
	cache := NewReplayCache(2)
	r := newRig(t, func(c *GatewayConfig) { c.Replay = cache; c.OHTTP.DateWindow = time.Hour })
	want := []int{200, 200, 503}
	for i, status := range want {
		s := r.seal(innerRequest{})
		if a := s.open(r.send(s)); a.status != status || a.err != nil {
			t.Errorf("request %d: %+v", i, a)
		}
	}
}

func TestGatewayProtocols(t *testing.T) {
	paths := []string{ohttp.Path, hybrid.PathPublicKey, hybrid.PathCompletion}
	for name, c := range map[string]struct {
		protocols []Protocol
		served    []bool
	}{
		"both":     {nil, []bool{true, true, true}},
		"listed":   {[]Protocol{ProtocolOHTTP, ProtocolEnvelope}, []bool{true, true, true}},
		"envelope": {[]Protocol{ProtocolEnvelope}, []bool{false, true, true}},
		"ohttp":    {[]Protocol{ProtocolOHTTP}, []bool{true, false, false}},
		"none":     {[]Protocol{}, []bool{false, false, false}},
	} {
		r := newRig(t, func(g *GatewayConfig) { g.Protocols = c.protocols })
		for i, path := range paths {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				if w := r.do(httptest.NewRequest(method, path, nil)); (w.Code != 404) != c.served[i] {
					t.Errorf("%s: %s %s: %d", name, method, path, w.Code)
				}
			}
		}
		if w := r.do(httptest.NewRequest(http.MethodGet, "/healthz", nil)); w.Code != 200 {
			t.Errorf("%s: /healthz: %d", name, w.Code)
		}
	}
	for _, bad := range []Protocol{"", "9", "OHTTP", "envelope,ohttp"} {
		_, err := NewGateway(GatewayConfig{Upstream: "https://a.test", AllowUnauthenticated: true, Protocols: []Protocol{ProtocolOHTTP, bad}})
		if c, ok := errors.AsType[*ConfigError](err); !ok || c.Field != "GatewayConfig.Protocols" {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestObliviousMethods(t *testing.T) {
	r := newRig(t, nil)
	if w := r.do(httptest.NewRequest(http.MethodPut, ohttp.Path, nil)); w.Code != 405 || w.Header().Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("PUT: %d %v", w.Code, w.Header())
	}
}

func TestGatewayOHTTPConfig(t *testing.T) {
	for name, o := range map[string]GatewayOHTTP{
		"a path alone":     {Allow: []string{"/v1/models"}},
		"a query":          {Allow: []string{"GET /v1/models?x"}},
		"not absolute":     {Allow: []string{"GET v1/models"}},
		"no method":        {Allow: []string{" /v1/models"}},
		"a pattern":        {Allow: []string{"GET /v1/*"}},
		"a negative date":  {DateWindow: -1},
		"a long date":      {DateWindow: 25 * time.Hour},
		"an odd pad":       {Pad: 1000},
		"a negative pad":   {Pad: -1},
		"a large pad":      {Pad: 1 << 15},
		"a negative burst": {StrangerBurst: -1},
		"a large rate":     {StrangerRate: 1e9},
	} {
		_, err := NewGateway(GatewayConfig{Upstream: "https://a.test", AllowUnauthenticated: true, OHTTP: o})
		if c, ok := errors.AsType[*ConfigError](err); !ok || !strings.HasPrefix(c.Field, "GatewayConfig.OHTTP.") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Closing, too many at a time, and a store that is closed.
func TestObliviousUnavailable(t *testing.T) { synctest.Test(t, testObliviousUnavailable) }

func testObliviousUnavailable(t *testing.T) {
	began, release := make(chan struct{}), make(chan struct{})
	r := newRig(t, func(c *GatewayConfig) { c.MaxConcurrent = 1 })
	r.answer = func(*http.Request, []byte) (*http.Response, error) {
		close(began)
		<-release
		return respond(200, fineAnswer), nil
	}
	s := r.seal(innerRequest{})
	done := make(chan *httptest.ResponseRecorder)
	go func() { done <- r.send(s) }()
	<-began
	second := r.seal(innerRequest{})
	a := second.open(r.send(second))
	if a.err != nil || a.status != 503 || a.header.Get("Retry-After") != "1" || a.header.Get(ohttp.HeaderProcessed) != "no" {
		t.Errorf("too many: %+v", a)
	}
	problemOf(t, 503, a.header, a.body)
	third := r.seal(innerRequest{})
	r.send(third)
	close(release)
	if a := s.open(<-done); a.status != 200 {
		t.Errorf("the first: %+v", a)
	}
	// What was refused as not served is not served later on: whoever holds the refusal may repeat it.
	if a := third.open(r.send(third)); a.err != nil || a.status != 409 || a.header.Get(ohttp.HeaderProcessed) != "" {
		t.Errorf("the refused one again: %+v", a)
	}
	s = r.seal(innerRequest{})
	_ = r.g.cfg.Keys.Close()
	if w := r.send(s); w.Code != 503 {
		t.Errorf("without keys: %d", w.Code)
	}
	if w := r.do(httptest.NewRequest(http.MethodGet, ohttp.Path, nil)); w.Code != 503 {
		t.Errorf("the list without keys: %d", w.Code)
	}
	_ = r.g.Close()
	if w := r.send(s); w.Code != 503 {
		t.Errorf("closed: %d", w.Code)
	}
}

// A body that does not come in time, before and after a chunk has opened.
func TestObliviousSlowBody(t *testing.T) {
	t.Parallel()
	g := startGateway(t, answerText("never"), func(c *GatewayConfig) { c.BodyTimeout = 500 * time.Millisecond })
	server := httptest.NewServer(g)
	defer server.Close()
	r := &rig{t: t, g: g}
	message := innerRequest{}.encode(t)
	s := chunkedRequest(t, r.keyConfig(), false, message)
	for name, c := range map[string]struct {
		part   []byte
		status int
	}{"nothing opened": {s.body[:100], 408}, "a chunk opened": {s.body, 200}} {
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
			if a := s.read(resp.Body); a.status != 408 || a.err != nil {
				t.Errorf("%s: %+v", name, a)
			}
		}
		_ = resp.Body.Close()
		_ = in.Close()
	}
}
