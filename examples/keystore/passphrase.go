// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/term"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// The variables for passphrases.
const (
	storePassword    = "NOMYO_KEY_PASSWORD"
	newStorePassword = "NOMYO_KEY_NEW_PASSWORD"
	filePassword     = "NOMYO_FILE_PASSWORD"
)

const minPassphrase = 8 // bytes, as the package wants of a new one

var errNoTerminal = errors.New("no terminal to ask for the passphrase on")

// passphrase reads a passphrase from the file that the environment variable with _FILE names, or
// from the variable itself, or asks for it. The caller destroys it.
func (p *keystore) passphrase(ctx context.Context, variable, prompt string) (*sealedchat.Secret,
	error) {
	if p.env(variable+"_FILE") != "" {
		return program.Secret(p.env, variable)
	}
	text, err := p.readPassphrase(ctx, variable, prompt)
	if err != nil {
		return nil, err
	}
	return sealedchat.NewSecret(text), nil
}

// newPassphrase asks twice: a typing error would lock the owner out.
func (p *keystore) newPassphrase(ctx context.Context, variable, prompt string) (*sealedchat.Secret,
	error) {
	if p.env(variable+"_FILE") != "" {
		return program.Secret(p.env, variable)
	}
	text, err := p.readPassphrase(ctx, variable, prompt)
	if err != nil {
		return nil, err
	}
	if p.env(variable) == "" {
		if len(text) < minPassphrase { // before it is typed a second time
			clear(text)
			return nil, program.WrongInput("a passphrase of %d bytes, want %d or more", len(text),
				minPassphrase)
		}
		again, err := p.readPassphrase(ctx, variable, prompt+", again")
		same := subtle.ConstantTimeCompare(text, again) == 1
		clear(again)
		if err == nil && !same {
			err = program.WrongInput("the two passphrases differ")
		}
		if err != nil {
			clear(text)
			return nil, err
		}
	}
	return sealedchat.NewSecret(text), nil
}

func (p *keystore) readPassphrase(ctx context.Context, variable, prompt string) ([]byte, error) {
	// An environment variable is a string, which cannot be wiped.
	if text := p.env(variable); text != "" {
		return []byte(text), nil
	}
	text, err := p.ask(ctx, prompt+": ")
	switch {
	case errors.Is(err, errNoTerminal):
		return nil, program.WrongInput("%w; set %s", err, variable)
	case errors.Is(err, io.EOF), err == nil && len(text) == 0:
		return nil, program.WrongInput("no passphrase was given")
	case err != nil:
		return nil, fmt.Errorf("reading the passphrase: %w", err)
	}
	return text, nil
}

// askTerminal prints the prompt on the terminal of the process, wherever the standard streams go,
// and reads a line without echo. The terminal library reads byte by byte, and does not wipe the
// memory that it outgrows.
func askTerminal(ctx context.Context, prompt string) ([]byte, error) {
	in, out, err := openTerminal()
	if err != nil {
		return nil, errNoTerminal
	}
	fd := int(in.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		_, _ = in.Close(), out.Close()
		return nil, errNoTerminal
	}
	fmt.Fprint(out, prompt)
	text, err := interruptible(ctx, func() ([]byte, error) { return term.ReadPassword(fd) })
	fmt.Fprintln(out)
	if ctx.Err() != nil { // reading continues until the process ends, so the files stay open
		_ = term.Restore(fd, before)
		clear(text)
		return nil, ctx.Err()
	}
	_ = in.Close()
	_ = out.Close()
	return text, err
}

func openTerminal() (in, out *os.File, err error) {
	inName, outName := "/dev/tty", "/dev/tty"
	if runtime.GOOS == "windows" {
		inName, outName = "CONIN$", "CONOUT$"
	}
	if in, err = os.OpenFile(inName, os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	if out, err = os.OpenFile(outName, os.O_RDWR, 0); err != nil {
		_ = in.Close()
		return nil, nil, err
	}
	return in, out, nil
}

// interruptible returns the result of read, or returns earlier if ctx ends. Nothing can interrupt
// the reading of a terminal or a pipe: after Ctrl-C it ends with the process.
func interruptible(ctx context.Context, read func() ([]byte, error)) ([]byte, error) {
	type result struct {
		content []byte
		err     error
	}
	done := make(chan result, 1)
	go func() {
		content, err := read()
		done <- result{content, err}
	}()
	select {
	case r := <-done:
		return r.content, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
