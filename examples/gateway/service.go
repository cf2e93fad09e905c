// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// service is the gateway with all that belongs to it. open and listen fill it, step by step, and
// close ends what is there, in reverse.
type service struct {
	o       *options
	log     *slog.Logger
	env     func(string) string
	keyBits int

	attester func(o *options) (attester, error) // for -attest

	keys     *sealedchat.KeyStore
	replays  *replays // nil: not in Redis
	accounts *accounts
	gateway  *sealedchat.Gateway
	ready    *readiness
	metrics  *metrics // nil: nobody asks

	identity *identity // nil: without TLS
	listener net.Listener
	server   *http.Server
	watcher  *http.Server // serves the metrics
	watching net.Listener

	ends []func() error // in the order in which things began
}

func (s *service) onClose(end func() error) { s.ends = append(s.ends, end) }

func (s *service) close() (err error) {
	for i := len(s.ends) - 1; i >= 0; i-- {
		err = errors.Join(err, s.ends[i]())
	}
	s.ends = nil
	return err
}

// open makes the gateway.
func (s *service) open(ctx context.Context) error {
	if err := s.openKeys(ctx); err != nil {
		return err
	}
	audit, err := s.openAudit(ctx)
	if err != nil {
		return err
	}
	config := s.config()
	config.Audit = audit
	if s.o.attest {
		if config.Attester, err = s.attester(s.o); err != nil {
			return err
		}
	}
	if s.o.replay != "" {
		if err := s.openReplays(ctx); err != nil {
			return err
		}
		config.Replay = s.replays
	}
	if s.o.apiKeys != "" {
		s.accounts = &accounts{file: s.o.apiKeys}
		if err := s.accounts.load(); err != nil {
			return err
		}
		config.Authenticate = s.accounts.Authenticate
	}
	if config.UpstreamKey, err = program.Secret(s.env, upstreamKeyVariable); err != nil {
		return err
	}
	s.onClose(func() error { config.UpstreamKey.Destroy(); return nil })
	if s.gateway, err = sealedchat.NewGateway(config); err != nil {
		return err
	}
	s.onClose(s.gateway.Close)
	s.ready = &readiness{ask: s.gateway.Ready, log: s.log}
	return nil
}

// config has what the flags say.
func (s *service) config() sealedchat.GatewayConfig {
	o := s.o
	return sealedchat.GatewayConfig{
		Upstream:             o.upstream,
		InsecureUpstreamHTTP: o.insecureUpstream,
		TraceUpstream:        o.trace,
		AllowUnauthenticated: o.allowAll,
		Keys:                 s.keys,
		Tier:                 o.tier,
		ReplayWindow:         o.replayWindow,
		MaxRequestBytes:      o.maxRequest,
		MaxResponseBytes:     o.maxResponse,
		MaxConcurrent:        o.places,
		AccountPlaces:        o.accountPlaces,
		Timeout:              o.timeout,
		BodyTimeout:          o.bodyTimeout,
		IdleTimeout:          o.idleTimeout,
		AddressHeader:        o.addressHeader,
		Protocols:            o.protocols,
		KeysStayInside:       o.keysInside,
		OHTTP: sealedchat.GatewayOHTTP{
			Allow: o.allow, DateWindow: o.dateWindow, Padding: o.pad, AES128: o.aes128,
		},
		Logger: s.log,
	}
}

// placesInAll is how many requests are worked on at the same time, by the package's default if no
// flag says it.
func (s *service) placesInAll() int { return cmp.Or(s.o.places, 64) }

// openKeys opens the key store. RSA keys in memory are never replaced, and a signer never is: the
// pins that were printed hold for as long as the program runs.
func (s *service) openKeys(ctx context.Context) (err error) {
	options := &sealedchat.KeyStoreOptions{
		Bits: s.keyBits, Logger: s.log, Rotation: sealedchat.Rotation{
			Every: cmp.Or(s.o.rotate, -1), ConfigEvery: s.configEvery(),
		},
	}
	if s.o.keys == "" {
		s.keys, err = sealedchat.NewEphemeralKeyStore(options)
	} else {
		s.keys, err = s.openStore(ctx, options)
	}
	if err != nil {
		return err
	}
	s.onClose(func() error { s.keys.Close(); return nil })
	return nil
}

// configEvery is the age at which key configurations are replaced.
func (s *service) configEvery() time.Duration {
	if s.o.rotateConfigs == 0 && s.o.replay != "" {
		return -1
	}
	return cmp.Or(s.o.rotateConfigs, time.Hour)
}

func (s *service) openStore(ctx context.Context,
	options *sealedchat.KeyStoreOptions) (*sealedchat.KeyStore, error) {
	passphrase, err := program.Secret(s.env, passphraseVariable)
	if err != nil {
		return nil, err
	}
	if passphrase == nil {
		return nil, program.WrongInput("-keys: set %s, or %[1]s_FILE", passphraseVariable)
	}
	defer passphrase.Destroy()
	keys, err := sealedchat.OpenKeyStore(ctx, s.o.keys, passphrase, options)
	if errors.Is(err, sealedchat.ErrPassphrase) {
		return nil, fmt.Errorf("%w; look at %s, or %[2]s_FILE", err, passphraseVariable)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return keys, err
	}
	if !s.o.createKeys {
		return nil, fmt.Errorf("-keys: no key store in %s; -create-keys makes one", s.o.keys)
	}
	s.log.Info("making a key store", "folder", s.o.keys)
	keys, err = sealedchat.CreateKeyStore(ctx, s.o.keys, passphrase, options)
	if errors.Is(err, sealedchat.ErrInvalidRequest) { // too short for a new one
		return nil, program.WrongInput("%s: %w", passphraseVariable, err)
	}
	if errors.Is(err, sealedchat.ErrKeyStoreExists) { // another replica was faster
		return sealedchat.OpenKeyStore(ctx, s.o.keys, passphrase, options)
	}
	return keys, err
}

func (s *service) openAudit(ctx context.Context) (sealedchat.Auditor, error) {
	if s.o.audit == "" {
		return nil, nil
	}
	audit, err := sealedchat.OpenAuditLog(ctx, s.o.audit, s.keys,
		&sealedchat.AuditLogOptions{Logger: s.log})
	if err != nil {
		return nil, err
	}
	// The log ends last: the store tells it that it closes.
	s.ends = append([]func() error{audit.Close}, s.ends...)
	return audit.Record, s.keys.SetAuditor(ctx, audit.Record)
}

// listen opens the listeners, and makes the servers for them.
func (s *service) listen(ctx context.Context) (err error) {
	if s.listener, err = s.listenOn(ctx, "-listen", s.o.listen); err != nil {
		return err
	}
	// this comes after listening: -write-cert must not replace the certificate of a gateway that
	// has the port
	if !s.o.plain {
		if s.identity, err = newIdentity(s.o); err != nil {
			return err
		}
	}
	served := http.Handler(s.gateway)
	if s.o.metrics != "" {
		if s.watching, err = s.listenOn(ctx, "-metrics", s.o.metrics); err != nil {
			return err
		}
		s.metrics = newMetrics(s)
		served = s.metrics.observe(served)
		s.watcher = s.metrics.server(s.o.metrics, s.ready)
	}
	s.server = s.gateway.Server("")
	s.server.Handler = s.ready.before(served)
	if s.identity != nil {
		s.server.TLSConfig = s.identity.config()
	}
	return nil
}

// listenOn opens the address that a flag names.
func (s *service) listenOn(ctx context.Context, flag, address string) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	s.onClose(func() error { _ = listener.Close(); return nil })
	return listener, nil
}

// warn tells what an operator should know of the options.
func (s *service) warn(hardened error) {
	if hardened != nil && !errors.Is(hardened, errors.ErrUnsupported) {
		s.log.Warn("other processes of this user may read this one's memory", "cause", hardened)
	}
	if s.o.keys == "" {
		s.log.Warn("the keys are in memory alone, and others after each start: -keys keeps them")
	}
	if s.o.plain && s.o.addressHeader == "" {
		s.log.Warn("-plain-http without -address-header: all clients behind the proxy share one " +
			"limit for strangers")
	}
}

// announce prints the facts that a client needs; the address comes last. There are keys afterwards.
func (s *service) announce(ctx context.Context, w io.Writer) error {
	if s.o.keys == "" && s.o.serves(sealedchat.ProtocolEnvelope) {
		s.log.Info("making a key, which takes a few seconds at most")
	}
	keys, err := s.gateway.Keys(ctx)
	if err != nil {
		return err
	}
	pins := program.Pins(keys)
	url := "http://" + reachable(s.listener.Addr())
	if s.identity != nil {
		url = "https://" + reachable(s.listener.Addr())
	}
	for _, p := range s.o.protocols {
		fmt.Fprintln(w, program.PinLine(p, pins[p]))
	}
	if s.identity != nil {
		fmt.Fprintf(w, "certificate: sha256 %s%s\n", s.identity.fingerprint(), s.identity.note)
		if s.identity.certFile == "" && s.o.writeCert == "" {
			fmt.Fprintln(w, "(clients need the certificate: -write-cert FILE saves it)")
		}
		for _, p := range s.o.protocols {
			fmt.Fprintf(w, "try (%s): %s \"What is the capital of France?\"\n", p,
				s.command(url, p, pins[p]))
		}
	}
	if s.watching != nil {
		fmt.Fprintf(w, "metrics: http://%s/metrics\n", reachable(s.watching.Addr()))
	}
	fmt.Fprintf(w, "listening: %s\n", url)
	return nil
}

// command returns the command line with which examples/chat reaches the gateway.
func (s *service) command(url string, p sealedchat.Protocol, pin string) string {
	command := "go run ./examples/chat -url " + url
	if p == sealedchat.ProtocolOHTTP {
		command += " -protocol ohttp -stream"
	}
	command += " -pin " + pin + " -model MODEL"
	if s.identity.certFile == "" {
		file := "FILE"
		if s.o.writeCert != "" {
			file = shellWord(s.o.writeCert)
		}
		command += " -cacert " + file
	}
	if s.o.apiKeys != "" {
		command = "NOMYO_API_KEY=… " + command
	}
	return command
}

// run serves until ctx ends, reads files again for each hup, and ends in order.
func (s *service) run(ctx context.Context, hup <-chan os.Signal) error {
	failed := make(chan error, 2)
	go func() {
		if s.identity == nil {
			failed <- s.server.Serve(s.listener)
		} else {
			failed <- s.server.ServeTLS(s.listener, "", "")
		}
	}()
	running := 1
	if s.watcher != nil {
		go func() { failed <- s.watcher.Serve(s.watching) }()
		running++
	}
	err := s.waitForEnd(ctx, hup, failed)
	if err != nil {
		running--
	}
	s.shutdown(ctx)
	for range running {
		<-failed
	}
	s.log.Info("ended")
	return err
}

// waitForEnd returns what a server failed with, or nil when the program was asked to end and has
// drained.
func (s *service) waitForEnd(ctx context.Context, hup <-chan os.Signal, failed <-chan error) error {
	var drained <-chan time.Time
	asked := ctx.Done()
	for {
		select {
		case err := <-failed:
			return err
		case <-hup:
			s.reload()
		case <-asked:
			asked = nil
			s.log.Info("ending", "drain", s.o.drain, "grace", s.o.grace)
			s.ready.drain()
			drained = time.After(s.o.drain)
		case <-drained:
			return nil
		}
	}
}

// shutdown closes the listener, and lets running requests end.
func (s *service) shutdown(ctx context.Context) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.o.grace)
	defer cancel()
	if err := s.server.Shutdown(limited); err != nil {
		s.log.Warn("running requests are cut off")
		_ = s.server.Close()
	}
	if s.watcher != nil { // until now it could be asked
		_ = s.watcher.Close()
	}
}

// reload reads API keys and certificate again. What is wrong stays as it was.
func (s *service) reload() {
	if s.accounts != nil {
		if err := s.accounts.load(); err != nil {
			s.log.Error("the API keys stay as they were", "cause", program.OneLine(err.Error()))
		} else {
			s.log.Info("the API keys were read again", "keys", len(s.accounts.now.Load().names))
			s.metrics.forgetOthers(s.accounts)
		}
	}
	if s.identity != nil && s.identity.certFile != "" {
		if err := s.identity.load(); err != nil {
			s.log.Error("the certificate stays as it was", "cause", program.OneLine(err.Error()))
		} else {
			s.log.Info("the certificate was read again", "sha256", s.identity.fingerprint())
		}
	}
}

// reachable returns the address of a listener, with localhost if it listens on all addresses.
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
