// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"time"
)

// Rotation says when the primary RSA key of a store is replaced, and when a gateway's key
// configurations for Oblivious HTTP are. New keys are generated in the background while the old
// ones go on working, so no request waits for them; a request ends with the key that it began with.
// A program that ends sooner than an RSA key is made (up to 3.5 s) calls [KeyStore.Rotate] to have
// it.
//
// Processes that share a store have to agree: the shortest times win, since the first process that
// finds a key whose time is over replaces it, or takes it out of the file. At most 128 keys of a
// kind are kept; with so many still in their grace nothing is rotated.
type Rotation struct {
	// Every is the age at which an RSA key is replaced, counted from when it came into use.
	// 0 = 24 h; negative = never by age.
	Every time.Duration
	// AfterRequests replaces an RSA key after so many requests of this process; those over
	// Oblivious HTTP do not count. 0 = never by number.
	AfterRequests int64
	// Grace is how long a replaced RSA key still opens requests: for gateways, whose clients keep
	// the old key for up to an hour. Afterwards it is wiped, from the file too. 0 = 2 h; negative =
	// none, right for stores that only clients use.
	Grace time.Duration
	// ConfigEvery is the age at which key configurations are replaced, under the same signer. They
	// open requests for one hour and five minutes more, since clients keep a list for an hour; then
	// they are wiped, from the file too. So a configuration's key that is stolen opens the requests
	// of two hours. 0 = 1 h, or never if Every is negative; negative = never by age; otherwise at
	// least 2 minutes.
	ConfigEvery time.Duration
}

// Rotate replaces the primary key now, by that of [KeyStore.Next] if there is one, and a gateway's
// key configurations for Oblivious HTTP, and returns when the new ones are in use and, with a file,
// on the disk. Callers that come while a rotation is under
// way share it. When it fails, the old key stays in use; only with [ErrUnconfirmed], or [ErrAudit]
// after the fact, the new one is. [ErrTooLarge]: 128 keys are still in their grace. Other errors
// are those of [KeyStore].
func (s *KeyStore) Rotate(ctx context.Context) error { return s.store.Rotate(ctx) }

// Next is the public half of the RSA key that the next rotation puts in use, whether by Rotate or
// in the background, in this process or in another one of the same file. Next makes it if there is
// none yet, and does not change it afterwards. It is for clients of protocol v1 that pin: tell them
// its fingerprint, have them pin both ([Pin] takes several), and rotate when they do. It opens
// nothing before it is in use: a message that is sealed to it earlier is [ErrDecryption], or status
// 400 of a [Gateway]. [KeyStore.Keys] lists it behind the primary key, with a zero Activated,
// [Gateway.Keys] does not. [KeyStore.Delete] takes it back, if the fingerprint is not wanted any
// more. [KeyStore.ExportPEM] writes it as well, for a store elsewhere that imports it on the day of
// the rotation.
//
// [ErrUnconfirmed], and [ErrAudit] after the fact, come with the key, which stands. [ErrTooLarge]:
// 128 keys are still in their grace. Other errors are those of [KeyStore]. Where the key is there,
// nothing is written.
func (s *KeyStore) Next(ctx context.Context) (*PublicKey, error) {
	key, err := s.store.Next(ctx)
	if key == nil {
		return nil, err
	}
	return publicKeyOf(key), err
}

// RotationError is the error of the last rotation in the background, until one succeeds: nil when
// all is well. A rotation that failed is tried again after a minute, later after up to an hour.
func (s *KeyStore) RotationError() error { return s.store.RotationError() }
