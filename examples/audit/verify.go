// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

const keepAll = 100 * 365 * 24 * time.Hour // grace: reading a store must not change it

func (p *audit) verify(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("audit verify", flag.ContinueOnError)
	dir := f.String("keys", p.env("NOMYO_KEY_DIR"), "`folder` of the key store")
	head := f.String("head", "",
		"`head` that an earlier verify printed, and that the log must still contain")
	file := f.String("passphrase-file", "",
		"`file` with the key store's passphrase; without it NOMYO_KEY_PASSWORD")
	path, err := p.parse(f, args)
	if err != nil {
		return err
	}
	empty := false // a script with an unset variable must not verify without a head
	f.Visit(func(flag *flag.Flag) {
		empty = empty || flag.Name == "head" &&
			strings.TrimSpace(*head) == ""
	})
	if empty {
		return program.WrongInput("-head is empty")
	}
	passphrase, err := p.passphrase(*file)
	if err != nil {
		return err
	}
	defer passphrase.Destroy()
	keys, err := sealedchat.OpenKeyStore(ctx, *dir, passphrase, &sealedchat.KeyStoreOptions{
		Rotation: sealedchat.Rotation{Every: -1, Grace: keepAll},
	})
	if err != nil {
		return err
	}
	defer keys.Close()
	report, err := sealedchat.VerifyAuditLog(ctx, path, keys, *head)
	if report != nil {
		p.describe(report, *head)
	}
	if errors.Is(err, sealedchat.ErrInvalidRequest) && *head != "" { // nothing was checked
		return program.WrongInput("-head: %w", err)
	}
	if err != nil {
		return err
	}
	if *head != "" && !report.HeadChecked {
		return errHeadNotFound
	}
	_, err = fmt.Fprintln(p.stdout, report.Head)
	return err
}

// errHeadNotFound means exit status 5.
var errHeadNotFound = errors.New(
	"the line of -head was dropped with an older file: nothing can be said of what came between",
)

func (p *audit) describe(r *sealedchat.AuditReport, head string) {
	fmt.Fprintf(p.stderr, "%d events in %d files are as they were written\n", r.Lines, len(r.Files))
	if r.First > 1 {
		fmt.Fprintf(p.stderr, "older files were dropped: the first event is number %d\n", r.First)
	}
	if r.Torn > 0 {
		fmt.Fprintf(p.stderr, "%d unfinished lines, left by crashes and noted since\n", r.Torn)
	}
	if r.Lost > 0 {
		fmt.Fprintf(p.stderr, "%d events could not be written, as the log says\n", r.Lost)
	}
	if head == "" {
		fmt.Fprintln(p.stderr,
			"no -head was given: whether lines are missing at the end cannot be said")
	}
}

const maxPassphrase = 4096

// passphrase reads the passphrase from the file or the environment. The caller destroys it.
func (p *audit) passphrase(file string) (*sealedchat.Secret, error) {
	if file == "" {
		secret, err := program.Secret(p.env, "NOMYO_KEY_PASSWORD")
		if err == nil && secret == nil {
			err = program.WrongInput(
				"the passphrase: set NOMYO_KEY_PASSWORD, or give -passphrase-file")
		}
		return secret, err
	}
	secret, err := program.PrivateSecret(file, maxPassphrase)
	if err != nil {
		return nil, program.WrongInput("-passphrase-file: %w", err)
	}
	return secret, nil
}
