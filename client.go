// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package sealedchat sends OpenAI chat completions that nothing between a service and the model's
// server can read: not the CDN, not the proxy where TLS ends, not the system that ships logs. Each
// request is sealed with AES-256-GCM under a key of its own, which is wrapped with RSA-OAEP for the
// server's key; the answer comes back sealed the same way for the client's. The format is NOMYO's
// protocol v1 (SPEC.md), so its servers and clients are understood.
//
// # What it protects
//
// An eavesdropper learns who talks to whom, when, and how much. An active attacker, who also
// rewrites traffic where TLS ends, can offer a server key of their own: [Pin] the real one, and
// prompts stay closed to them. Answers do not: the protocol does not bind them to the request, and
// the attacker can have them sealed to themselves. SECURITY.md has the whole table.
//
// # Use
//
//	client, err := sealedchat.NewSecureCompletionClient(sealedchat.Config{
//		BaseURL: "https://inference.example.com",
//		APIKey:  key,                         // a *Secret
//		Trust:   sealedchat.Pin("cb27375f…"), // or TrustHTTPS()
//	})
//	…
//	defer client.Close()
//	answer, err := client.Chat(ctx, &sealedchat.ChatRequest{
//		Model:    "Qwen/Qwen3-0.6B",
//		Messages: []sealedchat.Message{sealedchat.UserMessage("What is the capital of France?")},
//	})
//	fmt.Println(answer.Text())
//
// [SecureCompletionClient.HTTPClient] gives an OpenAI SDK the same;
// [SecureCompletionClient.Complete] takes and returns raw JSON in protected memory;
// [SecureCompletionClient.Stream] hands out an answer piece by piece. [Gateway] is the other end,
// in front of any OpenAI-compatible server. [ConfigFromEnv] makes a Config from the environment.
//
// # Oblivious HTTP
//
// [Config].Protocol chooses the second protocol, [ProtocolOHTTP], which the gateway here speaks as
// well. It binds each answer to its request, seals method, path, headers and API key too, streams,
// and stays closed to a later quantum computer. Everything else in this text about keys and about
// limits of the protection is about protocol v1, the default.
//
// # Keys
//
// A client has an RSA key of its own, to which answers are sealed, in a [KeyStore]; without one it
// makes an ephemeral key when it is first used. The client fetches the server's key once an hour,
// [Trust] judges it, and all calls share it. Every request and every answer has an AES key and a
// nonce of its own. That is not forward secrecy: an attacker who gets an RSA key opens what was
// recorded for it.
//
// # Ownership, concurrency, errors
//
// The values in a configuration stay the caller's: close and destroy them after the client or the
// gateway. Methods may be called from any number of goroutines, unless their documentation says
// otherwise. Zero values of options are defaults, and sizes are in bytes. Errors are sentinels for
// [errors.Is], such as [ErrDecryption], and types for [errors.As]: [*ConfigError] from
// constructors, [*ServerKeyError], [*APIError] and [*OuterError] from calls.
//
// # Compatibility
//
// Until version 1.0 the API may change between minor versions; CHANGELOG.md says how. SPEC.md has
// the format on the wire, which does not change within a protocol version.
package sealedchat

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/chatjson"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// SecureCompletionClient seals chat completions. Make one with [NewSecureCompletionClient] and
// share it: its methods may be called from any number of goroutines, which share connections, keys
// and the server's key.
type SecureCompletionClient struct {
	cfg     Config
	base    *url.URL
	http    http.RoundTripper
	server  *serverKey
	wire    protocol
	memory  *locked.Arena // for what calls need
	spare   spareMemory   // the same in ordinary memory
	retry   retryPolicy
	log     *slog.Logger
	ownKeys bool
	ownHTTP bool
	counts  clientCounts

	audit     auditSink
	allLocked func() bool // the function allLocked, except in tests
	wasLocked atomic.Bool // what it said when it was asked last
	opened    time.Time

	life context.Context // ends with Close, with ErrClosed as its cause
	end  context.CancelCauseFunc

	mu      sync.Mutex // guards closed and calls.Add; no other lock is taken under it
	closed  bool
	calls   sync.WaitGroup // running calls; Add only under mu while not closed
	cleanup sync.Once
}

// NewSecureCompletionClient checks c and makes a client. It touches no network, file or
// environment, except that it calls Config.Audit. Errors are [*ConfigError], [ErrMemoryLimit] and
// [ErrAudit]. The caller closes the client with [SecureCompletionClient.Close].
func NewSecureCompletionClient(c Config) (*SecureCompletionClient, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	base, err := parseBaseURL(c.BaseURL, c.InsecureAllowHTTP)
	if err != nil {
		return nil, &ConfigError{Field: "Config.BaseURL", Err: err}
	}
	client := &SecureCompletionClient{
		cfg: c, base: base, log: c.Logger, opened: time.Now(),
		retry: retryPolicy{most: c.MaxRetries, base: retryBase},
	}
	if client.http, client.ownHTTP, err = httpx.NewTransport(c.Transport, base); err != nil {
		return nil, &ConfigError{Field: "Config.Transport", Err: err}
	}
	if client.memory, err = newArena(c.Memory); err != nil {
		return nil, err
	}
	if c.Keys == nil {
		own := &KeyStoreOptions{Memory: c.Memory, Audit: c.Audit}
		if client.cfg.Keys, err = NewEphemeralKeyStore(own); err != nil {
			client.memory.Close()
			return nil, err
		}
		client.ownKeys = true
	}
	if base.Scheme == "http" {
		client.log.Warn("plain http to loopback is allowed", "host", base.Host)
	}
	client.life, client.end = context.WithCancelCause(context.Background())
	client.server = &serverKey{
		fetch: client.fetchServerKey, trust: c.Trust, origin: httpx.OriginOf(base),
		notify: c.OnServerKey, log: client.log, life: client.life, audit: &client.audit,
		evidence: newAttestor(c.Trust, client.http, base),
	}
	client.setProtocol()
	if err := client.tellOpened(); err != nil {
		client.audit.set(nil) // it was never open
		_ = client.Close()
		return nil, err
	}
	return client, nil
}

// CallOption changes one call of [SecureCompletionClient.Chat], Stream or Complete. A nil one
// changes nothing.
type CallOption func(*callOptions)

type callOptions struct {
	apiKey *Secret
	tier   SecurityTier
	into   hybrid.Alloc // where the answer is opened to; nil: where it came

	sealed   string // payload id of the last attempt
	attempts int    // that were sealed
}

// WithAPIKey uses key instead of Config.APIKey for this call; nil sends none. The key stays the
// caller's, who keeps it until the call has returned, or the loop over a stream has ended.
func WithAPIKey(key *Secret) CallOption { return func(o *callOptions) { o.apiKey = key } }

// WithTier asks for tier instead of Config.Tier in this call; "" leaves it to the server. An
// unknown tier is [ErrInvalidRequest].
func WithTier(tier SecurityTier) CallOption { return func(o *callOptions) { o.tier = tier } }

func (c *SecureCompletionClient) options(opts []CallOption) (*callOptions, error) {
	o := &callOptions{apiKey: c.cfg.APIKey, tier: c.cfg.Tier}
	for _, f := range opts {
		if f != nil {
			f(o)
		}
	}
	if o.tier.rank() < 0 {
		return nil, fmt.Errorf("%w: security tier, want standard, high or maximum",
			ErrInvalidRequest)
	}
	if o.apiKey != nil {
		if err := o.apiKey.Use(httpx.ValidAPIKey); err != nil {
			return nil, err
		}
		if c.cfg.Memory == MemoryRequired && !o.apiKey.Locked() {
			return nil, fmt.Errorf("%w: the API key is not in locked memory", ErrMemoryLimit)
		}
	}
	return o, nil
}

// setProtocol makes the client speak the protocol that its user chose.
func (c *SecureCompletionClient) setProtocol() {
	if c.cfg.Protocol == ProtocolOHTTP {
		// what is remembered for one protocol says nothing about the other
		c.server.origin = "ohttp+" + c.server.origin
		c.retry.once = true
		c.wire = &ohttpProtocol{
			url: c.base.String() + ohttp.Path, scheme: c.base.Scheme, authority: c.base.Host,
			keys: c.cfg.Keys, server: c.server, memory: c.memory, spare: &c.spare,
			padding: c.cfg.OHTTP.Padding, maxAnswer: c.cfg.MaxResponseBytes,
			idle: c.cfg.IdleTimeout, base: c.base, takeX25519: c.cfg.OHTTP.AllowX25519,
		}
		c.server.otherKeys = func(ctx context.Context) ([]*PublicKey, string) {
			keys, err := fetchServerKey(ctx, c.http, c.base, "")
			if err != nil {
				return nil, ""
			}
			return keys, "version 1: set Config.Protocol to ProtocolEnvelope, " +
				"or pin the signer that the operator names"
		}
		return
	}
	c.server.otherKeys = func(ctx context.Context) ([]*PublicKey, string) {
		keys, err := fetchConfigs(ctx, c.http, c.base.String()+ohttp.Path, time.Now)
		if err != nil {
			return nil, ""
		}
		return keys, "Oblivious HTTP: set Config.Protocol to ProtocolOHTTP, " +
			"or pin the RSA key that the operator names"
	}
	c.wire = &envelopeV1{
		completionURL: c.base.String() + hybrid.PathCompletion, keys: c.cfg.Keys, server: c.server,
		maxAnswer: c.cfg.MaxResponseBytes, base: c.base,
	}
}

// Chat seals r, sends it, and returns the opened and checked answer. It makes up to 1 +
// [Config].MaxRetries attempts of [Config].Timeout each, and one more when the server's key has
// changed and the new one is trusted; ctx bounds them all.
//
// Errors: [*ServerKeyError] when the server's key is not trusted (nothing was sent), [*APIError]
// when the server refused, [*OuterError] for an answer in the clear where [ProtocolOHTTP] wants a
// sealed one, and the sentinels [ErrInvalidRequest], [ErrTooLarge], [ErrConnection],
// [ErrTruncated], [ErrEnvelope], [ErrDecryption], [ErrResponseSchema], [ErrReplay],
// [ErrTierDowngrade], [ErrPublicKey], [ErrInsecureURL], [ErrMemoryLimit], [ErrAudit] and
// [ErrClosed]; those of Config.Limiter and of saving in Config.Keys; the cause of ctx when that
// ended the call.
//
// Prompt and answer are Go strings here: the garbage collector may copy them, nothing wipes them,
// and they can be swapped out. [SecureCompletionClient.Complete] keeps both in protected memory.
func (c *SecureCompletionClient) Chat(ctx context.Context, r *ChatRequest,
	opts ...CallOption) (*ChatResponse, error) {
	body, err := r.encode()
	if err != nil {
		return nil, err
	}
	defer clear(body)
	result, err := c.do(ctx, chatRequest(body, true), opts)
	if err != nil {
		return nil, err
	}
	resp := &ChatResponse{}
	if err := chatjson.CheckWeight(result.plaintext); err != nil {
		clear(result.plaintext)
		return nil, c.tellRefused(ctx, result.payloadID, err, "")
	}
	if err := resp.decodeJSON(result.plaintext); err != nil {
		clear(result.plaintext)
		return nil, c.tellRefused(ctx, result.payloadID, decodeError(err), "")
	}
	resp.PayloadID = result.payloadID
	return resp, nil
}

// Response is a chat.completion object as raw JSON. Destroy its Body to wipe the answer.
type Response struct {
	Body      *Secret // the bytes exactly as they were sealed; the caller's, who destroys it
	PayloadID string  // the request's id, as in ChatResponse
}

// Complete is [SecureCompletionClient.Chat] for raw JSON. request is the JSON object; it stays the
// caller's, and Complete leaves it as it is. The answer is checked as Chat checks it, and handed
// out byte for byte. Request and answer stay in memory under [Config].Memory. The caller destroys
// the Body of the response. Errors are those of Chat; a destroyed request is [ErrClosed].
func (c *SecureCompletionClient) Complete(ctx context.Context, request *Secret,
	opts ...CallOption) (*Response, error) {
	if request == nil {
		return nil, fmt.Errorf("%w: the request is nil; make it with NewSecret", ErrInvalidRequest)
	}
	if c.cfg.Memory == MemoryRequired && request.Len() > 0 && !request.Locked() {
		return nil, fmt.Errorf("%w: the request is not in locked memory; "+
			"make it with MemoryRequired.NewSecret", ErrMemoryLimit)
	}
	var body *Secret
	into := func(n int) (b []byte, err error) {
		body.Destroy() // an earlier attempt's
		body, b, err = newBuffer(c.memory, n)
		return b, err
	}
	var result *completion
	err := request.Use(func(b []byte) (err error) {
		in := chatRequest(b, true)
		in.unchecked = true
		result, err = c.do(ctx, in, append(opts[:len(opts):len(opts)],
			func(o *callOptions) { o.into = into }))
		return err
	})
	if err != nil {
		body.Destroy()
		return nil, err
	}
	body.keep(len(result.plaintext))
	return &Response{Body: body, PayloadID: result.payloadID}, nil
}

// Warm does what the first call would otherwise wait for: it generates the client's key if there is
// none, fetches the server's key and has Config.Trust judge it if none is known, and leaves a
// connection open. Errors are those of [SecureCompletionClient.ServerKey], and of generating a key.
func (c *SecureCompletionClient) Warm(ctx context.Context) error {
	ctx, done, err := c.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	return c.wire.warm(ctx)
}

// ServerKey returns the server's key as it is trusted now. It asks the server when none is known or
// an hour has passed. Errors: [*ServerKeyError] when the key is not trusted, [ErrPublicKey] when
// the answer is no key; otherwise as of a call: [*APIError] or [*OuterError], [ErrConnection],
// [ErrTooLarge], [ErrAudit], [ErrClosed], the end of ctx.
func (c *SecureCompletionClient) ServerKey(ctx context.Context) (*PublicKey, error) {
	ctx, done, err := c.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return c.server.get(ctx)
}

// AcceptServerKey trusts the key with this fingerprint from now on, whatever Config.Trust says: the
// answer to a [*ServerKeyError] whose change turned out to be legitimate. With [FirstUse] the key
// store remembers it in place of the one before; otherwise this client alone does. OnServerKey is
// not called. The next call fetches the server's key again. fingerprint is in hex, either case.
// Errors: [ErrInvalidRequest] for a text that is no fingerprint, [ErrClosed], with FirstUse those
// of saving, and [ErrAudit], after which the key is trusted all the same.
func (c *SecureCompletionClient) AcceptServerKey(fingerprint string) error {
	ctx, done, err := c.enter(context.Background())
	if err != nil {
		return err
	}
	defer done()
	return c.server.accept(ctx, fingerprint)
}

// Close ends running calls with [ErrClosed], waits for them, closes idle connections and wipes the
// keys that are the client's own. If the client is generating its first key, Close waits for that
// too, some seconds at most. A callback must not call Close. Idempotent; its only error is
// [ErrAudit], which keeps nothing from being closed.
func (c *SecureCompletionClient) Close() (err error) {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	if c.end == nil { // a zero client
		return nil
	}
	c.end(fmt.Errorf("%w: client", ErrClosed))
	c.calls.Wait()
	c.server.fetching.Close()
	c.cleanup.Do(func() {
		if c.ownHTTP {
			httpx.CloseIdle(c.http)
		}
		if c.ownKeys {
			c.cfg.Keys.Close()
		}
		c.memory.Close()
		err = c.tellClosed()
	})
	return err
}

// enter begins a call: its context also ends with the client. done leaves it.
func (c *SecureCompletionClient) enter(ctx context.Context) (_ context.Context, done func(),
	err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.life == nil { // or a zero client
		cancel(nil)
		return nil, nil, fmt.Errorf("%w: client", ErrClosed)
	}
	c.calls.Add(1)
	stop := context.AfterFunc(c.life, func() { cancel(context.Cause(c.life)) })
	return ctx, func() {
		stop()
		cancel(nil)
		c.calls.Done()
	}, nil
}

func (c *SecureCompletionClient) fetchServerKey(ctx context.Context) ([]*PublicKey, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.Timeout, fault.ErrAttemptTimeout)
	defer cancel()
	keys, err := c.wire.fetchKeys(ctx, c.http)
	if err != nil && context.Cause(c.life) != nil {
		return nil, context.Cause(c.life)
	}
	return keys, err
}

func (c *SecureCompletionClient) tellOpened() error {
	c.allLocked = allLocked
	if c.cfg.Audit == nil {
		return nil
	}
	c.audit.set(c.cfg.Audit)
	now := memoryNow()
	c.wasLocked.Store(now.AllLocked)
	return c.audit.tell(context.Background(), Event{
		Type: EventClientOpened, Server: c.server.origin, Memory: now,
	})
}

func (c *SecureCompletionClient) tellClosed() error {
	if c.audit.to.Load() == nil {
		return nil
	}
	return c.audit.tell(context.Background(), Event{
		Type: EventClientClosed, Server: c.server.origin, Duration: time.Since(c.opened),
		Memory: memoryNow(),
	})
}

// Stats are sums since a client was made, see [SecureCompletionClient.Stats]: a metrics system
// takes the differences. They only grow, except InFlight. They have JSON names, and hold no content
// and no ids.
type Stats struct {
	// Requests is the number of calls: Chat, Complete, Stream, and requests of an SDK that reached
	// the client. Failures is how many of them ended with an error, for whatever reason. The others
	// that are not InFlight succeeded.
	Requests int64 `json:"requests"`
	Failures int64 `json:"failures"`
	// InFlight is the number of calls that are under way.
	InFlight int64 `json:"in_flight"`
	// Attempts is how often a request was sealed and handed to Config.Transport; Retries is how
	// many attempts came after one that failed, those for a new server key among them.
	Attempts int64 `json:"attempts"`
	Retries  int64 `json:"retries"`
	// AttemptsAES128 is how many of the Attempts were sealed with AES-128-GCM, since the gateway's
	// key configuration does not offer AES-256-GCM ([ProtocolOHTTP]).
	AttemptsAES128 int64 `json:"attempts_aes128"`
	// BytesSealed counts the JSON of requests, again for each attempt; BytesOpened the JSON of the
	// answers that were accepted. On the wire both are some hundred bytes larger, and in protocol
	// v1 a third (base64).
	BytesSealed int64 `json:"bytes_sealed"`
	BytesOpened int64 `json:"bytes_opened"`
	// KeyRotations is how often this process replaced the key of the client's [KeyStore], also
	// where several clients share it. It counts neither a first key nor the work of another
	// process.
	KeyRotations int64 `json:"key_rotations"`
	// Memory tells how the process's secrets are kept: "locked" if all protected memory in use is
	// locked into RAM, "wiped only" if some of it may be swapped out until it is wiped.
	// [MemoryReport] has more.
	Memory string `json:"memory"`
}

// Stats returns the counters. It costs some atomic reads and a system call or two, so it may be
// called often, from any goroutine, and after Close. A call that is under way meanwhile may count
// in one field and not yet in another.
func (c *SecureCompletionClient) Stats() Stats {
	n := &c.counts
	return Stats{
		Requests: n.requests.Load(), Failures: n.failures.Load(), InFlight: n.inFlight.Load(),
		Attempts: n.attempts.Load(), Retries: n.retries.Load(), AttemptsAES128: n.aes128.Load(),
		BytesSealed: n.sealed.Load(), BytesOpened: n.opened.Load(),
		KeyRotations: c.cfg.Keys.store.Rotations(), Memory: locked.Report().Level.String(),
	}
}

// clientCounts are a client's counters. The zero value is ready.
type clientCounts struct {
	requests, failures, inFlight, attempts, aes128, retries, sealed, opened atomic.Int64
}

// call counts a call that begins now. The result is deferred with the address of the call's error.
func (n *clientCounts) call() func(err *error) {
	n.requests.Add(1)
	n.inFlight.Add(1)
	return func(err *error) {
		if *err != nil {
			n.failures.Add(1)
		}
		n.inFlight.Add(-1)
	}
}
