// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	peer "github.com/openpcc/ohttp"
	peerbhttp "github.com/openpcc/ohttp/encoding/bhttp"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// The tests of this file let openpcc's ohttp speak with a Gateway and with a
// SecureCompletionClient, over HTTP.

// newPeerTransport makes openpcc's client for a gateway with one configuration.
func newPeerTransport(t *testing.T, url string, list []byte) *peer.Transport {
	t.Helper()
	var configs peer.KeyConfigs
	if err := configs.UnmarshalBinary(list); err != nil || len(configs) != 1 {
		t.Fatal(configs, err)
	}
	transport, err := peer.NewTransport(configs[0], url)
	if err != nil {
		t.Fatal(err)
	}
	return transport
}

// newPeerGateway starts openpcc's gateway in front of handler, and makes a client of this package
// for it. spoil changes its sealed answers; nil: none.
func newPeerGateway(t *testing.T, kem uint16, handler http.Handler,
	spoil tamper) *sealedchat.SecureCompletionClient {
	t.Helper()
	keys := peerKeys(t, kem)
	list, err := peer.KeyConfigs{keys.KeyConfig}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	decoder, err := peerbhttp.NewRequestDecoder(peerbhttp.MaxRequestChunkLen(ohttp.MaxChunk))
	if err != nil {
		t.Fatal(err)
	}
	// It accepts any host: the host of our client's requests is that of its server, with the port.
	gateway, err := peer.NewGateway(keys, peer.WithRequestDecoder(decoder),
		peer.WithRequestValidator(nil))
	if err != nil {
		t.Fatal(err)
	}
	inside := peer.Middleware(gateway, handler)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet:
			w.Header().Set("Content-Type", ohttp.TypeKeys)
			w.Write(list)
		case spoil == nil:
			inside.ServeHTTP(w, r)
		default:
			kept := httptest.NewRecorder()
			inside.ServeHTTP(kept, r)
			w.Header().Set("Content-Type", kept.Header().Get("Content-Type"))
			w.Write(spoil(kept.Body.Bytes()))
		}
	}))
	t.Cleanup(server.Close)
	return newClient(t, server.URL, list)
}

// TestPeerClient sends requests of openpcc's client to our gateway.
func TestPeerClient(t *testing.T) {
	for name, kem := range suites {
		t.Run(name, func(t *testing.T) {
			u := &upstream{}
			url, list := newGateway(t, u, kem)
			transport := newPeerTransport(t, url, list)
			ask := func(body io.Reader) (*http.Response, error) {
				q, err := http.NewRequest("POST", "https://a.example/v1/echo", body)
				if err != nil {
					t.Fatal(err)
				}
				q.Header = header()
				return transport.RoundTrip(q)
			}
			for _, size := range sizes {
				text := bytes.Repeat([]byte("a line\n"), size/7+1)[:size]
				// Only a body of unknown length is sent in chunks.
				response, err := ask(bufio.NewReader(bytes.NewReader(text)))
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(response.Body)
				response.Body.Close()
				if err != nil || !bytes.Equal(got, bytes.ToUpper(text)) ||
					response.StatusCode != http.StatusAccepted {
					t.Errorf("%s: %d bytes, %v; want %d", response.Status, len(got), err, size)
				}
			}
			// Another body travels as message/ohttp-req, which our gateway does not take.
			asked := u.asked.Load()
			response, err := ask(strings.NewReader("text"))
			if err == nil {
				response.Body.Close()
				t.Errorf("a request that is not in chunks: %s", response.Status)
			}
			if u.asked.Load() != asked {
				t.Error("it went upstream")
			}
		})
	}
}

// TestPeerClientStreams reads a stream of our gateway with openpcc's client, event by event.
func TestPeerClientStreams(t *testing.T) {
	for name, kem := range suites {
		t.Run(name, func(t *testing.T) {
			u := &upstream{next: make(chan struct{})}
			url, list := newGateway(t, u, kem)
			q, err := http.NewRequest("POST", "https://a.example/v1/chat/completions",
				bufio.NewReader(strings.NewReader(streamed)))
			if err != nil {
				t.Fatal(err)
			}
			q.Header = header()
			response, err := newPeerTransport(t, url, list).RoundTrip(q)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			readEvents(t, response.Body, u)
		})
	}
}

// TestPeerGateway sends requests of our client to openpcc's gateway.
func TestPeerGateway(t *testing.T) {
	for name, kem := range suites {
		t.Run(name, func(t *testing.T) {
			u := &upstream{next: make(chan struct{})}
			client := newPeerGateway(t, kem, u, nil)
			for _, size := range sizes {
				text := bytes.Repeat([]byte("a line\n"), size/7+1)[:size]
				got, err := post(client, text)
				if err != nil || !bytes.Equal(got, bytes.ToUpper(text)) {
					t.Errorf("%d bytes, %v; want %d", len(got), err, size)
				}
			}
			streamWords(t, client, u)
			if n := client.Stats().AttemptsAES128; n != 0 {
				t.Errorf("%d requests with AES-128-GCM", n)
			}
		})
	}
}

// TestPeerAnswersSpoiled has answers of openpcc's gateway cut and changed on the way to our client.
func TestPeerAnswersSpoiled(t *testing.T) {
	for name, spoil := range answersSpoiled {
		t.Run(name, func(t *testing.T) {
			client := newPeerGateway(t, ohttp.XWing, &upstream{}, spoil)
			got, err := post(client, bytes.Repeat([]byte("a line\n"), 6000))
			if !errors.Is(err, sealedchat.ErrTruncated) &&
				!errors.Is(err, sealedchat.ErrDecryption) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			spoiledStream(t, client)
		})
	}
}
