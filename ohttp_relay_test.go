// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// chunkCutter is an upstream that streams as many chunks as the request says, and breaks off as it says.
func chunkCutter(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	o, _ := pick(body, "events", "cut")
	events, _ := strconv.Atoi(string(o["events"]))
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range events {
		_, _ = fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%d \"}}]}\n\n", i)
		w.(http.Flusher).Flush()
	}
	switch o.text("cut") {
	case "abort":
		panic(http.ErrAbortHandler)
	case "quiet": // ends as if all were well
		return
	}
	_, _ = io.WriteString(w, done)
}

// fullDuplex lets net/http begin an answer before it knows that the request's body has ended. Without it, a server that
// answers at once makes httputil.ReverseProxy break off now and then: net/http closes the body of which the proxy is about to
// read the end, and the proxy takes that for a failure of its own request.
func fullDuplex(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		h.ServeHTTP(w, r)
	})
}

// relayTo is a reverse proxy in front of the server at base, which passes on what comes as it comes.
func relayTo(t testing.TB, base string, transport *http.Transport) http.Handler {
	t.Helper()
	target, err := url.Parse(base)
	if err != nil {
		t.Fatal(err)
	}
	return fullDuplex(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: transport, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
	})
}

// cutPlan is what becomes of one stream.
type cutPlan struct {
	events int
	cut    string // by the upstream
	leave  int    // the client leaves after so many chunks; -1: never
	cancel bool   // by its context, and not by leaving the loop
}

// Streams of a client through httputil.ReverseProxy, cut at random by either end or not at all. SEALEDCHAT_LONG=1 makes it
// 1,000.
func TestOHTTPStreamsCutThroughRelay(t *testing.T) {
	streams := 60
	if longTests() {
		streams = 1000
	}
	testkit.NoLeaks(t)
	up, upConns := countedServer(t, http.HandlerFunc(chunkCutter))
	upTransport := DefaultTransport()
	g := newGateway(t, GatewayConfig{
		Upstream: up.URL + "/v1", UpstreamTransport: upTransport, AllowUnauthenticated: true, Keys: storedKeys(t, "rsa-2048"), MaxConcurrent: 256,
		OHTTP: GatewayOHTTP{StrangerRate: -1},
	})
	server, conns := countedServer(t, g)
	relayTransport := &http.Transport{MaxIdleConnsPerHost: 16}
	relay, relayConns := countedServer(t, relayTo(t, server.URL, relayTransport))
	client := ohttpClient(t, relay.URL, nil)
	closeIdle := func() {
		client.http.(*http.Transport).CloseIdleConnections()
		relayTransport.CloseIdleConnections()
		upTransport.CloseIdleConnections()
		g.http.(*http.Transport).CloseIdleConnections()
	}
	t.Cleanup(closeIdle)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	before := heapInUse()
	var wholes, cuts, left atomic.Int64
	work := make(chan cutPlan)
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for p := range work {
				switch outcome := runPlan(t, client, p); outcome {
				case "whole":
					wholes.Add(1)
				case "cut":
					cuts.Add(1)
				case "left":
					left.Add(1)
				}
			}
		})
	}
	for range streams {
		p := cutPlan{random.IntN(100), []string{"", "", "abort", "quiet"}[random.IntN(4)], -1, random.IntN(2) == 0}
		if random.IntN(3) == 0 {
			p.leave = random.IntN(100)
		}
		work <- p
	}
	close(work)
	workers.Wait()
	t.Logf("%d whole, %d cut by the upstream, %d left by the client", wholes.Load(), cuts.Load(), left.Load())
	if wholes.Load() == 0 || cuts.Load() == 0 || left.Load() == 0 {
		t.Error("the plans do not cover every case")
	}
	if s := client.Stats(); s.InFlight != 0 || s.Requests != int64(streams) {
		t.Errorf("%+v", s)
	}
	open := func() int64 { return conns.open.Load() + upConns.open.Load() + relayConns.open.Load() }
	deadline := time.Now().Add(5 * time.Second)
	for closeIdle(); open() > 0 && time.Now().Before(deadline); closeIdle() {
		time.Sleep(5 * time.Millisecond)
	}
	if n := open(); n > 0 {
		t.Errorf("%d connections stayed behind", n)
	}
	if grown := heapInUse() - before; grown > 8<<20 {
		t.Errorf("%d bytes stayed behind", grown)
	}
}

// runPlan runs one stream, and says what became of it.
func runPlan(t *testing.T, client *SecureCompletionClient, p cutPlan) string {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r := ask("x")
	r.Extra = map[string]any{"events": p.events, "cut": p.cut}
	n := 0
	for chunk, err := range client.Stream(ctx, r) {
		switch {
		case p.cancel && p.leave >= 0 && n > p.leave && errors.Is(err, context.Canceled):
			return "left"
		case err != nil && p.cut == "":
			t.Errorf("%+v: %v", p, err)
			return ""
		case err != nil:
			// An answer that the upstream broke off before it began is the gateway's 502.
			if _, refused := errors.AsType[*APIError](err); !errors.Is(err, ErrTruncated) && !refused {
				t.Errorf("%+v: %v", p, err)
			}
			return "cut"
		case chunk.Text() != fmt.Sprintf("%d ", n):
			t.Errorf("%+v: chunk %d is %q", p, n, chunk.Text())
		}
		if n++; p.leave >= 0 && n > p.leave {
			if !p.cancel {
				return "left"
			}
			cancel() // what has come already may still be handed out
		}
	}
	if p.cut != "" || n != p.events {
		t.Errorf("%+v: a cut stream passed for a whole one of %d chunks", p, n)
	}
	return "whole"
}
