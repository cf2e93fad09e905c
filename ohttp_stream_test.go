// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

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

	"github.com/seed-017344ad/sealedchat/internal/httpx"
)

// panickingLimiter is a Limiter that does.
type panickingLimiter struct{}

func (panickingLimiter) Wait(context.Context) error { panic("the limiter") }

type panickingTransport struct{}

func (panickingTransport) RoundTrip(*http.Request) (*http.Response, error) { panic("the transport") }

// panickingAuditor panics at events of one type.
func panickingAuditor(at EventType) Auditor {
	return Auditor(func(_ context.Context, e Event) error {
		if e.Type == at {
			panic("the auditor")
		}
		return nil
	})
}

// Who recovers from a panic of his callback, as net/http does for a handler, can still close the client.
func TestStreamSurvivesPanics(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"OnServerKey":     func(c *Config) { c.OnServerKey = func(_, _ *PublicKey) error { panic("the callback") } },
		"Limiter":         func(c *Config) { c.Limiter = panickingLimiter{} },
		"Transport":       func(c *Config) { c.Transport = panickingTransport{} },
		"request_sealed":  func(c *Config) { c.Audit = panickingAuditor(EventRequestSealed) },
		"response_opened": func(c *Config) { c.Audit = panickingAuditor(EventResponseOpened) },
	} {
		ways := map[string]func(*SecureCompletionClient){
			"Stream": func(c *SecureCompletionClient) {
				for range c.Stream(context.Background(), ask("x")) {
				}
			},
			"Stream left early": func(c *SecureCompletionClient) {
				for range c.Stream(context.Background(), ask("x")) {
					break
				}
			},
			"HTTPClient": func(c *SecureCompletionClient) {
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
					g := newTiny(t, wordByWord(nil, "a", "b"))
					client := directClient(t, g, change)
					if name == "Transport" { // which carries the list of keys first
						client.http = direct{g}
						if err := client.Warm(t.Context()); err != nil {
							t.Fatal(err)
						}
						client.http = panickingTransport{}
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
	g := newTiny(t, wordByWord(nil, "a"))
	client := directClient(t, g, func(c *Config) { c.Audit = panickingAuditor(EventResponseOpened) })
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

// Whoever asked for a stream and got a whole answer that is refused, finds that in the audit log as with Chat.
func TestRefusedStreamsAreTold(t *testing.T) {
	badCalls := strings.Replace(fineCompletion("x"), `"message":{`, `"message":{"tool_calls":5,`, 1)
	foreign := func() string {
		return strings.Replace(fineCompletion("x"), `{`, `{"_metadata":{"payload_id":"`+newUUID()+`"},`, 1)
	}
	for name, test := range map[string]struct {
		answer func() string
		want   error
		ohttp  string
		v1     string
	}{
		"another request's": {foreign, ErrReplay, "request_sealed response_opened replay_refused", "request_sealed replay_refused"},
		"no completion": {func() string { return `{"id":1}` }, ErrResponseSchema,
			"request_sealed response_opened schema_refused", "request_sealed schema_refused"},
		"no tool calls": {func() string { return badCalls }, ErrResponseSchema,
			"request_sealed response_opened schema_refused", "request_sealed response_opened schema_refused"},
		"a server's error": {func() string { return `{"error":{"message":"x"}}` }, ErrServer, "request_sealed response_opened", "request_sealed"},
	} {
		h := &heard{}
		g := newTiny(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, test.answer())
		})
		s := newSealedServer(t)
		s.answer = func(q *sealedQuestion) *http.Response { return q.seal(test.answer()) }
		for protocol, c := range map[string]struct {
			client *SecureCompletionClient
			want   string
		}{
			"ohttp": {directClient(t, g, func(c *Config) { c.Audit = h.Record }), test.ohttp},
			"v1":    {s.client(t, func(c *Config) { c.Audit = h.Record }), test.v1},
		} {
			if err := c.client.Warm(t.Context()); err != nil {
				t.Fatal(err)
			}
			h.take()
			what := name + " over " + protocol
			if _, err := collect(t, c.client, ask("x")); !errors.Is(err, test.want) {
				t.Errorf("%s: %v", what, err)
			}
			events := h.mustHear(t, what, c.want)
			if last := events[len(events)-1]; last.PayloadID == "" || last.PayloadID != events[0].PayloadID {
				t.Errorf("%s: %+v", what, last)
			}
			resp, err := c.client.HTTPClient().Post("https://server.test/v1/chat/completions", "application/json",
				strings.NewReader(`{"model":"m","messages":[],"stream":true}`))
			if err == nil {
				resp.Body.Close()
			}
			if answered := test.want == ErrServer; answered != (err == nil) || !answered && !errors.Is(err, test.want) {
				t.Errorf("%s, of an SDK: %v, %v", what, resp, err)
			}
			h.mustHear(t, what+", of an SDK", c.want)
		}
	}
}

// The Auditor's error is logged where a loop that was left, or a body that was closed, has nobody to return it to; once.
func TestStreamLeftEarlyLogsTheAuditor(t *testing.T) {
	post := func(t *testing.T, c *SecureCompletionClient, ctx context.Context) io.ReadCloser {
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
		fail   EventType
		leave  func(t *testing.T, c *SecureCompletionClient)
		logged int
	}{
		"a loop": {EventResponseOpened, func(t *testing.T, c *SecureCompletionClient) {
			for _, err := range c.Stream(t.Context(), ask("x")) {
				if err != nil {
					t.Fatal(err)
				}
				break
			}
		}, 1},
		"a body": {EventResponseOpened, func(t *testing.T, c *SecureCompletionClient) {
			body := post(t, c, t.Context())
			_, _ = body.Close(), body.Close()
		}, 1},
		"a body behind [DONE]": {EventResponseOpened, func(t *testing.T, c *SecureCompletionClient) {
			body := post(t, c, t.Context())
			defer body.Close()
			readEvents(t, body)
		}, 1},
		"a context that ended": {EventResponseOpened, func(t *testing.T, c *SecureCompletionClient) {
			ctx, cancel := context.WithCancel(t.Context())
			body := post(t, c, ctx)
			cancel()
			synctest.Wait()
			_ = body.Close()
		}, 1},
		"read to its end": {EventResponseOpened, func(t *testing.T, c *SecureCompletionClient) {
			body := post(t, c, t.Context())
			if _, err := io.ReadAll(body); !errors.Is(err, errNotRecorded) {
				t.Errorf("read: %v", err)
			}
			_ = body.Close()
		}, 0},
		"a loop to its end": {EventResponseOpened, func(t *testing.T, c *SecureCompletionClient) {
			if _, err := collect(t, c, ask("x")); !errors.Is(err, errNotRecorded) {
				t.Errorf("loop: %v", err)
			}
		}, 0},
		"recorded": {"", func(t *testing.T, c *SecureCompletionClient) {
			for range c.Stream(t.Context(), ask("x")) {
				break
			}
		}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				client := directClient(t, newTiny(t, wordByWord(nil, "a", "b")), func(c *Config) {
					c.Audit = (&auditRecorder{fail: test.fail}).Record
					c.Logger = slog.New(slog.NewTextHandler(&log, nil))
				})
				test.leave(t, client)
				if n := strings.Count(log.String(), `level=ERROR msg="audit failed" payload_id=`); n != test.logged || strings.Count(log.String(), errNotRecorded.Error()) != n {
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
	for b := make([]byte, 1); !bytes.HasSuffix(got, []byte(done)); got = append(got, b[0]) {
		if _, err := io.ReadFull(body, b); err != nil {
			t.Fatalf("after %q: %v", got, err)
		}
	}
}

// piped is a transport without a network whose answers pass as they come, until their body is closed.
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

func pipedClient(t testing.TB, g *tinyGateway, change func(*Config)) *SecureCompletionClient {
	t.Helper()
	return directClient(t, g, func(c *Config) {
		c.Transport = piped{g}
		if change != nil {
			change(c)
		}
	})
}

// Who closes a stream ends it: what is not there then is nobody's failure. What was cut before is.
func TestStreamsThatAreClosedAreNotCut(t *testing.T) {
	const one = `data: {"choices":[{"index":0,"delta":{"content":"a"}}]}` + "\n\n"
	lateBy := func(d time.Duration) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			answerEvents(one, done)(w, r)
			select {
			case <-time.After(d):
			case <-r.Context().Done():
			}
		}
	}
	cut := func(events ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			answerEvents(events...)(w, r)
			w.(*tinyWriter).abandon()
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
		"closed at [DONE]":            {lateBy(drainTime / 2), closeAtDone, nil, "", 0},
		"the final chunk comes late":  {lateBy(time.Second), closeAtDone, nil, " left early", 0},
		"cut before it was closed":    {cut(one, done), closeAtDone, nil, " cut short", 1},
		"closed while somebody reads": {func(w http.ResponseWriter, r *http.Request) { answerEvents(one)(w, r); <-r.Context().Done() }, closeInRead, errBodyClosed, " left early", 0},
		"closed after it was cut":     {cut(one), closeInRead, ErrTruncated, " cut short", 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rec := &auditRecorder{}
				client := pipedClient(t, newTiny(t, test.inner), func(c *Config) { c.Audit = rec.Record })
				resp, err := client.HTTPClient().Post("https://gateway.test/v1/chat/completions", "application/json",
					strings.NewReader(`{"model":"m","messages":[],"stream":true}`))
				if err != nil {
					t.Fatal(err)
				}
				if err := test.end(t, resp.Body); !errors.Is(err, test.want) || (test.want == nil) != (err == nil) {
					t.Errorf("got %v", err)
				}
				if told := rec.take(); told[len(told)-1] != string(EventResponseOpened)+test.told {
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
				client := pipedClient(t, newTiny(t, func(w http.ResponseWriter, r *http.Request) {
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
				refused, ok := errors.AsType[*APIError](err)
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
		client := pipedClient(t, newTiny(t, func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusInternalServerError)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			w.(*tinyWriter).abandon() // or else its end could come before the client's
		}), nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, err := range client.Stream(ctx, ask("x")) {
			if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrServer) {
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
		"Timeout": {time.Minute, time.Hour, []error{ErrConnection, context.DeadlineExceeded}, []error{ErrTruncated}},
		"ctx":     {time.Hour, time.Minute, []error{context.DeadlineExceeded}, []error{ErrTruncated, ErrConnection}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client := pipedClient(t, newTiny(t, func(w http.ResponseWriter, r *http.Request) {
					answerEvents(`data: {"choices":[]}`+"\n\n")(w, r)
					<-r.Context().Done()
					w.(*tinyWriter).abandon() // or else its end could come before the client's
				}), func(c *Config) { c.Timeout, c.IdleTimeout = test.timeout, -1 })
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
