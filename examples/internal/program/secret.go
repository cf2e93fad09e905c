// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/seed-017344ad/sealedchat"
)

// Secret returns the content of the file that the variable with _FILE behind its name names, or
// else of the variable itself; nil for neither. A secret is never a flag: everybody on the machine
// can see those. The environment keeps its copy, which nothing can wipe. The caller destroys it.
func Secret(env func(string) string, variable string) (*sealedchat.Secret, error) {
	if file := env(variable + "_FILE"); file != "" {
		secret, err := sealedchat.ReadSecret(file)
		if err != nil {
			return nil, WrongInput("%s_FILE: %w", variable, err)
		}
		return secret, nil
	}
	if text := env(variable); text != "" {
		return sealedchat.NewSecret([]byte(text)), nil
	}
	return nil, nil
}

// ReadPrivate reads a file of at most limit bytes that no other user may read or write. On Windows
// the mode does not say who may. The caller wipes the content.
func ReadPrivate(name string, limit int) ([]byte, error) {
	// checked first: opening could wait for the other end of a pipe
	if info, err := os.Stat(name); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("others may use %s (mode %04o): chmod 600 it", name, mode)
	}
	content := make([]byte, limit+1) // in one piece: growing would leave copies
	n, err := io.ReadFull(f, content)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return content[:n], nil
	case err == nil:
		err = fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	clear(content)
	return nil, err
}

// PrivateSecret is the content of a file that ReadPrivate reads, without line breaks at its end.
// The caller destroys it.
func PrivateSecret(name string, limit int) (*sealedchat.Secret, error) {
	content, err := ReadPrivate(name, limit)
	if err != nil {
		return nil, err
	}
	defer clear(content)
	text := bytes.TrimRight(content, "\r\n")
	if len(text) == 0 {
		return nil, fmt.Errorf("%s is empty", name)
	}
	return sealedchat.NewSecret(text), nil
}

const maxKeyFile = 1 << 20 // bytes of a file of API keys

// KeyLines reads a private file that has one entry per line, and calls f with each. It skips empty
// lines and lines that begin with #. f must not keep the bytes.
func KeyLines(name string, f func(number int, line []byte) error) error {
	content, err := ReadPrivate(name, maxKeyFile)
	if err != nil {
		return err
	}
	defer clear(content)
	number := 0
	for line := range bytes.Lines(content) {
		number++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if err := f(number, line); err != nil {
			return fmt.Errorf("%s, line %d: %w", name, number, err)
		}
	}
	return nil
}
