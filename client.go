// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package sealedchat sends OpenAI chat completions that nobody between a service and the model's server can read: not
// the CDN, not the proxy where TLS ends, not whoever ships logs. Each request is sealed with AES-256-GCM under a key of
// its own, which is wrapped with RSA-OAEP for the server's key; the answer comes back sealed the same way for the
// client's. The format is NOMYO's protocol v1 (SPEC.md), so its servers and clients are understood.
//
// # What it protects
//
// Whoever only reads along learns who talks to whom, when, and how much. Whoever also rewrites traffic where TLS ends
// can offer a server key of his own: [Pin] the real one, and prompts stay closed to him. Answers do not: the protocol
// does not bind them to the request, and he can have them sealed to himself. SECURITY.md has the whole table.
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
// [SecureCompletionClient.HTTPClient] gives an OpenAI SDK the same; [SecureCompletionClient.Complete] takes and returns
// raw JSON in protected memory; [SecureCompletionClient.Stream] hands out an answer piece by piece. [Gateway] is the other
// end, in front of any OpenAI-compatible server. [ConfigFromEnv] makes a Config from the environment.
//
// # Oblivious HTTP
//
// [Config].Protocol chooses the second protocol, [ProtocolOHTTP], which the gateway here speaks as well. It binds each answer
// to its request, seals method, path, headers and API key too, streams, and stays closed to a later quantum computer. All
// that is said here of keys and of what is not protected is about protocol v1, the default.
//
// # Keys
//
// A client has an RSA key of its own, to which answers are sealed, in a [KeyStore]; without one it makes an ephemeral
// key when it is first used. The server's key is fetched once an hour, judged by [Trust], and shared by all calls.
// Every request and every answer has an AES key and a nonce of its own. That is not forward secrecy: whoever gets an
// RSA key opens what was recorded for it.
//
// # Ownership, concurrency, errors
//
// What stands in a configuration stays the caller's: close and destroy it after the client or the gateway. Methods may be
// called from any number of goroutines, where nothing else is said. Zero values of options are defaults, and sizes are in
// bytes. Errors are sentinels for [errors.Is], such as [ErrDecryption], and types for [errors.As]: [*ConfigError] when
// something is made, [*ServerKeyError], [*APIError] and [*OuterError] from calls.
//
// # Compatibility
//
// Until version 1.0 the API may change between minor versions; CHANGELOG.md says how. What SPEC.md says of the wire does
// not change within a protocol version.
package sealedchat

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/locked"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// DefaultBaseURL is NOMYO's server: the BaseURL of [ConfigFromEnv] when the environment names none.
const DefaultBaseURL = "https://api.nomyo.ai"

const (
	defaultTimeout     = 10 * time.Minute
	defaultIdle        = time.Minute
	defaultMaxRequest  = 10 << 20 // what the protocol documents
	defaultMaxResponse = 64 << 20
	maxBytes           = math.MaxInt32 // largest size limit that is taken, on every platform
)

// SecurityTier names how well the server has to protect a request while it works on it.
type SecurityTier string

// The tiers of the protocol, lowest first. The empty tier leaves the choice to the server.
const (
	TierStandard SecurityTier = "standard"
	TierHigh     SecurityTier = "high"
	TierMaximum  SecurityTier = "maximum"
)

// rank orders the tiers; 0 is the empty tier, -1 an unknown one.
func (t SecurityTier) rank() int {
	switch t {
	case "":
		return 0
	case TierStandard:
		return 1
	case TierHigh:
		return 2
	case TierMaximum:
		return 3
	}
	return -1
}

// Protocol is a way to seal requests and answers.
type Protocol string

// The protocols. The empty one is [ProtocolEnvelope].
const (
	// ProtocolEnvelope is NOMYO's version 1 (SPEC.md): RSA-OAEP with SHA-256 (RFC 8017, section 7.1)
	// and AES-256-GCM.
	ProtocolEnvelope Protocol = "envelope"
	// ProtocolOHTTP is Oblivious HTTP in chunks (RFC 9458 and its chunked form; SPEC.md, chapter 11)
	// with X-Wing, a post-quantum hybrid. Method, path, headers and API key travel sealed too, an
	// answer opens only for its request, and answers stream. Config.Keys is not used.
	ProtocolOHTTP Protocol = "ohttp"
)

// known reports whether p is one of the protocols.
func (p Protocol) known() bool { return p == ProtocolEnvelope || p == ProtocolOHTTP }

// OHTTPOptions are a client's options for [ProtocolOHTTP] alone. The zero value is the default.
type OHTTPOptions struct {
	// Padding makes requests a multiple of so many bytes before they are sealed, so that their length
	// tells less. 0 = none; at most 1 MiB.
	Padding int
	// AllowX25519 also takes key configurations for X25519, in place of X-Wing: a later quantum
	// computer opens what was recorded of them. X-Wing is preferred, but an attacker who ends TLS can
	// cut it from the list where X25519's key is trusted as well.
	AllowX25519 bool
}

// Config is what [NewSecureCompletionClient] needs. BaseURL and Trust are required; every other zero
// value is a default.
type Config struct {
	// BaseURL is where the server is: https, with an optional path prefix, without user info, query or
	// fragment. It ends before /v1: the client adds the paths itself. Required.
	BaseURL string
	// APIKey is sent as a bearer token: 1 to 4,096 bytes of visible ASCII. It stays the caller's, who destroys it after
	// Close. nil = none.
	APIKey *Secret
	// Keys holds the RSA keys that answers are sealed to. It stays the caller's, who closes it after the client; several
	// clients may share it. ProtocolOHTTP does not use it. nil = an ephemeral store of the client's own, whose 4096-bit key
	// is generated on first use.
	Keys *KeyStore
	// Protocol is how requests are sealed: ProtocolEnvelope, or ProtocolOHTTP, which is better where
	// the gateway speaks it. The client never negotiates it, and never falls back from one to the
	// other. "" = ProtocolEnvelope.
	Protocol Protocol
	// OHTTP is for ProtocolOHTTP alone; it is refused with the other protocol.
	OHTTP OHTTPOptions
	// Trust decides whose key prompts are sealed to: TrustHTTPS(), Pin("…") or FirstUse(store).
	// Required.
	Trust Trust
	// OnServerKey, if set, is called before a server key is used that is not the one used before; old is nil at first.
	// An error refuses the key: the call fails with *ServerKeyError, whose Err it is. It is not called for a key that Trust
	// refuses, nor for one from AcceptServerKey. It must not call the client. One call at a time. With ProtocolOHTTP it is
	// also called when another signer vouches for the same key, and has to judge new.Signer() as well as the fingerprint:
	// whoever ends TLS can pass the genuine list on with a signature of his own, and FirstUse remembers the signer.
	OnServerKey func(old, new *PublicKey) error
	// Tier is asked for where a call does not say otherwise. "" lets the server choose.
	Tier SecurityTier
	// Transport carries the requests. It stays the caller's. nil = DefaultTransport(), closed with the client.
	Transport http.RoundTripper
	// Timeout bounds one attempt: fetching the server's key or making the client's, where that is still to be done,
	// connecting, and waiting for the last byte of the answer, or of the stream. 0 = 10 minutes.
	Timeout time.Duration
	// IdleTimeout is the longest time between two pieces of an event stream that passes as it comes, counted from its
	// first event on: until then only Timeout holds, since a model may think. Comments count as pieces. A stream that
	// stands still for longer is ended with ErrConnection. Protocol version 1 has no such streams.
	// 0 = 1 minute; negative = no limit.
	IdleTimeout time.Duration
	// MaxRetries is how often a failed attempt is repeated: after 429, 500, 502 and 504, after 503 if it comes with
	// Retry-After, and when the connection failed before there was an answer. The waits are random, up to 1 s, 2 s, 4 s
	// and so on, on top of what Retry-After says; a Retry-After of more than a minute, or a wait beyond the context's
	// deadline, is not waited for: the call fails at once. Every attempt is sealed afresh. With ProtocolOHTTP only what
	// cannot have been worked on is repeated: after the gateway's own 429, its 503 with Retry-After (not the upstream's), and
	// when nothing of the request was sent. 0 = 2; negative = none.
	MaxRetries int
	// Limiter, if set, is waited on before every attempt; its error ends the call. It fits *rate.Limiter of
	// golang.org/x/time.
	Limiter interface{ Wait(context.Context) error }
	// MaxRequestBytes bounds a request's JSON, MaxResponseBytes an answer as it comes over the wire, before and after
	// decompression. More is ErrTooLarge. 0 = 10 MiB and 64 MiB; below 2 GiB.
	MaxRequestBytes, MaxResponseBytes int64
	// Memory says what becomes of secrets for which there is no locked memory: MemoryBestEffort, the zero value,
	// MemoryRequired, which makes calls fail with ErrMemoryLimit, or MemoryOff. MemoryRequired wants it of APIKey and Keys,
	// too: MemoryRequired.NewSecret, KeyStoreOptions.Memory.
	Memory MemoryPolicy
	// Audit is told of keys, requests, answers, refusals and retries; its error stops the call. nil = nobody.
	Audit Auditor
	// Logger gets ids, sizes, durations and changes of the server's key, never content. nil = silent.
	Logger *slog.Logger
	// InsecureAllowHTTP allows a BaseURL with http where the address that is dialled is loopback, for tests.
	InsecureAllowHTTP bool
}

// SecureCompletionClient seals chat completions. Make one with [NewSecureCompletionClient] and share it: its methods
// may be called from any number of goroutines, and connections, keys and the server's key are shared between them.
type SecureCompletionClient struct {
	cfg     Config
	base    *url.URL
	http    http.RoundTripper
	server  *serverKey
	wire    protocol
	memory  *locked.Arena // for what calls need
	retry   retryPolicy
	log     *slog.Logger
	ownKeys bool
	ownHTTP bool
	counts  clientCounts

	audit     teller
	allLocked func() bool // the function allLocked, except in tests
	wasLocked atomic.Bool // what it said when it was asked last
	opened    time.Time

	life context.Context // ends with Close, with ErrClosed as its cause
	end  context.CancelCauseFunc

	mu      sync.Mutex
	closed  bool
	calls   sync.WaitGroup // running calls; Add only under mu while not closed
	cleanup sync.Once
}

// NewSecureCompletionClient checks c and makes a client. It touches no network, file or environment, but for what
// Config.Audit does when it is told. Errors are [*ConfigError], [ErrMemoryLimit] and [ErrAudit]. The caller closes the
// client with [SecureCompletionClient.Close].
func NewSecureCompletionClient(c Config) (*SecureCompletionClient, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	base, err := parseBaseURL(c.BaseURL, c.InsecureAllowHTTP)
	if err != nil {
		return nil, &ConfigError{Field: "Config.BaseURL", Err: err}
	}
	client := &SecureCompletionClient{
		cfg: c, base: base, log: c.Logger, retry: retryPolicy{most: c.MaxRetries, base: retryBase}, opened: time.Now(),
	}
	if client.http, client.ownHTTP, err = httpx.NewTransport(c.Transport, base); err != nil {
		return nil, &ConfigError{Field: "Config.Transport", Err: err}
	}
	if client.memory, err = newArena(c.Memory); err != nil {
		return nil, err
	}
	if c.Keys == nil {
		if client.cfg.Keys, err = NewEphemeralKeyStore(&KeyStoreOptions{Memory: c.Memory, Audit: c.Audit}); err != nil {
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
		fetch: client.fetchServerKey, trust: c.Trust, origin: httpx.OriginOf(base), notify: c.OnServerKey, log: client.log, life: client.life,
		audit: &client.audit,
	}
	client.setProtocol()
	if err := client.tellOpened(); err != nil {
		client.audit.set(nil) // it was never open
		_ = client.Close()
		return nil, err
	}
	return client, nil
}

// parseBaseURL checks a Config.BaseURL. Its errors repeat nothing of it except an ending.
func parseBaseURL(text string, allowHTTP bool) (*url.URL, error) {
	if text == "" {
		return nil, errors.New("required: the https URL of the server, without /v1")
	}
	base, err := httpx.ParseBaseURL(text, allowHTTP)
	if err != nil {
		return nil, err
	}
	path := base.EscapedPath()
	for _, end := range [...]string{"/chat/completions", "/v1/chat", "/v1", hybrid.PathCompletion,
		hybrid.PathPublicKey, ohttp.Path} {
		if rest, found := strings.CutSuffix(path, end); found {
			rest = strings.TrimSuffix(rest, "/v1")
			return nil, fmt.Errorf("it has to end before %q: the client adds the paths itself", path[len(rest):])
		}
	}
	return base, nil
}

func (c *Config) setDefaults() error {
	if c.Protocol == "" {
		c.Protocol = ProtocolEnvelope
	}
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = defaultIdle
	}
	if c.MaxRetries == 0 {
		c.MaxRetries = defaultRetries
	}
	if c.MaxRequestBytes == 0 {
		c.MaxRequestBytes = defaultMaxRequest
	}
	if c.MaxResponseBytes == 0 {
		c.MaxResponseBytes = defaultMaxResponse
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c.validate()
}

func (c *Config) validate() error {
	if c.Trust == nil {
		return configError("Config.Trust", "choose whose key prompts are sealed to: TrustHTTPS() takes what the server "+
			"presents over HTTPS, Pin(\"sha256 hex\") takes only that key, FirstUse(store) remembers the first one")
	}
	if err := c.Trust.validate(); err != nil {
		return &ConfigError{Field: "Config.Trust", Err: err}
	}
	if c.Keys != nil && c.Keys.store == nil {
		return configError("Config.Keys", "a zero KeyStore; make one with OpenKeyStore, CreateKeyStore or NewEphemeralKeyStore")
	}
	if isNilPointer(c.Transport) {
		return configError("Config.Transport", "a nil pointer; leave the field nil for the default")
	}
	if isNilPointer(c.Limiter) {
		return configError("Config.Limiter", "a nil pointer; leave the field nil for no limit")
	}
	if t, ok := c.Transport.(*http.Transport); ok && skipsVerification(t.TLSClientConfig) && restsOnTLS(c.Trust) {
		return configError("Config.Transport", "InsecureSkipVerify leaves nothing of TrustHTTPS or FirstUse; pin the server's key instead")
	}
	if c.APIKey != nil {
		if err := c.APIKey.Use(httpx.ValidAPIKey); err != nil {
			return &ConfigError{Field: "Config.APIKey", Err: err}
		}
	}
	if c.Tier.rank() < 0 {
		return configError("Config.Tier", "want \"\", standard, high or maximum")
	}
	if c.Timeout < 0 {
		return configError("Config.Timeout", "negative")
	}
	if c.MaxRequestBytes < 0 || c.MaxRequestBytes > maxBytes {
		return configError("Config.MaxRequestBytes", "want 0 to %d", maxBytes)
	}
	if c.MaxResponseBytes < 0 || c.MaxResponseBytes > maxBytes {
		return configError("Config.MaxResponseBytes", "want 0 to %d", maxBytes)
	}
	if err := c.validateProtocol(); err != nil {
		return err
	}
	return c.validateMemory()
}

func (c *Config) validateProtocol() error {
	switch {
	case !c.Protocol.known():
		return configError("Config.Protocol", "want ProtocolEnvelope or ProtocolOHTTP")
	case c.OHTTP.Padding < 0 || c.OHTTP.Padding > maxPadding:
		return configError("Config.OHTTP.Padding", "want 0 to %d", maxPadding)
	case c.OHTTP != OHTTPOptions{} && c.Protocol != ProtocolOHTTP:
		return configError("Config.OHTTP", "for ProtocolOHTTP alone; set Config.Protocol to it, or leave OHTTP empty")
	}
	return nil
}

// isNilPointer catches a nil pointer or function that has become an interface, which is not nil.
func isNilPointer(v any) bool {
	r := reflect.ValueOf(v)
	return (r.Kind() == reflect.Pointer || r.Kind() == reflect.Func) && r.IsNil()
}

func skipsVerification(c *tls.Config) bool {
	return c != nil && c.InsecureSkipVerify && c.VerifyConnection == nil && c.VerifyPeerCertificate == nil
}

// CallOption changes one call of [SecureCompletionClient.Chat], Stream or Complete. A nil one changes nothing.
type CallOption func(*callOptions)

type callOptions struct {
	apiKey *Secret
	tier   SecurityTier
	into   hybrid.Alloc // where the answer is opened to; nil: where it came
	sealed string       // payload id of the last attempt
}

// WithAPIKey uses key instead of Config.APIKey for this call; nil sends none. It stays the caller's, who keeps it until
// the call has returned, or the loop over a stream has ended.
func WithAPIKey(key *Secret) CallOption { return func(o *callOptions) { o.apiKey = key } }

// WithTier asks for tier instead of Config.Tier in this call; "" leaves it to the server. An unknown tier is
// [ErrInvalidRequest].
func WithTier(tier SecurityTier) CallOption { return func(o *callOptions) { o.tier = tier } }

func (c *SecureCompletionClient) options(opts []CallOption) (*callOptions, error) {
	o := &callOptions{apiKey: c.cfg.APIKey, tier: c.cfg.Tier}
	for _, f := range opts {
		if f != nil {
			f(o)
		}
	}
	if o.tier.rank() < 0 {
		return nil, fmt.Errorf("%w: security tier, want standard, high or maximum", ErrInvalidRequest)
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
		c.wire = &obliviousHTTP{
			url: c.base.String() + ohttp.Path, scheme: c.base.Scheme, authority: c.base.Host,
			keys: c.cfg.Keys, server: c.server, memory: c.memory, padding: c.cfg.OHTTP.Padding,
			maxAnswer: c.cfg.MaxResponseBytes, idle: c.cfg.IdleTimeout, base: c.base,
			takeX25519: c.cfg.OHTTP.AllowX25519,
		}
		return
	}
	c.wire = &envelopeV1{
		completionURL: c.base.String() + hybrid.PathCompletion, keys: c.cfg.Keys, server: c.server,
		maxAnswer: c.cfg.MaxResponseBytes, base: c.base,
	}
}

// Warm generates the client's key if there is none, and fetches the server's key and has it judged if none is known,
// which leaves a connection open: all that the first call would wait for. Errors are those of
// [SecureCompletionClient.ServerKey], and of generating a key.
func (c *SecureCompletionClient) Warm(ctx context.Context) error {
	ctx, done, err := c.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	return c.wire.warm(ctx)
}

// ServerKey returns the server's key as it is trusted now; it is fetched when none is known or an hour has passed.
// Errors: [*ServerKeyError] when it is not trusted, [ErrPublicKey] when it is no key; otherwise as of a call: [*APIError] or
// [*OuterError], [ErrConnection], [ErrTooLarge], [ErrAudit], [ErrClosed], the end of ctx.
func (c *SecureCompletionClient) ServerKey(ctx context.Context) (*PublicKey, error) {
	ctx, done, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return c.server.get(ctx)
}

// AcceptServerKey trusts the key with this fingerprint from now on, whatever Config.Trust says: the answer to a
// [*ServerKeyError] whose change turned out to be legitimate. With [FirstUse] it is remembered in the key store in place
// of the one before; otherwise by this client alone. OnServerKey is not asked. The next call fetches the server's key
// again. fingerprint is in hex, either case. Errors: [ErrInvalidRequest] for what is no fingerprint, [ErrClosed], with
// FirstUse those of saving, and [ErrAudit], after which the key is trusted all the same.
func (c *SecureCompletionClient) AcceptServerKey(fingerprint string) error {
	ctx, done, err := c.begin(context.Background())
	if err != nil {
		return err
	}
	defer done()
	return c.server.accept(ctx, fingerprint)
}

// Close ends running calls with [ErrClosed], waits for them, closes idle connections and wipes the keys that are the
// client's own. When its first key is being generated, Close waits for that too, some seconds at most. It must not be
// called from within a callback. Idempotent; its only error is [ErrAudit], which keeps nothing from being closed.
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
			_ = c.cfg.Keys.Close()
		}
		c.memory.Close()
		err = c.tellClosed()
	})
	return err
}

// begin enters a call: its context also ends with the client. done leaves it.
func (c *SecureCompletionClient) begin(ctx context.Context) (_ context.Context, done func(), err error) {
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
	return c.audit.tell(context.Background(), Event{Type: EventClientOpened, Server: c.server.origin, Memory: now})
}

func (c *SecureCompletionClient) tellClosed() error {
	if c.audit.to.Load() == nil {
		return nil
	}
	return c.audit.tell(context.Background(), Event{
		Type: EventClientClosed, Server: c.server.origin, Duration: time.Since(c.opened), Memory: memoryNow(),
	})
}
