// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/httpx"
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
		"closed":      func(b *openedBody) { _ = b.Close() },
		"read":        func(b *openedBody) { _, _ = io.Copy(io.Discard, b) },
		"closed late": func(b *openedBody) { _, _ = io.ReadFull(b, make([]byte, 10)); _ = b.Close(); _ = b.Close() },
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
		g.Outer = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(200); return true }
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

// The answer is opened to the beginning of the room that was made for it, and nothing else stays there.
func TestOHTTPOpensIntoRoom(t *testing.T) {
	g := fakes.NewGateway(t, fakes.ShortAnswer)
	client := directClient(t, g, nil)
	r, err := client.wire.seal(t.Context(), chatRequest([]byte(`{"model":"m"}`), true), &callOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.release()
	a, err := httpx.Exchange(client.http, r.http, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var room []byte
	got, err := client.wire.open(r, a, func(n int) ([]byte, error) {
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
	if bytes.Contains(a.Body, []byte("Paris")) {
		t.Error("it was opened where it came, too")
	}
}
