// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"crypto/ecdh"
	"crypto/hpke"
	"reflect"

	"github.com/seed-017344ad/sealedchat/internal/erase"
)

// shared lists the types that all keys and contexts refer to in common, which must not be wiped.
var shared = [...]reflect.Type{reflect.TypeFor[hpke.KEM](), reflect.TypeFor[hpke.KDF](),
	reflect.TypeFor[hpke.AEAD](), reflect.TypeFor[ecdh.Curve]()}

// wipe clears the numbers of an hpke.PrivateKey, the nonce and the key schedule of an hpke.Sender
// or hpke.Recipient, and the key schedule of a GCM. It cannot reach values inside a closure, such
// as the exporter secret of HPKE. The caller must not use v again.
func wipe(v any) { erase.Wipe(v, shared[:]...) }
