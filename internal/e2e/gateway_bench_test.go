// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/replay"
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

// BenchmarkGatewayProtocols has one gateway serve the same request of 1 KiB over each protocol in
// turn, and compares the CPU time of ServeHTTP, upstream included, which costs nothing. x-v1 is the
// ratio of the medians: v1's over Oblivious HTTP's.
//
//	go test -run '^$' -bench GatewayProtocols -benchtime 200x ./internal/e2e
func BenchmarkGatewayProtocols(b *testing.B) {
	r := newRig(b, func(c *sealedchat.GatewayConfig) {
		c.UpstreamTransport, c.Logger = fixedUpstream(testkit.FineAnswer), nil
		c.Keys, c.OHTTP.StrangerRate = storedKeys(b, "server-4096"), -1
	})
	body := `{"model":"m","messages":[{"role":"user","content":"` + string(
		bytes.Repeat([]byte{'x'}, 1<<10),
	) + `"}]}`
	config := r.KeyConfig()
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
	var v1, second []time.Duration
	for b.Loop() {
		v1 = append(v1, serve(envelopePost(b, body)))
		second = append(
			second,
			serve(
				fakes.OHTTPPost(
					b,
					bytes.NewReader(fakes.SealFor(b, config,
						fakes.Inner{Body: body}.Encode(b)).Body),
				),
			),
		)
	}
	if config.KEM() != ohttp.XWing {
		b.Error("not X-Wing")
	}
	b.ReportMetric(float64(testkit.Median(v1).Microseconds()), "µs-v1")
	b.ReportMetric(float64(testkit.Median(second).Microseconds()), "µs-ohttp")
	b.ReportMetric(float64(testkit.Median(v1))/float64(testkit.Median(second)), "x-v1")
}

// envelopePost is a request of v1 that is sealed to server-4096, for client-4096.
func envelopePost(b *testing.B, body string) *http.Request {
	e, err := sealTo(publicOf(b, "server-4096"), []byte(body))
	if err != nil {
		b.Fatal(err)
	}
	sealed := bytes.NewReader(envelope.Append(nil, e))
	req := httptest.NewRequest(http.MethodPost, hybrid.PathCompletion, sealed)
	req.Header.Set("X-Payload-ID", testkit.UUID())
	req.Header.Set("X-Public-Key", url.PathEscape(string(testkit.PublicPEM(b, "client-4096"))))
	return req
}

// BenchmarkGatewayReplays has two gateways serve the same kind of request in turn, of which one
// remembers in memory what it served, and one in a file. What the file costs is the median of what
// the second took more than the first, right before or after: of v1 time, at most 100 µs, and of
// Oblivious HTTP CPU time, at most 10 µs. x-v1 and x-ohttp are the ratios of the medians. A machine
// that does other things needs thousands of rounds.
//
//	go test -run '^$' -bench GatewayReplays -benchtime 1000x ./internal/e2e
func BenchmarkGatewayReplays(b *testing.B) {
	dir, err := fsafe.CreateDir(filepath.Join(b.TempDir(), "keys"))
	if err != nil {
		b.Fatal(err)
	}
	defer dir.Close()
	file := replay.NewFile(dir, 0)
	defer file.Close()
	keys := storedKeys(b, "server-4096")
	var rigs [2]*rig
	for i, cache := range []sealedchat.ReplayCache{sealedchat.NewReplayCache(0), file} {
		rigs[i] = newRig(b, func(c *sealedchat.GatewayConfig) {
			c.UpstreamTransport, c.Logger = fixedUpstream(testkit.FineAnswer), nil
			c.Keys, c.OHTTP.StrangerRate, c.Replay = keys, -1, cache
		})
	}
	const body = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	config := rigs[0].KeyConfig()
	serve := func(r *rig, req *http.Request) (took, cpu time.Duration) {
		w := httptest.NewRecorder()
		start, startCPU := time.Now(), testkit.CPUTime()
		r.g.ServeHTTP(w, req)
		took, cpu = time.Since(start), testkit.CPUTime()-startCPU
		if w.Code != http.StatusOK {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
		return took, cpu
	}
	var v1, second [2][]time.Duration
	for i := 0; b.Loop(); i++ {
		for _, n := range [2]int{i & 1, i&1 ^ 1} { // neither comes first always
			took, _ := serve(rigs[n], envelopePost(b, body))
			v1[n] = append(v1[n], took)
			sealed := fakes.SealFor(b, config, fakes.Inner{Body: body}.Encode(b)).Body
			_, cpu := serve(rigs[n], fakes.OHTTPPost(b, bytes.NewReader(sealed)))
			second[n] = append(second[n], cpu)
		}
	}
	report := func(times [2][]time.Duration, name string) {
		more := make([]time.Duration, len(times[0]))
		for i := range more {
			more[i] = times[1][i] - times[0][i]
		}
		memory, file := testkit.Median(times[0]), testkit.Median(times[1])
		b.ReportMetric(float64(testkit.Median(more).Nanoseconds())/1e3, "µs-more-"+name)
		b.ReportMetric(float64(file)/float64(memory), "x-"+name)
	}
	report(v1, "v1")
	report(second, "ohttp")
}
