// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package gateway is the server's end of both protocols: it opens sealed requests, has an
// OpenAI-compatible server answer them, and seals the answers. Package sealedchat's Gateway
// documents what it does; this package does it.
//
// A request of either protocol takes the same way, in a file each:
//
//	gateway.go    the server: its life, its endpoints
//	request.go    what both have: deadlines, places, answers in the clear, panics, the log line
//	admission.go  limits, and bodies on the way
//	v1.go         protocol v1: open, claim, check, answer, seal
//	ohttp.go      Oblivious HTTP: its states, and what opens of a request when;
//	              ohttp_check.go judges what opened, ohttp_answer.go passes the answer on,
//	              ohttp_encode.go encodes and pads it
//	attest.go     evidence for the keys of both protocols
//	memory.go     pieces of content, and what becomes of their memory
//	upstream.go   the one way upstream, for both protocols; trace.go has its traceparent
//	refusal.go    what a refused client is told
//	audit.go      events
//
// Lock order: Server.mu, request.deadlines and clientKeys.mu are leaves, as are those of the
// limiters, the pool of connections and the key store's: none is held while another is taken.
package gateway

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/attest"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/replay"
)

// Server is an http.Handler. Its methods may be called from several goroutines.
//
// Invariant: every request that is served is counted in running, and nothing is added to running
// once closed is set, so Close waits for all of them; what they use is closed after that.
type Server struct {
	cfg        Config
	upstream   *upstreamWay
	ownReplays *replay.File  // cfg.Replay, where it is the server's own and in a file
	places     chan struct{} // has one element for each request that is worked on
	counts     counts
	clients    clientKeys
	limits     limits
	attesting  chan struct{} // has one element while Attester is called
	buffers    buffers       // of content
	sealed     buffers       // of sealed chunks, which net/http has had
	opened     time.Time

	life context.Context // ends with the server
	end  context.CancelFunc

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // Add only under mu while not closed
	cleanup sync.Once
}

// New checks c and makes a server. Errors are *OptionError, and those of c.Tell. After an error
// the caller still owns c.Keys.
func New(c Config) (*Server, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	if c.Keys == nil {
		return nil, &OptionError{"Keys", errNoKeys}
	}
	if c.Attester != nil && c.Keys.Dir() != nil && !c.KeysStayInside {
		return nil, &OptionError{"Keys", errKeysOutside}
	}
	base, err := parseUpstream(&c)
	if err != nil {
		return nil, &OptionError{"Upstream", err}
	}
	s := &Server{places: make(chan struct{}, c.MaxConcurrent), opened: time.Now(),
		attesting: make(chan struct{}, 1)}
	s.limits = newLimits(&c)
	if s.upstream, err = newUpstreamWay(&c, base); err != nil {
		return nil, &OptionError{"UpstreamTransport", err}
	}
	if c.Replay == nil {
		c.Replay, s.ownReplays = ownReplays(c.Keys)
	}
	if c.ServeOHTTP {
		c.Keys.OfferAES128(c.OHTTP.AES128)
	}
	s.cfg = c
	s.life, s.end = context.WithCancel(context.Background())
	if err := s.tell(context.Background(), Event{Type: GatewayOpened}); err != nil {
		s.end()
		s.upstream.close()
		_ = s.ownReplays.Close()
		return nil, err // without GatewayClosed: it never was open
	}
	return s, nil
}

// ownReplays is the cache of a server that was given none: in the folder of its keys, where they
// have one.
func ownReplays(keys *keystore.Store) (ReplayCache, *replay.File) {
	if dir := keys.Dir(); dir != nil {
		file := replay.NewFile(dir, 0)
		return file, file
	}
	return replay.NewMemory(0), nil
}

// Close refuses new requests with 503, ends running ones, waits for them, and closes what is the
// server's own. Its error is that of Tell, and keeps nothing from being closed.
func (s *Server) Close() (err error) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end()
	s.running.Wait()
	s.cleanup.Do(func() {
		s.upstream.close()
		if s.cfg.OwnKeys {
			s.cfg.Keys.Close()
		}
		_ = s.ownReplays.Close()
		err = s.tell(context.Background(),
			Event{Type: GatewayClosed, Duration: time.Since(s.opened)})
	})
	return err
}

// enter counts a request as running, unless the server is closed.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.running.Add(1)
	return true
}

// Keys describes the keys of the protocols that are served, made now if there are none yet.
func (s *Server) Keys(ctx context.Context) (list []keystore.Info, err error) {
	if s.cfg.ServeV1 {
		if _, err := s.cfg.Keys.Public(ctx); err != nil {
			return nil, err
		}
	}
	if s.cfg.ServeOHTTP {
		if _, err := s.cfg.Keys.Configs(ctx); err != nil {
			return nil, err
		}
	}
	for _, k := range s.cfg.Keys.Keys() {
		served := s.cfg.ServeOHTTP
		if k.Kind == "RSA" {
			served = s.cfg.ServeV1 && !k.IsNext()
		}
		if served {
			list = append(list, k)
		}
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: key store", fault.ErrClosed) // since just now
	}
	return list, nil
}

// Ready says why a request could not be served now. Package sealedchat's Gateway.Ready says how.
func (s *Server) Ready(ctx context.Context) error {
	if !s.enter() {
		return fmt.Errorf("%w: gateway", fault.ErrClosed)
	}
	defer s.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	if _, err := s.Keys(ctx); err != nil {
		return fmt.Errorf("the keys: %w", err)
	}
	memory, ok := s.cfg.Replay.(interface{ Ready(context.Context) error })
	if !ok {
		return nil
	}
	if err := memory.Ready(ctx); err != nil {
		return fmt.Errorf("the replay memory: %w", err)
	}
	return nil
}

// remembered is how many requests the memory of replays has, if it can say so.
func (s *Server) remembered() int64 {
	if memory, ok := s.cfg.Replay.(interface{ Len() int }); ok {
		return int64(memory.Len())
	}
	return 0
}

// knows tells of a request that this process has claimed, if its own memory of replays is used.
func (s *Server) knows(id [32]byte) bool {
	switch cache := s.cfg.Replay.(type) {
	case *replay.Memory:
		return cache.Knows(id)
	case *replay.File:
		return cache.Knows(id)
	}
	return false
}

func (s *Server) tell(ctx context.Context, e Event) error {
	if s.cfg.Tell == nil {
		return nil
	}
	return s.cfg.Tell(ctx, e)
}

// ServeHTTP serves one request. It survives a panic in it with status 500; once an answer has
// begun, it panics with [http.ErrAbortHandler], so that no client takes the answer for whole.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := &request{s: s, w: w, r: r, start: time.Now()}
	if !s.enter() {
		h.refuseAtTheDoor()
		return
	}
	defer s.running.Done()
	defer h.release()
	defer context.AfterFunc(s.life, func() { h.within(0, reading|writing) })()
	defer h.finish()

	// A server's WriteTimeout would cut answers that take longer; Timeout bounds the work.
	h.within(unbounded, writing)
	if r.ContentLength != 0 { // net/http reads what is left of a body before it answers
		h.within(s.cfg.BodyTimeout, reading)
	}
	h.header("Cache-Control", "no-store")
	h.header("X-Content-Type-Options", "nosniff")
	v1 := &v1Request{h}
	switch path := r.URL.Path; {
	case path == pathHealth:
		h.only(h.health, http.MethodGet, http.MethodHead)
	case path == hybrid.PathPublicKey && s.cfg.ServeV1:
		h.only(v1.publicKey, http.MethodGet, http.MethodHead)
	case path == hybrid.PathCompletion && s.cfg.ServeV1:
		h.only(v1.completion, http.MethodPost)
	case path == attest.Path && s.cfg.Attester != nil:
		h.only(h.attestation, http.MethodGet)
	case path == ohttp.Path && s.cfg.ServeOHTTP:
		(&ohttpRequest{request: h}).endpoint()
	default:
		h.noEndpoint()
	}
}

const pathHealth = "/healthz"

// Stats are a server's counters: sums since it was made. The reader takes differences, so they need
// no clock and no lock.
type Stats struct {
	Answered, Refused, Failed int64
	InFlight                  int64
	BytesOpened, BytesSealed  int64
	KeyRotations              int64
	Remembered                int64
}

// Stats returns the counters.
func (s *Server) Stats() Stats {
	n := &s.counts
	return Stats{
		Answered: n.answered.Load(), Refused: n.refused.Load(), Failed: n.failed.Load(),
		InFlight:    int64(len(s.places)),
		BytesOpened: n.opened.Load(), BytesSealed: n.sealed.Load(),
		KeyRotations: s.cfg.Keys.Rotations(), Remembered: s.remembered(),
	}
}

type counts struct{ answered, refused, failed, opened, sealed atomic.Int64 }

// done counts a request by the status that it was answered with, and whether an answer was cut.
func (n *counts) done(status int, cut bool) {
	switch {
	case cut:
		n.failed.Add(1)
	case status >= 200 && status < 300:
		n.answered.Add(1)
	case status >= 400 && status < http.StatusInternalServerError:
		n.refused.Add(1)
	default:
		n.failed.Add(1)
	}
}

// maxHeaderBytes has room for an RSA key of 8192 bits, an API key of 4 KiB, and what proxies add.
// net/http allows 4 KiB more.
const maxHeaderBytes = 8 << 10

// HTTPServer is an http.Server on addr that is right for the server. Package sealedchat's
// Gateway.Server says how.
func (s *Server) HTTPServer(addr string) *http.Server {
	return &http.Server{
		Addr:              addr,
		Handler:           s,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeaderBytes,
		// Each connection keeps a buffer for its largest frame.
		HTTP2:    &http.HTTP2Config{MaxReadFrameSize: 64 << 10},
		ErrorLog: slog.NewLogLogger(s.cfg.Logger.Handler(), slog.LevelWarn),
	}
}
