// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command keystore makes and manages the key store that clients and gateways share. It is a module
// of its own, so that its terminal library is no dependency of the package:
//
//	go build -C examples/keystore -o "$PWD/keystore" .
//
//	keystore create [-bits N] [-iterations N]       # a new store with a first key
//	keystore list                                   # its keys, the one in use first
//	keystore next [-bits N]                         # make the key of the next rotation, to be pinned
//	keystore rotate [-bits N]                       # the next key, or a new one; the old one is kept
//	                                                # as retired
//	keystore delete -fingerprint HEX                # wipe a retired key, or the next one, now
//	keystore import FILE                            # use the private key in a PEM file from now on
//	keystore export [-fingerprint HEX] -out FILE    # write a key, encrypted, to a new PEM file
//	keystore passwd [-iterations N]                 # another passphrase
//	keystore seal -label TEXT [FILE] > sealed       # encrypt FILE or standard input, up to 100 MiB
//	keystore open -label TEXT [FILE] > plain        # decrypt it, under the same label
//
// Flags come before FILE. All commands accept -keys DIR. Without it they use NOMYO_KEY_DIR, or else
// the folder sealedchat in the user's configuration folder.
//
// The program asks for passphrases on the terminal, without echo, or takes them from the
// environment: NOMYO_KEY_PASSWORD for the store, NOMYO_KEY_NEW_PASSWORD for the new one of passwd,
// NOMYO_FILE_PASSWORD for the file of import and export. With _FILE behind its name a variable
// names a file with the passphrase. Other processes of the same user can read an environment.
// Nobody can open a store whose passphrase is lost.
//
// Retired keys stay until delete, or until a client or a gateway that has the store open finds that
// their grace is over. This program does not know how long the grace is. After passwd, services
// that have the store open must be started again before they can save.
//
// If a file public_key.pem stands beside the file to import, it must have the public key that
// belongs to it; otherwise nothing is imported. Move it away if it belongs to another key.
//
// To move from the Python or the JavaScript client, in the folder that has its client_keys:
//
//	keystore create
//	# asks for a passphrase if the file has one, and checks public_key.pem
//	keystore import client_keys/private_key.pem
//	keystore list                                   # the imported key is the primary one
//	rm client_keys/private_key.pem                  # and its copies in backups
//	# a service that uses sealedchat.ConfigFromEnv
//	NOMYO_KEY_DIR=DIR NOMYO_KEY_PASSWORD=… SERVICE
//
// Results go to standard output, all other text goes to standard error. Exit status: 0 for success,
// 1 if something failed, 2 for wrong input.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

func main() {
	os.Exit(run(program.Signals(), os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, env func(string) string, stdin io.Reader, stdout,
	stderr io.Writer) int {
	p := &keystore{env: env, stdin: stdin, stdout: stdout, stderr: stderr, ask: askTerminal,
		isTerminal: isTerminal}
	return p.run(ctx, args)
}

// keystore has the surroundings of a run, which tests replace.
type keystore struct {
	env            func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer
	// reads a passphrase; errNoTerminal
	ask        func(ctx context.Context, prompt string) ([]byte, error)
	isTerminal func(stream any) bool
}

func (p *keystore) run(ctx context.Context, args []string) int {
	o, err := p.parse(args)
	if err == nil {
		err = o.command.run(p, ctx, o)
	}
	return program.Exit(p.stderr, "keystore", err, func(err error) (string, int) {
		return explain(ctx, err)
	})
}

// explain turns an error into one line for the user, and an exit status.
func explain(ctx context.Context, err error) (text string, status int) {
	if ctx.Err() != nil {
		return "interrupted", program.StatusFailed
	}
	text, status = program.Explain(err, map[string]string{
		"KeyStoreOptions.Bits": "-bits", "KeyStoreOptions.Iterations": "-iterations"})
	if status == program.StatusUsage {
		return text, status
	}
	switch {
	// a passphrase that is too short, or an invalid fingerprint
	case errors.Is(err, sealedchat.ErrInvalidRequest):
		return strings.TrimPrefix(text, "invalid request: "), program.StatusUsage
	case errors.Is(err, sealedchat.ErrLocked):
		return text + "; try again when it has finished", status
	}
	return text, status
}

func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
