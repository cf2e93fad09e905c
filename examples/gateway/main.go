// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command gateway serves sealed chat completions in front of any OpenAI-compatible server.
//
//	umask 077; openssl rand -hex 32 > keys.txt
//	go run ./examples/gateway -upstream http://127.0.0.1:8000/v1 \
//		-api-keys keys.txt -write-cert gateway.pem
//
// It serves both protocols, or those of -protocols. On standard output it prints its address, the
// pins of its keys, and for each protocol a command line with which examples/chat reaches it. The
// log goes to standard error: ids, sizes, durations and status, no content. Without -tls-cert it
// makes a self-signed certificate at each start, and prints its fingerprint. It also makes its keys
// at each start and never replaces them, so the pin changes with a restart, and only then.
//
// Behind a proxy give -address-header, the header in which the proxy states the address of a client
// (X-Forwarded-For for example). Otherwise all clients of the proxy share the limits of one
// address.
//
// Environment: NOMYO_UPSTREAM_KEY, or the content of the file NOMYO_UPSTREAM_KEY_FILE, is sent
// upstream as a bearer token. Interrupt or SIGTERM ends the program: running requests get half a
// minute; a second signal ends it at once. Exit status: 0 for success, 1 if it could not serve, 2
// for wrong input.
package main

import (
	"cmp"
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

func run(ctx context.Context, args []string, env func(string) string, stdout,
	stderr io.Writer) int {
	p := &program{env: env, stdout: stdout, stderr: stderr, grace: 30 * time.Second}
	return p.run(ctx, args)
}

// program has the surroundings of a run, which tests replace.
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
		name := map[string]string{
			"GatewayConfig.Upstream":      "-upstream",
			"GatewayConfig.UpstreamKey":   "NOMYO_UPSTREAM_KEY",
			"GatewayConfig.OHTTP.Padding": "-pad", "GatewayConfig.OHTTP.DateWindow": "-date-window",
		}[wrong.Field]
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
	// this comes after listening: -write-cert must not replace the certificate of a gateway that
	// has the port
	id, err := o.identity()
	if err != nil {
		return err
	}
	pins, err := readPins(ctx, o, gateway, log)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	server := newServer(gateway, id)
	failed := make(chan error, 1)
	go func() { failed <- server.ServeTLS(listener, "", "") }()
	p.announce(o, id, listener.Addr(), pins)

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

// keyOptions keep one key for as long as the program runs: after a rotation, the printed pin would
// not be valid any more.
func (p *program) keyOptions() *sealedchat.KeyStoreOptions {
	return &sealedchat.KeyStoreOptions{Bits: p.keyBits, Rotation: sealedchat.Rotation{Every: -1}}
}

// newGateway makes the gateway from the options. done closes it and wipes its secrets.
func (p *program) newGateway(o *options, keys *sealedchat.KeyStore,
	log *slog.Logger) (_ *sealedchat.Gateway, done func(), err error) {
	config := sealedchat.GatewayConfig{
		Upstream:             o.upstream,
		InsecureUpstreamHTTP: o.insecureUpstream,
		AllowUnauthenticated: o.allowAll,
		Keys:                 keys,
		Tier:                 o.tier,
		Protocols:            o.protocols,
		OHTTP:                sealedchat.GatewayOHTTP{Padding: o.pad, DateWindow: o.dateWindow},
		Logger:               log,
	}
	if o.addressHeader != "" {
		config.AddressHeader = o.addressHeader
	}
	if o.apiKeys != "" {
		if config.Authenticate, err = readAPIKeys(o.apiKeys); err != nil {
			return nil, nil, err
		}
	}
	if config.UpstreamKey, err = p.upstreamKey(); err != nil {
		return nil, nil, err
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

// upstreamKey is the gateway's own key at the upstream, nil for none.
func (p *program) upstreamKey() (*sealedchat.Secret, error) {
	if file := p.env("NOMYO_UPSTREAM_KEY_FILE"); file != "" {
		key, err := sealedchat.ReadSecret(file)
		if err != nil {
			return nil, wrongInput("NOMYO_UPSTREAM_KEY_FILE: %w", err)
		}
		return key, nil
	}
	// The environment keeps its copy, which cannot be wiped.
	if key := p.env("NOMYO_UPSTREAM_KEY"); key != "" {
		return sealedchat.NewSecret([]byte(key)), nil
	}
	return nil, nil
}

// newServer returns the HTTP server of the gateway, with the certificate that clients know.
func newServer(gateway *sealedchat.Gateway, id *identity) *http.Server {
	server := gateway.Server("")
	server.TLSConfig = id.config()
	return server
}

// pins are the fingerprints of the keys that clients seal to. The fingerprint of a protocol that is
// not served is "".
type pins struct {
	envelope, ohttp string // of ohttp the signer's, which outlives rotations
}

func readPins(ctx context.Context, o *options, gateway *sealedchat.Gateway,
	log *slog.Logger) (p pins, err error) {
	if o.serves(sealedchat.ProtocolEnvelope) {
		log.Info("making a key, which takes a few seconds at most")
	}
	keys, err := gateway.Keys(ctx)
	if err != nil {
		return p, err
	}
	for _, k := range keys { // those in use come first
		switch k.Kind {
		case "RSA":
			p.envelope = cmp.Or(p.envelope, k.Fingerprint)
		case "Ed25519":
			p.ohttp = k.Fingerprint
		}
	}
	return p, nil
}

// announce prints the facts that a client needs.
func (p *program) announce(o *options, id *identity, at net.Addr, keys pins) {
	url := "https://" + reachable(at)
	fmt.Fprintf(p.stdout, "listening: %s\n", url)
	if keys.envelope != "" {
		fmt.Fprintf(p.stdout, "pin: %s\n", keys.envelope)
	}
	if keys.ohttp != "" {
		fmt.Fprintf(p.stdout, "pin (ohttp): %s\n", keys.ohttp)
	}
	fmt.Fprintf(p.stdout, "certificate: sha256 %s%s\n", id.fingerprint(), id.note)
	if id.selfSigned && o.writeCert == "" {
		fmt.Fprintln(p.stdout, "(clients need the certificate: -write-cert FILE saves it)")
	}
	if keys.ohttp != "" {
		fmt.Fprintf(p.stdout, "try (ohttp): %s \"What is the capital of France?\"\n",
			o.command(id, url, "-protocol ohttp -stream -pin "+keys.ohttp))
	}
	if keys.envelope != "" {
		fmt.Fprintf(p.stdout, "try: %s \"What is the capital of France?\"\n",
			o.command(id, url, "-pin "+keys.envelope))
	}
}

// command returns the command line with which examples/chat reaches the gateway.
func (o *options) command(id *identity, url, how string) string {
	command := "go run ./examples/chat -url " + url + " " + how + " -model MODEL"
	if id.selfSigned {
		file := "FILE"
		if o.writeCert != "" {
			file = shellWord(o.writeCert)
		}
		command += " -cacert " + file
	}
	if o.apiKeys != "" {
		command = "NOMYO_API_KEY=… " + command
	}
	return command
}

// reachable returns the address of the listener, with localhost if it listens on all addresses.
func reachable(at net.Addr) string {
	if tcp, ok := at.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return fmt.Sprintf("localhost:%d", tcp.Port)
	}
	return at.String()
}

// shellWord quotes s for a POSIX shell if necessary.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("-_./:\\", r)
	}
	if !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// oneLine replaces characters that could end a line or control a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
