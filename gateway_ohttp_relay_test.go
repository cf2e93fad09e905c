// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// cutter is an upstream that streams events, and is told by the request when to break off, and how.
func cutter(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	o, _ := pick(body, "events", "cut")
	events, _ := strconv.Atoi(string(o["events"]))
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range events {
		_, _ = fmt.Fprintf(w, "data: {\"n\":%d,\"text\":%q}\n\n", i, strings.Repeat("token ", i%50))
		w.(http.Flusher).Flush()
	}
	switch o.text("cut") {
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
	_, _ = io.WriteString(w, "data: [DONE]\n\n")
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

// Streams through httputil.ReverseProxy, cut at random by the client, by the upstream, or not at all: nothing stays behind,
// nothing crashes, and no cut answer passes for a whole one. SEALEDCHAT_LONG=1 makes it 1,000 streams.
func TestObliviousCutsThroughRelay(t *testing.T) {
	streams := 60
	if longTests() {
		streams = 1000
	}
	testkit.NoLeaks(t)
	up, upConns := countedServer(t, http.HandlerFunc(cutter))
	upTransport := DefaultTransport()
	keys := storedKeys(t, "rsa-2048")
	g := newGateway(t, GatewayConfig{
		Upstream: up.URL + "/v1", UpstreamTransport: upTransport, AllowUnauthenticated: true, Keys: keys, MaxConcurrent: 256,
		OHTTP: GatewayOHTTP{StrangerRate: -1},
	})
	server, conns := countedServer(t, g)
	relayTransport := &http.Transport{MaxIdleConnsPerHost: 16}
	relay, relayConns := countedServer(t, relayTo(t, server.URL, relayTransport))
	transport := &http.Transport{MaxIdleConnsPerHost: 16}
	closeIdle := func() {
		transport.CloseIdleConnections()
		relayTransport.CloseIdleConnections()
		upTransport.CloseIdleConnections()
		g.http.(*http.Transport).CloseIdleConnections()
	}
	t.Cleanup(closeIdle)
	config := (&rig{t: t, g: g}).keyConfig()

	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	type plan struct {
		events int
		cut    string
		leave  int // bytes of the answer after which the client leaves; -1: never
	}
	plans := make([]plan, streams)
	for i := range plans {
		plans[i] = plan{random.IntN(100), []string{"", "", "abort", "quiet", "close"}[random.IntN(5)], -1}
		if random.IntN(3) == 0 {
			plans[i].leave = random.IntN(4000)
		}
	}
	before := heapInUse()
	var wholes, cuts, left atomic.Int64
	work := make(chan plan)
	var workers sync.WaitGroup
	for range 16 {
		workers.Go(func() {
			for p := range work {
				body := fmt.Sprintf(`{"events":%d,"cut":%q}`, p.events, p.cut)
				complete, err := throughRelay(t, transport, relay.URL, config, body, p.leave)
				switch {
				case err != nil && p.leave < 0 && !errors.Is(err, ohttp.ErrTruncated) && p.cut == "":
					t.Errorf("%+v: %v", p, err)
				case complete && p.cut != "":
					t.Errorf("%+v: a cut answer passed for a whole one", p)
				case complete:
					wholes.Add(1)
				case p.leave >= 0:
					left.Add(1)
				case p.cut == "":
					t.Errorf("%+v: a whole answer did not arrive", p)
				default:
					cuts.Add(1)
				}
			}
		})
	}
	for _, p := range plans {
		work <- p
	}
	close(work)
	workers.Wait()
	t.Logf("%d whole, %d cut by the upstream, %d left by the client", wholes.Load(), cuts.Load(), left.Load())
	if wholes.Load() == 0 || cuts.Load() == 0 || left.Load() == 0 {
		t.Error("the plans do not cover every case")
	}
	deadline := time.Now().Add(5 * time.Second)
	open := func() int64 { return conns.open.Load() + upConns.open.Load() + relayConns.open.Load() }
	for closeIdle(); open() > 0 && time.Now().Before(deadline); closeIdle() {
		time.Sleep(5 * time.Millisecond)
	}
	if n := open(); n > 0 || len(g.slots) > 0 {
		t.Errorf("%d connections and %d places stayed behind", n, len(g.slots))
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

// throughRelay sends one request, and reads its answer to the end or until the client leaves.
func throughRelay(t *testing.T, rt http.RoundTripper, relay string, c *ohttp.Config, body string, leave int) (complete bool, err error) {
	q, err := ohttp.NewRequest(c)
	if err != nil {
		return false, err
	}
	defer q.Close()
	sealed, err := q.Seal(nil, innerRequest{body: body}.encode(t))
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, relay+pathOHTTP, bytes.NewReader(sealed))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", ohttp.TypeRequest)
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("status %d", resp.StatusCode)
	}
	reader, err := q.Response(resp.Body, 0)
	if err != nil {
		return false, err
	}
	defer reader.Close()
	head, content, err := bhttp.ReadResponse(reader, bhttp.Limits{})
	if err != nil {
		return false, err
	}
	if head.Status != http.StatusOK { // cut before it had begun
		return false, fmt.Errorf("inner status %d", head.Status)
	}
	if leave >= 0 {
		if _, err = io.CopyN(io.Discard, content, int64(leave)); err == nil {
			return false, nil
		}
		return err == io.EOF, err
	}
	_, err = io.Copy(io.Discard, content)
	return err == nil, err
}
