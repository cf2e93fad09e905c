// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

const (
	maxKeyFile   = 64 << 10                                // bytes of a PEM file
	sealedGrowth = 69                                      // bytes that sealing adds
	keepAll      = 100 * 365 * 24 * time.Hour              // grace
	maxSealed    = sealedchat.MaxSealedData + sealedGrowth // bytes
)

// storeOptions keep the store from changing on its own: reading it must neither rotate nor drop a
// retired key that a gateway with a longer grace still needs.
func (o *options) storeOptions() *sealedchat.KeyStoreOptions {
	return &sealedchat.KeyStoreOptions{
		Bits: o.bits, Iterations: o.iterations, Rotation: sealedchat.Rotation{Every: -1,
			Grace: keepAll},
	}
}

// withStore opens the store for f.
func (p *keystore) withStore(ctx context.Context, o *options,
	f func(*sealedchat.KeyStore, *sealedchat.Secret) error) error {
	passphrase, err := p.passphrase(ctx, storePassword, "Passphrase of the key store")
	if err != nil {
		return err
	}
	defer passphrase.Destroy()
	store, err := sealedchat.OpenKeyStore(ctx, o.dir, passphrase, o.storeOptions())
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) { // the text of the error is for programmers
			return fmt.Errorf("no key store in %s; make one with: keystore create", o.dir)
		}
		return err
	}
	defer store.Close()
	return f(store, passphrase)
}

func (p *keystore) create(ctx context.Context, o *options) error {
	passphrase, err := p.newPassphrase(ctx, storePassword, "Passphrase for the new key store")
	if err != nil {
		return err
	}
	defer passphrase.Destroy()
	store, err := sealedchat.CreateKeyStore(ctx, o.dir, passphrase, o.storeOptions())
	if err != nil {
		return err
	}
	defer store.Close()
	fmt.Fprintf(p.stderr, "made a key store in %s; nobody can open it without the passphrase\n",
		program.OneLine(o.dir))
	return p.printPrimary(ctx, store)
}

// printPrimary prints the fingerprint of the key in use.
func (p *keystore) printPrimary(ctx context.Context, store *sealedchat.KeyStore) error {
	key, err := store.Public(ctx)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(p.stdout, key.Fingerprint())
	return err
}

func (p *keystore) list(ctx context.Context, o *options) error {
	return p.withStore(ctx, o, func(store *sealedchat.KeyStore, _ *sealedchat.Secret) error {
		table := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "STATE\tBITS\tCREATED\tACTIVATED\tRETIRED\tFINGERPRINT")
		for _, k := range store.Keys() {
			state, bits := "primary", strconv.Itoa(k.Bits)
			switch {
			case k.Kind == "Ed25519": // what clients of Oblivious HTTP pin
				state, bits = "signer", "-"
			case k.Kind != "RSA": // configurations come and go
				continue
			case !k.Retired.IsZero():
				state = "retired"
			case k.Activated.IsZero():
				state = "next"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", state, bits, at(k.Created),
				at(k.Activated), at(k.Retired), k.Fingerprint)
		}
		return table.Flush()
	})
}

func at(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func (p *keystore) rotate(ctx context.Context, o *options) error {
	return p.withStore(ctx, o, func(store *sealedchat.KeyStore, _ *sealedchat.Secret) error {
		if err := store.Rotate(ctx); err != nil {
			return err
		}
		return p.printPrimary(ctx, store)
	})
}

// next prints the fingerprint that clients are to pin beside that of the primary key.
func (p *keystore) next(ctx context.Context, o *options) error {
	return p.withStore(ctx, o, func(store *sealedchat.KeyStore, _ *sealedchat.Secret) error {
		key, err := store.Next(ctx)
		if err != nil {
			return err
		}
		fmt.Fprintln(p.stderr, "not in use before the next rotation; have clients pin it as well, "+
			"beside the primary key, and then rotate")
		_, err = fmt.Fprintln(p.stdout, key.Fingerprint())
		return err
	})
}

func (p *keystore) deleteKey(ctx context.Context, o *options) error {
	return p.withStore(ctx, o, func(store *sealedchat.KeyStore, _ *sealedchat.Secret) error {
		if err := store.Delete(ctx, o.fingerprint); err != nil {
			return err
		}
		fmt.Fprintln(p.stderr, "deleted; copies of the old file still have the key")
		return nil
	})
}

func (p *keystore) importKey(ctx context.Context, o *options) error {
	text, public, err := p.readKey(ctx, o.file)
	if err != nil {
		return err
	}
	defer clear(text)
	return p.withStore(ctx, o, func(store *sealedchat.KeyStore, _ *sealedchat.Secret) error {
		report, err := store.ImportPEM(ctx, text, nil)
		if errors.Is(err, sealedchat.ErrPassphrase) { // the file is encrypted
			report, err = p.importEncrypted(ctx, o, store, text)
		}
		// either file may be the wrong one
		if public != "" && errors.Is(err, sealedchat.ErrPrivateKey) {
			return fmt.Errorf("%s, with %s beside it: %w", o.file, public, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", o.file, err)
		}
		p.reportImport(o, report, public)
		return p.printPrimary(ctx, store)
	})
}

func (p *keystore) importEncrypted(ctx context.Context, o *options, store *sealedchat.KeyStore,
	text []byte) (*sealedchat.KeyInfo, error) {
	passphrase, err := p.passphrase(ctx, filePassword, "Passphrase of "+program.OneLine(o.file))
	if err != nil {
		return nil, err
	}
	defer passphrase.Destroy()
	report, err := store.ImportPEM(ctx, text, passphrase)
	if errors.Is(err, sealedchat.ErrPassphrase) {
		return nil, errors.New("wrong passphrase, or a damaged file")
	}
	return report, err
}

func (p *keystore) reportImport(o *options, r *sealedchat.KeyInfo, public string) {
	how := "not encrypted"
	if r.KDF != "" {
		how = fmt.Sprintf("encrypted under %s with %d iterations", r.KDF, r.Iterations)
	}
	file := program.OneLine(o.file)
	fmt.Fprintf(p.stderr, "imported the %d-bit key of %s: %s, %s\n", r.Bits, file, r.Format, how)
	if public != "" {
		fmt.Fprintf(p.stderr, "checked: %s is its public key\n", program.OneLine(public))
	}
	p.warnIfOpen(o.file)
	if r.Weak {
		fmt.Fprintf(p.stderr,
			"warning: %d iterations are few: whoever has a copy of %s can guess its passphrase "+
				"more cheaply than the key store's\n", r.Iterations, file)
	}
	fmt.Fprintf(p.stderr, "delete %s and its copies now: the key store does not need it\n", file)
}

func (p *keystore) exportKey(ctx context.Context, o *options) error {
	return p.withStore(ctx, o, func(store *sealedchat.KeyStore, _ *sealedchat.Secret) error {
		passphrase, err := p.newPassphrase(ctx, filePassword, "Passphrase for "+program.OneLine(o.out))
		if err != nil {
			return err
		}
		defer passphrase.Destroy()
		text, err := store.ExportPEM(ctx, o.fingerprint, passphrase)
		if err != nil {
			return err
		}
		if err := writeNew(o.out, text); err != nil {
			return err
		}
		fmt.Fprintf(p.stderr, "wrote %s; it is worth as much as its passphrase\n", program.OneLine(o.out))
		return nil
	})
}

func (p *keystore) passwd(ctx context.Context, o *options) error {
	return p.withStore(ctx, o, func(store *sealedchat.KeyStore, old *sealedchat.Secret) error {
		passphrase, err := p.newPassphrase(ctx, newStorePassword, "New passphrase of the key store")
		if err != nil {
			return err
		}
		defer passphrase.Destroy()
		if err := store.ChangePassphrase(ctx, old, passphrase); err != nil {
			return err
		}
		fmt.Fprintln(p.stderr,
			"changed; services that have the key store open must be started again before they "+
				"can save")
		fmt.Fprintln(p.stderr, "copies of the old file still open with the old passphrase")
		return nil
	})
}

func (p *keystore) seal(ctx context.Context, o *options) error {
	if p.isTerminal(p.stdout) {
		return program.WrongInput("seal: sealed data is binary: send standard output to a file or a pipe")
	}
	plaintext, err := p.read(ctx, o.file, sealedchat.MaxSealedData)
	if err != nil {
		return err
	}
	defer clear(plaintext)
	return p.withStore(ctx, o, func(store *sealedchat.KeyStore, _ *sealedchat.Secret) error {
		sealed, err := store.Seal(o.label, plaintext)
		if err != nil {
			return err
		}
		return p.write(sealed)
	})
}

func (p *keystore) open(ctx context.Context, o *options) error {
	sealed, err := p.read(ctx, o.file, maxSealed)
	if err != nil {
		return err
	}
	return p.withStore(ctx, o, func(store *sealedchat.KeyStore, _ *sealedchat.Secret) error {
		plaintext, err := store.Open(o.label, sealed)
		if errors.Is(err, sealedchat.ErrDecryption) {
			return fmt.Errorf("%w: sealed under another label or by another key store, or damaged",
				err)
		}
		if err != nil {
			return err
		}
		defer clear(plaintext)
		return p.write(plaintext)
	})
}

func (p *keystore) write(content []byte) error {
	if _, err := p.stdout.Write(content); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}
