// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// This file has the two ends of this package that peers speak with: a Gateway in front of an
// upstream, and a SecureCompletionClient.

// sizes of content, in bytes. The largest ones take several chunks.
var sizes = []int{5, 100, 16_000, 16_384, 40_000, 400 << 10}

// upstream answers a chat, event by event if that was asked for, and everything else as echo does.
// Between two events it waits for next, unless that is nil.
type upstream struct {
	next  chan struct{}
	asked atomic.Int32
}

const words = 20

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.asked.Add(1)
	if r.URL.Path != "/v1/chat/completions" {
		echo(w, r)
		return
	}
	var q struct{ Stream bool }
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !q.Stream {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[`+
			`{"index":0,"message":{"role":"assistant","content":"Paris."},`+
			`"finish_reason":"stop"}]}`)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range words {
		if u.next != nil && i > 0 {
			<-u.next
		}
		finish := "null"
		if i == words-1 {
			finish = `"stop"`
		}
		fmt.Fprintf(w, `data: {"id":"c","object":"chat.completion.chunk","created":1,`+
			`"model":"m","choices":[{"index":0,"delta":{"content":"word%d "},`+
			`"finish_reason":%s}]}`+"\n\n", i, finish)
		w.(http.Flusher).Flush()
	}
	io.WriteString(w, "data: [DONE]\n\n")
}

// newGateway starts a gateway of this package in front of u, and gives its address and the list of
// its only configuration for kem.
func newGateway(t *testing.T, u http.Handler, kem uint16) (url string, list []byte) {
	t.Helper()
	return newGatewayWith(t, u, kem, true)
}

// newGatewayWith is newGateway with or without AES-128-GCM.
func newGatewayWith(t *testing.T, u http.Handler, kem uint16, aes128 bool) (url string,
	list []byte) {
	t.Helper()
	up := httptest.NewServer(u)
	t.Cleanup(up.Close)
	gateway, err := sealedchat.NewGateway(sealedchat.GatewayConfig{
		Upstream: up.URL + "/v1", AllowUnauthenticated: true,
		Protocols: []sealedchat.Protocol{sealedchat.ProtocolOHTTP},
		OHTTP: sealedchat.GatewayOHTTP{AES128: aes128, StrangerRate: -1,
			Allow: []string{"POST /v1/chat/completions", "POST /v1/echo"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { gateway.Close() })
	server := httptest.NewServer(gateway)
	t.Cleanup(server.Close)
	url = server.URL + ohttp.Path
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	all, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for len(all) > 2 {
		n := 2 + int(binary.BigEndian.Uint16(all))
		if binary.BigEndian.Uint16(all[3:]) == kem {
			return url, all[:n]
		}
		all = all[n:]
	}
	t.Fatal("the gateway lists no such configuration")
	return "", nil
}

// header is that of a request to be sealed.
func header() http.Header {
	return http.Header{"Date": {time.Now().UTC().Format(http.TimeFormat)},
		"Content-Type": {"text/plain"}}
}

// newClient makes a client of this package for a gateway with one configuration.
func newClient(t *testing.T, url string, list []byte) *sealedchat.SecureCompletionClient {
	t.Helper()
	configs, err := ohttp.ParseConfigs(list)
	if err != nil || len(configs) != 1 {
		t.Fatal(configs, err)
	}
	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
		BaseURL: url, InsecureAllowHTTP: true, Protocol: sealedchat.ProtocolOHTTP,
		Trust:      sealedchat.Pin(fmt.Sprintf("%x", configs[0].Fingerprint())),
		OHTTP:      sealedchat.OHTTPOptions{AllowX25519: configs[0].KEM() == ohttp.X25519},
		MaxRetries: -1,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// post asks for an echo of text.
func post(client *sealedchat.SecureCompletionClient, text []byte) ([]byte, error) {
	response, err := client.HTTPClient().Post("https://a.example/v1/echo", "text/plain",
		bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusAccepted {
		return nil, fmt.Errorf("status %d", response.StatusCode)
	}
	return io.ReadAll(response.Body)
}

// streamed is a chat that asks for a stream.
const streamed = `{"model":"m","messages":[{"role":"user","content":"Where?"}],"stream":true}`

// readEvents reads the events that u sends, and lets u send each of them when the one before has
// come.
func readEvents(t *testing.T, from io.Reader, u *upstream) {
	t.Helper()
	var text strings.Builder
	buffer := make([]byte, 1<<15)
	for seen := 0; ; {
		n, err := from.Read(buffer)
		text.Write(buffer[:n])
		for ; seen < strings.Count(text.String(), "word"); seen++ {
			if seen < words-1 {
				u.next <- struct{}{}
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(text.String(), "word"); n != words ||
		!strings.HasSuffix(text.String(), "data: [DONE]\n\n") {
		t.Errorf("%d events: %s", n, text.String())
	}
}

func question() *sealedchat.ChatRequest {
	return &sealedchat.ChatRequest{Model: "m",
		Messages: []sealedchat.Message{sealedchat.UserMessage("Where?")}}
}

// streamWords does the same with our client.
func streamWords(t *testing.T, client *sealedchat.SecureCompletionClient, u *upstream) {
	t.Helper()
	seen, text := 0, ""
	for chunk, err := range client.Stream(t.Context(), question()) {
		if err != nil {
			t.Fatal(err)
		}
		for _, choice := range chunk.Choices {
			text += choice.Delta.Content
		}
		if seen++; seen < words {
			u.next <- struct{}{}
		}
	}
	if n := strings.Count(text, "word"); n != words || seen != words {
		t.Errorf("%d words in %d events", n, seen)
	}
}

// spoiledStream wants a stream that does not end well.
func spoiledStream(t *testing.T, client *sealedchat.SecureCompletionClient) {
	t.Helper()
	var last error
	for _, err := range client.Stream(t.Context(), question()) {
		last = err
	}
	if !errors.Is(last, sealedchat.ErrTruncated) && !errors.Is(last, sealedchat.ErrDecryption) {
		t.Error(last)
	}
}

// tamper changes sealed bytes on the way.
type tamper func([]byte) []byte

// flip changes a bit of the byte at i, from the end if i is negative.
func flip(i int) tamper {
	return func(b []byte) []byte {
		b = bytes.Clone(b)
		b[(i+len(b))%len(b)] ^= 1
		return b
	}
}

// shorten takes n bytes from the end, or all after the first -n.
func shorten(n int) tamper {
	return func(b []byte) []byte {
		if n < 0 {
			return b[:-n]
		}
		return b[:len(b)-n]
	}
}

// In a sealed answer 16 bytes of nonce come first with AES-128-GCM, 32 with AES-256-GCM. A final
// chunk without content is 17 bytes.
var answersSpoiled = map[string]tamper{
	"nothing":                  func([]byte) []byte { return nil },
	"half of the nonce":        shorten(-8),
	"the nonce alone":          shorten(-16),
	"half of a chunk":          shorten(-40),
	"no final chunk":           shorten(17),
	"final chunk without seal": shorten(16),
	"final chunk cut":          shorten(1),
	"nonce flipped":            flip(3),
	"chunk flipped":            flip(30),
	"final chunk flipped":      flip(-1),
	"a byte behind the end":    func(b []byte) []byte { return append(bytes.Clone(b), 0) },
}
