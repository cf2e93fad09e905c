// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// pacedEvents are the pieces of an event stream, each with the wait before it.
type pacedEvents []struct {
	after time.Duration
	text  string
}

const oneEvent = `data: {"choices":[{"index":0,"delta":{"content":"x"}}]}` + "\n\n"

var pacedStreams = map[string]struct {
	idle    time.Duration // of the configuration
	pieces  pacedEvents
	stalled time.Duration // after which the stream is ended; 0: never
}{
	"in time": {0, pacedEvents{{0, oneEvent}, {59 * time.Second, oneEvent},
		{59 * time.Second, oneEvent}, {1, fakes.Done}}, 0},
	"stalled": {0, pacedEvents{{0, oneEvent}, {time.Hour, fakes.Done}}, time.Minute},
	"stalled later": {0, pacedEvents{{30 * time.Second, oneEvent}, {30 * time.Second, oneEvent},
		{61 * time.Second, fakes.Done}}, 2 * time.Minute},
	"thinking": {0, pacedEvents{{5 * time.Minute, oneEvent}, {1, fakes.Done}}, 0},
	"thinking aloud": {0, pacedEvents{{0, ": wait\n\n"}, {5 * time.Minute, oneEvent},
		{1, fakes.Done}},
		0},
	"half an event": {0, pacedEvents{{0, oneEvent[:20]}, {5 * time.Minute, oneEvent[20:]}, {1,
		fakes.Done}}, 0},
	"comments": {0, pacedEvents{{0, oneEvent}, {50 * time.Second, ": ping\n\n"},
		{50 * time.Second, ":\n\n"}, {50 * time.Second, fakes.Done}}, 0},
	"comments that end": {0, pacedEvents{{0, oneEvent}, {50 * time.Second, ": ping\n\n"},
		{2 * time.Minute, fakes.Done}}, 110 * time.Second},
	"of its own": {5 * time.Second, pacedEvents{{0, oneEvent}, {6 * time.Second, fakes.Done}},
		5 * time.Second},
	"longer":   {5 * time.Minute, pacedEvents{{0, oneEvent}, {4 * time.Minute, fakes.Done}}, 0},
	"no limit": {-1, pacedEvents{{0, oneEvent}, {9 * time.Minute, fakes.Done}}, 0},
	"no end":   {0, pacedEvents{{0, oneEvent}, {0, fakes.Done}, {time.Hour, ""}}, time.Minute},
}

func (p pacedEvents) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/event-stream")
	for _, piece := range p {
		w.(http.Flusher).Flush()
		select {
		case <-time.After(piece.after):
		case <-r.Context().Done():
			w.(*fakes.Writer).Abandon()
			return
		}
		_, _ = io.WriteString(w, piece.text)
	}
}

// A stream that stands still ends the call, releases what it held, and is never taken for an end.
func TestStalledStreams(t *testing.T) {
	for name, test := range pacedStreams {
		ways := map[string]func(t *testing.T, c *sealedchat.SecureCompletionClient) error{
			"Stream": func(t *testing.T, c *sealedchat.SecureCompletionClient) error {
				_, err := collect(t, c, ask("x"))
				return err
			},
			"HTTPClient": func(t *testing.T, c *sealedchat.SecureCompletionClient) error {
				resp, err := c.HTTPClient().Post("https://gateway.test/v1/chat/completions",
					"application/json",
					strings.NewReader(`{"model":"m","messages":[],"stream":true}`))
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				_, err = io.ReadAll(resp.Body)
				return err
			},
		}
		for way, call := range ways {
			t.Run(name+" "+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					rec := &auditRecorder{}
					client := pipedClient(t, fakes.NewGateway(t, test.pieces.ServeHTTP),
						func(c *sealedchat.Config) {
							c.IdleTimeout, c.Audit = test.idle, rec.Record
						})
					start := time.Now()
					err := call(t, client)
					took := time.Since(start)
					switch {
					case test.stalled == 0:
						if err != nil {
							t.Errorf("after %v: %v", took, err)
						}
					case !errors.Is(err, sealedchat.ErrConnection) || !strings.Contains(err.Error(),
						"stood still") || took != test.stalled:
						t.Errorf("after %v: %v", took, err)
					}
					if told := rec.take(); strings.HasSuffix(told[len(told)-1],
						" cut short") != (test.stalled > 0) {
						t.Errorf("told %q", told)
					}
					failures := int64(0)
					if test.stalled > 0 {
						failures = 1
					}
					if s := client.Stats(); s.Requests != 1 || s.InFlight != 0 ||
						s.Failures != failures {
						t.Errorf("%+v", s)
					}
				})
			})
		}
	}
}

// Who reads slowly has no stream that stands still.
func TestSlowReadersAreNotStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := pipedClient(t, fakes.NewGateway(t, fakes.WordByWord(nil, "a", "b", "c")), nil)
		n := 0
		for _, err := range client.Stream(t.Context(), ask("x")) {
			if err != nil {
				t.Fatal(err)
			}
			n++
			time.Sleep(2 * time.Minute)
		}
		if n != 3 {
			t.Errorf("%d chunks", n)
		}
	})
}

// pacedBody is the body of an upstream's answer.
type pacedBody struct {
	pieces pacedEvents
	closed chan struct{}
}

func (b *pacedBody) Read(p []byte) (int, error) {
	if len(b.pieces) == 0 {
		return 0, io.EOF
	}
	piece := b.pieces[0]
	b.pieces = b.pieces[1:]
	select {
	case <-time.After(piece.after):
		return copy(p, piece.text), nil
	case <-b.closed:
		return 0, io.EOF // the worst that it can look like
	}
}

func (b *pacedBody) Close() error {
	select {
	case <-b.closed:
	default:
		close(b.closed)
	}
	return nil
}

// The gateway lets go of an upstream that stands still, and its client does not take that for an
// end.
func TestGatewayStalledUpstream(t *testing.T) {
	for name, test := range pacedStreams {
		if name == "no end" { // of the connection: [DONE] is the end, and the upstream may go
			test.stalled = 0
		}
		for _, pad := range []int{0, 512} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					body := &pacedBody{test.pieces, make(chan struct{})}
					var log bytes.Buffer
					g := newGateway(t, sealedchat.GatewayConfig{
						Upstream: "https://upstream.test/v1", AllowUnauthenticated: true,
						Keys: storedKeys(t, "rsa-2048"), IdleTimeout: test.idle,
						OHTTP: sealedchat.GatewayOHTTP{Padding: pad},
						Logger: slog.New(slog.NewTextHandler(&log,
							&slog.HandlerOptions{Level: slog.LevelDebug})),
						UpstreamTransport: testkit.RoundTrip(func(*http.Request) (*http.Response,
							error) {
							resp := testkit.Respond(200, "", "Content-Type", "text/event-stream")
							resp.Body, resp.ContentLength = body, -1
							return resp, nil
						}),
					})
					s := sealRequest(t, g,
						`{"model":"m","messages":[{"role":"user","content":"hi"}]}`)
					start := time.Now()
					w := httptest.NewRecorder()
					g.ServeHTTP(w, s.post(t))
					took := time.Since(start)
					if status, _, err := s.open(t, w); status != 200 ||
						(err == nil) != (test.stalled == 0) ||
						test.stalled > 0 && took != test.stalled {
						t.Errorf("after %v: %d, %v", took, status, err)
					}
					if name == "no end" && took > time.Second {
						t.Errorf("the upstream is let go after %v", took)
					}
					if told := strings.Contains(log.String(),
						"stood still"); told != (test.stalled > 0) {
						t.Errorf("logged: %s", log.String())
					}
					<-body.closed
					if n := g.Stats().InFlight; n != 0 {
						t.Errorf("%d places are taken", n)
					}
				})
			})
		}
	}
}
