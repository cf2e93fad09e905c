// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
)

// read reads a file, or standard input for "", of at most limit bytes. The caller wipes the result.
func (p *program) read(ctx context.Context, name string, limit int) ([]byte, error) {
	var from io.Reader = p.stdin
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

// readAll is io.ReadAll with a limit, and leaves no copies behind when it grows.
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

// warnIfOpen tells when others could read a file that has a key. On Windows who may is not in the mode.
func (p *program) warnIfOpen(name string) {
	info, err := os.Stat(name)
	if err == nil && info.Mode().Perm()&0o077 != 0 && runtime.GOOS != "windows" {
		fmt.Fprintf(p.stderr, "warning: others may use %s (mode %04o)\n", oneLine(name), info.Mode().Perm())
	}
}

// writeNew makes a file that only its owner may use. It writes to nothing that exists, not through a link either.
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
