// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// fixedUpstream answers at once, and costs nothing.
type fixedUpstream string

func (u fixedUpstream) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		_ = req.Body.Close()
	}
	return respond(200, string(u), "Content-Type", "application/json"), nil
}

// BenchmarkGatewayProtocols has one gateway serve the same request of 1 KiB over each protocol in turn, and compares the CPU time
// of ServeHTTP, upstream included, which costs nothing. x-v1 is the ratio of the medians: v1's over Oblivious HTTP's.
//
//	go test -run '^$' -bench GatewayProtocols -benchtime 200x .
func BenchmarkGatewayProtocols(b *testing.B) {
	g := newGateway(b, GatewayConfig{
		Upstream: "https://upstream.test/v1", UpstreamTransport: fixedUpstream(fineAnswer), AllowUnauthenticated: true,
		Keys:  storedKeys(b, "server-4096"),
		OHTTP: GatewayOHTTP{StrangerRate: -1},
	})
	body := `{"model":"m","messages":[{"role":"user","content":"` + string(bytes.Repeat([]byte{'x'}, 1<<10)) + `"}]}`
	configs, err := g.cfg.Keys.store.Configs(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	server, clientKey := publicOf(b, "server-4096"), url.PathEscape(string(testkit.PublicPEM(b, "client-4096")))
	serve := func(req *http.Request) time.Duration {
		w := httptest.NewRecorder()
		start := testkit.CPUTime()
		g.ServeHTTP(w, req)
		took := testkit.CPUTime() - start
		if w.Code != 200 {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
		return took
	}
	envelopeRequest := func() *http.Request {
		e, err := server.seal([]byte(body))
		if err != nil {
			b.Fatal(err)
		}
		req := httptest.NewRequest(http.MethodPost, hybrid.PathCompletion, bytes.NewReader(envelope.Append(nil, e)))
		req.Header.Set("X-Payload-ID", newUUID())
		req.Header.Set("X-Public-Key", clientKey)
		return req
	}
	var v1, second []time.Duration
	for b.Loop() {
		v1 = append(v1, serve(envelopeRequest()))
		second = append(second, serve(obliviousPost(b, bytes.NewReader(sealFor(b, configs[0], innerRequest{body: body}.encode(b)).body))))
	}
	if configs[0].KEM() != ohttp.XWing {
		b.Error("not X-Wing")
	}
	b.ReportMetric(float64(median(v1).Microseconds()), "µs-v1")
	b.ReportMetric(float64(median(second).Microseconds()), "µs-ohttp")
	b.ReportMetric(float64(median(v1))/float64(median(second)), "x-v1")
}
