// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// The tests of this file let the Rust crates ohttp and bhttp speak with a Gateway and with a
// SecureCompletionClient, over HTTP.

var rustModes = []string{"whole", "pieces"}

// cut gives the pieces of a text that the Rust program seals one by one.
func cut(text []byte) (pieces [][]byte) {
	for n := 1; len(text) > 0; n = n*3 + 7 {
		n = min(n, len(text))
		pieces = append(pieces, text[:n])
		text = text[n:]
	}
	return pieces
}

func forRust(t *testing.T, test func(t *testing.T, kem uint16, mode string)) {
	rustPeer(t)
	for name, kem := range suites {
		for _, mode := range rustModes {
			t.Run(name+" "+mode, func(t *testing.T) { test(t, kem, mode) })
		}
	}
}

// TestRustClient sends requests of the Rust client to our gateway.
func TestRustClient(t *testing.T) {
	forRust(t, func(t *testing.T, kem uint16, mode string) {
		url, list := newGateway(t, &upstream{}, kem)
		client := &rustClient{url: url, list: list, mode: mode}
		for _, size := range sizes {
			text := bytes.Repeat([]byte("a line\n"), size/7+1)[:size]
			answer, err := client.ask(t, "POST", "/v1/echo", header(), cut(text)...)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(answer.body)
			if err != nil || !bytes.Equal(got, bytes.ToUpper(text)) ||
				answer.status != http.StatusAccepted {
				t.Errorf("%d: %d bytes, %v; want %d", answer.status, len(got), err, size)
			}
		}
		fields := header()
		fields.Set("Content-Type", "application/json")
		answer, err := client.ask(t, "POST", "/v1/chat/completions", fields,
			[]byte(`{"model":"m","messages":[{"role":"user","content":"Where?"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(answer.body)
		if err != nil || answer.status != http.StatusOK || !strings.Contains(string(got), "Paris") {
			t.Errorf("%d, %s, %v", answer.status, got, err)
		}
		// A refusal travels under seal too.
		answer, err = client.ask(t, "POST", "/v1/forbidden", header(), []byte("text"))
		if err != nil || answer.status != http.StatusNotFound {
			t.Fatal(answer, err)
		}
		if _, err := io.ReadAll(answer.body); err != nil {
			t.Error(err)
		}
	})
}

// TestRustClientStreams reads a stream of our gateway with the Rust client. The upstream sends an
// event when the client has delivered the one before it.
func TestRustClientStreams(t *testing.T) {
	rustPeer(t)
	for name, kem := range suites {
		t.Run(name, func(t *testing.T) {
			u := &upstream{next: make(chan struct{})}
			url, list := newGateway(t, u, kem)
			client := &rustClient{url: url, list: list, mode: "pieces"}
			answer, err := client.ask(t, "POST", "/v1/chat/completions", header(),
				[]byte(streamed))
			if err != nil {
				t.Fatal(err)
			}
			readEvents(t, answer.body, u)
		})
	}
}

// newRustGateway starts a gateway of the Rust program, and a client of this package for it.
func newRustGateway(t *testing.T, g *rustGateway) *sealedchat.SecureCompletionClient {
	t.Helper()
	g.t = t
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	return newClient(t, server.URL, g.list())
}

// TestRustGateway sends requests of our client to the Rust gateway.
func TestRustGateway(t *testing.T) {
	forRust(t, func(t *testing.T, kem uint16, mode string) {
		client := newRustGateway(t,
			&rustGateway{kem: kem, id: "7", mode: mode, handler: &upstream{}})
		for _, size := range sizes {
			text := bytes.Repeat([]byte("a line\n"), size/7+1)[:size]
			got, err := post(client, text)
			if err != nil || !bytes.Equal(got, bytes.ToUpper(text)) {
				t.Errorf("%d bytes, %v; want %d", len(got), err, size)
			}
		}
		answer, err := client.Chat(t.Context(), question())
		if err != nil || answer.Choices[0].Message.Content != "Paris." {
			t.Error(answer, err)
		}
		if n := client.Stats().AttemptsAES128; n != int64(len(sizes))+1 {
			t.Errorf("%d requests with AES-128-GCM", n)
		}
	})
}

// TestRustGatewayStreams reads a stream of the Rust gateway with our client, event by event.
func TestRustGatewayStreams(t *testing.T) {
	rustPeer(t)
	for name, kem := range suites {
		t.Run(name, func(t *testing.T) {
			u := &upstream{next: make(chan struct{})}
			client := newRustGateway(t,
				&rustGateway{kem: kem, id: "0", mode: "pieces", handler: u})
			streamWords(t, client, u)
		})
	}
}

// TestRustAnswersSpoiled has answers of the Rust gateway cut and changed on the way to our client.
func TestRustAnswersSpoiled(t *testing.T) {
	rustPeer(t)
	for name, spoil := range answersSpoiled {
		for _, mode := range rustModes {
			t.Run(name+" "+mode, func(t *testing.T) {
				g := &rustGateway{kem: ohttp.XWing, id: "7", mode: mode, handler: &upstream{},
					answer: spoil}
				client := newRustGateway(t, g)
				text := bytes.Repeat([]byte("a line of text\n"), 3000)
				if got, err := post(client, text); err == nil || len(got) > len(text) ||
					!bytes.HasPrefix(bytes.ToUpper(text), got) ||
					!errors.Is(err, sealedchat.ErrTruncated) &&
						!errors.Is(err, sealedchat.ErrDecryption) {
					t.Errorf("%d bytes, %v", len(got), err)
				}
				spoiledStream(t, client)
			})
		}
	}
}

// TestRustClientRefuses has answers of our gateway cut and changed on the way to the Rust client.
func TestRustClientRefuses(t *testing.T) {
	rustPeer(t)
	url, list := newGateway(t, &upstream{}, ohttp.XWing)
	for name, spoil := range answersSpoiled {
		for _, mode := range rustModes {
			t.Run(name+" "+mode, func(t *testing.T) {
				client := &rustClient{url: url, list: list, mode: mode, answer: spoil}
				answer, err := client.ask(t, "POST", "/v1/echo", header(),
					bytes.Repeat([]byte("a line\n"), 100))
				if err == nil {
					_, err = io.ReadAll(answer.body)
				}
				if err == nil || strings.Contains(err.Error(), "panicked") {
					t.Errorf("the Rust client: %v", err)
				}
			})
		}
	}
}

// In a sealed request with X-Wing the first chunk begins at byte 7 + 1120.
var requestsSpoiled = map[string]struct {
	spoil  tamper
	status int // outside; 0 = 400 under seal
}{
	"half of the header":        {shorten(-4), 400},
	"half of the encapsulation": {shorten(-500), 400},
	"no chunk":                  {shorten(-1127), 400},
	"half of the first chunk":   {shorten(-1150), 400},
	"no final chunk":            {shorten(17), 0},
	"final chunk without seal":  {shorten(16), 0},
	"final chunk cut":           {shorten(1), 0},
	"final chunk flipped":       {flip(-1), 0},
	"a byte behind the end":     {func(b []byte) []byte { return append(bytes.Clone(b), 0) }, 0},
	"another key id":            {flip(0), 422},
	"another KEM":               {flip(2), 422},
	"another KDF":               {flip(4), 422},
	"another AEAD":              {flip(6), 422},
	"encapsulation flipped":     {flip(100), 422},
	"first chunk flipped":       {flip(1140), 422},
}

// TestRustRequestsSpoiled has requests of the Rust client cut and changed on the way to our
// gateway. Nothing of them goes upstream.
func TestRustRequestsSpoiled(t *testing.T) {
	rustPeer(t)
	u := &upstream{}
	url, list := newGateway(t, u, ohttp.XWing)
	for name, c := range requestsSpoiled {
		t.Run(name, func(t *testing.T) {
			client := &rustClient{url: url, list: list, mode: "pieces", request: c.spoil}
			answer, err := client.ask(t, "POST", "/v1/echo", header(),
				cut(bytes.Repeat([]byte("a line\n"), 6000))...)
			if outer, ok := errors.AsType[*outerError](err); ok && outer.status == c.status {
				return
			}
			if err != nil || c.status != 0 || answer.status != http.StatusBadRequest {
				t.Fatal(answer, err)
			}
			if _, err := io.ReadAll(answer.body); err != nil {
				t.Error(err)
			}
		})
	}
	if n := u.asked.Load(); n != 0 {
		t.Errorf("%d requests went upstream", n)
	}
}

// TestRustGatewayRefuses has requests of our client cut and changed on the way to the Rust gateway,
// and sealed to a key that it no longer has.
func TestRustGatewayRefuses(t *testing.T) {
	rustPeer(t)
	for name, c := range requestsSpoiled {
		for _, mode := range rustModes {
			t.Run(name+" "+mode, func(t *testing.T) {
				refused(t, &rustGateway{kem: ohttp.XWing, id: "7", mode: mode, request: c.spoil})
			})
		}
	}
	t.Run("a key that is gone", func(t *testing.T) {
		refused(t, &rustGateway{kem: ohttp.XWing, id: "7", opens: "8", mode: "whole"})
	})
}

func refused(t *testing.T, g *rustGateway) {
	t.Helper()
	u := &upstream{}
	g.handler = u
	_, err := post(newRustGateway(t, g), bytes.Repeat([]byte("a line\n"), 6000))
	if outer, ok := errors.AsType[*sealedchat.OuterError](err); !ok || outer.StatusCode != 422 ||
		outer.KeyChanged {
		t.Error(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := u.asked.Load(); n != 0 || len(g.refused) != 1 || g.refused[0] == "" ||
		strings.Contains(g.refused[0], "panicked") {
		t.Errorf("%d requests went upstream; refused: %q", n, g.refused)
	}
}

// TestRustList gives the Rust client the whole list of our gateway, of which it takes the last
// configuration that it knows.
func TestRustList(t *testing.T) {
	rustPeer(t)
	url, first := newGateway(t, &upstream{}, ohttp.XWing)
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	list, err := io.ReadAll(response.Body)
	if err != nil || len(list) <= len(first) {
		t.Fatal(len(list), err)
	}
	client := &rustClient{url: url, list: list, mode: "whole"}
	answer, err := client.ask(t, "POST", "/v1/echo", header(), []byte("text"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(answer.body); err != nil || string(got) != "TEXT" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestRustWithoutCommonSuite has each end meet one of whose suites it knows none: the Rust client a
// gateway that offers AES-256-GCM alone, which makes the crate panic, and our client a Rust gateway
// with ChaCha20-Poly1305 alone, which it names. Nothing is sent.
func TestRustWithoutCommonSuite(t *testing.T) {
	rustPeer(t)
	for name, kem := range suites {
		t.Run(name, func(t *testing.T) {
			u := &upstream{}
			url, list := newGatewayWith(t, u, kem, false)
			client := &rustClient{url: url, list: list, mode: "whole",
				request: func(b []byte) []byte {
					if len(b) > 0 {
						t.Error("something was sealed")
					}
					return b
				}}
			if answer, err := client.ask(t, "POST", "/v1/echo", header(), []byte("x")); err == nil {
				t.Error(answer)
			}
			list = (&rustGateway{t: t, kem: kem, id: "7"}).list()
			// Length, and then the last of two pairs of algorithms.
			chacha := append(bytes.Clone(list[2:len(list)-10]), 0, 4, 0, 1, 0, 3)
			list = append(binary.BigEndian.AppendUint16(nil, uint16(len(chacha))), chacha...)
			server := httptest.NewServer(http.HandlerFunc(
				func(w http.ResponseWriter, r *http.Request) {
					if r.Method != http.MethodGet {
						u.asked.Add(1)
					}
					w.Header().Set("Content-Type", ohttp.TypeKeys)
					w.Write(list)
				}))
			t.Cleanup(server.Close)
			ours, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
				BaseURL: server.URL, InsecureAllowHTTP: true, Protocol: sealedchat.ProtocolOHTTP,
				Trust: sealedchat.TrustHTTPS(), MaxRetries: -1,
				OHTTP: sealedchat.OHTTPOptions{AllowX25519: true},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer ours.Close()
			_, err = post(ours, []byte("x"))
			if !errors.Is(err, sealedchat.ErrPublicKey) ||
				!strings.Contains(err.Error(), "ChaCha20Poly1305") {
				t.Error(err)
			}
			if n := u.asked.Load(); n != 0 {
				t.Errorf("%d requests", n)
			}
		})
	}
}
