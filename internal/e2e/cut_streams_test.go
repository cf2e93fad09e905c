// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// fullDuplex lets net/http begin an answer before it knows that the request's body has ended.
// Without it, a server that answers at once makes httputil.ReverseProxy break off now and then:
// net/http closes the body of which the proxy is about to read the end, and the proxy takes that
// for a failure of its own request.
func fullDuplex(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		h.ServeHTTP(w, r)
	})
}

// relayTo is a reverse proxy in front of the server at base, which passes on what comes as it
// comes.
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

// countedListener counts the connections that are open.
type countedListener struct {
	net.Listener
	open atomic.Int64
}

func (l *countedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.open.Add(1)
	return &countedConn{Conn: c, l: l}, nil
}

type countedConn struct {
	net.Conn
	l    *countedListener
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.l.open.Add(-1) })
	return c.Conn.Close()
}

func countedServer(t *testing.T, h http.Handler) (*httptest.Server, *countedListener) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	l := &countedListener{Listener: s.Listener}
	s.Listener = l
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(s.Close)
	return s, l
}

// cutter is an upstream that streams as many chunks as the request says, and breaks off as it says.
func cutter(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	o, _ := chatjson.Pick(body, "events", "cut")
	events, _ := strconv.Atoi(string(o["events"]))
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range events {
		_, _ = fmt.Fprintf(w,
			"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%d \"}}],\"more\":%q}\n\n",
			i, strings.Repeat("token ", i%50))
		w.(http.Flusher).Flush()
	}
	switch o.Text("cut") {
	case "abort":
		panic(http.ErrAbortHandler)
	case "quiet": // ends as if all were well
		return
	case "close":
		if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
			_ = c.Close()
		}
		return
	}
	_, _ = io.WriteString(w, fakes.Done)
}

// cutPlan is what becomes of one stream.
type cutPlan struct {
	events int
	cut    string // how the upstream breaks off; "": it does not
	leaves bool   // the client leaves before the end, if what it waits for comes
	after  int    // so many hundredths of what can be expected
}

// cutWorld is an upstream, a gateway and a relay in front of it, all of which count what they hold.
type cutWorld struct {
	g     *sealedchat.Gateway
	relay string // URL
	open  func() (connections int64)
	idle  func() // closes the connections that nobody uses
}

func newCutWorld(t *testing.T) *cutWorld {
	testkit.NoLeaks(t)
	up, upConns := countedServer(t, http.HandlerFunc(cutter))
	g := newGateway(t, sealedchat.GatewayConfig{
		Upstream: up.URL + "/v1", AllowUnauthenticated: true, Keys: storedKeys(t, "rsa-2048"),
		MaxConcurrent: 256,
		OHTTP:         sealedchat.GatewayOHTTP{StrangerRate: -1},
	})
	server, conns := countedServer(t, g)
	relayTransport := &http.Transport{MaxIdleConnsPerHost: 16}
	relay, relayConns := countedServer(t, relayTo(t, server.URL, relayTransport))
	w := &cutWorld{
		g: g, relay: relay.URL,
		open: func() int64 {
			return conns.open.Load() + upConns.open.Load() + relayConns.open.Load()
		},
		idle: func() {
			relayTransport.CloseIdleConnections()
			up.Config.SetKeepAlivesEnabled(false) // closes what the gateway keeps
			relay.Config.SetKeepAlivesEnabled(false)
		},
	}
	t.Cleanup(w.idle)
	return w
}

// run streams at random, cut by either end or not at all, 16 at a time, and returns how many it
// were: 60, or 1,000 with SEALEDCHAT_LONG=1. stream says what became of one: "whole", "cut",
// "left", or "" for an error that it has told of.
func (w *cutWorld) run(t *testing.T, idle func(), stream func(cutPlan) string) (streams int) {
	streams = 60
	if testkit.Long() {
		streams = 1000
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	before := heapInUse()
	var whole, cut, left atomic.Int64
	counts := map[string]*atomic.Int64{"whole": &whole, "cut": &cut, "left": &left, "": {}}
	work := make(chan cutPlan)
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for p := range work {
				counts[stream(p)].Add(1)
			}
		})
	}
	for range streams {
		work <- cutPlan{random.IntN(100), []string{"", "", "abort", "quiet",
			"close"}[random.IntN(5)], random.IntN(3) == 0, random.IntN(100)}
	}
	close(work)
	workers.Wait()
	t.Logf("%d whole, %d cut by the upstream, %d left by the client", whole.Load(), cut.Load(),
		left.Load())
	if whole.Load() == 0 || cut.Load() == 0 || left.Load() == 0 {
		t.Error("the plans do not cover every case")
	}
	w.nothingStays(t, idle, before)
	return streams
}

// nothingStays fails when connections, places in the gateway or memory stay behind.
func (w *cutWorld) nothingStays(t *testing.T, idle func(), before int64) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		idle()
		w.idle()
		if w.open() == 0 || time.Now().After(deadline) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if n := w.open(); n > 0 || w.g.Stats().InFlight > 0 {
		t.Errorf("%d connections and %d places stayed behind", n, w.g.Stats().InFlight)
	}
	if grown := heapInUse() - before; grown > 8<<20 {
		t.Errorf("%d bytes stayed behind", grown)
	}
}

func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
