// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// Over HTTP/2, where deadlines are a stream's: pieces come as they are made, cuts show, a client
// that leaves ends the upstream's work, and a body that does not come in time takes no other stream
// of the connection along.
func TestObliviousHTTP2(t *testing.T) {
	testkit.NoLeaks(t)
	words, left := make(chan string), make(chan struct{}, 8)
	upstream := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for {
			select {
			case word := <-words:
				if word == "" {
					return
				}
				_, _ = io.WriteString(w, word)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				left <- struct{}{}
				return
			}
		}
	})
	g := startGateway(
		t,
		upstream,
		func(c *sealedchat.GatewayConfig) { c.BodyTimeout = 500 * time.Millisecond },
	)
	server := httptest.NewUnstartedServer(g)
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	r := &fakes.Rig{T: t, Handler: g}
	begin := func() (*http.Response, *ohttp.Reader, *bhttp.Body) {
		t.Helper()
		s := r.Seal(fakes.Inner{})
		req, _ := http.NewRequestWithContext(
			t.Context(),
			http.MethodPost,
			server.URL+ohttp.Path,
			bytes.NewReader(s.Body),
		)
		req.Header.Set("Content-Type", ohttp.TypeRequest)
		resp, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.ProtoMajor != 2 {
			t.Fatal(resp.Proto)
		}
		reader, err := s.Call.Response(resp.Body, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, content, err := bhttp.ReadResponse(reader, bhttp.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		return resp, reader, content
	}
	expect := func(content io.Reader, text string) {
		t.Helper()
		b := make([]byte, len(text))
		if _, err := io.ReadFull(content, b); err != nil || string(b) != text {
			t.Fatalf("%q, %v", b, err)
		}
	}
	send := func(word string) { go func() { words <- word }() }

	send("data: 1\n\n")
	resp, reader, content := begin()
	expect(content, "data: 1\n\n")
	// longer than BodyTimeout: a pause of the upstream's is not the client's fault
	time.Sleep(700 * time.Millisecond)
	send("data: [DONE]\n\n")
	expect(content, "data: [DONE]\n\n")
	send("")
	if _, err := io.ReadAll(content); err != nil {
		t.Errorf("a whole answer: %v", err)
	}
	reader.Close()
	_ = resp.Body.Close()

	send("data: 1\n\n")
	resp, reader, content = begin()
	expect(content, "data: 1\n\n")
	send("")
	if _, err := io.ReadAll(content); !errors.Is(err, ohttp.ErrTruncated) {
		t.Errorf("a cut answer: %v", err)
	}
	reader.Close()
	_ = resp.Body.Close()

	send("data: 1\n\n")
	resp, reader, content = begin()
	expect(content, "data: 1\n\n")
	// Beside it, a request whose body does not come.
	body, in := io.Pipe()
	req, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+ohttp.Path, body)
	req.Header.Set("Content-Type", ohttp.TypeRequest)
	slow, err := server.Client().Do(req)
	if err != nil || slow.StatusCode != http.StatusRequestTimeout {
		t.Errorf("a slow body: %v, %v", slow, err)
	}
	if err == nil {
		_ = slow.Body.Close()
	}
	_ = in.Close()
	send("data: 2\n\n")
	expect(content, "data: 2\n\n")
	reader.Close()
	_ = resp.Body.Close()
	select {
	case <-left:
	case <-time.After(time.Minute):
		t.Error("the upstream works on for nobody")
	}
}
