// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command proxy is a local OpenAI-compatible endpoint: what any SDK, curl or chat program sends to
// it, it seals and sends to a gateway. It is a module of its own:
//
//	go run -C examples/proxy .                      # a demo: no server, no download
//	curl http://127.0.0.1:8484/v1/chat/completions -H 'Content-Type: application/json' \
//		-d '{"model":"demo","messages":[{"role":"user","content":"Capital of France?"}]}'
//
//	NOMYO_API_KEY=… go run -C examples/proxy . -url https://api.nomyo.ai -pin HEX
//
// SDKs get the base URL http://127.0.0.1:8484/v1 and any API key: the proxy sends the server's,
// which is in NOMYO_API_KEY or a file, and does not pass on what clients send, unless with
// -pass-key.
//
// Without -url (and without NOMYO_SERVER_URL) it starts a gateway with a tiny demo model inside its
// own process. Over Oblivious HTTP, the default, it carries every method and path that the gateway
// serves, and streams as pieces come. With -protocol envelope it carries chat completions, and
// lists the models of -models.
//
// -attest-sev and -attest-tdx take the key of a gateway in a confidential VM whose hardware vouches
// for it and for the software there, by measurements: docs/attestation.md. With -pin both have to
// hold.
//
// Programs of this machine may use it. -token wants a token of them, which any other address than
// loopback needs. Web pages may not use it, not even those of this machine: docs/local-endpoint.md
// says how they are told apart. GET /sealed says how the proxy is sealed, as JSON or as a page.
//
// Interrupt or SIGTERM ends it: running requests get half a minute, and a second signal ends it at
// once. Exit status: 0 for success, 1 if it could not serve, 2 for wrong input.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/demo"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

func main() {
	err := sealedchat.HardenProcess()
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		program.Fail(os.Stderr, "proxy", err.Error())
	}
	os.Exit(run(program.Signals(), os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, env func(string) string, stdout,
	stderr io.Writer) int {
	p := &proxy{env: env, stdout: stdout, stderr: stderr, grace: 30 * time.Second,
		bodyTime: time.Minute, wipeAfter: 2 * time.Second, wipe: sealedchat.ScrubHeap}
	return p.run(ctx, args)
}

// proxy has the surroundings of a run, which tests replace.
type proxy struct {
	env            func(string) string
	stdout, stderr io.Writer
	keyBits        int           // of generated RSA keys; 0 = 4096
	maxRetries     int           // as in sealedchat.Config
	grace          time.Duration // for running requests when the program is asked to end
	bodyTime       time.Duration // for a request's body to come
	wipeAfter      time.Duration // from the end of the last request
	wipe           func()        // overwrites free memory
	// verifiers are used in place of those that the flags name; nil = those
	verifiers []sealedchat.Verifier
}

func (p *proxy) run(ctx context.Context, args []string) int {
	o, err := p.parse(args)
	if err == nil {
		err = p.serve(ctx, o)
	}
	return program.Exit(p.stderr, "proxy", err, func(err error) (string, int) {
		return o.server.Explain(ctx, err)
	})
}

// serve runs the proxy until ctx ends.
func (p *proxy) serve(ctx context.Context, o *options) error {
	secrets, err := p.readSecrets(o)
	if err != nil {
		return err
	}
	defer secrets.destroy()
	if err := o.mayServe(secrets.token != nil); err != nil {
		return err
	}
	if o.server.URL == "" {
		d, err := demo.Start(ctx, o.server.Protocol, p.keyBits, p.stderr)
		if err != nil {
			return err
		}
		defer d.Close()
		o.server = d.Server(o.server)
		o.models = append(o.models, demo.Name)
		secrets.apiKey.Destroy()
		secrets.apiKey = sealedchat.NewSecret([]byte(d.APIKey))
		o.passKey = false
	}
	e, done, err := p.newEndpoint(o, secrets)
	if err != nil {
		return err
	}
	defer done()
	listener, err := listen(ctx, o.listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	if err := p.meet(ctx, o, e); err != nil || ctx.Err() != nil {
		return err
	}
	p.announce(o, listener.Addr(), secrets)
	return p.answer(ctx, newServer(e), listener)
}

// newEndpoint makes the endpoint and its client. done closes them.
func (p *proxy) newEndpoint(o *options, s *secrets) (_ *endpoint, done func(), err error) {
	config, transport := o.server.Config(p.stderr)
	config.APIKey, config.MaxRetries = s.apiKey, p.maxRetries
	config.MaxRequestBytes = o.maxBody
	keys, err := sealedchat.NewEphemeralKeyStore(&sealedchat.KeyStoreOptions{Bits: p.keyBits})
	if err != nil {
		return nil, nil, err
	}
	config.Keys = keys
	e := &endpoint{server: &o.server, passKey: o.passKey, models: o.models, maxBody: o.maxBody,
		bodyTime: p.bodyTime,
		guard:    guard{hosts: o.hosts, token: s.digest()},
		log:      func(text string) { program.Fail(p.stderr, "proxy", text) },
		wiper:    &wiper{after: p.wipeAfter, wipe: p.wipe}, started: time.Now()}
	tell := config.OnServerKey
	config.OnServerKey = func(old, key *sealedchat.PublicKey) error {
		e.key.Store(&seenKey{key, time.Now()})
		if tell != nil {
			return tell(old, key)
		}
		return nil
	}
	e.client, err = sealedchat.NewSecureCompletionClient(config)
	if err != nil {
		keys.Close()
		return nil, nil, err
	}
	e.http = e.client.HTTPClient()
	e.target = strings.TrimSuffix(o.server.URL, "/")
	return e, func() {
		e.wiper.close()
		_ = e.client.Close()
		keys.Close()
		transport.CloseIdleConnections()
	}, nil
}

// meet asks the server for its key. A server that cannot be reached now, or that its own proxy
// cannot reach, may be there later: the proxy asks again with each request. Everything else is an
// error.
func (p *proxy) meet(ctx context.Context, o *options, e *endpoint) error {
	err := e.client.Warm(ctx)
	later := errors.Is(err, sealedchat.ErrConnection)
	if outer, ok := errors.AsType[*sealedchat.OuterError](err); ok {
		later = outer.StatusCode >= 500
	} else if refused, ok := errors.AsType[*sealedchat.APIError](err); ok {
		later = refused.StatusCode >= 500
	}
	if later && ctx.Err() == nil {
		text, _ := o.server.Explain(ctx, err)
		program.Fail(p.stderr, "proxy", "warning: "+text+" (asked again with each request)")
		return nil
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// announce prints what a client needs, and what the user should know.
func (p *proxy) announce(o *options, at net.Addr, s *secrets) {
	if o.listen.beyond() {
		fmt.Fprintln(p.stderr, "warning: the way to this address is plain HTTP: whoever is on it "+
			"reads prompts, answers and the token. Use it within one machine or one encrypted "+
			"network")
	}
	if s.apiKey == nil && !o.passKey {
		fmt.Fprintln(p.stderr, "note: no API key for the server: set NOMYO_API_KEY, or give "+
			"-key-file")
	}
	if o.listen.network == "unix" {
		fmt.Fprintf(p.stdout, "listening: unix:%s\n", program.OneLine(o.listen.address))
	} else {
		fmt.Fprintf(p.stdout, "listening: http://%s\n", at)
		fmt.Fprintf(p.stdout, "base URL: http://%s/v1\n", at)
	}
	fmt.Fprintf(p.stdout, "server: %s (%s)\n", program.OneLine(o.server.URL), o.server.Protocol)
}

// answer serves until ctx ends, and then gives running requests their time.
func (p *proxy) answer(ctx context.Context, server *http.Server, listener net.Listener) error {
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(wipedListener{listener}) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.grace)
	defer cancel()
	if err := server.Shutdown(limited); err != nil {
		program.Fail(p.stderr, "proxy", "running requests are cut off")
		_ = server.Close()
	}
	<-failed
	return nil
}
