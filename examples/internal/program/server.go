// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package program

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat"
)

// Server is the server that a client's program sends prompts to, and how to recognise it: the flags
// -url, -pin, -cacert, -protocol, -tier and -timeout.
type Server struct {
	URL      string // "" = no server was named, so the program starts a demo
	URLFrom  string // "-url" or "NOMYO_SERVER_URL"
	Pins     List   // nil = any key that arrives over HTTPS
	Roots    *x509.CertPool
	Protocol sealedchat.Protocol
	Tier     sealedchat.SecurityTier
	Timeout  time.Duration // 0 = the package's default
	// Verifiers, if there are any, have to accept evidence for the key. A program that can verify
	// sets them after Check.
	Verifiers []sealedchat.Verifier

	protocol, tier, cacert string
	pinsFrom               string // "-pin" or "NOMYO_SERVER_PIN"
}

// ServerVariables are the variables that Server.Check and Secret read for a client.
func ServerVariables() []Variable {
	return []Variable{
		{"NOMYO_SERVER_URL", "replaces -url"},
		{"NOMYO_SERVER_PIN", "replaces -pin"},
		{"NOMYO_API_KEY", "the API key for the server"},
		{"NOMYO_API_KEY_FILE", "a file with the API key, in place of NOMYO_API_KEY"},
	}
}

// Flags defines the flags of s. protocol is the default of -protocol.
func (s *Server) Flags(f *flag.FlagSet, protocol sealedchat.Protocol) {
	f.StringVar(&s.URL, "url", "",
		"send to the server at this https `URL`; without it a demo is started")
	f.Var(&s.Pins, "pin", "accept only the server key with this `fingerprint` (SHA-256 in hex); "+
		"may be repeated, or a list with commas")
	f.StringVar(&s.cacert, "cacert", "",
		"trust the certificates in this PEM `file` for TLS, in place of the system's")
	f.StringVar(&s.protocol, "protocol", string(protocol),
		"`name` of the protocol: envelope (NOMYO's version 1), or ohttp (Oblivious HTTP)")
	f.StringVar(&s.tier, "tier", "", "security `tier` to ask for: standard, high or maximum")
	f.DurationVar(&s.Timeout, "timeout", 0,
		"longest wait for one answer, 90s for example (default 10m)")
}

// Check checks the flags of s after f was parsed, and takes from the environment what they leave
// out. Without a server, URL is "" afterwards.
func (s *Server) Check(f *flag.FlagSet, env func(string) string) error {
	given := Given(f)
	s.URLFrom, s.pinsFrom = "-url", "-pin"
	switch s.Tier = sealedchat.SecurityTier(s.tier); s.Tier {
	case "", sealedchat.TierStandard, sealedchat.TierHigh, sealedchat.TierMaximum:
	default:
		return WrongInput("-tier: %q is not standard, high or maximum", s.tier)
	}
	switch s.Protocol = sealedchat.Protocol(s.protocol); s.Protocol {
	case sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP:
	default:
		return WrongInput("-protocol: %q is not envelope or ohttp", s.protocol)
	}
	if s.Timeout < 0 || (given["timeout"] && s.Timeout == 0) {
		return WrongInput("-timeout: must be more than 0")
	}
	if given["url"] && s.URL == "" { // probably "$UNSET": the user does not want the demo
		return WrongInput("-url: empty")
	}
	if s.URL == "" {
		s.URL, s.URLFrom = env("NOMYO_SERVER_URL"), "NOMYO_SERVER_URL"
	}
	if s.URL == "" {
		for _, name := range []string{"pin", "cacert"} {
			if given[name] {
				return WrongInput(
					"-%s needs -url: the demo has a certificate and a pinned key of its own", name)
			}
		}
		return nil
	}
	if pins := env("NOMYO_SERVER_PIN"); pins != "" && !given["pin"] {
		s.Pins, s.pinsFrom = strings.Split(pins, ","), "NOMYO_SERVER_PIN"
	}
	var err error
	if s.Roots, err = Roots(s.cacert); err != nil {
		return WrongInput("-cacert: %w", err)
	}
	return nil
}

// Config is the configuration of a client for s. Without a pin, the client prints on w the key
// that it trusts. The transport is the caller's, who closes its idle connections at the end.
func (s *Server) Config(w io.Writer) (sealedchat.Config, *http.Transport) {
	transport := sealedchat.DefaultTransport()
	transport.TLSClientConfig.RootCAs = s.Roots
	config := sealedchat.Config{
		BaseURL:   s.URL,
		Protocol:  s.Protocol,
		Trust:     sealedchat.TrustHTTPS(),
		Tier:      s.Tier,
		Transport: transport,
		Timeout:   s.Timeout,
	}
	switch {
	case s.Verifiers != nil:
		config.Trust = sealedchat.Attested(sealedchat.Attestation{
			Verifiers: s.Verifiers, Pins: s.Pins})
		config.OnServerKey = func(_, key *sealedchat.PublicKey) error {
			if found := key.Attestation(); found != nil {
				fmt.Fprintf(w, "server key %s is vouched for by %s, measurement %s\n",
					cmp.Or(key.Signer(), key.Fingerprint()), found.Format, found.Measurement)
			}
			return nil
		}
	case s.Pins != nil:
		config.Trust = sealedchat.Pin(s.Pins...)
	default:
		config.OnServerKey = func(old, key *sealedchat.PublicKey) error {
			tellServerKey(w, old, key)
			return nil
		}
	}
	return config, transport
}

// tellServerKey prints the key that the client trusts, if none is pinned.
func tellServerKey(w io.Writer, old, key *sealedchat.PublicKey) {
	if old != nil {
		fmt.Fprintf(w, "warning: the server's key has changed, it was %s\n",
			cmp.Or(old.Signer(), old.Fingerprint()))
	}
	// the signer's fingerprint stays when the gateway's keys are replaced
	fmt.Fprintf(w, "trusted server key %s; pin it with: -pin %[1]s\n",
		cmp.Or(key.Signer(), key.Fingerprint()))
}

// Explain is the function Explain for a client of s, with what the user can do about the error.
func (s *Server) Explain(ctx context.Context, err error) (text string, status int) {
	text, status = Explain(err, map[string]string{
		"Config.BaseURL": s.URLFrom, "Config.Trust": s.pinsFrom, "Config.APIKey": "NOMYO_API_KEY",
		"Config.Timeout": "-timeout",
	})
	if status == StatusUsage { // without the field, for which these programs have no flag
		return strings.TrimSuffix(text, ", or set InsecureAllowHTTP for a test server on loopback"),
			status
	}
	if ctx.Err() != nil {
		return "interrupted", status
	}
	wrong, ok := errors.AsType[*sealedchat.ServerKeyError](err)
	if ok && wrong.Err != nil && s.Verifiers != nil {
		return "no prompt was sent, since the server's hardware does not vouch for its key: " +
			OneLine(wrong.Err.Error()), status
	}
	if ok {
		return fmt.Sprintf("the server's key is not the pinned one (each -protocol has a pin of "+
			"its own), so no prompt was sent; if its operator confirms the new key, use: -pin %s",
			cmp.Or(wrong.Signer, wrong.Got)), status
	}
	if hint := s.hint(err); hint != "" {
		text += "; " + hint
	}
	return text, status
}

// hint returns what the user can do about an error, or "".
func (s *Server) hint(err error) string {
	if refused, ok := errors.AsType[*sealedchat.APIError](err); ok {
		switch refused.StatusCode {
		case http.StatusUnauthorized:
			return "set NOMYO_API_KEY to a key of this server"
		case http.StatusForbidden:
			return "this key may not use the model or the tier"
		case http.StatusNotFound:
			return "check -model and " + s.URLFrom + ", which ends before /v1"
		}
		if refused.RetryAfter > 0 {
			return "try again in " + refused.RetryAfter.String()
		}
		return ""
	}
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	unsealed, outer := errors.AsType[*sealedchat.OuterError](err)
	switch {
	case outer && unsealed.KeyChanged:
		return "ask once more: the server's new key is used from now on"
	case outer && unsealed.StatusCode == http.StatusRequestEntityTooLarge:
		return "" // the error names the limits
	case outer:
		return "does " + s.URL + " speak -protocol ohttp?"
	case errors.Is(err, sealedchat.ErrTruncated):
		return "what was printed is genuine, and not all"
	case unknown:
		return "if the server has a certificate of its own, give it with -cacert FILE"
	case errors.Is(err, context.DeadlineExceeded):
		return "-timeout sets how long to wait"
	case errors.Is(err, sealedchat.ErrConnection):
		return "is the server running at " + s.URL + "?"
	}
	return ""
}
