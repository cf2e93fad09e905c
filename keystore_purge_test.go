// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/awnumar/memguard"

	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// A program that has memguard destroy its buffers gets errors from a gateway's key store, in a process of its own, which a
// fault would end.
func TestPurgedKeyStore(t *testing.T) {
	testkit.NeedLocked(t, 256<<10)
	if out, err := child(t, "purged", storeDir(t), "").Output(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func childPurged(t *testing.T, dir, _ string) {
	ephemeral, _ := weakStore(t, nil)
	file, _ := createWeak(t, dir, nil)
	untouched, _ := weakStore(t, nil) // only to be closed
	_ = listedIDs(t, untouched)
	type user struct {
		store  *KeyStore
		rig    *rig
		sealed *fakes.Sealed
	}
	var users []user
	for _, s := range []*KeyStore{ephemeral, file} {
		r := newRig(t, func(c *GatewayConfig) { c.Keys = s })
		if w := r.Do(httptest.NewRequest(http.MethodGet, ohttp.Path, nil)); w.Code != http.StatusOK {
			t.Fatal(w.Code)
		}
		users = append(users, user{s, r, fakes.SealFor(t, r.KeyConfig(), fakes.Inner{}.Encode(t))})
	}
	memguard.Purge()
	_ = untouched.Close()
	for _, u := range users {
		if w := u.rig.Send(u.sealed); w.Code != http.StatusServiceUnavailable {
			t.Errorf("a request: %d", w.Code)
		}
		if w := u.rig.Do(httptest.NewRequest(http.MethodGet, ohttp.Path, nil)); w.Code != http.StatusServiceUnavailable {
			t.Errorf("the list: %d", w.Code)
		}
		for id := range uint8(2) {
			if u.store.store.ConfigKey(t.Context(), id, keystore.KEMs[id]) != nil {
				t.Errorf("key %d is there", id)
			}
		}
		_, list := u.store.store.Configs(t.Context())
		_, signer := u.store.store.Signer()
		_, signature := u.store.store.SignList([]byte("list"), time.Now())
		_, private := u.store.store.SignList([]byte("another"), time.Now())
		_, keys := u.rig.g.Keys(t.Context())
		for what, err := range map[string]error{
			"Configs": list, "Signer": signer, "SignList": signature, "SignList of another": private, "Gateway.Keys": keys,
			"Rotate": u.store.Rotate(t.Context()),
		} {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := u.store.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
}
