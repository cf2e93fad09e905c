// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// read reads a file, or standard input for "", of at most limit bytes. The caller wipes the result.
func (p *keystore) read(ctx context.Context, name string, limit int) ([]byte, error) {
	from := p.stdin
	if name != "" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from = f
	} else {
		name = "standard input"
	}
	content, err := interruptible(ctx, func() ([]byte, error) { return readAll(from, limit) })
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	return content, nil
}

// readKey reads a PEM file and appends the public key from the file beside it, so that the package
// checks that they belong together. public is the name of that file, or "" if there is none. The
// caller wipes the text.
func (p *keystore) readKey(ctx context.Context, name string) (text []byte, public string,
	err error) {
	private, err := p.read(ctx, name, maxKeyFile)
	if err != nil {
		return nil, "", err
	}
	key, public, err := p.publicBeside(ctx, name)
	if err != nil {
		clear(private)
		return nil, "", err
	}
	if key == nil {
		return private, "", nil
	}
	// The appended text is the key as the package writes it: the text of the file could hide the
	// key from the check.
	text = slices.Concat(private, []byte("\n"), key.PEM())
	clear(private)
	return text, public, nil
}

// publicBeside reads the file public_key.pem that the Python and the JavaScript client write beside
// the private key. The key is nil if there is no such file, or if it is the file name itself.
func (p *keystore) publicBeside(ctx context.Context, name string) (*sealedchat.PublicKey, string,
	error) {
	public := filepath.Join(filepath.Dir(name), "public_key.pem")
	info, err := os.Stat(public)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	if self, err := os.Stat(name); err == nil && os.SameFile(info, self) {
		return nil, "", nil
	}
	if !info.Mode().IsRegular() { // reading could wait for the other end of a pipe
		return nil, "", fmt.Errorf("%s is not a regular file; move it away to import %s without it",
			public, name)
	}
	text, err := p.read(ctx, public, maxKeyFile)
	if err != nil {
		return nil, "", err
	}
	key, err := sealedchat.ParsePublicKey(text)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w; move it away to import %s without it", public, err,
			name)
	}
	return key, public, nil
}

// readAll is io.ReadAll with a limit. It wipes the memory that it outgrows.
func readAll(r io.Reader, limit int) ([]byte, error) {
	content := make([]byte, 0, min(limit, 64<<10)+1)
	for {
		n, err := r.Read(content[len(content):cap(content)])
		content = content[:len(content)+n]
		switch {
		case len(content) > limit:
			err = fmt.Errorf("more than %d bytes", limit)
		case errors.Is(err, io.EOF):
			return content, nil
		}
		if err != nil {
			clear(content)
			return nil, err
		}
		if len(content) == cap(content) {
			grown := make([]byte, len(content), min(2*len(content), limit+1))
			copy(grown, content)
			clear(content)
			content = grown
		}
	}
}

// warnIfOpen warns if others could read a file that has a key. On Windows the mode does not say who
// may.
func (p *keystore) warnIfOpen(name string) {
	info, err := os.Stat(name)
	if err == nil && info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows" {
		fmt.Fprintf(p.stderr, "warning: others may use %s (mode %04o)\n", program.OneLine(name),
			info.Mode().Perm())
	}
}

// writeNew makes a file that only its owner may use. It never writes to a file that exists, not
// even through a link.
func writeNew(name string, content []byte) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already, and is not overwritten", name)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		_ = os.Remove(name)
	}
	return err
}
