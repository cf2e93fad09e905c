// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/seed-017344ad/sealedchat"
)

const maxPrompt = 10 << 20 // bytes: the limit of a client by default, and more than any model reads

// options are the checked command line and environment.
type options struct {
	demo     bool
	server   server
	urlFrom  string // "-url" or "NOMYO_SERVER_URL"
	model    string
	tier     sealedchat.SecurityTier
	system   string
	prompt   string // "" = a conversation
	timeout  time.Duration
	showWire bool
	protocol sealedchat.Protocol
	stream   bool
}

// server says where prompts go, and how to recognise the server.
type server struct {
	url string
	// API key; "" = none. It comes from the environment, which cannot be wiped.
	key     string
	keyFile string         // in its place
	pins    []string       // nil = any key that arrives over HTTPS
	roots   *x509.CertPool // nil = the system's
}

// usageError is wrong input: exit status 2.
type usageError struct{ error }

func wrongInput(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func (p *program) parse(args []string) (*options, error) {
	o := &options{urlFrom: "-url"}
	var cacert, tier, protocol string
	f := flag.NewFlagSet("chat", flag.ContinueOnError)
	f.SetOutput(io.Discard) // errors are printed in one place
	f.StringVar(&o.server.url, "url", "",
		"send to the server at this https `URL`; without it a demo is started")
	f.StringVar(&o.model, "model", "", "the model's `name`; required with -url")
	f.StringVar(&tier, "tier", "", "security `tier` to ask for: standard, high or maximum")
	f.Func("pin",
		"accept only the server key with this `fingerprint` (SHA-256 in hex); may be repeated, or "+
			"a list with commas", func(s string) error {
			o.server.pins = append(o.server.pins, strings.Split(s, ",")...)
			return nil
		})
	f.StringVar(&o.system, "system", "", "instructions for the model (a system message): `text`")
	f.StringVar(&protocol, "protocol", "envelope",
		"how to seal: envelope (NOMYO's version 1), or ohttp (Oblivious HTTP): `name`")
	f.BoolVar(&o.stream, "stream", false,
		"print the answer as it arrives; with -protocol envelope it arrives all at once")
	f.BoolVar(&o.showWire, "show-wire", false, "print what an observer of the HTTP traffic sees")
	f.StringVar(&cacert, "cacert", "",
		"trust the certificates in this PEM `file` for TLS, in place of the system's")
	f.DurationVar(&o.timeout, "timeout", 0,
		"longest wait for one answer, 90s for example (default 10m)")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(p.stderr, "usage: chat [flags] [prompt]")
		f.SetOutput(p.stderr)
		f.PrintDefaults()
		return nil, err
	} else if err != nil {
		return nil, wrongInput("%w (see -help)", err)
	}
	if err := flagAfterPrompt(f, args); err != nil {
		return nil, err
	}
	given := map[string]bool{}
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })

	o.tier = sealedchat.SecurityTier(tier)
	switch o.tier {
	case "", sealedchat.TierStandard, sealedchat.TierHigh, sealedchat.TierMaximum:
	default:
		return nil, wrongInput("-tier: %q is not standard, high or maximum", tier)
	}
	switch o.protocol = sealedchat.Protocol(protocol); o.protocol {
	case sealedchat.ProtocolEnvelope, sealedchat.ProtocolOHTTP:
	default:
		return nil, wrongInput("-protocol: %q is not envelope or ohttp", protocol)
	}
	if o.timeout < 0 || (given["timeout"] && o.timeout == 0) {
		return nil, wrongInput("-timeout: must be more than 0")
	}
	if f.NArg() > 0 {
		if o.prompt = strings.Join(f.Args(), " "); strings.TrimSpace(o.prompt) == "" {
			return nil, wrongInput("the prompt is empty")
		}
	}
	if given["url"] && o.server.url == "" { // probably "$UNSET": the user does not want the demo
		return nil, wrongInput("-url: empty")
	}
	if o.server.url == "" {
		o.server.url, o.urlFrom = p.env("NOMYO_SERVER_URL"), "NOMYO_SERVER_URL"
	}
	if o.demo = o.server.url == ""; o.demo {
		for _, name := range []string{"pin", "cacert"} {
			if given[name] {
				return nil, wrongInput(
					"-%s needs -url: the demo has a certificate and a pinned key of its own", name)
			}
		}
		o.model = cmp.Or(o.model, "demo")
		return o, nil
	}
	if o.model == "" {
		return nil, wrongInput("-model is required with %s", o.urlFrom)
	}
	o.server.key, o.server.keyFile = p.env("NOMYO_API_KEY"), p.env("NOMYO_API_KEY_FILE")
	if pins := p.env("NOMYO_SERVER_PIN"); pins != "" && !given["pin"] {
		o.server.pins = strings.Split(pins, ",")
	}
	return o, o.server.readRoots(cacert)
}

// flagAfterPrompt refuses flags that package flag takes for words of the prompt.
func flagAfterPrompt(f *flag.FlagSet, args []string) error {
	words := f.Args()
	if before := len(args) - len(words); before > 0 && args[before-1] == "--" {
		return nil
	}
	for _, word := range words {
		name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
		if strings.HasPrefix(word, "-") && f.Lookup(name) != nil {
			return wrongInput("-%s has to stand before the prompt", name)
		}
	}
	return nil
}

// readRoots reads the certificates of -cacert.
func (s *server) readRoots(file string) error {
	if file == "" {
		return nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return wrongInput("-cacert: %w", err)
	}
	s.roots = x509.NewCertPool()
	if !s.roots.AppendCertsFromPEM(pem) {
		return wrongInput("-cacert: no PEM certificate in %s", file)
	}
	return nil
}

// readPrompt reads the prompt from standard input, unless the arguments have it or a terminal will
// be asked for it. It does not read standard input if the arguments have a prompt: the input may be
// anything, and may never end.
func (p *program) readPrompt(ctx context.Context, o *options) error {
	if o.prompt == "" {
		if p.isTerminal(p.stdin) {
			return nil
		}
		text, err := p.readAll(ctx)
		if err != nil {
			return err
		}
		if o.prompt = strings.TrimRight(text, "\r\n"); strings.TrimSpace(o.prompt) == "" {
			return wrongInput("no prompt: give one as an argument or on standard input (see -help)")
		}
	}
	return checkPrompt(o.prompt)
}

// checkPrompt refuses a prompt that is too long or not UTF-8.
func checkPrompt(s string) error {
	if len(s) > maxPrompt {
		return wrongInput("the prompt has more than %s bytes", thousands(maxPrompt))
	}
	if !utf8.ValidString(s) {
		return wrongInput("the prompt is not UTF-8 text")
	}
	return nil
}

// readAll reads standard input until its end or the end of ctx, and a little more of it than the
// program accepts.
func (p *program) readAll(ctx context.Context) (string, error) {
	type result struct {
		text []byte
		err  error
	}
	read := make(chan result, 1)
	go func() { // after a Ctrl-C it ends with the process: reading cannot be interrupted
		text, err := io.ReadAll(io.LimitReader(p.stdin, maxPrompt+3))
		read <- result{text, err}
	}()
	select {
	case r := <-read:
		if r.err != nil {
			return "", wrongInput("reading the prompt: %w", r.err)
		}
		return string(r.text), nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// history returns the first messages of a conversation.
func (o *options) history() []sealedchat.Message {
	if o.system == "" {
		return nil
	}
	return []sealedchat.Message{sealedchat.SystemMessage(o.system)}
}
