// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/limit"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/replay"
)

// GatewayConfig is what [NewGateway] needs: Upstream, and Authenticate or AllowUnauthenticated. Every other zero value
// is a default.
type GatewayConfig struct {
	// Upstream is the base URL of an OpenAI-compatible server as SDKs take it, "http://127.0.0.1:8000/v1" for example:
	// requests go to {Upstream}/chat/completions. https, or http to an address that is loopback when it is dialled.
	Upstream string
	// UpstreamKey is sent upstream as a bearer token; a client's key never is. It stays the caller's. nil = none.
	UpstreamKey *Secret
	// UpstreamTransport carries the requests upstream. It stays the caller's. Of an [*http.Transport] the gateway takes a copy
	// of the settings, and makes connections of its own: over HTTP/1 one connection for each request that is under way, used
	// again only where no content can be left on it, and closed with the gateway. Its limits on the number of connections do
	// not hold, IdleConnTimeout does. To any other RoundTripper requests with content come with [http.Request.Close] set, so
	// that nothing of one client is left on a connection for the next one; it must obey, and copies that it makes of prompts
	// and answers stay in memory. nil = the settings of DefaultTransport().
	UpstreamTransport http.RoundTripper
	// InsecureUpstreamHTTP allows http upstream to any address: opened prompts cross that network in the clear.
	InsecureUpstreamHTTP bool

	// Authenticate judges a request by its headers; it must not read the body. It is called from several goroutines. In
	// protocol v1 that is before anything of the request is decrypted. In Oblivious HTTP the headers are sealed too: it is
	// called, once its date was judged, with a request that is made from the opened one, with its method, URL, headers and no body, and with RemoteAddr,
	// TLS and context of the outer one, before its body is read. An error is answered 401, or 403 for ErrPermission, 429 for
	// ErrRateLimited, 503 for ErrUnavailable; the RetryAfter of an *APIError goes along. See AuthenticateKeys.
	Authenticate func(*http.Request) error
	// AllowUnauthenticated serves everybody when Authenticate is nil.
	AllowUnauthenticated bool

	// Keys holds the keys that requests are sealed to, of both protocols. It stays the caller's, who closes it after the
	// gateway. When it rotates, clients of protocol v1 that pinned the RSA key or remember it from first use refuse the new one
	// until they are told: set Rotation.Every to what you can announce, or to never. nil = an ephemeral store of the gateway's
	// own that does not rotate: new fingerprints after each start.
	Keys *KeyStore
	// Tier is the security tier that this installation provides. Requests for a higher one are answered 403.
	// "" = TierStandard.
	Tier SecurityTier
	// Replay remembers the requests that were served. Gateways that share Keys share it, and have the same ReplayWindow and
	// OHTTP.DateWindow: each remembers for as long as its own says. nil = one of its own: see [ReplayCache].
	Replay ReplayCache
	// ReplayWindow is for how long, in protocol v1 (for the second see GatewayOHTTP.DateWindow). It has no timestamp: after
	// the window, a captured request is served again. 0 = 24 h, or as long as the cache has room: with its 131,072 entries,
	// at up to 1.5 requests a second.
	ReplayWindow time.Duration

	// MaxRequestBytes bounds the opened request, MaxResponseBytes the upstream's answer. More is answered 413 and 502; a
	// stream is cut. 0 = 10 MiB and 48 MiB; below 1 GiB.
	MaxRequestBytes, MaxResponseBytes int64
	// MaxConcurrent bounds the requests that are worked on at the same time. One that has arrived waits up to a second for
	// its place, and is then answered 503 with Retry-After: 1. 0 = 64. Each may need about five times its size in memory.
	// Requests that are still on the way hold no place; what has come of their bodies has MaxConcurrent × MaxRequestBytes
	// in all, a quarter of that for one address, half for an IPv6 /48, and at least four of the largest requests. More is
	// answered 503 as well.
	MaxConcurrent int
	// Timeout bounds the work on one request, and BodyTimeout the arrival of its body and the delivery of its answer.
	// 0 = 10 minutes and 1 minute. In Oblivious HTTP a request's header has 5 seconds at most. From ten seconds on, a body
	// has to have come at 8 KiB/s. A server's WriteTimeout does not count: the gateway lifts it.
	Timeout, BodyTimeout time.Duration

	// IdleTimeout is the longest time between two pieces of the upstream's event stream, counted from its first event on:
	// until then only Timeout holds. Comments count as pieces. The answer of a stream that stands still for longer stays
	// without its end, so that no client takes it for whole. 0 = 1 minute; negative = no limit.
	IdleTimeout time.Duration

	// AddressHeader names the header in which the proxy in front says whom a request comes from: "X-Forwarded-For" for
	// example. The last address in it counts; of an IPv6 address its first 64 bits. The proxy next to the gateway has to set
	// that header, or to append to it: what stands last is taken at its word. Without the header, or an address in it, the
	// request counts for its RemoteAddr. Limits per address hold in both protocols: behind a proxy set it, or all clients
	// share one address. A handler in front that changes RemoteAddr can name anything else; "" there is nobody in particular,
	// without a limit of its own. "" = RemoteAddr.
	AddressHeader string

	// Protocols are those that are served, all on the same listener. nil = both.
	Protocols []Protocol
	// OHTTP is for the second protocol.
	OHTTP GatewayOHTTP

	// Audit is told of requests, answers, refusals and survived panics; while it fails, requests are answered 503 before
	// they go upstream, and answers are not sent; one that streams stays without its end. Refused API keys, and requests of
	// the second protocol that do not open or are malformed, are for Logger alone: strangers could fill the audit log with
	// them. nil = nobody.
	Audit Auditor
	// Logger gets one line per request: ids, sizes, durations and status, no content. nil = silent.
	Logger *slog.Logger
}

// Gateway is the server's end: an [http.Handler] that opens sealed requests, has an OpenAI-compatible server answer them,
// and seals the answers. It serves GET /pki/public_key and POST /v1/chat/secure_completion for protocol v1, GET and POST
// /.well-known/ohttp-gateway for Oblivious HTTP, and GET /healthz. Put it behind TLS: an [http.Server] with a certificate,
// or a proxy. Its methods may be called from several goroutines.
type Gateway struct {
	cfg     GatewayConfig
	way     *upstreamWay
	ownKeys bool
	replays *replay.File // cfg.Replay, where it is the gateway's own and in a file
	slots   chan struct{}
	counts  gatewayCounts
	clients clientKeys
	limits  gatewayLimits
	audit   auditSink
	opened  time.Time

	life context.Context
	end  context.CancelFunc

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // Add only under mu while not closed
	cleanup sync.Once
}

// NewGateway checks c and makes a gateway. It touches no network, file or environment, but for what
// GatewayConfig.Audit does when it is told. Errors are [*ConfigError], or [ErrAudit]. The caller closes the gateway with
// [Gateway.Close].
func NewGateway(c GatewayConfig) (*Gateway, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	base, err := httpx.ParseBaseURL(c.Upstream, true)
	if err != nil {
		return nil, &ConfigError{Field: "GatewayConfig.Upstream", Err: err}
	}
	g := &Gateway{cfg: c, slots: make(chan struct{}, c.MaxConcurrent), opened: time.Now()}
	g.limits = newGatewayLimits(&c)
	if g.way, err = newUpstreamWay(&c, base); err != nil {
		return nil, &ConfigError{Field: "GatewayConfig.UpstreamTransport", Err: err}
	}
	if c.Keys == nil {
		// One key for as long as the gateway lives: rotation would turn away whoever pinned it.
		if g.cfg.Keys, err = NewEphemeralKeyStore(&KeyStoreOptions{Rotation: Rotation{Every: -1}, Audit: c.Audit}); err != nil {
			return nil, err
		}
		g.ownKeys = true
	}
	g.cfg.Replay, g.replays = replayOr(c.Replay, g.cfg.Keys)
	g.life, g.end = context.WithCancel(context.Background())
	if err := g.tellOpened(); err != nil {
		g.audit.set(nil) // it was never open
		_ = g.Close()
		return nil, err
	}
	return g, nil
}

func (c *GatewayConfig) setDefaults() error {
	if c.Authenticate == nil && !c.AllowUnauthenticated {
		return configError("GatewayConfig.Authenticate", "set it (see AuthenticateKeys), or AllowUnauthenticated to serve everybody")
	}
	if c.UpstreamKey != nil {
		if err := c.UpstreamKey.Use(httpx.ValidAPIKey); err != nil {
			return &ConfigError{Field: "GatewayConfig.UpstreamKey", Err: err}
		}
	}
	if isNilPointer(c.UpstreamTransport) {
		return configError("GatewayConfig.UpstreamTransport", "a nil *http.Transport; leave the field nil for the default")
	}
	if c.Tier.rank() < 0 {
		return configError("GatewayConfig.Tier", "want \"\", standard, high or maximum")
	}
	for _, n := range []struct {
		field string
		value *int64
		zero  int64
	}{
		{"MaxRequestBytes", &c.MaxRequestBytes, defaultMaxRequest},
		{"MaxResponseBytes", &c.MaxResponseBytes, 48 << 20}, // 64 MiB when sealed: what clients take by default
		{"ReplayWindow", (*int64)(&c.ReplayWindow), int64(24 * time.Hour)},
		{"Timeout", (*int64)(&c.Timeout), int64(defaultTimeout)},
		{"BodyTimeout", (*int64)(&c.BodyTimeout), int64(time.Minute)},
	} {
		if *n.value < 0 || (strings.HasSuffix(n.field, "Bytes") && *n.value > maxBytes/2) {
			return configError("GatewayConfig."+n.field, "out of range")
		}
		if *n.value == 0 {
			*n.value = n.zero
		}
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = defaultIdle
	}
	if c.MaxConcurrent < 0 {
		return configError("GatewayConfig.MaxConcurrent", "negative")
	}
	if c.MaxConcurrent == 0 {
		c.MaxConcurrent = 64
	}
	if c.Tier == "" {
		c.Tier = TierStandard
	}
	if !validHeaderName(c.AddressHeader) {
		return configError("GatewayConfig.AddressHeader", "want the name of a header, like \"X-Forwarded-For\"")
	}
	for _, p := range c.Protocols {
		if !p.known() {
			return configError("GatewayConfig.Protocols", "want ProtocolEnvelope and ProtocolOHTTP")
		}
	}
	if err := c.OHTTP.setDefaults(); err != nil {
		return err
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Keys describes the keys that requests to the gateway may be sealed to, made now if there are none
// yet: the RSA keys of protocol v1, and of [ProtocolOHTTP] the key configurations and the key that
// signs their list; of each kind those in use first, then those that were replaced and still open
// requests. Clients pin a Fingerprint ([Pin]). The signer's (KeyInfo.Kind is "Ed25519") stays the
// same when configurations are replaced. Errors are those of the key store: [ErrClosed], those of
// saving, [ErrAudit].
func (g *Gateway) Keys(ctx context.Context) ([]KeyInfo, error) {
	rsa, ohttp := g.serves(ProtocolEnvelope), g.serves(ProtocolOHTTP)
	if rsa {
		if _, err := g.cfg.Keys.store.Public(ctx); err != nil {
			return nil, err
		}
	}
	if ohttp {
		if _, err := g.cfg.Keys.store.Configs(ctx); err != nil {
			return nil, err
		}
	}
	list := slices.DeleteFunc(g.cfg.Keys.Keys(), func(k KeyInfo) bool {
		return k.Kind == "RSA" && !rsa || k.Kind != "RSA" && !ohttp
	})
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: key store", ErrClosed) // since just now
	}
	return list, nil
}

// Server is an [http.Server] on addr that is right for the gateway: it waits 10 seconds for a request's header, which
// has 8 KiB at most, keeps idle connections for 2 minutes, and writes its complaints to GatewayConfig.Logger at level
// WARN. 500 connections cost at most 32 MiB, however long their headers are. It has no ReadTimeout and no WriteTimeout,
// since Timeout and BodyTimeout bound every request. The caller may change it, sets TLSConfig where ListenAndServeTLS has
// no files for it, starts it and shuts it down, before [Gateway.Close].
func (g *Gateway) Server(addr string) *http.Server {
	return &http.Server{
		Addr:              addr,
		Handler:           g,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2:             &http.HTTP2Config{MaxReadFrameSize: 16 << 10}, // each connection keeps a buffer for its largest
		ErrorLog:          slog.NewLogLogger(g.cfg.Logger.Handler(), slog.LevelWarn),
	}
}

const maxHeaderBytes = 8 << 10 // an RSA key of 8192 bits, an API key of 4 KiB, and what proxies add; net/http allows 4 KiB more

// Close refuses new requests with 503, ends running ones, waits for them, and wipes the keys that are the gateway's own.
// For a graceful end, shut the http.Server down first. Idempotent; its only error is [ErrAudit], which keeps nothing from
// being closed.
func (g *Gateway) Close() (err error) {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.end()
	g.running.Wait()
	g.cleanup.Do(func() {
		g.way.close()
		if g.ownKeys {
			_ = g.cfg.Keys.Close()
		}
		_ = g.replays.Close()
		err = g.tellClosed()
	})
	return err
}

func (g *Gateway) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return false
	}
	g.running.Add(1)
	return true
}

// ServeHTTP serves one request. It survives a panic in it with status 500; once an answer has begun, it panics with
// [http.ErrAbortHandler], so that nobody takes the answer for whole.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !g.begin() {
		p := refuse(http.StatusServiceUnavailable, "the gateway is closing")
		body := p.render(w.Header())
		control, until := http.NewResponseController(w), time.Now().Add(g.cfg.BodyTimeout) // as below
		_, _ = control.SetReadDeadline(until), control.SetWriteDeadline(until)
		w.WriteHeader(p.status)
		_, _ = w.Write(body)
		return
	}
	defer g.running.Done()
	h := &gatewayRequest{g: g, w: w, r: r, start: time.Now()}
	defer func() {
		h.room.Return()
		h.deadlines.Lock()
		defer h.deadlines.Unlock()
		h.over = true
	}()
	defer context.AfterFunc(g.life, func() { h.within(0, reading|writing) })()
	defer h.finish()

	h.within(unbounded, writing) // a server's WriteTimeout would cut answers that take longer; Timeout bounds the work
	if r.ContentLength != 0 {    // net/http reads what is left of a body before it answers
		h.within(g.cfg.BodyTimeout, reading)
	}
	h.header("Cache-Control", "no-store")
	h.header("X-Content-Type-Options", "nosniff")
	path := r.URL.Path
	switch envelope := g.serves(ProtocolEnvelope); {
	case path == "/healthz":
		h.only(h.health, http.MethodGet, http.MethodHead)
	case path == hybrid.PathPublicKey && envelope:
		h.only(h.publicKey, http.MethodGet, http.MethodHead)
	case path == hybrid.PathCompletion && envelope:
		h.only(h.completion, http.MethodPost)
	case path == ohttp.Path && g.serves(ProtocolOHTTP):
		h.ohttp()
	default:
		h.refuse(refuse(http.StatusNotFound, "no such endpoint"))
	}
}

func (g *Gateway) serves(p Protocol) bool {
	return g.cfg.Protocols == nil || slices.Contains(g.cfg.Protocols, p)
}

// gatewayRequest is one request on its way through, and what the log will say of it.
type gatewayRequest struct {
	g     *Gateway
	w     http.ResponseWriter
	r     *http.Request
	start time.Time

	status    int // 0 until something was answered
	inner     int // the status that was sealed, in the second protocol
	payloadID string
	tier      SecurityTier
	bytesIn   int
	bytesOut  int
	upstream  time.Duration
	problem   *refusal
	cut       bool // an answer began that the client did not get to its end

	room *limit.Lease // what its body has among those on the way; nil before, and in a place

	deadlines sync.Mutex
	over      bool // the handler has returned: w is no longer to be touched
}

// within bounds the time for what is still read of the request, or written of the answer. Where a server cannot, its own
// timeouts hold. The bound on reading stays in force when a request is refused: net/http reads on before it answers.
func (h *gatewayRequest) within(d time.Duration, what direction) {
	h.deadlines.Lock()
	defer h.deadlines.Unlock()
	if h.over || (d != 0 && h.g.life.Err() != nil) { // once the gateway is closing, nothing takes the bound back
		return
	}
	at := time.Now().Add(d)
	if d == unbounded {
		at = time.Time{}
	}
	control := http.NewResponseController(h.w)
	if what&reading != 0 {
		_ = control.SetReadDeadline(at)
	}
	if what&writing != 0 {
		_ = control.SetWriteDeadline(at)
	}
}

type direction int

const (
	reading direction = 1 << iota
	writing
	unbounded time.Duration = -1
)

func (h *gatewayRequest) header(name, value string) { h.w.Header().Set(name, value) }

func (h *gatewayRequest) only(serve func(), methods ...string) {
	for _, m := range methods {
		if h.r.Method == m {
			serve()
			return
		}
	}
	h.header("Allow", strings.Join(methods, ", "))
	h.refuse(refuse(http.StatusMethodNotAllowed, "method not allowed"))
}

func (h *gatewayRequest) health() {
	h.header("Content-Type", "application/json")
	_ = h.write(http.StatusOK, []byte(`{"status":"ok"}`+"\n"))
}

func (h *gatewayRequest) publicKey() {
	key, err := h.g.cfg.Keys.Public(h.r.Context())
	if err != nil {
		h.refuse(&refusal{status: http.StatusServiceUnavailable, detail: "no key", cause: err})
		return
	}
	h.header("Content-Type", "text/plain; charset=utf-8")
	_ = h.write(http.StatusOK, key.PEM())
}

// write sends a whole answer, and reports whether the connection took it.
func (h *gatewayRequest) write(status int, body []byte) error {
	h.status, h.bytesOut = status, len(body)
	h.header("Content-Length", strconv.Itoa(len(body)))
	h.within(h.g.cfg.BodyTimeout, writing) // a client that does not read must not hold a place
	h.w.WriteHeader(status)
	if h.r.Method == http.MethodHead {
		return nil
	}
	_, err := h.w.Write(body)
	if err == nil {
		if err = http.NewResponseController(h.w).Flush(); errors.Is(err, http.ErrNotSupported) {
			err = nil
		}
	}
	if err != nil {
		h.cut = status < 300
		return err
	}
	h.within(unbounded, writing) // the connection may serve other requests
	return nil
}

func (h *gatewayRequest) refuse(p *refusal) {
	h.problem = p
	h.tellRefused(p)
	_ = h.write(p.status, p.render(h.w.Header())) // the client may be gone
}

// finish survives a panic and writes the log line.
func (h *gatewayRequest) finish() {
	if p := recover(); p != nil {
		if p == http.ErrAbortHandler {
			panic(p)
		}
		h.logPanic(p)
		if h.status != 0 {
			panic(http.ErrAbortHandler) // an answer has begun: cut it, so that nobody takes it for whole
		}
		h.refuse(refuse(http.StatusInternalServerError, "internal error"))
	}
	switch {
	case h.r.URL.Path == hybrid.PathCompletion:
		h.g.counts.done(h.status, h.cut)
	case h.r.URL.Path == ohttp.Path && h.r.Method == http.MethodPost:
		h.g.counts.done(h.outcome(), h.cut)
	}
	if h.r.URL.Path == "/healthz" && h.status == http.StatusOK {
		return
	}
	level := slog.LevelInfo
	if h.outcome() >= 500 {
		level = slog.LevelWarn
	}
	attrs := []slog.Attr{
		slog.String("payload_id", h.payloadID), slog.String("method", fault.Sanitise(h.r.Method, 16)), slog.Int("status", h.status),
		slog.Int("bytes_in", h.bytesIn), slog.Int("bytes_out", h.bytesOut), slog.String("tier", string(h.tier)),
		slog.Duration("duration", time.Since(h.start)), slog.Duration("upstream", h.upstream),
	}
	if h.inner != 0 {
		attrs = append(attrs, slog.String("protocol", "ohttp"), slog.Int("inner_status", h.inner))
	}
	if h.problem != nil {
		attrs = append(attrs, slog.String("problem", h.problem.detail))
		if h.problem.cause != nil {
			attrs = append(attrs, slog.String("cause", fault.Reason(h.problem.cause)))
		}
	}
	h.g.cfg.Logger.LogAttrs(h.r.Context(), level, "request", attrs...)
}

// outcome is the status that tells how it went: of the second protocol the inner one, or that of what cut the answer.
func (h *gatewayRequest) outcome() int {
	switch {
	case h.inner != 0 && h.problem != nil:
		return h.problem.status
	case h.inner != 0:
		return h.inner
	}
	return h.status
}

func (g *Gateway) tellOpened() error {
	g.audit.set(g.cfg.Audit)
	return g.audit.tell(context.Background(), Event{Type: EventGatewayOpened, Memory: memoryNow()})
}

func (g *Gateway) tellClosed() error {
	return g.audit.tell(context.Background(), Event{Type: EventGatewayClosed, Duration: time.Since(g.opened), Memory: memoryNow()})
}
