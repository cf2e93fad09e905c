// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// fixedUpstream answers at once, and costs nothing.
type fixedUpstream string

func (u fixedUpstream) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		_ = req.Body.Close()
	}
	return testkit.Respond(200, string(u), "Content-Type", "application/json"), nil
}

// BenchmarkGatewayProtocols has one gateway serve the same request of 1 KiB over each protocol in turn, and compares the CPU time
// of ServeHTTP, upstream included, which costs nothing. x-v1 is the ratio of the medians: v1's over Oblivious HTTP's.
//
//	go test -run '^$' -bench GatewayProtocols -benchtime 200x ./internal/e2e
func BenchmarkGatewayProtocols(b *testing.B) {
	r := newRig(b, func(c *sealedchat.GatewayConfig) {
		c.UpstreamTransport, c.Logger = fixedUpstream(testkit.FineAnswer), nil
		c.Keys, c.OHTTP.StrangerRate = storedKeys(b, "server-4096"), -1
	})
	body := `{"model":"m","messages":[{"role":"user","content":"` + string(bytes.Repeat([]byte{'x'}, 1<<10)) + `"}]}`
	config := r.KeyConfig()
	server, clientKey := publicOf(b, "server-4096"), url.PathEscape(string(testkit.PublicPEM(b, "client-4096")))
	serve := func(req *http.Request) time.Duration {
		w := httptest.NewRecorder()
		start := testkit.CPUTime()
		r.g.ServeHTTP(w, req)
		took := testkit.CPUTime() - start
		if w.Code != 200 {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
		return took
	}
	envelopeRequest := func() *http.Request {
		e, err := sealTo(server, []byte(body))
		if err != nil {
			b.Fatal(err)
		}
		req := httptest.NewRequest(http.MethodPost, hybrid.PathCompletion, bytes.NewReader(envelope.Append(nil, e)))
		req.Header.Set("X-Payload-ID", testkit.UUID())
		req.Header.Set("X-Public-Key", clientKey)
		return req
	}
	var v1, second []time.Duration
	for b.Loop() {
		v1 = append(v1, serve(envelopeRequest()))
		second = append(second, serve(fakes.OHTTPPost(b, bytes.NewReader(fakes.SealFor(b, config, fakes.Inner{Body: body}.Encode(b)).Body))))
	}
	if config.KEM() != ohttp.XWing {
		b.Error("not X-Wing")
	}
	b.ReportMetric(float64(testkit.Median(v1).Microseconds()), "µs-v1")
	b.ReportMetric(float64(testkit.Median(second).Microseconds()), "µs-ohttp")
	b.ReportMetric(float64(testkit.Median(v1))/float64(testkit.Median(second)), "x-v1")
}
