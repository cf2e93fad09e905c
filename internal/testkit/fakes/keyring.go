// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fakes

import (
	"slices"
	"sync"

	"github.com/seed-017344ad/sealedchat/internal/keystore"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// KeyRing is the keys of a [Gateway].
type KeyRing struct {
	mu   sync.Mutex
	made uint8
	keys []*ohttp.PrivateKey // the last one is the newest
}

// Key implements the keys of internal/ohttp.
func (r *KeyRing) Key(id uint8, kem uint16) *ohttp.PrivateKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.keys {
		if k.Config().ID() == id && k.Config().KEM() == kem {
			return k
		}
	}
	return nil
}

// Add makes a key.
func (r *KeyRing) Add(kem uint16) (*ohttp.PrivateKey, error) {
	return r.add(kem, ohttp.NewPrivateKey)
}

// AddAES128 makes a key whose configuration offers AES-128-GCM beside AES-256-GCM.
func (r *KeyRing) AddAES128(kem uint16) (*ohttp.PrivateKey, error) {
	return r.add(kem, ohttp.NewPrivateKeyAES128)
}

func (r *KeyRing) add(kem uint16, from func(uint8, uint16, []byte) (*ohttp.PrivateKey, error)) (
	*ohttp.PrivateKey, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	seed, err := ohttp.NewSeed(kem)
	if err != nil {
		return nil, err
	}
	k, err := from(r.made, kem, seed)
	if err == nil {
		r.made++
		r.keys = append(r.keys, k)
	}
	return k, err
}

// Configs lists X-Wing first, and of each KEM the newest.
func (r *KeyRing) Configs() (configs []*ohttp.Config) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, kem := range keystore.KEMs {
		for _, k := range slices.Backward(r.keys) {
			if k.Config().KEM() == kem {
				configs = append(configs, k.Config())
			}
		}
	}
	return configs
}

// ForgetOthers wipes all keys but the newest.
func (r *KeyRing) ForgetOthers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	last := len(r.keys) - 1
	for _, k := range r.keys[:last] {
		k.Close()
	}
	r.keys = slices.Clone(r.keys[last:])
}

// Close wipes the keys.
func (r *KeyRing) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.keys {
		k.Close()
	}
	r.keys = nil
}
