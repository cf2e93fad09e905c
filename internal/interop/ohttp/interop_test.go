// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/cloudflare/circl/hpke"
	peer "github.com/openpcc/ohttp"
	peerbhttp "github.com/openpcc/ohttp/encoding/bhttp"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

var suites = map[string]uint16{"X-Wing": ohttp.XWing, "X25519": ohttp.X25519}

// peerKeys makes a key of the peer for a KEM.
func peerKeys(t *testing.T, kem uint16) peer.KeyPair {
	t.Helper()
	public, private, err := hpke.KEM(kem).Scheme().GenerateKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	return peer.KeyPair{SecretKey: private, KeyConfig: peer.KeyConfig{
		KeyID: 3, KemID: hpke.KEM(kem), PublicKey: public,
		SymmetricAlgorithms: []peer.SymmetricAlgorithm{{KDFID: hpke.KDF_HKDF_SHA256,
			AEADID: hpke.AEAD_AES256GCM}},
	}}
}

// echo answers with the body of the request in capitals, event by event.
func echo(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("X-Method", r.Method)
	w.Header().Set("X-Path", r.URL.Path)
	w.Header().Set("X-Authorization", r.Header.Get("Authorization"))
	w.WriteHeader(http.StatusAccepted)
	w.(http.Flusher).Flush()
	for line := range strings.Lines(string(body)) {
		io.WriteString(w, strings.ToUpper(line))
		w.(http.Flusher).Flush()
	}
}

// TestOurClient sends our requests to openpcc's gateway.
func TestOurClient(t *testing.T) {
	for name, kem := range suites {
		t.Run(name, func(t *testing.T) {
			keys := peerKeys(t, kem)
			list, err := peer.KeyConfigs{keys.KeyConfig}.MarshalBinary()
			if err != nil {
				t.Fatal(err)
			}
			configs, err := ohttp.ParseConfigs(list)
			if err != nil || len(configs) != 1 {
				t.Fatal(configs, err)
			}
			if again := ohttp.AppendConfigs(nil, configs...); !bytes.Equal(again, list) {
				t.Errorf("the list is written again as\n%x, it was\n%x", again, list)
			}
			decoder, err := peerbhttp.NewRequestDecoder(
				peerbhttp.MaxRequestChunkLen(ohttp.MaxChunk))
			if err != nil {
				t.Fatal(err)
			}
			for chunk, option := range map[int]peer.GatewayOption{4096: nil,
				ohttp.MaxChunk: peer.WithRequestDecoder(decoder)} {
				options := []peer.GatewayOption{
					peer.WithRequestValidator(peer.NewHostnameAllowlist("a.example"))}
				if option != nil {
					options = append(options, option)
				}
				gateway, err := peer.NewGateway(keys, options...)
				if err != nil {
					t.Fatal(err)
				}
				server := httptest.NewServer(peer.Middleware(gateway, http.HandlerFunc(echo)))
				defer server.Close()
				for _, lines := range []int{1, 10, 2000} {
					t.Run(fmt.Sprintf("%d lines in chunks of %d", lines, chunk),
						func(t *testing.T) {
							ask(t, server.URL, configs[0], chunk,
								strings.Repeat("a line of text\n", lines))
						})
				}
			}
		})
	}
}

func ask(t *testing.T, url string, config *ohttp.Config, chunk int, text string) {
	message, err := bhttp.AppendRequest(nil, &bhttp.Request{Method: "POST", Scheme: "https",
		Authority: "a.example", Path: "/v1/x",
		Header: []bhttp.Field{{Name: "authorization", Value: "Bearer key"},
			{Name: "content-length", Value: strconv.Itoa(len(text))}}},
		[]byte(text), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	q, err := ohttp.NewRequest(config)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	var sealed bytes.Buffer
	if chunk == ohttp.MaxChunk {
		b, err := q.Seal(nil, message)
		if err != nil {
			t.Fatal(err)
		}
		sealed.Write(b)
	} else {
		w, err := q.Writer(&sealed)
		if err != nil {
			t.Fatal(err)
		}
		for len(message) > 0 {
			n := min(chunk, len(message))
			w.Write(message[:n])
			if message = message[n:]; len(message) > 0 {
				w.Flush()
			}
		}
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
	}
	response, err := http.Post(url, ohttp.TypeRequest, &sealed)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK ||
		response.Header.Get("Content-Type") != ohttp.TypeResponse {
		body, _ := io.ReadAll(response.Body)
		t.Fatalf("%s, %s: %s", response.Status, response.Header.Get("Content-Type"), body)
	}
	r, err := q.Response(response.Body, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	head, body, err := bhttp.ReadResponse(r, bhttp.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := body.ReadAll()
	if err != nil || string(got) != strings.ToUpper(text) {
		t.Fatalf("%d bytes, %v; want %d", len(got), err, len(text))
	}
	for _, want := range []bhttp.Field{{Name: "x-method", Value: "POST"},
		{Name: "x-path", Value: "/v1/x"}, {Name: "x-authorization", Value: "Bearer key"}} {
		found := false
		for _, f := range head.Header {
			found = found || f == want
		}
		if !found {
			t.Errorf("no %v in %v", want, head.Header)
		}
	}
	if head.Status != http.StatusAccepted {
		t.Errorf("status %d", head.Status)
	}
}

// TestShortAnswer lets openpcc's gateway answer a chunked request with an answer that is not in
// chunks, as it does by default. The draft forbids that. The answer has another media type, and
// does not open.
func TestShortAnswer(t *testing.T) {
	keys := peerKeys(t, ohttp.XWing)
	gateway, err := peer.NewGateway(keys,
		peer.WithRequestValidator(peer.NewHostnameAllowlist("a.example")))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(peer.Middleware(gateway,
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "short")
		})))
	defer server.Close()
	list, err := peer.KeyConfigs{keys.KeyConfig}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	configs, err := ohttp.ParseConfigs(list)
	if err != nil {
		t.Fatal(err)
	}
	message, err := bhttp.AppendRequest(nil, &bhttp.Request{Method: "GET", Scheme: "https",
		Authority: "a.example", Path: "/"}, nil, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	q, err := ohttp.NewRequest(configs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	sealed, err := q.Seal(nil, message)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.Post(server.URL, ohttp.TypeRequest, bytes.NewReader(sealed))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if got := response.Header.Get("Content-Type"); response.StatusCode != http.StatusOK ||
		got == ohttp.TypeResponse {
		t.Fatalf("%s, %s: openpcc's ohttp has learned to answer in chunks", response.Status, got)
	}
	r, err := q.Response(response.Body, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got, err := io.ReadAll(r); err == nil {
		t.Errorf("it opened: %q", got)
	}
}

type oneKey struct{ *ohttp.PrivateKey }

func (k oneKey) Key(id uint8, kem uint16) *ohttp.PrivateKey {
	if c := k.Config(); c.ID() == id && c.KEM() == kem {
		return k.PrivateKey
	}
	return nil
}

// ourGateway answers as echo does, through our packages.
func ourGateway(t *testing.T, key oneKey) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		fail := func(err error) bool {
			if err != nil {
				t.Error(err)
				http.Error(w, "failed", http.StatusBadRequest)
			}
			return err != nil
		}
		if got := r.Header.Get("Content-Type"); got != ohttp.TypeRequest {
			t.Errorf("a request of type %s", got)
		}
		x, err := ohttp.Open(r.Body, key, 0)
		if fail(err) {
			return
		}
		defer x.Close()
		q, body, err := bhttp.ReadRequest(x.Request(), bhttp.Limits{})
		if fail(err) {
			return
		}
		content, err := body.ReadAll()
		if fail(err) {
			return
		}
		w.Header().Set("Content-Type", ohttp.TypeResponse)
		answer, err := x.Response(w)
		if fail(err) {
			return
		}
		defer answer.Close()
		var e bhttp.Encoder
		b, err := e.ResponseHead(nil, http.StatusAccepted,
			[]bhttp.Field{{Name: "x-path", Value: q.Path}, {Name: "x-method", Value: q.Method}})
		if fail(err) {
			return
		}
		for line := range bytes.Lines(content) {
			answer.Write(e.Content(b, bytes.ToUpper(line)))
			answer.Flush()
			w.(http.Flusher).Flush()
			b = b[:0]
		}
		if b, err = e.End(b, nil, 0); !fail(err) {
			answer.Write(b)
			fail(answer.Finish())
		}
	}
}

// TestOurGateway answers openpcc's client.
func TestOurGateway(t *testing.T) {
	for name, kem := range suites {
		t.Run(name, func(t *testing.T) {
			key, err := ohttp.GenerateKey(9, kem)
			if err != nil {
				t.Fatal(err)
			}
			defer key.Close()
			var configs peer.KeyConfigs
			if err := configs.UnmarshalBinary(ohttp.AppendConfigs(nil, key.Config())); err != nil ||
				len(configs) != 1 {
				t.Fatal(configs, err)
			}
			server := httptest.NewServer(ourGateway(t, oneKey{key}))
			defer server.Close()
			transport, err := peer.NewTransport(configs[0], server.URL)
			if err != nil {
				t.Fatal(err)
			}
			for _, lines := range []int{1, 10, 2000} {
				text := strings.Repeat("a line of text\n", lines)
				// A body of unknown length: only then does the peer's client send chunks.
				request, err := http.NewRequest("PUT", "https://a.example/v1/y",
					bufio.NewReader(strings.NewReader(text)))
				if err != nil {
					t.Fatal(err)
				}
				response, err := transport.RoundTrip(request)
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(response.Body)
				response.Body.Close()
				if err != nil || string(got) != strings.ToUpper(text) {
					t.Errorf("%d bytes, %v; want %d", len(got), err, len(text))
				}
				if response.StatusCode != http.StatusAccepted ||
					response.Header.Get("X-Path") != "/v1/y" ||
					response.Header.Get("X-Method") != "PUT" {
					t.Errorf("%d, %v", response.StatusCode, response.Header)
				}
			}
		})
	}
}
