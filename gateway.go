// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/attest"
	"github.com/seed-017344ad/sealedchat/internal/gateway"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// GatewayConfig is what [NewGateway] needs: Upstream, and Authenticate or AllowUnauthenticated.
// Every other zero value is a default.
type GatewayConfig struct {
	// Upstream is the base URL of an OpenAI-compatible server as SDKs take it,
	// "http://127.0.0.1:8000/v1" for example: requests go to {Upstream}/chat/completions. https, or
	// http to an address that is loopback when it is dialled.
	Upstream string
	// UpstreamKey is sent upstream as a bearer token; a client's key never is. It stays the
	// caller's. nil = none.
	UpstreamKey *Secret
	// UpstreamTransport carries the requests upstream. It stays the caller's. Of an
	// [*http.Transport] the gateway takes a copy of the settings, and makes connections of its own:
	// over HTTP/1 one connection for each request that is under way, used again only where no
	// content can be left on it, and closed with the gateway. Its limits on the number of
	// connections do not hold, IdleConnTimeout does. To any other RoundTripper requests with
	// content come with [http.Request.Close] set, so that nothing of one client is left on a
	// connection for the next one; it must obey, and copies that it makes of prompts and answers
	// stay in memory. nil = the settings of DefaultTransport().
	UpstreamTransport http.RoundTripper
	// InsecureUpstreamHTTP allows http upstream to any address: opened prompts cross that network
	// in the clear.
	InsecureUpstreamHTTP bool
	// TraceUpstream passes a request's traceparent on to the upstream, so that its spans belong to
	// the client's trace: over Oblivious HTTP the sealed one, over protocol v1, which seals no
	// header, that of the request. It is one field of version 00 in W3C Trace Context (section
	// 3.2.2); anything else is left out, as tracestate always is.
	TraceUpstream bool

	// Authenticate judges a request by its headers, and says whose it is; it must not read the
	// body. It is called from several goroutines. In protocol v1 that is before anything of the
	// request is decrypted. In Oblivious HTTP the headers are sealed too: it is called, once its
	// date was judged, with a request that is made from the opened one, with its method, URL,
	// headers and no body, and with RemoteAddr, TLS and context of the outer one, before its body
	// is read. An error is answered 401, or 403 for ErrPermission, 429 for ErrRateLimited, 503 for
	// ErrUnavailable; the RetryAfter of an *APIError goes along. See AuthenticateKeys.
	//
	// account is the program's own name for the client, never a key or a token; "" is no client
	// in particular. It is in the line of Logger and in Event.Account, cut to 128 printable
	// characters. Over HTTP/1, a connection upstream that served one account serves no other. With
	// an error it is ignored.
	Authenticate func(*http.Request) (account string, err error)
	// AllowUnauthenticated serves everybody when Authenticate is nil.
	AllowUnauthenticated bool

	// Keys holds the keys that requests are sealed to, of both protocols. It stays the caller's,
	// who closes it after the gateway. When it rotates, clients of protocol v1 that pinned the RSA
	// key or remember it from first use refuse the new one until they are told: set Rotation.Every
	// to what you can announce, or to never, with Rotation.ConfigEvery beside it. nil = an ephemeral
	// store of the gateway's own, whose RSA key and signer stay: new fingerprints after each start.
	Keys *KeyStore
	// Tier is the security tier that this installation provides. Requests for a higher one are
	// answered 403. "" = TierStandard.
	Tier SecurityTier
	// Replay remembers the requests that were served. Gateways that share Keys share it, and have
	// the same ReplayWindow and OHTTP.DateWindow: each remembers for as long as its own says. nil =
	// one of its own: see [ReplayCache].
	Replay ReplayCache
	// ReplayWindow is how long Replay remembers a request of protocol v1 (for Oblivious HTTP see
	// GatewayOHTTP.DateWindow). Its requests have no timestamp: after the window, a captured one is
	// served again. 0 = 24 h, or as long as the cache has room: with its 131,072 entries, at up to
	// 1.5 requests a second.
	ReplayWindow time.Duration

	// MaxRequestBytes bounds the opened request, MaxResponseBytes the upstream's answer. More is
	// answered 413 and 502; a stream is cut. 0 = 10 MiB and 48 MiB; below 1 GiB.
	MaxRequestBytes, MaxResponseBytes int64
	// MaxConcurrent bounds the requests that are worked on at the same time. One that has arrived
	// waits up to a second for its place, and is then answered 503 with Retry-After: 1. 0 = 64.
	// Each may need about five times its size in memory. Requests that are still on the way hold no
	// place; what has come of their bodies has MaxConcurrent × MaxRequestBytes in all, a quarter of
	// that for one address, half for an IPv6 /48, and at least four of the largest requests. More
	// is answered 503 as well.
	MaxConcurrent int
	// AccountPlaces is how many of these places the requests of one account may have, or wait for.
	// More are answered 429 with Retry-After: 1. The account "" has no limit of its own. 0 = no
	// limit.
	AccountPlaces int
	// Timeout bounds the work on one request, and BodyTimeout the arrival of its body and the
	// delivery of its answer. 0 = 10 minutes and 1 minute. In Oblivious HTTP a request's header has
	// 5 seconds at most. From ten seconds on, a body has to have come at 8 KiB/s. A server's
	// WriteTimeout does not count: the gateway lifts it.
	Timeout, BodyTimeout time.Duration

	// IdleTimeout is the longest time between two pieces of the upstream's event stream, counted
	// from its first event on: until then only Timeout holds. Comments count as pieces. The answer
	// of a stream that stands still for longer stays without its end, so that no client takes it
	// for whole. 0 = 1 minute; negative = no limit.
	IdleTimeout time.Duration

	// AddressHeader names the header in which the proxy in front gives the client's address:
	// "X-Forwarded-For" for example. The last address in it counts; of an IPv6 address its first 64
	// bits. The gateway believes that address, so the proxy next to it has to set the header, or to
	// append to it. Without the header, or an address in it, the request counts for its RemoteAddr.
	// Limits per address hold in both protocols: behind a proxy set AddressHeader, or all clients
	// share one address. A handler in front that changes RemoteAddr can name anything else; a
	// request whose RemoteAddr it makes "" has no limit of its own. "" = RemoteAddr.
	AddressHeader string

	// Attester makes evidence of this machine's hardware that holds exactly reportData, which
	// vouches for the keys of the protocols that are served ([Attested]; SPEC.md, section 14). The
	// gateway calls it once for each request for evidence, and not while another call is under
	// way. A call has 10 seconds: the request is then answered 503, and Close waits for the call,
	// which should end with ctx. At most 16 requests wait, one of each address; others are answered
	// 503 with Retry-After. nil = none: they are answered 404.
	Attester func(ctx context.Context, reportData [64]byte) (AttestationDocument, error)
	// KeysStayInside says that the folder of Keys is inside the confidential VM, and that no copy
	// of it gets out. Evidence is worth nothing once somebody outside has the keys, so NewGateway
	// refuses an Attester with a key store that has a folder without it.
	KeysStayInside bool

	// Protocols are those that are served, all on the same listener. nil = both.
	Protocols []Protocol
	// OHTTP has the options of ProtocolOHTTP.
	OHTTP GatewayOHTTP

	// Audit is told of requests, answers, refusals and survived panics. While it fails, the gateway
	// answers requests with 503 before they go upstream, and sends no answers; a streamed one stays
	// without its end. Logger alone is told of refused API keys, and of requests over Oblivious
	// HTTP that do not open or are malformed: strangers could fill the audit log with them. nil =
	// no events.
	Audit Auditor
	// Logger gets one line per request: ids, account, sizes, durations and status, no content. Its
	// handler is given the request's context. nil = silent.
	Logger *slog.Logger
}

// GatewayOHTTP holds the options of [GatewayConfig] for [ProtocolOHTTP], Oblivious HTTP in chunks
// (RFC 9458; SPEC.md, chapter 11). Zero values are defaults.
type GatewayOHTTP struct {
	// Allow lists what inner requests may ask for, as method and path: "POST /v1/chat/completions".
	// Paths are compared as they are; a query goes along. The gateway asks Upstream for what
	// follows /v1: GET /v1/models is {Upstream}/models. It asks for a path outside /v1 below
	// Upstream as well, all of it: GET /health is {Upstream}/health, and so /v1/health of a server
	// whose Upstream ends in /v1. nil = POST /v1/chat/completions, /v1/completions, /v1/embeddings
	// and /v1/responses, and GET /v1/models.
	Allow []string
	// DateWindow is how far a request's inner Date may be from this machine's clock, either way. A
	// request is remembered until its Date, a window and a minute more; one that takes longer to
	// arrive is refused. Gateways that share Keys must have the same. 0 = 2 minutes; at most 24 h.
	DateWindow time.Duration
	// Padding makes the plaintext of every answer, and of every chunk of it, a multiple of so many
	// bytes, so that lengths say less. Event streams get comment lines for it, which readers skip,
	// and an event travels when it is complete; other answers of unknown length no longer travel as
	// they come. A power of two, at most 16,384. 0 = none.
	Padding int
	// StrangerRate is how many requests a second from one address the gateway opens that turn out
	// not to be a client's: opening costs work, and the client is known only afterwards.
	// StrangerBurst is how many may come at once. More are answered 429. A request that
	// Authenticate lets in does not count, if it arrives whole and was not sent before. Without
	// Authenticate every request counts. The networks of an IPv6 /48 have 16 times as much
	// together; so have, once 16,384 addresses are being counted, all others. 0 = 20 and 200; at
	// most 1,000,000; a negative rate sets no limit.
	StrangerRate  float64
	StrangerBurst int
	// AES128 has key configurations offer AES-128-GCM beside AES-256-GCM, for clients that have no
	// other: the Rust crate ohttp in its default build, for example. A client of this package takes
	// AES-256-GCM. It holds for configurations that are made from then on, and for as long as they
	// live. Those that Keys has stay as they are until they are replaced: [KeyStore.Rotate] of Keys
	// does that at once. Gateways that share Keys must have the same. A process without a gateway,
	// examples/keystore for example, makes configurations that offer what the newest one offers.
	AES128 bool
}

// Gateway is the server's end: an [http.Handler] that opens sealed requests, has an
// OpenAI-compatible server answer them, and seals the answers. It serves GET /pki/public_key and
// POST /v1/chat/secure_completion for protocol v1, GET and POST /.well-known/ohttp-gateway for
// Oblivious HTTP, GET /.well-known/sealedchat-attestation with an Attester, and GET /healthz. Put
// it behind TLS: an [http.Server] with a certificate, or a proxy. Its methods may be called from
// several goroutines.
type Gateway struct{ server *gateway.Server }

// NewGateway checks c and makes a gateway. It touches no network, file or environment, except what
// GatewayConfig.Audit does when it is told. Errors are [*ConfigError], or [ErrAudit]. The caller
// closes the gateway with [Gateway.Close].
func NewGateway(c GatewayConfig) (*Gateway, error) {
	config, err := c.engine()
	if err != nil {
		return nil, err
	}
	if c.Keys == nil {
		// One RSA key, and one signer, for as long as the gateway lives: rotation would turn away
		// clients that pinned it. Configurations come and go under the signer.
		o := &KeyStoreOptions{Audit: c.Audit,
			Rotation: Rotation{Every: -1, ConfigEvery: time.Hour}}
		keys, err := NewEphemeralKeyStore(o)
		if err != nil {
			return nil, err
		}
		config.Keys, config.OwnKeys = keys.store, true
	}
	server, err := gateway.New(*config)
	if err == nil {
		return &Gateway{server}, nil
	}
	if config.OwnKeys {
		config.Keys.Close()
	}
	if wrong, ok := errors.AsType[*gateway.OptionError](err); ok {
		return nil, &ConfigError{Field: "GatewayConfig." + wrong.Field, Err: wrong.Err}
	}
	return nil, err
}

// engine gives the configuration in the terms of package gateway.
func (c *GatewayConfig) engine() (*gateway.Config, error) {
	if isNilPointer(c.UpstreamTransport) {
		return nil, configError("GatewayConfig.UpstreamTransport",
			"a nil *http.Transport; leave the field nil for the default")
	}
	config := &gateway.Config{
		Upstream:             c.Upstream,
		UpstreamTransport:    c.UpstreamTransport,
		InsecureUpstreamHTTP: c.InsecureUpstreamHTTP,
		TraceUpstream:        c.TraceUpstream,
		AllowUnauthenticated: c.AllowUnauthenticated,
		Tier:                 hybrid.Tier(c.Tier),
		Replay:               c.Replay,
		ReplayWindow:         c.ReplayWindow,
		MaxRequestBytes:      c.MaxRequestBytes,
		MaxResponseBytes:     c.MaxResponseBytes,
		MaxConcurrent:        c.MaxConcurrent,
		AccountPlaces:        c.AccountPlaces,
		Timeout:              c.Timeout,
		BodyTimeout:          c.BodyTimeout,
		IdleTimeout:          c.IdleTimeout,
		AddressHeader:        c.AddressHeader,
		ServeV1:              c.Protocols == nil,
		ServeOHTTP:           c.Protocols == nil,
		OHTTP:                gateway.OHTTPConfig(c.OHTTP),
		KeysStayInside:       c.KeysStayInside,
		Tell:                 tellGatewayEvents(c.Audit),
		Logger:               c.Logger,
	}
	if c.UpstreamKey != nil {
		config.UpstreamKey = c.UpstreamKey
	}
	if c.Attester != nil {
		config.Attester = documents(c.Attester)
	}
	if c.Authenticate != nil {
		config.Authenticate = authenticator(c.Authenticate)
	}
	if c.Keys != nil {
		if c.Keys.store == nil {
			return nil, configError("GatewayConfig.Keys",
				"a zero KeyStore; make one with OpenKeyStore, CreateKeyStore or "+
					"NewEphemeralKeyStore")
		}
		config.Keys = c.Keys.store
	}
	for _, p := range c.Protocols {
		switch p {
		case ProtocolEnvelope:
			config.ServeV1 = true
		case ProtocolOHTTP:
			config.ServeOHTTP = true
		default:
			return nil, configError("GatewayConfig.Protocols",
				"want ProtocolEnvelope and ProtocolOHTTP")
		}
	}
	return config, nil
}

// documents gives Attester's documents in the terms of package gateway.
func documents(attester func(context.Context, [64]byte) (AttestationDocument, error),
) gateway.Attester {
	return func(ctx context.Context, reportData [64]byte) (attest.Document, error) {
		d, err := attester(ctx, reportData)
		return attest.Document{Format: d.Format, Evidence: d.Evidence,
			Endorsements: d.Endorsements}, err
	}
}

// authenticator takes apart what Authenticate can put into an error.
func authenticator(judge func(*http.Request) (string, error)) gateway.Authenticate {
	return func(r *http.Request) (account string, retryAfter time.Duration, err error) {
		account, err = judge(r)
		if limit, ok := errors.AsType[*APIError](err); ok {
			retryAfter = limit.RetryAfter
		}
		return account, retryAfter, err
	}
}

// tellGatewayEvents hands the events of a gateway to an Auditor.
func tellGatewayEvents(a Auditor) func(context.Context, gateway.Event) error {
	if a == nil {
		return nil
	}
	var t auditSink
	t.set(a)
	return func(ctx context.Context, e gateway.Event) error { return t.tell(ctx, gatewayEvent(e)) }
}

// gatewayEvent is an event of a gateway in the terms of an Auditor.
func gatewayEvent(e gateway.Event) Event {
	event := Event{
		Type: EventType(e.Type), PayloadID: e.PayloadID, Account: e.Account,
		Tier: SecurityTier(e.Tier), Bytes: e.Bytes, Status: e.Status, Duration: e.Duration,
		Reason: e.Reason,
	}
	switch event.Type {
	case EventGatewayOpened, EventGatewayClosed:
		event.Memory = memoryNow()
	}
	return event
}

// Keys describes the keys that requests to the gateway may be sealed to, made now if there are none
// yet: the RSA keys of protocol v1, and of [ProtocolOHTTP] the key configurations and the key that
// signs their list; of each kind those in use first, then those that were replaced and still open
// requests. Clients pin a Fingerprint ([Pin]). The signer's (KeyInfo.Kind is "Ed25519") stays the
// same when configurations are replaced. Errors are those of the key store: [ErrClosed], those of
// saving, [ErrAudit].
func (g *Gateway) Keys(ctx context.Context) ([]KeyInfo, error) {
	keys, err := g.server.Keys(ctx)
	var list []KeyInfo
	for _, i := range keys {
		list = append(list, KeyInfo(i))
	}
	return list, err
}

// Ready reports whether the gateway could serve a request now, for a load balancer's question: nil,
// or an error that says what is missing. That is [ErrClosed] since Close was called; what
// [Gateway.Keys] returns; or, behind the words "the replay memory", why Replay does not answer: the
// gateway's own is locked and read, and another is asked if it has a method Ready(context.Context)
// error. Nothing is asked of the upstream. While another process has the file of keys or of replays
// locked, it takes some seconds, whatever ctx says.
func (g *Gateway) Ready(ctx context.Context) error { return g.server.Ready(ctx) }

// Server is an [http.Server] on addr that is right for the gateway: it waits 10 seconds for a
// request's header, which has 8 KiB at most, keeps idle connections for 2 minutes, and writes its
// complaints to GatewayConfig.Logger at level WARN. 500 connections cost at most 32 MiB, however
// long their headers are; with headers of thousands of fields four times that, for those 10
// seconds. It has no ReadTimeout and no WriteTimeout, since Timeout and BodyTimeout bound every
// request. The caller may change it, sets TLSConfig where ListenAndServeTLS has no files for it,
// starts it and shuts it down, before [Gateway.Close].
func (g *Gateway) Server(addr string) *http.Server {
	server := g.server.HTTPServer(addr)
	server.Handler = g
	return server
}

// Close refuses new requests with 503, ends running ones, waits for them, and wipes the keys that
// are the gateway's own. For a graceful end, shut the http.Server down first. Idempotent; its only
// error is [ErrAudit], which keeps nothing from being closed.
func (g *Gateway) Close() (err error) { return g.server.Close() }

// ServeHTTP serves one request. It survives a panic in it with status 500; once an answer has
// begun, it panics with [http.ErrAbortHandler], so that no client takes the answer for whole.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.server.ServeHTTP(w, r) }

// GatewayStats is what a gateway did since it was made, see [Gateway.Stats]. Its numbers only grow,
// except InFlight and Remembered. It marshals to JSON. It holds no content and no ids.
type GatewayStats struct {
	// Requests is the number of requests that were dealt with, of either protocol: Answered were
	// sent a sealed answer, Refused a status from 400 to 499, Failed any other, or an answer that
	// was cut or that the client did not take. In Oblivious HTTP the status is the sealed one,
	// where there is one, and Answered is from 200 to 299. Fetched public keys and health checks
	// are not among them.
	Requests int64 `json:"requests"`
	Answered int64 `json:"answered"`
	Refused  int64 `json:"refused"`
	Failed   int64 `json:"failed"`
	// InFlight is the number of requests that hold one of GatewayConfig.MaxConcurrent places.
	InFlight int64 `json:"in_flight"`
	// BytesOpened counts the content of requests, BytesSealed that of answers.
	BytesOpened int64 `json:"bytes_opened"`
	BytesSealed int64 `json:"bytes_sealed"`
	// Remembered is the number of requests that the memory of replays has, of both protocols: 0 for
	// a GatewayConfig.Replay that has no method Len() int.
	Remembered int64 `json:"remembered"`
	// KeyRotations and Memory are as in [Stats].
	KeyRotations int64  `json:"key_rotations"`
	Memory       string `json:"memory"`
}

// Stats returns the counters. It costs some atomic reads and a system call or two, so it may be
// called often, from any goroutine, and after Close.
func (g *Gateway) Stats() GatewayStats {
	n := g.server.Stats()
	return GatewayStats{
		Requests: n.Answered + n.Refused + n.Failed,
		Answered: n.Answered, Refused: n.Refused, Failed: n.Failed, InFlight: n.InFlight,
		BytesOpened: n.BytesOpened, BytesSealed: n.BytesSealed, Remembered: n.Remembered,
		KeyRotations: n.KeyRotations, Memory: locked.Report().Level.String(),
	}
}

// AuthenticateKeys makes a [GatewayConfig].Authenticate that lets in requests with one of keys as a
// bearer token, and returns [ErrAuthentication] for others. The account is the number of the key
// among keys, from 1: "key-1". So it tells nothing of the key, and stays the same for as long as
// the order does. The function compares all keys, in constant time, and keeps digests; keys stay
// the caller's and may be destroyed afterwards. AuthenticateKeys' own error is [*ConfigError]:
// there are no keys, or one is nil, destroyed or not 1 to 4,096 bytes of visible ASCII. It counts
// from 1, too.
func AuthenticateKeys(keys ...*Secret) (func(*http.Request) (account string, err error), error) {
	if len(keys) == 0 {
		return nil, configError("AuthenticateKeys", "no keys; make them with NewSecret")
	}
	salt := make([]byte, 32)
	_, _ = rand.Read(salt)
	digest := func(b []byte) []byte {
		m := hmac.New(sha256.New, salt)
		m.Write(b)
		return m.Sum(nil)
	}
	var known [][]byte
	for i, k := range keys {
		err := k.Use(func(b []byte) error {
			known = append(known, digest(b))
			return httpx.ValidAPIKey(b)
		})
		if err != nil {
			return nil, &ConfigError{Field: "AuthenticateKeys, key " + strconv.Itoa(i+1), Err: err}
		}
	}
	return func(r *http.Request) (string, error) {
		scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " ")
		d := digest([]byte(strings.TrimLeft(token, " "))) // RFC 9110, 11.4: one space or more
		found := 0
		for i, k := range known { // the first of several that are the same
			this := subtle.ConstantTimeCompare(k, d) & subtle.ConstantTimeEq(int32(found), 0)
			found = subtle.ConstantTimeSelect(this, i+1, found)
		}
		if !ok || !strings.EqualFold(scheme, "Bearer") || found == 0 {
			return "", ErrAuthentication
		}
		return "key-" + strconv.Itoa(found), nil
	}, nil
}
