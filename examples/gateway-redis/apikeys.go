// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"

	"github.com/seed-017344ad/sealedchat"
)

const maxKeyFile = 1 << 20

// readAPIKeys reads a file of API keys by the rules of examples/gateway: one per line. Empty lines
// and lines that begin with # are skipped.
func readAPIKeys(name string) (authenticate func(*http.Request) (string, error), err error) {
	content, err := readPrivate(name)
	if err != nil {
		return nil, usageError("-api-keys: " + err.Error())
	}
	defer clear(content)
	var keys []*sealedchat.Secret
	defer func() {
		for _, k := range keys { // AuthenticateKeys keeps digests
			k.Destroy()
		}
	}()
	number := 0
	for line := range bytes.Lines(content) {
		number++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key := sealedchat.NewSecret(line) // wipes it
		keys = append(keys, key)
		if _, err := sealedchat.AuthenticateKeys(key); err != nil {
			return nil, usageError(
				fmt.Sprintf("-api-keys: %s, line %d: want 1 to 4096 visible ASCII characters", name,
					number))
		}
	}
	if len(keys) == 0 {
		return nil, usageError("-api-keys: no keys in " + name)
	}
	return sealedchat.AuthenticateKeys(keys...)
}

// readPrivate reads a file that no other user may read or write. On Windows the mode does not say
// who may.
func readPrivate(name string) ([]byte, error) {
	if info, err := os.Stat(name); err != nil {
		return nil, err
		// checked first: opening could wait for the other end of a pipe
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
	content := make([]byte, maxKeyFile+1) // in one piece: growing would leave copies
	n, err := io.ReadFull(f, content)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return content[:n], nil
	case err == nil:
		clear(content)
		return nil, fmt.Errorf("%s has more than %d bytes", name, maxKeyFile)
	}
	clear(content)
	return nil, err
}
