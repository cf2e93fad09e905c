// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"crypto/ecdh"
	"crypto/hpke"
	"reflect"

	"github.com/seed-017344ad/sealedchat/internal/erase"
)

// shared is what keys and contexts refer to and have in common with all others.
var shared = [...]reflect.Type{reflect.TypeFor[hpke.KEM](), reflect.TypeFor[hpke.KDF](),
	reflect.TypeFor[hpke.AEAD](), reflect.TypeFor[ecdh.Curve]()}

// wipe clears the numbers of an hpke.PrivateKey, the nonce and the key schedule of an hpke.Sender,
// the key schedule of a GCM. What hides in a closure, such as HPKE's exporter secret, is out of
// reach. v must not be used again.
func wipe(v any) { erase.Wipe(v, shared[:]...) }
