// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command gateway serves sealed chat completions in front of any OpenAI-compatible server.
//
//	umask 077; openssl rand -hex 32 > keys.txt
//	go run ./examples/gateway -upstream http://127.0.0.1:8000/v1 -api-keys keys.txt -write-cert gateway.pem
//
// It prints on standard output where it listens, the pin of its key, and a command line for examples/chat to reach it.
// The log goes to standard error: ids, sizes, durations and status, no content. Without -tls-cert it makes a
// self-signed certificate at each start, and prints its fingerprint. The key that prompts are sealed to is made at each
// start too and never replaced, so the pin changes with a restart, and only then.
//
// Environment: NOMYO_UPSTREAM_KEY is sent upstream as a bearer token. Interrupt or SIGTERM ends it: running requests
// get half a minute, a second signal ends it at once. Exit status: 0, 1 when it could not serve, 2 for wrong input.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/seed-017344ad/sealedchat"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(run(ctx, os.Args[1:], os.Getenv, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, env func(string) string, stdout, stderr io.Writer) int {
	p := &program{env: env, stdout: stdout, stderr: stderr, grace: 30 * time.Second}
	return p.run(ctx, args)
}

// program is what a run works with: the surroundings, which tests replace.
type program struct {
	env            func(string) string
	stdout, stderr io.Writer
	keyBits        int           // of the generated RSA key; 0 = 4096
	grace          time.Duration // for running requests when the program is asked to end
}

func (p *program) run(ctx context.Context, args []string) int {
	o, err := p.parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err == nil {
		err = p.serve(ctx, o)
	}
	if err == nil {
		return 0
	}
	status := 1
	text := strings.TrimPrefix(err.Error(), "sealedchat: ")
	if _, ok := errors.AsType[usageError](err); ok {
		status = 2
	}
	if wrong, ok := errors.AsType[*sealedchat.ConfigError](err); ok {
		status = 2
		name := map[string]string{"GatewayConfig.Upstream": "-upstream", "GatewayConfig.UpstreamKey": "NOMYO_UPSTREAM_KEY"}[wrong.Field]
		if name != "" {
			text = name + ": " + strings.TrimPrefix(wrong.Err.Error(), "sealedchat: ")
		}
	}
	fmt.Fprintln(p.stderr, "gateway: "+oneLine(text))
	return status
}

// serve runs the gateway until ctx ends.
func (p *program) serve(ctx context.Context, o *options) error {
	log := slog.New(slog.NewTextHandler(p.stderr, nil))
	keys, err := sealedchat.NewEphemeralKeyStore(p.keyOptions())
	if err != nil {
		return err
	}
	defer keys.Close()
	gateway, done, err := p.newGateway(o, keys, log)
	if err != nil {
		return err
	}
	defer done()
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", o.listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	id, err := o.identity() // after listening: -write-cert must not replace the certificate of a gateway that has the port
	if err != nil {
		return err
	}
	log.Info("making a key, which takes a few seconds at most")
	key, err := gateway.PublicKey(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	server := newServer(gateway, id, log)
	failed := make(chan error, 1)
	go func() { failed <- server.ServeTLS(listener, "", "") }()
	p.announce(o, id, listener.Addr(), key)

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	log.Info("ending", "grace", p.grace)
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.grace)
	defer cancel()
	if err := server.Shutdown(limited); err != nil {
		log.Warn("running requests are cut off")
		_ = server.Close()
	}
	<-failed
	log.Info("ended")
	return nil
}

// keyOptions keep one key for as long as the program runs: rotation would turn away whoever was given the printed pin.
func (p *program) keyOptions() *sealedchat.KeyStoreOptions {
	return &sealedchat.KeyStoreOptions{Bits: p.keyBits, Rotation: sealedchat.Rotation{Every: -1}}
}

// newGateway makes the gateway from the options. done closes it and wipes its secrets.
func (p *program) newGateway(o *options, keys *sealedchat.KeyStore, log *slog.Logger) (_ *sealedchat.Gateway, done func(), err error) {
	config := sealedchat.GatewayConfig{
		Upstream:             o.upstream,
		InsecureUpstreamHTTP: o.insecureUpstream,
		AllowUnauthenticated: o.allowAll,
		Keys:                 keys,
		Tier:                 o.tier,
		Logger:               log,
	}
	if o.apiKeys != "" {
		if config.Authenticate, err = readAPIKeys(o.apiKeys); err != nil {
			return nil, nil, err
		}
	}
	// The environment keeps its copy: nothing can wipe that one.
	if key := p.env("NOMYO_UPSTREAM_KEY"); key != "" {
		if config.UpstreamKey, err = sealedchat.NewSecret([]byte(key)); err != nil {
			return nil, nil, err
		}
	}
	gateway, err := sealedchat.NewGateway(config)
	if err != nil {
		config.UpstreamKey.Destroy()
		return nil, nil, err
	}
	return gateway, func() {
		_ = gateway.Close()
		config.UpstreamKey.Destroy()
	}, nil
}

// newServer sets the limits that the gateway cannot: on connections. What a request may take, the gateway knows.
func newServer(gateway *sealedchat.Gateway, id *identity, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           gateway,
		TLSConfig:         id.config(),
		ReadHeaderTimeout: 10 * time.Second,
		WriteTimeout:      11 * time.Minute, // a request may take 10, then its reader has to come for the answer
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// announce prints what a client has to know.
func (p *program) announce(o *options, id *identity, at net.Addr, key *sealedchat.PublicKey) {
	url := "https://" + reachable(at)
	fmt.Fprintf(p.stdout, "listening: %s\n", url)
	fmt.Fprintf(p.stdout, "pin: %s\n", key.Fingerprint())
	fmt.Fprintf(p.stdout, "certificate: sha256 %s%s\n", id.fingerprint(), id.note)
	command := "go run ./examples/chat -url " + url + " -pin " + key.Fingerprint() + " -model MODEL"
	if id.selfSigned {
		file := "FILE"
		if o.writeCert != "" {
			file = shellWord(o.writeCert)
		} else {
			fmt.Fprintln(p.stdout, "(clients need the certificate: -write-cert FILE saves it)")
		}
		command += " -cacert " + file
	}
	if o.apiKeys != "" {
		command = "NOMYO_API_KEY=… " + command
	}
	fmt.Fprintf(p.stdout, "try: %s \"What is the capital of France?\"\n", command)
}

// reachable is at, with localhost where it listens on all addresses.
func reachable(at net.Addr) string {
	if tcp, ok := at.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return fmt.Sprintf("localhost:%d", tcp.Port)
	}
	return at.String()
}

// shellWord quotes s for a POSIX shell if it needs that.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("-_./:\\", r)
	}
	if !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// oneLine replaces what could end a line or steer a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
