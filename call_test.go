// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// promptly is how soon a call has to return when it is told to end. Generous, for busy machines.
const promptly = 30 * time.Second

// stuck is a server that stops answering at one point and says when it got there.
type stuck struct {
	at      string // "key fetch", "answer", "body", or elsewhere
	key     []byte // PEM
	reached chan struct{}
}

func (s *stuck) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body) // only then does the server notice that the client has gone
	wait := func() {
		s.reached <- struct{}{}
		<-r.Context().Done()
	}
	switch {
	case r.URL.Path == hybrid.PathPublicKey:
		if s.at == "key fetch" {
			wait()
			return
		}
		_, _ = w.Write(s.key)
	case s.at == "answer":
		wait()
	case s.at == "body":
		w.Header().Set("Content-Length", "1000")
		_, _ = io.WriteString(w, `{"version":"1.0","algorithm":`)
		_ = http.NewResponseController(w).Flush()
		wait()
	}
}

// stage is a client whose next Chat gets stuck at one point.
type stage struct {
	client  *SecureCompletionClient
	reached <-chan struct{}
}

var stages = []string{"connect", "key fetch", "key generation", "answer", "body"}

func startStage(t *testing.T, at string, timeout time.Duration) stage {
	t.Helper()
	server := &stuck{at: at, key: testkit.PublicPEM(t, "server-4096"),
		reached: make(chan struct{}, 100)}
	reached := server.reached
	srv := httptest.NewServer(server)
	t.Cleanup(srv.Close)
	keys := storedKeys(t, "rsa-2048")
	if at == "key generation" {
		keys, reached = stuckGeneration(t)
	}
	client := startClient(t, srv.URL, func(c *Config) {
		c.Keys, c.Timeout = keys, timeout
		if at == "connect" {
			c.Transport = &http.Transport{DialContext: func(ctx context.Context, _,
				_ string) (net.Conn, error) {
				reached <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			}}
		}
	})
	return stage{client, reached}
}

// stuckGeneration is a store that generates a key for as long as the test runs. The channel tells
// when a call waits for it.
func stuckGeneration(t *testing.T) (*KeyStore, chan struct{}) {
	t.Helper()
	began, end := make(chan struct{}), make(chan struct{})
	keys, m := weakStore(t, nil)
	m.Use(func(int) (*rsa.PrivateKey, error) {
		close(began)
		<-end
		return nil, errors.New("the test is over")
	})
	var over sync.WaitGroup
	over.Go(func() { _, _ = keys.Public(context.WithoutCancel(t.Context())) })
	<-began
	reached := make(chan struct{}, 1)
	over.Go(func() {
		buf := make([]byte, 1<<20)
		for !strings.Contains(string(buf[:runtime.Stack(buf, true)]),
			"keystore.(*Store).Acquire(") {
			select {
			case <-end:
				return
			case <-time.After(time.Millisecond):
			}
		}
		reached <- struct{}{}
	})
	t.Cleanup(func() {
		close(end)
		over.Wait()
		keys.Close()
	})
	return keys, reached
}

func TestCallsEndPromptly(t *testing.T) {
	cause := errors.New("the user went away")
	type ending struct {
		name    string
		timeout time.Duration // Config.Timeout
		begin   func(context.Context) (context.Context, context.CancelCauseFunc)
		end     func(*SecureCompletionClient, context.CancelCauseFunc) // once the stage is reached
		want    []error
		not     error
	}
	cancelled := func(ctx context.Context) (context.Context, context.CancelCauseFunc) {
		return context.WithCancelCause(ctx)
	}
	for _, e := range []ending{
		{
			name: "cancel", begin: cancelled, want: []error{context.Canceled}, not: ErrConnection,
			end: func(_ *SecureCompletionClient, cancel context.CancelCauseFunc) { cancel(nil) },
		},
		{
			name: "cancel with a cause", begin: cancelled, want: []error{context.Canceled, cause},
			not: ErrConnection,
			end: func(_ *SecureCompletionClient, cancel context.CancelCauseFunc) { cancel(cause) },
		},
		{
			name: "deadline", want: []error{context.DeadlineExceeded}, not: ErrConnection,
			begin: func(ctx context.Context) (context.Context, context.CancelCauseFunc) {
				ctx, cancel := context.WithTimeout(ctx, 30*time.Millisecond)
				return ctx, func(error) { cancel() }
			},
		},
		{name: "timeout", timeout: 30 * time.Millisecond, begin: cancelled,
			want: []error{ErrConnection}, not: context.Canceled},
		{
			name: "close", begin: cancelled, want: []error{ErrClosed}, not: ErrConnection,
			end: func(client *SecureCompletionClient, _ context.CancelCauseFunc) {
				_ = client.Close()
			},
		},
	} {
		for _, at := range stages {
			t.Run(e.name+"/"+at, func(t *testing.T) {
				testkit.NoLeaks(t)
				s := startStage(t, at, e.timeout)
				ctx, cancel := e.begin(testkit.Within(t, 2*time.Minute))
				defer cancel(nil)
				var resp *ChatResponse
				done := make(chan error, 1)
				start := time.Now()
				go func() {
					var err error
					resp, err = s.client.Chat(ctx, ask("hello"))
					done <- err
				}()
				if e.end != nil {
					select {
					case <-s.reached:
					case err := <-done:
						t.Fatalf("the call ended before its time: %v", err)
					}
					start = time.Now()
					e.end(s.client, cancel)
				}
				err := <-done
				if took := time.Since(start); took > promptly {
					t.Errorf("it took %v", took)
				}
				for _, want := range e.want {
					if !errors.Is(err, want) {
						t.Errorf("error %v, want %v", err, want)
					}
				}
				if errors.Is(err, e.not) || resp != nil {
					t.Errorf("error %v is also %v; answer: %v", err, e.not, resp != nil)
				}
			})
		}
	}
}

func TestClose(t *testing.T) {
	testkit.NoLeaks(t)
	const callers = 8
	s := startStage(t, "answer", 0)
	var running atomic.Int32
	var calls, closers sync.WaitGroup
	for range callers {
		running.Add(1)
		calls.Go(func() {
			_, err := s.client.Chat(testkit.Within(t, 30*time.Second), ask("hello"))
			running.Add(-1)
			if !errors.Is(err, ErrClosed) || errors.Is(err, ErrConnection) {
				t.Errorf("error %v", err)
			}
		})
	}
	for range callers {
		<-s.reached
	}
	for range 4 {
		closers.Go(func() {
			if err := s.client.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	closers.Wait()
	calls.Wait()
	if n := running.Load(); n != 0 {
		t.Errorf("%d calls outlived Close", n)
	}
	if err := s.client.Close(); err != nil {
		t.Error(err)
	}
	body := secret(t, `{"model":"m","messages":[]}`)
	ctx := testkit.Within(t, 20*time.Second)
	for name, call := range map[string]func() error{
		"Chat":      func() error { _, err := s.client.Chat(ctx, ask("hello")); return err },
		"Complete":  func() error { _, err := s.client.Complete(ctx, body); return err },
		"Warm":      func() error { return s.client.Warm(ctx) },
		"ServerKey": func() error { _, err := s.client.ServerKey(ctx); return err },
	} {
		if err := call(); !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	if _, err := s.client.cfg.Keys.Public(ctx); err != nil {
		t.Errorf("Close closed a key store that is not the client's own: %v", err)
	}
}

// Close wipes the key of a client that was given none, and leaves the caller's secrets alone.
func TestCloseWipesItsOwn(t *testing.T) {
	key := secret(t, "sk-test")
	client, err := NewSecureCompletionClient(Config{BaseURL: "https://server.test",
		Trust: TrustHTTPS(), APIKey: key})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.cfg.Keys.adopt(storedKey(t, "rsa-2048")); err != nil {
		t.Fatal(err)
	}
	held, err := client.cfg.Keys.store.Acquire(testkit.Within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	held.Release()
	if wiped(held) {
		t.Fatal("the key is wiped before Close")
	}
	_ = client.Close()
	if !wiped(held) {
		t.Fatal("the private key is still there")
	}
	if _, err := client.cfg.Keys.Public(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("its key store: %v", err)
	}
	if key.Len() != len("sk-test") {
		t.Error("the caller's API key was destroyed")
	}
}

func TestRetryJitterIsFull(t *testing.T) {
	policy := retryPolicy{most: 100, base: retryBase}
	for attempt, window := range map[int]time.Duration{
		0: time.Second, 1: 2 * time.Second, 2: 4 * time.Second, 5: 32 * time.Second, 6: time.Minute,
		7: time.Minute, 40: time.Minute, 99: time.Minute,
	} {
		const runs = 2000
		var quarters [4]int
		for range runs {
			wait, ok := policy.next(attempt, &APIError{StatusCode: 500})
			if !ok || wait < 0 || wait > window {
				t.Fatalf("attempt %d: %v, %v", attempt, wait, ok)
			}
			quarters[min(int(4*wait/window), 3)]++
		}
		for _, n := range quarters { // 500 each; 20 standard deviations off is no chance
			if n < runs/4-400 || n > runs/4+400 {
				t.Errorf("attempt %d: the quarters of %v got %v", attempt, window, quarters)
			}
		}
	}
	if wait, ok := policy.next(100, &APIError{StatusCode: 500}); ok {
		t.Errorf("one attempt too many, after %v", wait)
	}
}

func TestRememberedErrorsAreBounded(t *testing.T) {
	var m rememberedErrors
	retry := retried(t, http.MethodPost, "/v1/x")
	if m.recall(retry, []byte("x")) != nil {
		t.Error("the zero value remembers something")
	}
	m.remember(retry, nil, io.EOF)
	for i := range 5000 {
		body := []byte(strconv.Itoa(i))
		m.remember(retry, body, fmt.Errorf("error %d", i))
		if len(m.calls) > maxRemembered {
			t.Fatalf("%d calls are remembered after %d", len(m.calls), i)
		}
		if err := m.recall(retry, body); err == nil || err.Error() != "error "+string(body) {
			t.Fatalf("the newest call is forgotten: %v", err)
		}
	}
	if m.recall(retry, []byte("0")) != nil {
		t.Error("the oldest call of 5000 is remembered")
	}
}

func TestRememberedErrorsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m rememberedErrors
		retry := retried(t, http.MethodPost, "/v1/x")
		m.remember(retry, []byte("old"), io.EOF)
		time.Sleep(rememberFor - time.Second)
		if m.recall(retry, []byte("old")) != io.EOF {
			t.Error("forgotten too early")
		}
		m.remember(retry, []byte("new"), io.EOF)
		time.Sleep(2 * time.Second)
		if m.recall(retry, []byte("old")) != nil || m.recall(retry, []byte("new")) != io.EOF {
			t.Error("not forgotten in time, or too early")
		}
		time.Sleep(rememberFor)
		m.remember(retry, []byte("newest"), io.EOF)
		if len(m.calls) != 1 {
			t.Errorf("%d calls are kept", len(m.calls))
		}
	})
}

// retried is a request that an SDK repeats.
func retried(t *testing.T, method, uri string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "https://sdk.test"+uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Stainless-Retry-Count", "1")
	return req
}

// Requests are the same if method, path, query and body are.
func TestRememberedErrorsAreOfOneRequest(t *testing.T) {
	var m rememberedErrors
	m.remember(retried(t, http.MethodPost, "/v1/a?b=c"), []byte("x"), io.EOF)
	if m.recall(retried(t, http.MethodPost, "/v1/a?b=c"), []byte("x")) != io.EOF {
		t.Error("not remembered")
	}
	for _, other := range []struct{ method, uri, body string }{
		{"POST", "/v1/a?b=c", ""}, {"POST", "/v1/a?b=c", "xx"}, {"POST", "/v1/a?b=d", "x"},
		{"POST", "/v1/a", "x"}, {"POST", "/v1/b?b=c", "x"},
		{"PUT", "/v1/a?b=c", "x"}, {"GET", "/v1/a?b=c", "x"}, {"POST", "/v1/a?b=", "cx"},
	} {
		if err := m.recall(retried(t, other.method, other.uri), []byte(other.body)); err != nil {
			t.Errorf("%v: %v", other, err)
		}
	}
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		m.remember(retried(t, method, "/v1/a"), []byte{}, io.EOF)
		if m.recall(retried(t, method, "/v1/a"), []byte{}) != nil {
			t.Errorf("%s is remembered", method)
		}
	}
	m.remember(retried(t, http.MethodPost, "/v1/a"), []byte{}, io.EOF)
	if m.recall(retried(t, http.MethodPost, "/v1/a"), []byte{}) != io.EOF {
		t.Error("a POST without a body is not remembered")
	}
}

// An SDK's key lies in the memory that the client's policy asks for.
func TestHTTPClientTokenUnderPolicy(t *testing.T) {
	for _, policy := range []MemoryPolicy{MemoryBestEffort, MemoryOff} {
		client := startClient(t, "https://peer.example", func(c *Config) {
			c.Transport, c.Memory = neverUsed(t), policy
		})
		req, err := http.NewRequest(http.MethodPost, "https://peer.example/v1/chat/completions",
			nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer sk-1")
		_, key, err := (&sdkTransport{client: client}).callOptions(req)
		if err != nil || key.Locked() != (policy != MemoryOff && secret(t, "another").Locked()) {
			t.Errorf("%v: locked %v, %v", policy, key.Locked(), err)
		}
		key.Destroy()
	}
}

// A whole answer for an SDK is wiped when the SDK closes it, also where more room was reserved.
// What is written into its memory after that, it does not show, nor wipe when it is closed again.
func TestHTTPClientWipesAnswers(t *testing.T) {
	all := []byte(`{"answer":"a"} and what was there before`)
	spare := &httpx.Spare{}
	resp := sdkWhole(httptest.NewRequest(http.MethodPost, "/", nil), all[:14], spare)
	if err := iotest.TestReader(resp.Body, []byte(`{"answer":"a"}`)); err != nil {
		t.Error(err)
	}
	resp.Body.Close()
	if len(bytes.Trim(all, "\x00")) > 0 {
		t.Errorf("left: %q", all)
	}
	const text = "the next answer, in this memory"
	next := append(spare.Get(len(text)), text...)
	if n, err := resp.Body.Read(make([]byte, 9)); n != 0 || err != http.ErrBodyReadAfterClose {
		t.Errorf("after Close: %d, %v", n, err)
	}
	if err := resp.Body.Close(); err != nil || string(next) != text {
		t.Errorf("closed again: %v, and the next answer is %q", err, next)
	}
}
