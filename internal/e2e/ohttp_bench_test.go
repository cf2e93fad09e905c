// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// Both protocols, and plain HTTP beside them: they alternate within one process, and the ratio is
// that of the medians.
//
//	go test -run '^$' -bench OHTTP ./internal/e2e

// relayed is an upstream that streams events through a gateway and a relay, sealed and in the
// clear; in the clear another reverse proxy stands where the gateway does.
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
			_, _ = fmt.Fprintf(w,
				"data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1765250382,\"model\":\"m\","+
					"\"choices\":[{\"index\":0,\"delta\":{\"content\":\"token%d\"},\"finish_reason\":null}]}\n\n", i)
			w.(http.Flusher).Flush()
		}
		_, _ = io.WriteString(w, fakes.Done)
	}))
	b.Cleanup(up.Close)
	gateway := httptest.NewServer(newGateway(b, sealedchat.GatewayConfig{Upstream: up.URL + "/v1",
		AllowUnauthenticated: true, OHTTP: sealedchat.GatewayOHTTP{StrangerRate: -1},
		Keys: storedKeys(b, "server-4096")}))
	b.Cleanup(gateway.Close)
	hop := proxyTo(b, up.URL)
	sealedRelay, plainRelay := proxyTo(b, gateway.URL), proxyTo(b, hop)
	r.sealed, r.sealedURL = ohttpClient(b, sealedRelay, nil).HTTPClient(),
		sealedRelay+"/v1/chat/completions"
	r.plain, r.plainURL = &http.Client{Transport: &http.Transport{}},
		plainRelay+"/v1/chat/completions"
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

// BenchmarkOHTTPEvents is a stream of 1,000 events, each sent when the one before has arrived, with
// all that takes part in one process: x-plain is the ratio of the CPU time to that of plain HTTP
// over as many hops.
func BenchmarkOHTTPEvents(b *testing.B) {
	r := newRelayed(b, 1000)
	var plain, sealed []time.Duration
	for b.Loop() {
		_, cpu := r.read(b, r.plain, r.plainURL)
		plain = append(plain, cpu)
		_, cpu = r.read(b, r.sealed, r.sealedURL)
		sealed = append(sealed, cpu)
	}
	b.ReportMetric(float64(testkit.Median(sealed))/float64(testkit.Median(plain)), "x-plain")
	b.ReportMetric(float64(testkit.Median(sealed).Microseconds())/1000, "µs-event")
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
	b.ReportMetric(float64((testkit.Median(sealed)-testkit.Median(plain)).Microseconds())/1000,
		"ms-later")
	b.ReportMetric(float64(testkit.Median(plain).Microseconds())/1000, "ms-plain")
}
