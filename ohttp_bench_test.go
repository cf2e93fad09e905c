// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// Both protocols, and plain HTTP beside them: they alternate within one process, and the ratio is that of the medians.
//
//	go test -run '^$' -bench OHTTP .

// BenchmarkOHTTPClient is what a client does for a request and an answer of 1 KiB: sealing, and opening. x-v1 is the ratio of
// its CPU time to that of version 1, x-v1-protected the same into protected memory, as Complete does it.
func BenchmarkOHTTPClient(b *testing.B) {
	ctx := b.Context()
	plaintext, _ := ask(strings.Repeat("x", 1024-80)).encode()
	content := oneKiBAnswer()
	g := newTiny(b, nil)
	oblivious := ohttpClient(b, "https://gateway.test", func(c *Config) { c.Transport = direct{g} })
	v1 := startClient(b, "https://gateway.test", nil)
	v1.server.key, v1.server.fetched = publicOf(b, "server-4096"), time.Now()
	for _, c := range []*SecureCompletionClient{oblivious, v1} {
		if err := c.Warm(ctx); err != nil {
			b.Fatal(err)
		}
	}
	answers := map[*SecureCompletionClient]func(*sealedRequest) *httpx.Answer{
		oblivious: func(r *sealedRequest) *httpx.Answer { return answerOHTTP(b, g, r, content) },
		v1:        func(r *sealedRequest) *httpx.Answer { return answerV1(b, r, content) },
	}
	round := func(c *SecureCompletionClient, into hybrid.Alloc) time.Duration {
		start := testkit.CPUTime()
		r, err := c.wire.seal(ctx, chatRequest(plaintext, true), &callOptions{})
		spent := testkit.CPUTime() - start
		if err != nil {
			b.Fatal(err)
		}
		a := answers[c](r)
		start = testkit.CPUTime()
		if _, err := c.wire.openAnswer(r, a, into); err != nil {
			b.Fatal(err)
		}
		r.release()
		return spent + testkit.CPUTime() - start
	}
	memory := locked.NewArena(locked.BestEffort)
	defer memory.Close()
	var secret *Secret
	into := func(n int) (room []byte, err error) {
		secret.Destroy()
		secret, room, err = newBuffer(memory, n)
		return room, err
	}
	defer func() { secret.Destroy() }()
	var base, own, baseProtected, ownProtected []time.Duration
	for b.Loop() {
		base, own = append(base, round(v1, nil)), append(own, round(oblivious, nil))
		baseProtected, ownProtected = append(baseProtected, round(v1, into)), append(ownProtected, round(oblivious, into))
	}
	b.ReportMetric(float64(median(own))/float64(median(base)), "x-v1")
	b.ReportMetric(float64(median(ownProtected))/float64(median(baseProtected)), "x-v1-protected")
	b.ReportMetric(float64(median(own).Microseconds()), "µs-client")
	b.ReportMetric(float64(median(base).Microseconds()), "µs-v1-client")
}

func oneKiBAnswer() []byte {
	w := httptest.NewRecorder()
	answerText(strings.Repeat("y", 750))(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader("")))
	return w.Body.Bytes()
}

// answerOHTTP seals content as the gateway does.
func answerOHTTP(b *testing.B, g *tinyGateway, r *sealedRequest, content []byte) *httpx.Answer {
	x, err := ohttp.Open(r.http.Body, g.ring, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer x.Close()
	_, _ = io.Copy(io.Discard, x.Request())
	message, err := bhttp.AppendResponse(nil, &bhttp.Response{Status: 200, Header: []bhttp.Field{{Name: "content-type", Value: "application/json"}}}, content, nil, 0)
	if err != nil {
		b.Fatal(err)
	}
	var sealed bytes.Buffer
	w, err := x.Response(&sealed)
	if err != nil {
		b.Fatal(err)
	}
	_, _ = w.Write(message)
	_ = w.Finish()
	return &httpx.Answer{Status: 200, Header: http.Header{"Content-Type": {ohttp.TypeResponse}}, Body: sealed.Bytes()}
}

func answerV1(b *testing.B, r *sealedRequest, content []byte) *httpx.Answer {
	e, err := sealEnvelope(r.key.RSA.Public(), content)
	if err != nil {
		b.Fatal(err)
	}
	return &httpx.Answer{Status: 200, Body: envelope.Append(nil, e)}
}

// relayed is an upstream that streams events through a gateway and a relay, sealed and in the clear; in the clear another
// reverse proxy stands where the gateway does.
type relayed struct {
	next                chan struct{} // for each event
	sealed, plain       *http.Client
	sealedURL, plainURL string
}

func newRelayed(b *testing.B, events int) *relayed {
	r := &relayed{next: make(chan struct{}, 1)}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range events {
			if i > 0 {
				select {
				case <-r.next:
				case <-req.Context().Done(): // of a benchmark that failed
					return
				}
			}
			_, _ = fmt.Fprintf(w, "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1765250382,\"model\":\"m\","+
				"\"choices\":[{\"index\":0,\"delta\":{\"content\":\"token%d\"},\"finish_reason\":null}]}\n\n", i)
			w.(http.Flusher).Flush()
		}
		_, _ = io.WriteString(w, done)
	}))
	b.Cleanup(up.Close)
	gateway := httptest.NewServer(newGateway(b, GatewayConfig{Upstream: up.URL + "/v1", AllowUnauthenticated: true, OHTTP: GatewayOHTTP{StrangerRate: -1}, Keys: storedKeys(b, "server-4096")}))
	b.Cleanup(gateway.Close)
	hop := proxyTo(b, up.URL)
	sealedRelay, plainRelay := proxyTo(b, gateway.URL), proxyTo(b, hop)
	r.sealed, r.sealedURL = ohttpClient(b, sealedRelay, nil).HTTPClient(), sealedRelay+"/v1/chat/completions"
	r.plain, r.plainURL = &http.Client{Transport: &http.Transport{}}, plainRelay+"/v1/chat/completions"
	return r
}

func proxyTo(b *testing.B, base string) string {
	relay := httptest.NewServer(relayTo(b, base, &http.Transport{MaxIdleConnsPerHost: 4}))
	b.Cleanup(relay.Close)
	return relay.URL
}

// read reads one stream, and tells when the first event came, and what all of it cost.
func (r *relayed) read(b *testing.B, client *http.Client, url string) (first, cpu time.Duration) {
	start, began := testkit.CPUTime(), time.Now()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url,
		strings.NewReader(`{"model":"m","stream":true,"messages":[{"role":"user","content":"`+strings.Repeat("x", 900)+`"}]}`))
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	for n := 0; lines.Scan(); {
		switch {
		case lines.Text() == "data: [DONE]":
		case strings.HasPrefix(lines.Text(), "data: "):
			if n++; n == 1 {
				first = time.Since(began)
			}
			select {
			case r.next <- struct{}{}:
			default:
			}
		}
	}
	if err := lines.Err(); err != nil {
		b.Fatal(err)
	}
	select { // the last one was not waited for
	case <-r.next:
	default:
	}
	return first, testkit.CPUTime() - start
}

// BenchmarkOHTTPEvents is a stream of 1,000 events, each sent when the one before has arrived, with all that takes part in one
// process: x-plain is the ratio of the CPU time to that of plain HTTP over as many hops.
func BenchmarkOHTTPEvents(b *testing.B) {
	r := newRelayed(b, 1000)
	var plain, sealed []time.Duration
	for b.Loop() {
		_, cpu := r.read(b, r.plain, r.plainURL)
		plain = append(plain, cpu)
		_, cpu = r.read(b, r.sealed, r.sealedURL)
		sealed = append(sealed, cpu)
	}
	b.ReportMetric(float64(median(sealed))/float64(median(plain)), "x-plain")
	b.ReportMetric(float64(median(sealed).Microseconds())/1000, "µs-event")
}

// BenchmarkOHTTPFirstToken is how much later the first event comes than over plain HTTP.
func BenchmarkOHTTPFirstToken(b *testing.B) {
	r := newRelayed(b, 1)
	var plain, sealed []time.Duration
	for b.Loop() {
		first, _ := r.read(b, r.plain, r.plainURL)
		plain = append(plain, first)
		first, _ = r.read(b, r.sealed, r.sealedURL)
		sealed = append(sealed, first)
	}
	b.ReportMetric(float64((median(sealed)-median(plain)).Microseconds())/1000, "ms-later")
	b.ReportMetric(float64(median(plain).Microseconds())/1000, "ms-plain")
}
