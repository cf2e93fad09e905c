// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

// accounts are the clients that a file of API keys names. load may read it again while requests
// come.
type accounts struct {
	file   string
	now    atomic.Pointer[accountList]
	before []string // the names of the list before; load alone uses it, and gone
}

// accountList is what a file said at one time. It is never changed.
type accountList struct {
	names        []string // of each key, in the order of the file
	authenticate func(*http.Request) (string, error)
}

// load reads the file. After an error what was read before stays.
func (a *accounts) load() error {
	list, err := readAccounts(a.file)
	if err != nil {
		return err
	}
	if last := a.now.Swap(list); last != nil {
		a.before = last.names
	}
	return nil
}

// gone returns the names that the last load took away. It is for who calls load.
func (a *accounts) gone() (names []string) {
	for _, name := range a.before {
		if !a.has(name) {
			names = append(names, name)
		}
	}
	return names
}

// Authenticate is GatewayConfig.Authenticate: it names the account of a request's key.
func (a *accounts) Authenticate(r *http.Request) (string, error) {
	list := a.now.Load()
	number, err := list.authenticate(r) // compares in constant time: "key-3" is the third
	if err != nil {
		return "", err
	}
	i, err := strconv.Atoi(strings.TrimPrefix(number, "key-"))
	if err != nil || i < 1 || i > len(list.names) {
		return "", sealedchat.ErrAuthentication
	}
	return list.names[i-1], nil
}

// has reports whether a key of the file belongs to an account.
func (a *accounts) has(name string) bool { return slices.Contains(a.now.Load().names, name) }

// readAccounts reads a private file with a key on each line, or a name and a key. A key without a
// name has its number among the keys: "key-1". A key stands once, or it would have two accounts,
// and no name is both given and made.
func readAccounts(file string) (*accountList, error) {
	list := &accountList{}
	var keys []*sealedchat.Secret
	defer func() {
		for _, k := range keys { // AuthenticateKeys keeps digests
			k.Destroy()
		}
	}()
	lines, given := make(map[[sha256.Size]byte]int), make(map[string]bool)
	err := program.KeyLines(file, func(number int, line []byte) error {
		words := bytes.Fields(line)
		name := "key-" + strconv.Itoa(len(keys)+1)
		if len(words) == 2 {
			if name = string(words[0]); !validName(name) {
				return errors.New("a name has 1 to 64 letters, digits and \"._-@\"")
			}
		}
		if len(words) > 2 {
			return errors.New("want a key, or a name and a key")
		}
		if was, ok := given[name]; ok && was != (len(words) == 2) {
			return errors.New(name + " is the name of a key without one, too: give that a name")
		}
		given[name] = len(words) == 2
		digest := sha256.Sum256(words[len(words)-1])
		if first := lines[digest]; first != 0 {
			return fmt.Errorf("the key of line %d again: each key has one account", first)
		}
		lines[digest] = number
		key := sealedchat.NewSecret(words[len(words)-1]) // wipes it
		keys, list.names = append(keys, key), append(list.names, name)
		if _, err := sealedchat.AuthenticateKeys(key); err != nil {
			return errors.New("want 1 to 4096 visible ASCII characters")
		}
		return nil
	})
	if err == nil && len(keys) == 0 {
		err = errors.New("no keys in " + file)
	}
	if err == nil {
		list.authenticate, err = sealedchat.AuthenticateKeys(keys...)
	}
	if err != nil {
		return nil, program.WrongInput("-api-keys: %w", err)
	}
	return list, nil
}

func validName(name string) bool {
	return len(name) <= 64 && !strings.ContainsFunc(name, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') &&
			!strings.ContainsRune("._-@", c)
	})
}
