// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/bits"
	"net/http"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/attest"
	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/httpx"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// Config is what New needs. GatewayConfig of package sealedchat documents every field that has the
// same name there; zero values are the same defaults.
type Config struct {
	Upstream             string
	UpstreamKey          httpx.Secret // nil = none
	UpstreamTransport    http.RoundTripper
	InsecureUpstreamHTTP bool
	TraceUpstream        bool

	Authenticate         Authenticate
	AllowUnauthenticated bool

	// Keys is required. It is the caller's, or the server's own, which closes it, if OwnKeys is
	// set.
	Keys    *keystore.Store
	OwnKeys bool
	Tier    hybrid.Tier

	Replay       ReplayCache // nil = in the folder of Keys, or in memory where they have none
	ReplayWindow time.Duration

	MaxRequestBytes, MaxResponseBytes int64
	MaxConcurrent, AccountPlaces      int
	Timeout, BodyTimeout, IdleTimeout time.Duration
	AddressHeader                     string

	ServeV1, ServeOHTTP bool // the protocols
	OHTTP               OHTTPConfig

	Attester       Attester // nil: none
	KeysStayInside bool

	// Tell is told of each event. Its errors are those of GatewayConfig.Audit. nil = it is not
	// told.
	Tell   func(context.Context, Event) error
	Logger *slog.Logger
}

// OHTTPConfig is GatewayOHTTP of package sealedchat.
type OHTTPConfig struct {
	Allow         []string
	DateWindow    time.Duration
	Padding       int
	StrangerRate  float64
	StrangerBurst int
	AES128        bool
}

// Authenticate judges a request by its headers, and says whose it is. An error's kind decides on
// the status, and retryAfter goes along with it.
type Authenticate func(*http.Request) (account string, retryAfter time.Duration, err error)

// Attester makes evidence for a report's data. The document's Keys are the server's business.
type Attester func(ctx context.Context, reportData [64]byte) (attest.Document, error)

// ReplayCache is ReplayCache of package sealedchat.
type ReplayCache interface {
	Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool, error)
	Release(ctx context.Context, id [32]byte) error
}

// OptionError says which field of Config is wrong.
type OptionError struct {
	Field string
	Err   error
}

func (e *OptionError) Error() string { return "gateway: " + e.Field + ": " + e.Err.Error() }
func (e *OptionError) Unwrap() error { return e.Err }

func optionError(field, format string, args ...any) error {
	return &OptionError{field, fmt.Errorf(format, args...)}
}

const (
	defaultMaxRequest  = 10 << 20 // what the protocol documents
	defaultMaxResponse = 48 << 20 // 64 MiB when sealed: what clients take by default
	maxBytes           = math.MaxInt32 / 2
)

func (c *Config) setDefaults() error {
	if c.Authenticate == nil && !c.AllowUnauthenticated {
		return optionError("Authenticate",
			"set it (see AuthenticateKeys), or AllowUnauthenticated to serve everybody")
	}
	if c.UpstreamKey != nil {
		if err := c.UpstreamKey.Use(httpx.ValidAPIKey); err != nil {
			return &OptionError{"UpstreamKey", err}
		}
	}
	if c.Tier == "" {
		c.Tier = hybrid.TierStandard
	}
	if c.Tier.Rank() < 0 {
		return optionError("Tier", "want \"\", standard, high or maximum")
	}
	if err := c.setLimits(); err != nil {
		return err
	}
	if !validHeaderName(c.AddressHeader) {
		return optionError("AddressHeader", "want the name of a header, like \"X-Forwarded-For\"")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c.OHTTP.setDefaults()
}

func (c *Config) setLimits() error {
	for _, n := range []struct {
		field       string
		value       *int64
		zero, limit int64
	}{
		{"MaxRequestBytes", &c.MaxRequestBytes, defaultMaxRequest, maxBytes},
		{"MaxResponseBytes", &c.MaxResponseBytes, defaultMaxResponse, maxBytes},
		{"ReplayWindow", (*int64)(&c.ReplayWindow), int64(24 * time.Hour), math.MaxInt64},
		{"Timeout", (*int64)(&c.Timeout), int64(10 * time.Minute), math.MaxInt64},
		{"BodyTimeout", (*int64)(&c.BodyTimeout), int64(time.Minute), math.MaxInt64},
	} {
		if *n.value < 0 || *n.value > n.limit {
			return optionError(n.field, "out of range")
		}
		if *n.value == 0 {
			*n.value = n.zero
		}
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = time.Minute
	}
	if c.MaxConcurrent < 0 {
		return optionError("MaxConcurrent", "negative")
	}
	if c.AccountPlaces < 0 {
		return optionError("AccountPlaces", "negative")
	}
	if c.MaxConcurrent == 0 {
		c.MaxConcurrent = 64
	}
	return nil
}

// defaultAllow is never changed.
var defaultAllow = []string{
	"POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings",
	"POST /v1/responses", "GET /v1/models",
}

func (c *OHTTPConfig) setDefaults() error {
	if c.Allow == nil {
		c.Allow = defaultAllow
	}
	for _, entry := range c.Allow {
		method, path, _ := strings.Cut(entry, " ")
		q := bhttp.Request{Method: method, Scheme: "https", Path: path}
		_, err := bhttp.AppendRequest(nil, &q, nil, nil, 0)
		if err != nil || strings.ContainsAny(path, "?*") {
			return optionError("OHTTP.Allow",
				"want a method and a path, like \"POST /v1/chat/completions\"")
		}
	}
	if c.DateWindow < 0 || c.DateWindow > 24*time.Hour {
		return optionError("OHTTP.DateWindow", "out of range")
	}
	if c.DateWindow == 0 {
		c.DateWindow = 2 * time.Minute
	}
	// A power of two, so that full chunks are multiples of it, too.
	if c.Padding < 0 || c.Padding > ohttp.MaxChunk || bits.OnesCount(uint(c.Padding)) > 1 {
		return optionError("OHTTP.Padding", "want a power of two up to %d, or 0", ohttp.MaxChunk)
	}
	if math.IsNaN(c.StrangerRate) || c.StrangerRate > 1e6 ||
		c.StrangerBurst < 0 || c.StrangerBurst > 1e6 {
		return optionError("OHTTP.StrangerRate", "out of range")
	}
	if c.StrangerRate == 0 {
		c.StrangerRate = 20
	}
	if c.StrangerBurst == 0 {
		c.StrangerBurst = 200
	}
	return nil
}

// validHeaderName: a token of RFC 9110, or nothing.
func validHeaderName(name string) bool {
	for _, c := range []byte(name) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return true
}

var errNoKeys = errors.New("a server needs a key store")
