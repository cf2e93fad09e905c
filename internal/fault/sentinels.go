// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package fault has the errors that every room of the module speaks of: the values behind the
// sentinels of package sealedchat, which documents each, and the types that keep a peer's words out
// of an error's text.
package fault

import "errors"

// The sentinels. Package sealedchat exports each under the same name and says when it is returned.
var (
	ErrInvalidRequest      = errors.New("sealedchat: invalid request")
	ErrAuthentication      = errors.New("sealedchat: authentication failed")
	ErrPermission          = errors.New("sealedchat: permission denied")
	ErrNotFound            = errors.New("sealedchat: not found")
	ErrRateLimited         = errors.New("sealedchat: rate limited")
	ErrServer              = errors.New("sealedchat: server error")
	ErrUnavailable         = errors.New("sealedchat: service unavailable")
	ErrConnection          = errors.New("sealedchat: connection failed")
	ErrTruncated           = errors.New("sealedchat: the answer was cut short")
	ErrInsecureURL         = errors.New("sealedchat: insecure URL")
	ErrEnvelope            = errors.New("sealedchat: malformed envelope")
	ErrDecryption          = errors.New("sealedchat: decryption failed")
	ErrResponseSchema      = errors.New("sealedchat: the answer is not a chat completion")
	ErrReplay              = errors.New("sealedchat: replayed answer")
	ErrTierDowngrade       = errors.New("sealedchat: security tier is lower than asked for")
	ErrTooLarge            = errors.New("sealedchat: too large")
	ErrPublicKey           = errors.New("sealedchat: unusable public key")
	ErrPassphrase          = errors.New("sealedchat: wrong passphrase or damaged key store")
	ErrPrivateKey          = errors.New("sealedchat: unusable private key")
	ErrKeyStoreExists      = errors.New("sealedchat: there is a key store already")
	ErrKeyStoreDamaged     = errors.New("sealedchat: damaged key store")
	ErrInsecurePermissions = errors.New("sealedchat: insecure permissions")
	ErrLocked              = errors.New("sealedchat: locked by another process")
	ErrLockLost            = errors.New("sealedchat: lock lost")
	ErrUnconfirmed         = errors.New("sealedchat: saved, but not confirmed")
	ErrMemoryLimit         = errors.New("sealedchat: memory cannot be locked")
	ErrAudit               = errors.New("sealedchat: not audited")
	ErrAuditTampered       = errors.New("sealedchat: audit log changed")
	ErrAuditTorn           = errors.New("sealedchat: the audit log's last line is unfinished")
	ErrClosed              = errors.New("sealedchat: closed")
)
