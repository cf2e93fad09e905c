// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/attest"
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
func (t SecurityTier) rank() int { return hybrid.Tier(t).Rank() }

// Protocol is a way to seal requests and answers.
type Protocol string

// The protocols. The empty one is [ProtocolEnvelope].
const (
	// ProtocolEnvelope is NOMYO's version 1 (SPEC.md): RSA-OAEP with SHA-256 (RFC 8017, section
	// 7.1) and AES-256-GCM.
	ProtocolEnvelope Protocol = "envelope"
	// ProtocolOHTTP is Oblivious HTTP in chunks (RFC 9458 and its chunked form; SPEC.md, chapter
	// 11) with X-Wing, a post-quantum hybrid. Method, path, headers and API key travel sealed too,
	// an answer opens only for its request, and answers stream. Config.Keys is not used.
	ProtocolOHTTP Protocol = "ohttp"
)

// known reports whether p is one of the protocols.
func (p Protocol) known() bool { return p == ProtocolEnvelope || p == ProtocolOHTTP }

// OHTTPOptions are a client's options for [ProtocolOHTTP] alone. The zero value is the default.
type OHTTPOptions struct {
	// Padding makes requests a multiple of so many bytes before they are sealed, so that their
	// length tells less. 0 = none; at most 1 MiB.
	Padding int
	// AllowX25519 also takes key configurations for X25519, in place of X-Wing: a later quantum
	// computer opens what was recorded of them. X-Wing is preferred, but an attacker who ends TLS
	// can cut it from the list where X25519's key is trusted as well.
	AllowX25519 bool
}

// Config is what [NewSecureCompletionClient] needs. BaseURL and Trust are required; every other
// zero value is a default.
type Config struct {
	// BaseURL is where the server is: https, with an optional path prefix, without user info, query
	// or fragment. It ends before /v1: the client adds the paths itself. Required.
	BaseURL string
	// APIKey is sent as a bearer token: 1 to 4,096 bytes of visible ASCII. It stays the caller's,
	// who destroys it after Close. nil = none.
	APIKey *Secret
	// Keys holds the RSA keys that answers are sealed to. It stays the caller's, who closes it
	// after the client; several clients may share it. ProtocolOHTTP does not use it. nil = an
	// ephemeral store of the client's own, which generates its 4096-bit key on first use.
	Keys *KeyStore
	// Protocol is how requests are sealed: ProtocolEnvelope, or ProtocolOHTTP, which is better
	// where the gateway speaks it. The client never negotiates it, and never falls back from one to
	// the other. "" = ProtocolEnvelope.
	Protocol Protocol
	// OHTTP is for ProtocolOHTTP alone; it is refused with the other protocol.
	OHTTP OHTTPOptions
	// Trust decides whose key prompts are sealed to: TrustHTTPS(), Pin("…"), FirstUse(store) or
	// Attested(…). Required.
	Trust Trust
	// OnServerKey, if set, is called before the client uses a server key that is not the one
	// before; old is nil at first. An error refuses the key: the call fails with *ServerKeyError,
	// whose Err it is. The client does not call it for a key that Trust refuses, nor for one from
	// AcceptServerKey. It must not call the client. One call at a time. With ProtocolOHTTP keys
	// change each hour, under the same signer: judge by new.Signer(). It is also called when
	// another signer signed the list with the same key: an attacker who ends TLS can pass the
	// genuine list on with a signature of their own, and FirstUse remembers the signer.
	OnServerKey func(old, new *PublicKey) error
	// Tier is asked for where a call does not say otherwise. "" lets the server choose.
	Tier SecurityTier
	// Transport carries the requests. It stays the caller's. nil = DefaultTransport(), closed with
	// the client.
	Transport http.RoundTripper
	// Timeout bounds one attempt: fetching the server's key and making the client's, where that is
	// still to be done, connecting, and waiting for the last byte of the answer, or of the stream.
	// 0 = 10 minutes.
	Timeout time.Duration
	// IdleTimeout is the longest time between two pieces of an event stream that passes as it
	// comes, counted from its first event on: until then only Timeout holds, since a model may
	// think. Comments count as pieces. The client ends a stream that stands still for longer with
	// ErrConnection. Protocol version 1 has no such streams. 0 = 1 minute; negative = no limit.
	IdleTimeout time.Duration
	// MaxRetries is how often the client repeats a failed attempt: after 429, 500, 502 and 504,
	// after 503 with Retry-After, and when the connection failed before there was an answer. The
	// waits are random, up to 1 s, 2 s, 4 s and so on, added to Retry-After. With a Retry-After of
	// more than a minute, or a wait beyond the context's deadline, the call fails at once. Every
	// attempt is sealed afresh. With ProtocolOHTTP the client repeats only requests that cannot
	// have been worked on: after the gateway's own 429, its 503 with Retry-After (not the
	// upstream's), and when nothing of the request was sent. 0 = 2; negative = none.
	MaxRetries int
	// Limiter, if set, is waited on before every attempt; its error ends the call. *rate.Limiter of
	// golang.org/x/time is one.
	Limiter interface{ Wait(context.Context) error }
	// MaxRequestBytes bounds a request's JSON, MaxResponseBytes an answer as it comes over the
	// wire, before and after decompression. More is ErrTooLarge. 0 = 10 MiB and 64 MiB; below 2
	// GiB.
	MaxRequestBytes, MaxResponseBytes int64
	// Memory says where secrets lie when no memory can be locked for them: MemoryBestEffort, the
	// zero value, MemoryRequired, which makes calls fail with ErrMemoryLimit, or MemoryOff.
	// MemoryRequired asks the same of APIKey and Keys: MemoryRequired.NewSecret,
	// KeyStoreOptions.Memory.
	Memory MemoryPolicy
	// Audit is called for keys, requests, answers, refusals and retries; its error stops the call.
	// nil = none.
	Audit Auditor
	// Logger gets ids, sizes, durations and changes of the server's key, never content. nil =
	// silent.
	Logger *slog.Logger
	// InsecureAllowHTTP allows a BaseURL with http where the address that is dialled is loopback,
	// for tests.
	InsecureAllowHTTP bool
}

// parseBaseURL checks a Config.BaseURL. Its errors repeat nothing of it except an ending.
func parseBaseURL(text string, allowHTTP bool) (*url.URL, error) {
	if text == "" {
		return nil, errors.New("required: the https URL of the server, without /v1")
	}
	base, err := httpx.ParseBaseURL(text, allowHTTP)
	if errors.Is(err, httpx.ErrPlainHTTP) {
		return nil, fmt.Errorf("%w, or set InsecureAllowHTTP for a test server on loopback", err)
	}
	if err != nil {
		return nil, err
	}
	path := base.EscapedPath()
	for _, end := range [...]string{"/chat/completions", "/v1/chat", "/v1", hybrid.PathCompletion,
		hybrid.PathPublicKey, ohttp.Path, attest.Path} {
		if rest, found := strings.CutSuffix(path, end); found {
			rest = strings.TrimSuffix(rest, "/v1")
			return nil, fmt.Errorf("it has to end before %q: the client adds the paths itself",
				path[len(rest):])
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
		return configError("Config.Trust",
			"choose whose key prompts are sealed to: TrustHTTPS() takes "+
				"what the server presents over HTTPS, Pin(\"sha256 hex\") takes only that key, "+
				"FirstUse(store) remembers the first one, Attested(…) wants evidence of hardware")
	}
	if err := c.Trust.validate(); err != nil {
		return &ConfigError{Field: "Config.Trust", Err: err}
	}
	if c.Keys != nil && c.Keys.store == nil {
		return configError("Config.Keys",
			"a zero KeyStore; make one with OpenKeyStore, CreateKeyStore or NewEphemeralKeyStore")
	}
	if isNilPointer(c.Transport) {
		return configError("Config.Transport", "a nil pointer; leave the field nil for the default")
	}
	if isNilPointer(c.Limiter) {
		return configError("Config.Limiter", "a nil pointer; leave the field nil for no limit")
	}
	if t, ok := c.Transport.(*http.Transport); ok && skipsVerification(t.TLSClientConfig) &&
		restsOnTLS(c.Trust) {
		return configError("Config.Transport",
			"InsecureSkipVerify leaves nothing of TrustHTTPS or FirstUse; pin the server's "+
				"key instead")
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
		return configError("Config.OHTTP",
			"for ProtocolOHTTP alone; set Config.Protocol to it, or leave OHTTP empty")
	}
	return nil
}

// validateMemory checks that what a client borrows is as well protected as what it owns.
func (c *Config) validateMemory() error {
	if err := c.Memory.validate(); err != nil {
		return &ConfigError{Field: "Config.Memory", Err: err}
	}
	if c.Memory != MemoryRequired {
		return nil
	}
	if c.APIKey != nil && !c.APIKey.Locked() {
		return configError("Config.APIKey",
			"%w: it is not in locked memory; make it with MemoryRequired.NewSecret", ErrMemoryLimit)
	}
	if c.Keys != nil && c.Keys.store.Policy() != locked.Required {
		return configError("Config.Keys",
			"%w: Config.Memory is MemoryRequired, KeyStoreOptions.Memory is not", ErrMemoryLimit)
	}
	return nil
}

// isNilPointer catches a nil pointer or function that has become an interface, which is not nil.
func isNilPointer(v any) bool {
	r := reflect.ValueOf(v)
	return (r.Kind() == reflect.Pointer || r.Kind() == reflect.Func) && r.IsNil()
}

func skipsVerification(c *tls.Config) bool {
	return c != nil && c.InsecureSkipVerify && c.VerifyConnection == nil &&
		c.VerifyPeerCertificate == nil
}

// ConfigFromEnv makes a [Config] from the environment:
//
//	NOMYO_SERVER_URL    BaseURL; unset = DefaultBaseURL
//	NOMYO_API_KEY       APIKey
//	NOMYO_KEY_DIR       folder of an existing key store for Keys, with default KeyStoreOptions
//	NOMYO_KEY_PASSWORD  its passphrase
//	NOMYO_SERVER_PIN    fingerprints for Pin, separated by commas; without it set Trust yourself
//
// The other fields stay zero: for Oblivious HTTP set Config.Protocol to [ProtocolOHTTP] afterwards.
// Without NOMYO_KEY_DIR keys are ephemeral.
//
// The caller closes Config.Keys and destroys Config.APIKey after closing the client; either may be
// nil. Errors are [*ConfigError], whose Field is the variable's name; errors.Is finds those of
// [OpenKeyStore], and [ErrPassphrase] without NOMYO_KEY_PASSWORD. Environment variables are strings
// that nothing wipes, and that other processes of the same user can read.
func ConfigFromEnv(ctx context.Context) (c Config, err error) {
	c.BaseURL = cmp.Or(os.Getenv("NOMYO_SERVER_URL"), DefaultBaseURL)
	if pin := os.Getenv("NOMYO_SERVER_PIN"); pin != "" {
		c.Trust = Pin(strings.Split(pin, ",")...)
		if err := c.Trust.validate(); err != nil {
			return Config{}, &ConfigError{Field: "NOMYO_SERVER_PIN", Err: err}
		}
	}
	dir := os.Getenv("NOMYO_KEY_DIR")
	// or else keys would be ephemeral, unexpectedly
	if dir == "" && os.Getenv("NOMYO_KEY_PASSWORD") != "" {
		return Config{}, configError("NOMYO_KEY_DIR", "not set, but NOMYO_KEY_PASSWORD is")
	}
	if dir != "" {
		if c.Keys, err = keysFromEnv(ctx, dir); err != nil {
			return Config{}, &ConfigError{Field: "NOMYO_KEY_DIR", Err: err}
		}
	}
	if key := os.Getenv("NOMYO_API_KEY"); key != "" {
		c.APIKey = NewSecret([]byte(key))
		if err := c.APIKey.Use(httpx.ValidAPIKey); err != nil {
			c.APIKey.Destroy()
			if c.Keys != nil {
				c.Keys.Close()
			}
			return Config{}, &ConfigError{Field: "NOMYO_API_KEY", Err: err}
		}
	}
	return c, nil
}

func keysFromEnv(ctx context.Context, dir string) (*KeyStore, error) {
	password := os.Getenv("NOMYO_KEY_PASSWORD")
	if password == "" {
		return nil, fmt.Errorf("%w: NOMYO_KEY_PASSWORD is not set", ErrPassphrase)
	}
	passphrase := NewSecret([]byte(password))
	defer passphrase.Destroy()
	return OpenKeyStore(ctx, dir, passphrase, nil)
}
