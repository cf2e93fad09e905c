// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestRefusedKeyWhateverTheReason has OnServerKey refuse with errors that mean something else
// elsewhere.
func TestRefusedKeyWhateverTheReason(t *testing.T) {
	srv := httptest.NewServer(startGateway(t, testkit.AnswerText("fine"), nil))
	defer srv.Close()
	for _, reason := range []error{&sealedchat.APIError{StatusCode: 500},
		sealedchat.ErrInvalidRequest, sealedchat.ErrRateLimited, context.DeadlineExceeded} {
		var asked atomic.Int32
		client := startClient(t, srv.URL, func(c *sealedchat.Config) {
			c.MaxRetries = 2
			c.OnServerKey = func(_, _ *sealedchat.PublicKey) error { asked.Add(1); return reason }
		})
		if _, err := client.Chat(t.Context(), ask("?")); !isServerKeyError(err) ||
			asked.Load() != 1 {
			t.Errorf("%v: Chat gives %v after %d questions", reason, err, asked.Load())
		}
		resp, err := client.HTTPClient().Post(srv.URL+"/v1/chat/completions", "application/json",
			strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"?"}]}`))
		if err == nil {
			_ = resp.Body.Close()
		}
		if !isServerKeyError(err) {
			t.Errorf("%v: an SDK gets %v, %v", reason, resp, err)
		}
	}
}

func isServerKeyError(err error) bool {
	_, ok := errors.AsType[*sealedchat.ServerKeyError](err)
	return ok
}

// TestEndedCallDuringAnError has a server stall in the middle of an error's body.
func TestEndedCallDuringAnError(t *testing.T) {
	testkit.NoLeaks(t)
	began := make(chan struct{}, 10)
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = w.Write(testkit.PublicPEM(t, "server-4096"))
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusUnprocessableEntity)
		_, _ = w.Write([]byte(`{"detail":"`))
		_ = http.NewResponseController(w).Flush()
		began <- struct{}{}
		<-release
	}))
	defer srv.Close()
	defer close(release)

	client := startClient(t, srv.URL, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-began; cancel() }()
	if _, err := client.Chat(ctx, ask("?")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	go func() { <-began; _ = client.Close() }()
	if _, err := client.Chat(t.Context(), ask("?")); !errors.Is(err, sealedchat.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

// TestSharedKeysShareWhatTheySaw replays an answer to another client of the same store.
func TestSharedKeysShareWhatTheySaw(t *testing.T) {
	keys := storedKeys(t, "client-4096")
	e, err := sealTo(publicOf(t, "client-4096"), []byte(testkit.FineAnswer))
	if err != nil {
		t.Fatal(err)
	}
	body := envelope.Append(nil, e)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			_, _ = w.Write(testkit.PublicPEM(t, "server-4096"))
			return
		}
		_, _ = w.Write(body)
	}))
	defer srv.Close()
	first := startClient(t, srv.URL, func(c *sealedchat.Config) { c.Keys = keys })
	second := startClient(t, srv.URL, func(c *sealedchat.Config) { c.Keys = keys })
	if _, err := first.Chat(t.Context(), ask("?")); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Chat(t.Context(), ask("?")); !errors.Is(err, sealedchat.ErrReplay) {
		t.Errorf("got %v, want ErrReplay", err)
	}
}

// TestCutDeliveryIsRepeatedForTheSameClientOnly has somebody cut the delivery of an answer, and
// send the request again under a key of his own.
func TestCutDeliveryIsRepeatedForTheSameClientOnly(t *testing.T) {
	var served atomic.Int32
	g := startGateway(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		testkit.AnswerText("secret answer")(w, r)
	}), nil)
	post := func(w http.ResponseWriter, key string, body []byte) {
		req := httptest.NewRequest(http.MethodPost, hybrid.PathCompletion,
			strings.NewReader(string(body)))
		req.Header.Set(hybrid.HeaderPayloadID, testkit.UUID())
		req.Header.Set(hybrid.HeaderPublicKey, hybrid.PercentEncode(testkit.PublicPEM(t, key)))
		g.ServeHTTP(w, req)
	}
	e, err := sealTo(publicOf(t, "server-4096"),
		[]byte(`{"model":"m","messages":[{"role":"user","content":"?"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	body := envelope.Append(nil, e)
	post(&cutWriter{ResponseWriter: httptest.NewRecorder()}, "client-4096", body)
	status := func(key string) int {
		w := httptest.NewRecorder()
		post(w, key, body)
		return w.Code
	}
	if got := status("other-4096"); got != http.StatusConflict {
		t.Errorf("under another key: %d", got)
	}
	if got := status("client-4096"); got != http.StatusOK {
		t.Errorf("repeated by the client: %d", got)
	}
	for _, key := range []string{"client-4096", "other-4096"} {
		if got := status(key); got != http.StatusConflict {
			t.Errorf("after it was delivered, %s: %d", key, got)
		}
	}
	if n := served.Load(); n != 2 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

type cutWriter struct{ http.ResponseWriter }

func (cutWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }
