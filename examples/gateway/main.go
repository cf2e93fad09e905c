// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command gateway serves sealed chat completions in front of any OpenAI-compatible server. It is a
// module of its own, so that Redis and Prometheus are no dependencies of the package:
//
//	go build -C examples/gateway -o "$PWD/gateway" .
//
//	umask 077; openssl rand -hex 32 > keys.txt
//	./gateway -upstream http://127.0.0.1:8000/v1 -api-keys keys.txt -write-cert gateway.pem
//
// It serves both protocols, or those of -protocols. On standard output it prints the pins of its
// keys, for each protocol a command line with which examples/chat reaches it, and last its address.
// The log goes to standard error: ids, accounts, sizes, durations and status, no content. Without
// -tls-cert it makes a self-signed certificate at each start, and prints its fingerprint.
//
// Without -keys its keys are in memory alone: the pins change with a restart. -keys names the
// folder of a key store, which examples/keystore makes, or -create-keys. Its passphrase is in
// NOMYO_KEY_PASSWORD.
//
// Each line of -api-keys is a key, or a name and a key. The name is the client's account: it stands
// in the log, in the audit log and in the metrics, and accounts share no connection to the
// upstream. Several keys may have one name.
//
// Gateways on one machine share the folder of -keys and need nothing more. Gateways on several
// machines have copies of it, and share their memory of replays with -replay redis://…:
// docs/gateway-operations.md says how, and how everything here is put into operation.
//
// -attest serves evidence of a confidential VM (AMD SEV-SNP, Intel TDX) for its keys, to clients
// that ask for it: docs/attestation.md. The keys have to stay inside: those in memory do, and of
// those in a folder -keys-inside says it.
//
// -config names a file with the same names: lines like "upstream = http://127.0.0.1:8000/v1". What
// stands on the command line wins.
//
// Behind a proxy give -plain-http, and -address-header, the header in which the proxy states the
// address of a client (X-Forwarded-For for example). Otherwise all clients of the proxy share the
// limits of one address. /healthz says that the program lives, /readyz whether it can serve.
//
// SIGHUP reads the API keys and the TLS certificate again. What is wrong with them is logged, and
// those before stay. Interrupt or SIGTERM ends the program: for -drain it serves and says at
// /readyz that it is not ready; then running requests get -grace. A second signal ends it at once.
// Exit status: 0 for success, 1 if it could not serve, 2 for wrong input.
package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

func main() {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // from the beginning: it never ends the program
	p := &gatewayProgram{env: os.Getenv, stdout: os.Stdout, stderr: os.Stderr, hup: hup}
	p.hardened = sealedchat.HardenProcess()
	os.Exit(p.run(program.Signals(), os.Args[1:]))
}

// gatewayProgram has the surroundings of a run, which tests replace.
type gatewayProgram struct {
	env            func(string) string
	stdout, stderr io.Writer
	hup            <-chan os.Signal // each asks for a reload
	hardened       error            // of HardenProcess
	keyBits        int              // of generated RSA keys; 0 = 4096
	// attester makes what makes evidence, for -attest; nil = newAttester
	attester func(o *options) (attester, error)
}

func (p *gatewayProgram) run(ctx context.Context, args []string) int {
	o, err := p.parse(args)
	if err == nil {
		err = p.serve(ctx, o)
	}
	return program.Exit(p.stderr, "gateway", err, func(err error) (string, int) {
		return program.Explain(err, fieldFlags)
	})
}

// serve runs the gateway until ctx ends.
func (p *gatewayProgram) serve(ctx context.Context, o *options) (err error) {
	log := slog.New(sampleHandler{slog.NewTextHandler(p.stderr, nil)})
	s := &service{o: o, log: log, env: p.env, keyBits: p.keyBits, attester: p.attester}
	if s.attester == nil {
		s.attester = newAttester
	}
	defer func() { err = errors.Join(err, s.close()) }()
	err = s.open(ctx)
	if err == nil {
		err = s.listen(ctx)
	}
	if err == nil {
		s.warn(p.hardened)
		err = s.announce(ctx, p.stdout)
	}
	if err == nil {
		return s.run(ctx, p.hup)
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}
