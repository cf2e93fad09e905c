// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// However an answer ends, its body is closed and its keys are gone.
func TestOHTTPNothingStaysOpen(t *testing.T) {
	g := fakes.NewGateway(t, fakes.WordByWord(nil, "a", "b", "c"))
	rt := &fakes.CloseRecorder{RoundTripper: fakes.Direct(g)}
	client := ohttpClient(t, "https://gateway.test", func(c *Config) { c.Transport = rt })
	body, _ := ask("x").encode()
	in := chatRequest(body, false)
	for name, end := range map[string]func(*openedBody){
		"closed": func(b *openedBody) { _ = b.Close() },
		"read":   func(b *openedBody) { _, _ = io.Copy(io.Discard, b) },
		"closed late": func(b *openedBody) {
			_, _ = io.ReadFull(b, make([]byte, 10))
			_ = b.Close()
			_ = b.Close()
		},
	} {
		resp, err := client.stream(t.Context(), in, nil)
		if err != nil {
			t.Fatal(err)
		}
		end(resp.body)
		if _, err := resp.body.reader.Read(make([]byte, 1)); !errors.Is(err, ohttp.ErrUsed) {
			t.Errorf("%s: the keys are there: %v", name, err)
		}
	}
	for name, inner := range map[string]http.HandlerFunc{
		"an error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"encoded": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.WriteHeader(200)
		},
	} {
		g.Set(func() { g.Inner = inner })
		if _, err := client.stream(t.Context(), in, nil); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	g.Set(func() {
		g.Outer = func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(200)
			return true
		}
	})
	if _, err := client.stream(t.Context(), in, nil); err == nil {
		t.Error("an empty answer was taken")
	}
	if n := rt.Open.Load(); n != 0 {
		t.Errorf("%d bodies were not closed", n)
	}
	if s := client.Stats(); s.InFlight != 0 {
		t.Errorf("%+v", s)
	}
}

// The context may end when the header has opened and stream has not returned yet: the call has its
// line, once, and there is no data race.
func TestOHTTPContextEndsWithTheHeader(t *testing.T) {
	g := fakes.NewGateway(t, fakes.WordByWord(nil, "a", "b", "c"))
	rt := &headerEnds{RoundTripper: fakes.Direct(g)}
	lines := make(lineChan, 100)
	client := ohttpClient(t, "https://gateway.test", func(c *Config) {
		c.Transport, c.Logger = rt, slog.New(slog.NewTextHandler(lines, nil))
	})
	if err := client.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	body, _ := ask("x").encode()
	for range 20 {
		ctx, cancel := context.WithCancel(t.Context())
		rt.cancel = cancel
		resp, err := client.stream(ctx, chatRequest(body, false), nil)
		rt.cancel = nil
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if line := <-lines; !strings.Contains(line, "context canceled") {
			t.Errorf("the line is %s", line)
		}
		if _, err := io.ReadAll(resp.body); !errors.Is(err, context.Canceled) {
			t.Errorf("the body ended with %v", err)
		}
		_ = resp.body.Close()
	}
	if len(lines) != 0 {
		t.Errorf("another line: %s", <-lines)
	}
	if s := client.Stats(); s.InFlight != 0 {
		t.Errorf("%+v", s)
	}
}

// lineChan gets what a log writes, a line at a time.
type lineChan chan string

func (c lineChan) Write(line []byte) (int, error) {
	c <- string(line)
	return len(line), nil
}

// headerEnds calls cancel when the first bytes of an answer are read.
type headerEnds struct {
	http.RoundTripper
	cancel func()
}

func (e *headerEnds) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := e.RoundTripper.RoundTrip(req)
	if err == nil && e.cancel != nil {
		resp.Body = &endingBody{resp.Body, e.cancel}
	}
	return resp, err
}

type endingBody struct {
	io.ReadCloser
	cancel func()
}

func (b *endingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.cancel()
	return n, err
}

// The answer is opened to the beginning of the room that was made for it, and nothing else stays
// there.
func TestOHTTPOpensIntoRoom(t *testing.T) {
	g := fakes.NewGateway(t, fakes.ShortAnswer)
	client := directClient(t, g, func(c *Config) { c.Memory = MemoryOff }) // reads it afterwards
	r, err := client.wire.seal(t.Context(), chatRequest([]byte(`{"model":"m"}`), true),
		&callOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.release()
	outside, err := client.http.RoundTrip(r.http)
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Body.Close()
	came := &keptReads{ReadCloser: outside.Body}
	outside.Body = came
	var room []byte
	got, err := client.wire.openAnswer(t.Context(), r, outside, func(n int) ([]byte, error) {
		room = bytes.Repeat([]byte{0xff}, n)
		return room, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	n := len(got.plaintext)
	if n == 0 || &got.plaintext[0] != &room[0] || !bytes.Contains(room, []byte("Paris")) {
		t.Errorf("%d bytes", n)
	}
	if rest := bytes.Trim(room[n:], "\xff"); len(bytes.Trim(rest, "\x00")) > 0 {
		t.Errorf("behind it: %q", rest)
	}
	for _, b := range came.into {
		if bytes.Contains(b, []byte("Paris")) {
			t.Error("it stayed where it came and was opened")
		}
	}
}

// keptReads keeps the memory that is read into.
type keptReads struct {
	io.ReadCloser
	into [][]byte
}

func (k *keptReads) Read(p []byte) (int, error) {
	k.into = append(k.into, p)
	return k.ReadCloser.Read(p)
}

// again has the next call ask for the list, as if an hour had passed.
func again(c *SecureCompletionClient) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	c.server.fetched, c.server.quietUntil = time.Time{}, time.Time{}
}

// Replicas' clocks differ; an old list is one that says something else, and is older than that.
func TestOHTTPListsOfReplicas(t *testing.T) {
	g := fakes.NewGateway(t, answerText("x"))
	signer := g.Sign()
	mine := g.Signer
	client := directClient(t, g, func(c *Config) { c.Trust = Pin(signer) })
	behind := func(d time.Duration) {
		g.Set(func() { g.Now = func() time.Time { return time.Now().Add(-d) } })
		again(client)
	}
	// the same list, or nearly as new
	for _, d := range []time.Duration{0, 4 * time.Minute, 90 * time.Minute} {
		behind(d)
		if d == 4*time.Minute {
			g.Rotate()
		}
		if _, err := chatAgain(client); err != nil {
			t.Errorf("%v behind: %v", d, err)
		}
	}
	old := g.Ring.Configs()
	g.Rotate()
	behind(0)
	if _, err := chatAgain(client); err != nil {
		t.Fatal(err)
	}
	list := ohttp.AppendConfigs(nil, old...)
	// Somebody else's list does not make the client forget how new the signer's was.
	g.Sign()
	other := g.Signer
	for name, test := range map[string]struct {
		key    ed25519.PrivateKey
		behind time.Duration
		ok     bool
	}{
		"an old one": {mine, 6 * time.Minute, false}, "a stranger's": {other, 0, false},
		"too old":       {mine, 3 * time.Hour, false},
		"nearly as new": {mine, 4 * time.Minute, true},
	} {
		c := directClient(t, g, func(c *Config) { c.Trust = Pin(signer) })
		c.server.signed, c.server.key = maps.Clone(client.server.signed), client.server.key
		g.Set(func() {
			g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
				at := time.Now().Add(-test.behind)
				w.Header().Set("Content-Type", ohttp.TypeKeys)
				w.Header().Set(ohttp.HeaderSignature,
					ohttp.SignList(test.key, list, at, at.Add(24*time.Hour)))
				_, _ = w.Write(list)
				return true
			}
		})
		if err := c.Warm(t.Context()); test.ok != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Lists that are each nearly as new as the one before do not lead back to an old one, nor does
	// another signer's.
	newest := time.Unix(client.server.signed[signer].created, 0)
	third := ohttp.AppendConfigs(nil, g.Rotate().Config)
	trusted := g.Sign()
	client = directClient(t, g, func(c *Config) { c.Trust = Pin(signer, trusted) })
	for n, step := range []struct {
		list   []byte
		key    ed25519.PrivateKey
		behind time.Duration
		ok     bool
	}{
		{third, mine, 0, true}, {list, mine, 4 * time.Minute, true},
		{third, mine, 8 * time.Minute, false},
		{third, g.Signer, time.Hour, true}, {third, mine, 8 * time.Minute, false},
	} {
		g.Set(func() {
			g.Outer = func(w http.ResponseWriter, r *http.Request) bool {
				at := newest.Add(-step.behind)
				w.Header().Set("Content-Type", ohttp.TypeKeys)
				w.Header().Set(ohttp.HeaderSignature,
					ohttp.SignList(step.key, step.list, at, at.Add(24*time.Hour)))
				_, _ = w.Write(step.list)
				return true
			}
		})
		again(client)
		if err := client.Warm(t.Context()); step.ok != (err == nil) {
			t.Errorf("step %d: %v", n, err)
		}
	}
}

// Where a configuration is pinned too, a list that a stranger signed is taken for its sake, and
// says nothing about the signer's.
func TestOHTTPStrangersListDoesNotForgiveOldOnes(t *testing.T) {
	g := fakes.NewGateway(t, answerText("x"))
	signer := g.Sign()
	mine := g.Signer
	old := g.Key()
	client := directClient(t, g, func(c *Config) { c.Trust = Pin(signer, old.Fingerprint()) })
	if err := client.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.Sign()
	again(client)
	if err := client.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.Rotate()
	g.Set(func() {
		g.Signer, g.Now = mine, func() time.Time { return time.Now().Add(-10 * time.Minute) }
	})
	again(client)
	if _, ok := errors.AsType[*ServerKeyError](client.Warm(t.Context())); !ok {
		t.Error("an old list counts again")
	}
	if len(client.server.signed) != 1 {
		t.Errorf("remembers %d signers", len(client.server.signed))
	}
}

// Whoever ends TLS passes the genuine list on, with a signature of his own.
func TestOHTTPSignerIsJudged(t *testing.T) {
	g := fakes.NewGateway(t, answerText("x"))
	genuine := g.Sign()
	store := memoryStore(t)
	other := errors.New("another signer")
	var asked []string
	judge := func(c *Config) {
		c.OnServerKey = func(_, key *PublicKey) error {
			asked = append(asked, key.Signer())
			if key.Fingerprint() == g.Key().Fingerprint() && key.Signer() == genuine {
				return nil
			}
			return other
		}
	}
	mine := g.Signer
	g.Sign()
	client := directClient(t, g, func(c *Config) { judge(c); c.Trust = FirstUse(store) })
	if _, err := client.Chat(t.Context(), ask("x")); !errors.Is(err, other) || len(asked) != 1 {
		t.Fatalf("%v, asked %v", err, asked)
	}
	if _, known := store.store.Pin("ohttp+https://gateway.test"); known {
		t.Fatal("his signer is remembered")
	}
	g.Set(func() { g.Signer = mine })
	if _, err := client.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}

	// The configuration stays, and its signer changes: also where the signer is not what is
	// trusted.
	for name, trust := range map[string]Trust{"HTTPS": TrustHTTPS(),
		"pin": Pin(g.Key().Fingerprint())} {
		g.Set(func() { g.Signer = mine })
		client := directClient(t, g, func(c *Config) { judge(c); c.Trust = trust })
		if err := client.Warm(t.Context()); err != nil {
			t.Fatal(name, err)
		}
		asked = nil
		for _, change := range []func(){func() {}, func() { g.Sign() }} {
			change()
			client.server.mu.Lock()
			client.server.fetched = time.Time{} // as if an hour had passed
			client.server.mu.Unlock()
			_, err := client.Chat(t.Context(), ask("x"))
			if same := bytes.Equal(g.Signer, mine); same != (err == nil) ||
				same != (len(asked) == 0) {
				t.Errorf("%s: %v, asked %v", name, err, asked)
			}
		}
	}
	// Accepting the configuration alone remembers that, whoever signs.
	fresh := memoryStore(t)
	client = directClient(t, g, func(c *Config) { c.Trust = FirstUse(fresh) })
	if err := client.AcceptServerKey(g.Key().Fingerprint()); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	g.Rotate()
	if _, err := client.Chat(t.Context(), ask("x")); err == nil {
		t.Error("the signer was remembered")
	}
}

// A gateway that replaces its keys every day is followed by whoever remembers who signs for it.
func TestOHTTPRotationEndToEnd(t *testing.T) {
	keys, _ := weakStore(t, &KeyStoreOptions{Rotation: Rotation{Every: -1}})
	gateway := startGateway(t, fakes.Everything("!"), func(c *GatewayConfig) { c.Keys = keys })
	srv := httptest.NewServer(gateway)
	defer srv.Close()
	signer := signerOf(t, gateway)
	store := memoryStore(t)
	first := configsOf(t, gateway)
	remembering := ohttpClient(t, srv.URL, func(c *Config) { c.Trust = FirstUse(store) })
	pinned := ohttpClient(t, srv.URL, func(c *Config) { c.Trust = Pin(signer) })
	strict := ohttpClient(t, srv.URL, func(c *Config) { c.Trust = Pin(first[0].Fingerprint) })
	for range 2 {
		for _, c := range []*SecureCompletionClient{remembering, pinned, strict} {
			// the replaced keys still open requests
			if _, err := c.Chat(t.Context(), ask("x")); err != nil {
				t.Fatal(err)
			}
		}
		if err := keys.Rotate(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*SecureCompletionClient{remembering, pinned, strict} {
		c.server.mu.Lock()
		c.server.fetched = time.Time{} // as if an hour had passed
		c.server.mu.Unlock()
	}
	for _, c := range []*SecureCompletionClient{remembering, pinned} {
		if _, err := c.Chat(t.Context(), ask("x")); err != nil {
			t.Error(err)
		}
		key, err := c.ServerKey(t.Context())
		if err != nil || key.Fingerprint() == first[0].Fingerprint || key.Signer() != signer {
			t.Errorf("%v, %v", key, err)
		}
	}
	if _, err := strict.Chat(t.Context(), ask("x")); err == nil {
		t.Error("a key that was not pinned was used")
	}
}

// What the upstream says of itself comes sealed as well, when it has had the request.
func TestUpstreamRefusalsAreNotRepeated(t *testing.T) {
	for _, status := range []int{400, 429, 500, 502, 503, 504} {
		for _, processed := range []string{"", "yes", "NO"} {
			synctest.Test(t, func(t *testing.T) {
				ran := 0
				g := fakes.NewGateway(t, func(w http.ResponseWriter, _ *http.Request) {
					ran++
					w.Header().Set("Retry-After", "1")
					w.Header().Set("Date", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))
					if processed != "" {
						w.Header().Set(ohttp.HeaderProcessed, processed)
					}
					w.WriteHeader(status)
					_, _ = io.WriteString(w, `{"type":"`+ohttp.ProblemDate+`","detail":"date"}`)
				})
				client := directClient(t, g, func(c *Config) { c.MaxRetries = 5 })
				for name, call := range callsOf(client) {
					ran = 0
					err := call(t.Context())
					answer, ok := errors.AsType[*APIError](err)
					if !ok || answer.StatusCode != status || answer.RetryAfter != time.Second {
						t.Errorf("%s, %d: %v", name, status, err)
					}
					if ran != 1 || client.wire.(*ohttpProtocol).ahead.Load() != 0 {
						t.Errorf("%s, %d with %q: ran %d times, the clock is %v ahead", name,
							status, processed, ran, client.wire.(*ohttpProtocol).ahead.Load())
					}
				}
			})
		}
	}
}

func TestOHTTPRetriesWhatWasNotSent(t *testing.T) {
	g := fakes.StartGateway(t, answerText("late"))
	var dials atomic.Int32
	client := ohttpClient(t, g.URL, func(c *Config) {
		c.MaxRetries = 3
		c.Transport = &http.Transport{DialContext: func(ctx context.Context, network,
			address string) (net.Conn, error) {
			if n := dials.Add(1); n == 2 || n == 3 { // the first one is for the keys
				return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
			}
			return (&net.Dialer{}).DialContext(ctx, network, address)
		}, DisableKeepAlives: true}
	})
	client.retry.base = time.Millisecond
	if err := client.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	answer, err := client.Chat(t.Context(), ask("x"))
	if err != nil || answer.Text() != "late" || dials.Load() != 4 {
		t.Fatalf("%v after %d dials", err, dials.Load())
	}
}

func TestOHTTPDoesNotRepeatWhatMayHaveArrived(t *testing.T) {
	g := fakes.StartGateway(t, nil)
	// after the request was read
	g.Inner = func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	client := ohttpClient(t, g.URL, func(c *Config) { c.MaxRetries = 3 })
	client.retry.base = time.Millisecond
	for name, call := range callsOf(client) {
		_, before := g.Counts()
		err := call(t.Context())
		_, after := g.Counts()
		if !errors.Is(err, ErrConnection) || after-before != 1 {
			t.Errorf("%s: %v, sent %d times", name, err, after-before)
		}
	}
}

// configsOf are a gateway's key configurations.
func configsOf(t testing.TB, g *Gateway) []KeyInfo {
	t.Helper()
	keys, err := g.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(keys, func(k KeyInfo) bool {
		return k.Kind == "RSA" || k.Kind == "Ed25519"
	})
}

// signerOf is the fingerprint of the key that signs a gateway's list.
func signerOf(t testing.TB, g *Gateway) string {
	t.Helper()
	keys, err := g.Keys(t.Context())
	if err != nil || keys[len(keys)-1].Kind != "Ed25519" {
		t.Fatal(keys, err)
	}
	return keys[len(keys)-1].Fingerprint
}
