// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"crypto/ecdh"
	"crypto/hpke"
	"reflect"
	"unsafe"
)

// wipe clears the arrays and slices of integers that v reaches through pointers, structs and interfaces, whatever their
// names: the numbers of an hpke.PrivateKey, the nonce and the key schedule of an hpke.Sender, the key schedule of a GCM.
// What hides in a closure, such as HPKE's exporter secret, is out of reach. v must not be used again.
func wipe(v any) { wipeValue(reflect.ValueOf(v), 0) }

var shared = [...]reflect.Type{reflect.TypeFor[hpke.KEM](), reflect.TypeFor[hpke.KDF](), reflect.TypeFor[hpke.AEAD](), reflect.TypeFor[ecdh.Curve]()}

func wipeValue(v reflect.Value, depth int) {
	if !v.IsValid() || depth > 16 {
		return
	}
	for _, t := range shared {
		if v.Type().Implements(t) { // one for all keys
			return
		}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		wipeValue(v.Elem(), depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			wipeValue(v.Field(i), depth+1)
		}
	case reflect.Slice:
		if isPlain(v.Type().Elem()) {
			clear(unsafe.Slice((*byte)(v.UnsafePointer()), v.Len()*int(v.Type().Elem().Size())))
		}
	case reflect.Array:
		if v.CanAddr() && isPlain(v.Type()) {
			clear(unsafe.Slice((*byte)(unsafe.Pointer(v.UnsafeAddr())), v.Type().Size()))
		}
	}
}

// isPlain tells whether a type is made of integers alone, so that zero bytes are safe.
func isPlain(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Array:
		return isPlain(t.Elem())
	case reflect.Struct:
		for i := range t.NumField() {
			if !isPlain(t.Field(i).Type) {
				return false
			}
		}
		return true
	}
	return t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64
}
