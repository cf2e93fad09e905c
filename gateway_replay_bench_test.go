// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/envelope"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/replay"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// BenchmarkGatewayReplays has two gateways serve the same kind of request in turn, of which one
// remembers in memory what it served, and one in a file. What the file costs is the difference of
// the medians: of v1 the time, at most 100 µs, and of Oblivious HTTP the CPU time, at most 10 µs.
// x-v1 and x-ohttp are the ratios, whatever else the machine does.
//
//	go test -run '^$' -bench GatewayReplays -benchtime 1000x .
func BenchmarkGatewayReplays(b *testing.B) {
	dir, err := fsafe.CreateDir(storeDir(b))
	if err != nil {
		b.Fatal(err)
	}
	defer dir.Close()
	file := replay.NewFile(dir, 0)
	defer file.Close()
	keys := storedKeys(b, "server-4096")
	gateways := [2]*Gateway{}
	for i, cache := range []ReplayCache{NewReplayCache(0), file} {
		gateways[i] = newGateway(b, GatewayConfig{
			Upstream: "https://upstream.test/v1", UpstreamTransport: fixedUpstream(fineAnswer),
			AllowUnauthenticated: true, Keys: keys, Replay: cache, OHTTP: GatewayOHTTP{StrangerRate: -1},
		})
	}
	configs, err := keys.store.Configs(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	const body = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	server := publicOf(b, "server-4096")
	clientKey := url.PathEscape(string(testkit.PublicPEM(b, "client-4096")))
	envelopeRequest := func() *http.Request {
		e, err := server.seal([]byte(body))
		if err != nil {
			b.Fatal(err)
		}
		sealed := bytes.NewReader(envelope.Append(nil, e))
		req := httptest.NewRequest(http.MethodPost, hybrid.PathCompletion, sealed)
		req.Header.Set("X-Payload-ID", newUUID())
		req.Header.Set("X-Public-Key", clientKey)
		return req
	}
	obliviousRequest := func() *http.Request {
		sealed := sealFor(b, configs[0], innerRequest{body: body}.encode(b)).body
		return obliviousPost(b, bytes.NewReader(sealed))
	}
	serve := func(g *Gateway, req *http.Request) (took, cpu time.Duration) {
		w := httptest.NewRecorder()
		start, startCPU := time.Now(), testkit.CPUTime()
		g.ServeHTTP(w, req)
		took, cpu = time.Since(start), testkit.CPUTime()-startCPU
		if w.Code != http.StatusOK {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
		return took, cpu
	}
	var v1, second [2][]time.Duration
	for i := 0; b.Loop(); i++ {
		for _, n := range [2]int{i & 1, i&1 ^ 1} { // neither comes first always
			took, _ := serve(gateways[n], envelopeRequest())
			v1[n] = append(v1[n], took)
			_, cpu := serve(gateways[n], obliviousRequest())
			second[n] = append(second[n], cpu)
		}
	}
	report := func(times [2][]time.Duration, name string) {
		memory, file := median(slices.Clone(times[0])), median(slices.Clone(times[1]))
		b.ReportMetric(float64((file-memory).Nanoseconds())/1e3, "µs-more-"+name)
		b.ReportMetric(float64(file)/float64(memory), "x-"+name)
	}
	report(v1, "v1")
	report(second, "ohttp")
}
