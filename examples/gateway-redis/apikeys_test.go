// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// The file of API keys is read as examples/gateway reads it.
func TestReadAPIKeys(t *testing.T) {
	write := func(text string, mode os.FileMode) string {
		file := filepath.Join(t.TempDir(), "api-keys")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	authenticate, err := readAPIKeys(write("# of the day\n key-one \n\n#revoked-key\r\nkey#two\n",
		0o600))
	if err != nil {
		t.Fatal(err)
	}
	for key, served := range map[string]bool{
		"key-one": true, "key#two": true, "#revoked-key": false, "revoked-key": false,
		"# of the day": false, "": false,
	} {
		r, err := http.NewRequest(http.MethodPost, "/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+key)
		if _, err := authenticate(r); (err == nil) != served {
			t.Errorf("%q: %v", key, err)
		}
	}
	for name, c := range map[string]struct{ file, want string }{
		"nothing":      {write("", 0o600), "no keys"},
		"comments":     {write("#one\n\n", 0o600), "no keys"},
		"two words":    {write("key-one\nkey two\n", 0o600), "line 2"},
		"too large":    {write(strings.Repeat("k\n", maxKeyFile), 0o600), "has more than"},
		"a folder":     {t.TempDir(), "not a regular file"},
		"missing":      {filepath.Join(t.TempDir(), "none"), "-api-keys"},
		"others read":  {write("key-one\n", 0o644), "chmod 600"},
		"others write": {write("key-one\n", 0o602), "chmod 600"},
		"a group":      {write("key-one\n", 0o640), "chmod 600"},
	} {
		if c.want == "chmod 600" && runtime.GOOS == "windows" {
			continue
		}
		_, err := readAPIKeys(c.file)
		if _, ok := errors.AsType[usageError](err); !ok || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
