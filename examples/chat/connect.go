// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/seed-017344ad/sealedchat"
)

// connect makes the client, for a server and for the demo. It sends nothing yet. done closes
// everything that it made.
func (p *program) connect(o *options, to server,
	keys *sealedchat.KeyStore) (_ *sealedchat.SecureCompletionClient, done func(), err error) {
	transport := sealedchat.DefaultTransport()
	transport.TLSClientConfig.RootCAs = to.roots
	config := sealedchat.Config{
		BaseURL:    to.url,
		Keys:       keys,
		Protocol:   o.protocol,
		Trust:      sealedchat.TrustHTTPS(),
		Tier:       o.tier,
		Transport:  transport,
		Timeout:    o.timeout,
		MaxRetries: p.maxRetries,
	}
	if to.pins != nil {
		config.Trust = sealedchat.Pin(to.pins...)
	} else {
		config.OnServerKey = p.tellServerKey
	}
	if o.showWire {
		config.Transport = &wire{next: transport, out: p.stderr}
	}
	switch {
	case to.keyFile != "":
		if config.APIKey, err = sealedchat.ReadSecret(to.keyFile); err != nil {
			return nil, nil, wrongInput("NOMYO_API_KEY_FILE: %w", err)
		}
	case to.key != "":
		config.APIKey = sealedchat.NewSecret([]byte(to.key))
	}
	client, err := sealedchat.NewSecureCompletionClient(config)
	if err != nil {
		config.APIKey.Destroy()
		return nil, nil, err
	}
	return client, func() {
		_ = client.Close()
		transport.CloseIdleConnections()
		config.APIKey.Destroy()
	}, nil
}

// tellServerKey prints the key that the client trusts, if none is pinned.
func (p *program) tellServerKey(old, key *sealedchat.PublicKey) error {
	if old != nil {
		fmt.Fprintf(p.stderr, "warning: the server's key has changed, it was %s\n",
			cmp.Or(old.Signer(), old.Fingerprint()))
	}
	// the signer's fingerprint stays when the gateway's keys are replaced
	fmt.Fprintf(p.stderr, "trusted server key %s; pin it with: -pin %[1]s\n",
		cmp.Or(key.Signer(), key.Fingerprint()))
	return nil
}

// explain turns an error into one line for the user, and an exit status. o is nil if the command
// line was wrong.
func explain(ctx context.Context, err error, o *options) (text string, status int) {
	text = strings.TrimPrefix(err.Error(), "sealedchat: ")
	if _, ok := errors.AsType[usageError](err); ok {
		return text, 2
	}
	if wrong, ok := errors.AsType[*sealedchat.ConfigError](err); ok {
		name := map[string]string{
			"Config.BaseURL": o.urlFrom, "Config.Trust": "-pin", "Config.APIKey": "NOMYO_API_KEY",
			"Config.Timeout": "-timeout",
		}[wrong.Field]
		if name != "" {
			text = name + ": " + strings.TrimPrefix(wrong.Err.Error(), "sealedchat: ")
		}
		return text, 2
	}
	if ctx.Err() != nil {
		return "interrupted", 1
	}
	if wrong, ok := errors.AsType[*sealedchat.ServerKeyError](err); ok {
		return fmt.Sprintf("the server's key is not the pinned one, so no prompt was sent; if "+
			"its operator confirms the new key, use: -pin %s", cmp.Or(wrong.Signer, wrong.Got)), 1
	}
	if hint := hint(err, o); hint != "" {
		text += "; " + hint
	}
	return text, 1
}

// hint returns what the user can do about an error, or "".
func hint(err error, o *options) string {
	if refused, ok := errors.AsType[*sealedchat.APIError](err); ok {
		switch refused.StatusCode {
		case http.StatusUnauthorized:
			return "set NOMYO_API_KEY to a key of this server"
		case http.StatusForbidden:
			return "this key may not use the model or the tier"
		case http.StatusNotFound:
			return "check -model and " + o.urlFrom + ", which ends before /v1"
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
		return "does " + o.server.url + " speak -protocol ohttp?"
	case errors.Is(err, sealedchat.ErrTruncated):
		return "what was printed is genuine, and not all"
	case unknown:
		return "if the server has a certificate of its own, give it with -cacert FILE"
	case errors.Is(err, context.DeadlineExceeded):
		return "-timeout sets how long to wait"
	case errors.Is(err, sealedchat.ErrConnection):
		return "is the server running at " + o.server.url + "?"
	}
	return ""
}
