// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

// TestAdviceHarmsNobody follows each way to a folder of which others need something: no error
// advises a command that takes it away from them, and what does not exist is reported first.
func TestAdviceHarmsNobody(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("modes are for Unix systems")
	}
	keys, _ := createWeak(t, storeDir(t), nil)
	stored, err := os.ReadFile(filepath.Join(keys.folder().Path(), "keystore.json"))
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`chmod|chown|fix it with|\brm\b`)
	for what, mode := range map[string]os.FileMode{"readable": 0o755, "sticky": 0o777 | os.ModeSticky,
		"of a group": 0o775 | os.ModeSetgid} {
		dir := filepath.Join(t.TempDir(), "shared")
		log := filepath.Join(dir, "audit.log")
		theirs := filepath.Join(dir, "theirs")
		if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(theirs, nil, 0o644), os.Chmod(dir,
			mode)); err != nil {
			t.Fatal(err)
		}
		ways := map[string]func() error{
			"create a store": func() error {
				_, err := CreateKeyStore(t.Context(), dir, secret(t, passphrase), nil)
				return err
			},
			"open a store": func() error { _, err := tryWeak(t, dir, passphrase, nil); return err },
			"open an audit log": func() error {
				_, err := OpenAuditLog(t.Context(), log, keys,
					nil)
				return err
			},
			"verify a log": func() error { return verifyError(t, log, keys) },
		}
		check := func(want error, names ...string) {
			t.Helper()
			for _, name := range names {
				err := ways[name]()
				if !errors.Is(err, want) || command.MatchString(err.Error()) {
					t.Errorf("%s, %s: %v", what, name, err)
				}
				if want == ErrInsecurePermissions && !strings.Contains(err.Error(), "use a folder of its own") {
					t.Errorf("%s, %s: %v gives no advice", what, name, err)
				}
			}
		}
		check(ErrInsecurePermissions, "create a store", "open an audit log")
		check(fs.ErrNotExist, "open a store", "verify a log")
		writeLog(t, filepath.Join(dir, "keystore.json"), stored)
		writeLog(t, log, nil)
		check(ErrInsecurePermissions, "open a store", "open an audit log", "verify a log")
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != mode.Perm() {
			t.Errorf("%s: %v, %v", what, info, err)
		}
	}
}

func verifyError(t *testing.T, path string, keys *KeyStore) error {
	_, err := VerifyAuditLog(t.Context(), path, keys, "")
	return err
}
