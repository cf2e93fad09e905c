// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/hpke"
	"reflect"
	"testing"
)

// TestContextOf checks that a sealer does what the context does from which it was taken, chunk by
// chunk, and that wiping reaches it. If it fails, crypto/hpke has changed its form.
func TestContextOf(t *testing.T) {
	for name, kdf := range map[string]hpke.KDF{"HKDF": hpke.HKDFSHA256(),
		"SHAKE": hpke.SHAKE256()} {
		k, err := hpke.MLKEM768X25519().GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		enc, sender, err := hpke.NewSender(k.PublicKey(), kdf, hpke.AES256GCM(), nil)
		if err != nil {
			t.Fatal(err)
		}
		recipients := make([]*hpke.Recipient, 2)
		for i := range recipients {
			if recipients[i], err = hpke.NewRecipient(enc, k, kdf, hpke.AES256GCM(), nil); err != nil {
				t.Fatal(err)
			}
		}
		sealing, opening := contextOf(sender, nil), contextOf(nil, recipients[0])
		if sealing == nil || opening == nil {
			t.Fatalf("%s: crypto/hpke has another shape", name)
		}
		for i := range 300 { // the counter goes into a second byte
			plain, final := bytes.Repeat([]byte{byte(i)}, i), i%2 == 1
			sealed, err := sealing.seal([]byte("before"), plain, final)
			if err != nil || !bytes.HasPrefix(sealed, []byte("before")) {
				t.Fatal(name, i, err)
			}
			chunk := sealed[len("before"):]
			if got, err := recipients[1].Open(aad(final), chunk); err != nil ||
				!bytes.Equal(got, plain) {
				t.Fatalf("%s: chunk %d does not open: %v", name, i, err)
			}
			if got, err := opening.open(chunk, final); err != nil || !bytes.Equal(got, plain) ||
				i > 0 && &got[0] != &chunk[0] {
				t.Fatalf("%s: chunk %d does not open in place: %v", name, i, err)
			}
		}
		if got, err := opening.open(make([]byte, 40), false); err == nil {
			t.Errorf("%s: what nobody sealed opens: %x", name, got)
		}
		for _, x := range []*sealer{sealing, opening} {
			if x.wipe(); !isZero(numbers(reflect.ValueOf(x.gcm), 0)) || !isZero(x.nonce[:]) {
				t.Errorf("%s: numbers are left", name)
			}
		}
	}
}

// TestContextOfUsed checks that a context that has sealed something has no sealer beside it, which
// would begin with the same nonce again.
func TestContextOfUsed(t *testing.T) {
	k, err := hpke.MLKEM768X25519().GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	_, sender, err := hpke.NewSender(k.PublicKey(), hpke.HKDFSHA256(), hpke.AES256GCM(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sender.Seal(nil, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if contextOf(sender, nil) != nil {
		t.Error("a nonce can be used twice")
	}
	_, sender, err = hpke.NewSender(k.PublicKey(), hpke.HKDFSHA256(), hpke.ExportOnly(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if contextOf(sender, nil) != nil {
		t.Error("a context that seals nothing has a sealer")
	}
}
