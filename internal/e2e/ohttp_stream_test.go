// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// panickingLimiter is a Limiter that does.
type panickingLimiter struct{}

func (panickingLimiter) Wait(context.Context) error { panic("the limiter") }

// panickingTransport panics from some moment on.
type panickingTransport struct {
	http.RoundTripper
	panics bool
}

func (p *panickingTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if p.panics {
		panic("the transport")
	}
	return p.RoundTripper.RoundTrip(r)
}

// panickingAuditor panics at events of one type.
func panickingAuditor(at sealedchat.EventType) sealedchat.Auditor {
	return sealedchat.Auditor(func(_ context.Context, e sealedchat.Event) error {
		if e.Type == at {
			panic("the auditor")
		}
		return nil
	})
}

// Who recovers from a panic of his callback, as net/http does for a handler, can still close the
// client.
func TestStreamSurvivesPanics(t *testing.T) {
	for name, change := range map[string]func(*sealedchat.Config){
		"OnServerKey": func(c *sealedchat.Config) {
			c.OnServerKey = func(_, _ *sealedchat.PublicKey) error { panic("the callback") }
		},
		"Limiter":         func(c *sealedchat.Config) { c.Limiter = panickingLimiter{} },
		"Transport":       nil,
		"request_sealed":  func(c *sealedchat.Config) { c.Audit = panickingAuditor(sealedchat.EventRequestSealed) },
		"response_opened": func(c *sealedchat.Config) { c.Audit = panickingAuditor(sealedchat.EventResponseOpened) },
	} {
		ways := map[string]func(*sealedchat.SecureCompletionClient){
			"Stream": func(c *sealedchat.SecureCompletionClient) {
				for range c.Stream(context.Background(), ask("x")) {
				}
			},
			"Stream left early": func(c *sealedchat.SecureCompletionClient) {
				for range c.Stream(context.Background(), ask("x")) {
					break
				}
			},
			"HTTPClient": func(c *sealedchat.SecureCompletionClient) {
				body := strings.NewReader(`{"model":"m","messages":[],"stream":true}`)
				resp, err := c.HTTPClient().Post("https://gateway.test/v1/chat/completions", "application/json", body)
				if err != nil {
					return
				}
				defer resp.Body.Close()
				_, _ = io.ReadAll(resp.Body)
			},
		}
		for way, call := range ways {
			t.Run(name+" "+way, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { // where what hangs is told of
					g := fakes.NewGateway(t, fakes.WordByWord(nil, "a", "b"))
					rt := &panickingTransport{RoundTripper: fakes.Direct(g)}
					if name == "Transport" { // which carries the list of keys first
						change = func(c *sealedchat.Config) { c.Transport = rt }
					}
					client := directClient(t, g, change)
					if name == "Transport" {
						if err := client.Warm(t.Context()); err != nil {
							t.Fatal(err)
						}
						rt.panics = true
					}
					func() {
						defer func() {
							if recover() == nil {
								t.Error("no panic")
							}
						}()
						call(client)
					}()
					if s := client.Stats(); s.InFlight != 0 || s.Requests != 1 || s.Failures != 1 {
						t.Errorf("%+v", s)
					}
					if err := client.Close(); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

// What the Auditor did not get to record is not whole, for whoever reads on.
func TestStreamPanicWithholdsTheEnd(t *testing.T) {
	g := fakes.NewGateway(t, fakes.WordByWord(nil, "a"))
	client := directClient(t, g, func(c *sealedchat.Config) { c.Audit = panickingAuditor(sealedchat.EventResponseOpened) })
	resp, err := client.HTTPClient().Post("https://gateway.test/v1/chat/completions", "application/json",
		strings.NewReader(`{"model":"m","messages":[],"stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	func() {
		defer func() { _ = recover() }()
		_, _ = io.ReadAll(resp.Body)
	}()
	if n, err := resp.Body.Read(make([]byte, 1)); n != 0 || err == nil || err == io.EOF {
		t.Errorf("read on: %d, %v", n, err)
	}
}

// The Auditor's error is logged where a loop that was left, or a body that was closed, has nobody
// to return it to; once.
func TestStreamLeftEarlyLogsTheAuditor(t *testing.T) {
	post := func(t *testing.T, c *sealedchat.SecureCompletionClient, ctx context.Context) io.ReadCloser {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://gateway.test/v1/chat/completions",
			strings.NewReader(`{"model":"m","messages":[],"stream":true}`))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.HTTPClient().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Body
	}
	for name, test := range map[string]struct {
		fail   sealedchat.EventType
		leave  func(t *testing.T, c *sealedchat.SecureCompletionClient)
		logged int
	}{
		"a loop": {sealedchat.EventResponseOpened, func(t *testing.T, c *sealedchat.SecureCompletionClient) {
			for _, err := range c.Stream(t.Context(), ask("x")) {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
		}, 1},
		"a body": {sealedchat.EventResponseOpened, func(t *testing.T, c *sealedchat.SecureCompletionClient) {
			body := post(t, c, t.Context())
			_, _ = body.Close(), body.Close()
		}, 1},
		"a body behind [DONE]": {sealedchat.EventResponseOpened, func(t *testing.T, c *sealedchat.SecureCompletionClient) {
			body := post(t, c, t.Context())
			defer body.Close()
			readEvents(t, body)
		}, 1},
		"a context that ended": {sealedchat.EventResponseOpened, func(t *testing.T, c *sealedchat.SecureCompletionClient) {
			ctx, cancel := context.WithCancel(t.Context())
			body := post(t, c, ctx)
			cancel()
			synctest.Wait()
			_ = body.Close()
		}, 1},
		"read to its end": {sealedchat.EventResponseOpened, func(t *testing.T, c *sealedchat.SecureCompletionClient) {
			body := post(t, c, t.Context())
			if _, err := io.ReadAll(body); !errors.Is(err, errNotRecorded) {
				t.Errorf("read: %v", err)
			}
			_ = body.Close()
		}, 0},
		"a loop to its end": {sealedchat.EventResponseOpened, func(t *testing.T, c *sealedchat.SecureCompletionClient) {
			if _, err := collect(t, c, ask("x")); !errors.Is(err, errNotRecorded) {
				t.Errorf("loop: %v", err)
			}
		}, 0},
		"recorded": {"", func(t *testing.T, c *sealedchat.SecureCompletionClient) {
			for range c.Stream(t.Context(), ask("x")) {
				break
			}
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				client := directClient(t, fakes.NewGateway(t, fakes.WordByWord(nil, "a", "b")), func(c *sealedchat.Config) {
					c.Audit = (&auditRecorder{fail: test.fail}).Record
					c.Logger = slog.New(slog.NewTextHandler(&log, nil))
				})
				test.leave(t, client)
				told := ""
				for line := range strings.Lines(log.String()) {
					if !strings.Contains(line, "level=INFO msg=request ") { // a call's line has its error
						told += line
					}
				}
				n := strings.Count(told, `level=ERROR msg="audit failed" payload_id=`)
				if n != test.logged || strings.Count(told, errNotRecorded.Error()) != n {
					t.Errorf("logged %d times: %s", n, log.String())
				}
			})
		})
	}
}

// readEvents reads up to [DONE], where SDKs stop.
func readEvents(t testing.TB, body io.Reader) {
	t.Helper()
	var got []byte
	for b := make([]byte, 1); !bytes.HasSuffix(got, []byte(fakes.Done)); got = append(got, b[0]) {
		if _, err := io.ReadFull(body, b); err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
	}
}

// piped is a transport without a network whose answers pass as they come, until their body is
// closed.
type piped struct{ h http.Handler }

func (p piped) RoundTrip(req *http.Request) (*http.Response, error) {
	r, w := io.Pipe()
	answer := &pipedWriter{header: make(http.Header), to: w, begun: make(chan struct{})}
	in := req.Clone(req.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	stop := context.AfterFunc(req.Context(), func() { _ = w.CloseWithError(req.Context().Err()) })
	go func() {
		defer stop()
		p.h.ServeHTTP(answer, in)
		answer.WriteHeader(http.StatusOK)
		_ = w.Close()
	}()
	<-answer.begun
	return &http.Response{StatusCode: answer.status, Header: answer.header.Clone(), Body: r, ContentLength: -1, Request: req}, nil
}

type pipedWriter struct {
	header http.Header
	status int
	to     io.Writer
	begun  chan struct{}
}

func (w *pipedWriter) Header() http.Header { return w.header }

func (w *pipedWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
		close(w.begun)
	}
}

func (w *pipedWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.to.Write(b)
}

func (w *pipedWriter) Flush() {}

func pipedClient(t testing.TB, g *fakes.Gateway, change func(*sealedchat.Config)) *sealedchat.SecureCompletionClient {
	t.Helper()
	return directClient(t, g, func(c *sealedchat.Config) {
		c.Transport = piped{g}
		if change != nil {
			change(c)
		}
	})
}

// Who closes a stream ends it: what is not there then is nobody's failure. What was cut before is.
func TestStreamsThatAreClosedAreNotCut(t *testing.T) {
	const drain = 50 * time.Millisecond // so long a closed stream waits for its end
	const one = `data: {"choices":[{"index":0,"delta":{"content":"a"}}]}` + "\n\n"
	lateBy := func(d time.Duration) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			fakes.AnswerEvents(one, fakes.Done)(w, r)
			select {
			case <-time.After(d):
			case <-r.Context().Done():
			}
		}
	}
	cut := func(events ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			fakes.AnswerEvents(events...)(w, r)
			w.(*fakes.Writer).Abandon()
		}
	}
	closeAtDone := func(t *testing.T, body io.ReadCloser) error {
		readEvents(t, body)
		return body.Close()
	}
	closeInRead := func(t *testing.T, body io.ReadCloser) error {
		failed := make(chan error, 1)
		go func() {
			_, err := io.ReadAll(body)
			failed <- err
		}()
		synctest.Wait()
		return errors.Join(body.Close(), <-failed)
	}
	for name, test := range map[string]struct {
		inner    http.HandlerFunc
		end      func(*testing.T, io.ReadCloser) error
		want     error
		told     string
		failures int64
	}{
		"closed at [DONE]":            {lateBy(drain / 2), closeAtDone, nil, "", 0},
		"the final chunk comes late":  {lateBy(time.Second), closeAtDone, nil, " left early", 0},
		"cut before it was closed":    {cut(one, fakes.Done), closeAtDone, nil, " cut short", 1},
		"closed while somebody reads": {func(w http.ResponseWriter, r *http.Request) { fakes.AnswerEvents(one)(w, r); <-r.Context().Done() }, closeInRead, http.ErrBodyReadAfterClose, " left early", 0},
		"closed after it was cut":     {cut(one), closeInRead, sealedchat.ErrTruncated, " cut short", 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rec := &auditRecorder{}
				client := pipedClient(t, fakes.NewGateway(t, test.inner), func(c *sealedchat.Config) { c.Audit = rec.Record })
				resp, err := client.HTTPClient().Post("https://gateway.test/v1/chat/completions", "application/json",
					strings.NewReader(`{"model":"m","messages":[],"stream":true}`))
				if err != nil {
					t.Fatal(err)
				}
				if err := test.end(t, resp.Body); !errors.Is(err, test.want) || (test.want == nil) != (err == nil) {
					t.Errorf("got %v", err)
				}
				if told := rec.take(); told[len(told)-1] != string(sealedchat.EventResponseOpened)+test.told {
					t.Errorf("told %q", told)
				}
				if s := client.Stats(); s.Failures != test.failures || s.InFlight != 0 {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// The words of an error whose status is known are not waited for as long as an answer.
func TestSealedErrorThatStalls(t *testing.T) {
	const words = `{"error":{"message":"words","code":"c"}}`
	for name, test := range map[string]struct {
		events []string
		stall  time.Duration
		took   time.Duration
		detail string
	}{
		"at once":         {[]string{words}, 0, 0, "words"},
		"late":            {[]string{words}, httpx.MaxErrorWait / 2, httpx.MaxErrorWait / 2, "words"},
		"stalled":         {[]string{words[:9]}, time.Hour, httpx.MaxErrorWait, ""},
		"its end stalled": {[]string{words}, time.Hour, httpx.MaxErrorWait, "words"},
		"without words":   {nil, time.Hour, httpx.MaxErrorWait, ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := pipedClient(t, fakes.NewGateway(t, func(w http.ResponseWriter, r *http.Request) {
					w.WriteHeader(http.StatusInternalServerError)
					w.(http.Flusher).Flush()
					for _, e := range test.events {
						_, _ = io.WriteString(w, e)
						w.(http.Flusher).Flush()
					}
					select {
					case <-time.After(test.stall):
					case <-r.Context().Done():
					}
				}), nil)
				start := time.Now()
				_, err := collect(t, client, ask("x"))
				refused, ok := errors.AsType[*sealedchat.APIError](err)
				if !ok || refused.StatusCode != http.StatusInternalServerError {
					t.Fatalf("got %v", err)
				}
				if _, detail := refused.Sealed(); detail != test.detail {
					t.Errorf("got %v, %q", err, detail)
				}
				if took := time.Since(start); took != test.took {
					t.Errorf("after %v", took)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // the caller's end still is the caller's
		client := pipedClient(t, fakes.NewGateway(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			w.(*fakes.Writer).Abandon() // or else its end could come before the client's
		}), nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, err := range client.Stream(ctx, ask("x")) {
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, sealedchat.ErrServer) {
				t.Errorf("got %v", err)
			}
		}
	})
}

// The caller's own limits are told from cuts, also after chunks came.
func TestStreamOutOfTime(t *testing.T) {
	for name, test := range map[string]struct {
		timeout time.Duration // Config's
		ctx     time.Duration
		want    []error
		not     []error
	}{
		"Timeout": {time.Minute, time.Hour, []error{sealedchat.ErrConnection, context.DeadlineExceeded}, []error{sealedchat.ErrTruncated}},
		"ctx":     {time.Hour, time.Minute, []error{context.DeadlineExceeded}, []error{sealedchat.ErrTruncated, sealedchat.ErrConnection}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := pipedClient(t, fakes.NewGateway(t, func(w http.ResponseWriter, r *http.Request) {
					fakes.AnswerEvents(`data: {"choices":[]}`+"\n\n")(w, r)
					<-r.Context().Done()
					w.(*fakes.Writer).Abandon() // or else its end could come before the client's
				}), func(c *sealedchat.Config) { c.Timeout, c.IdleTimeout = test.timeout, -1 })
				ctx, cancel := context.WithTimeout(t.Context(), test.ctx)
				defer cancel()
				start, chunks := time.Now(), 0
				var last error
				for _, err := range client.Stream(ctx, ask("x")) {
					if last = err; err == nil {
						chunks++
					}
				}
				if took := time.Since(start); took != time.Minute || chunks != 1 {
					t.Errorf("%d chunks in %v", chunks, took)
				}
				for _, want := range test.want {
					if !errors.Is(last, want) {
						t.Errorf("%v is no %v", last, want)
					}
				}
				for _, not := range test.not {
					if errors.Is(last, not) {
						t.Errorf("%v is %v", last, not)
					}
				}
			})
		})
	}
}
