// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package ohttp encapsulates binary HTTP messages for Oblivious HTTP, over crypto/hpke: key
// configurations (RFC 9458), and requests and responses in chunks
// (draft-ietf-ohai-chunked-ohttp-08). It also has the names on which both ends agree, and the
// signature of a list of key configurations.
//
// A client calls [NewRequest] for a [Config], seals one message with [Request.Seal] or
// [Request.Writer], and opens the answer with [Request.Response]. A gateway calls [Open] for each
// request with its [Keys], reads the message through [Exchange.Request], and answers through
// [Exchange.Response]. An answer opens only for the request that it answers.
//
// The key encapsulation is X-Wing (ML-KEM-768 and X25519) or X25519. The rest of the suite is
// HKDF-SHA256 with AES-256-GCM, or with AES-128-GCM where a configuration offers no other. With
// GODEBUG=fips140=only, X25519 alone counts as unknown.
//
// PrivateKey and Config are safe for concurrent use. Every other type is for one goroutine at a
// time; a Request and the Reader of its answer may each have a goroutine of their own, and so may
// an Exchange, its Reader and its Writer.
package ohttp

import (
	"crypto/fips140"
	"crypto/hpke"
	"errors"
	"io"
)

// Media types of key configurations, requests and responses.
const (
	TypeKeys     = "application/ohttp-keys"
	TypeRequest  = "message/ohttp-chunked-req"
	TypeResponse = "message/ohttp-chunked-res"
)

var (
	// ErrUnknownKey says that a request is for a key, or a suite, that the gateway does not have.
	ErrUnknownKey = errors.New("ohttp: request for an unknown key")
	// ErrDecryption says that a chunk does not open: it was altered, moved or cut, or it is for
	// another key or another request. A gateway must not tell a client which of ErrDecryption and
	// ErrUnknownKey it met.
	ErrDecryption = errors.New("ohttp: decryption failed")
	// ErrTruncated says that a message ended before its final chunk.
	ErrTruncated = errors.New("ohttp: message is cut short")
	// ErrTooLarge says that a chunk is larger than the reader accepts.
	ErrTooLarge = errors.New("ohttp: chunk is too large")
	// ErrEmptyChunk says that a chunk other than the final one holds nothing.
	ErrEmptyChunk = errors.New("ohttp: empty chunk before the final one")
	// ErrTooMany says that a message has more chunks than one key may seal.
	ErrTooMany = errors.New("ohttp: too many chunks")
	// ErrUsed says that a caller used something a second time that works once, or used it after
	// Close.
	ErrUsed = errors.New("ohttp: used already, or closed")
	// ErrConfig says that a list of key configurations is malformed.
	ErrConfig = errors.New("ohttp: malformed key configuration")
	// ErrNoSuite says that this package does not support the suite of any key configuration.
	ErrNoSuite = errors.New("ohttp: no key configuration that is supported here")
)

// The identifiers of RFC 9180 and draft-ietf-hpke-pq.
const (
	XWing  uint16 = 0x647a // MLKEM768-X25519
	X25519 uint16 = 0x0020 // DHKEM(X25519, HKDF-SHA256)

	kdfHKDFSHA256 uint16 = 0x0001
)

// kem holds the sizes of a KEM, which crypto/hpke knows and does not export.
type kem struct {
	id                uint16
	new               func() hpke.KEM
	public, enc, seed int // Npk, Nenc, Nsk in bytes
}

// kems lists the KEMs, the preferred one first.
var kems = [...]*kem{
	{XWing, hpke.MLKEM768X25519, 1216, 1120, 32},
	{X25519, func() hpke.KEM { k, _ := hpke.NewKEM(X25519); return k }, 32, 32, 32},
}

// kemByID returns nil for a KEM that is not supported.
func kemByID(id uint16) *kem {
	for _, k := range kems {
		if k.id == id && (id != X25519 || !fips140.Enforced()) {
			return k
		}
	}
	return nil
}

// aead holds the sizes of an AEAD, which crypto/hpke knows and does not export. Both have nonces of
// 12 bytes.
type aead struct {
	id  uint16
	new func() hpke.AEAD
	key int // Nk in bytes: at least 12, so also the length of the response's nonce
}

var (
	aes256 = &aead{0x0002, hpke.AES256GCM, 32}
	aes128 = &aead{0x0001, hpke.AES128GCM, 16}
)

// aeads lists the AEADs, the preferred one first.
var aeads = [...]*aead{aes256, aes128}

const (
	nonceSize = 12
	tagSize   = 16
	headerLen = 7 // key id, KEM, KDF and AEAD

	// Overhead is how many bytes sealing adds to a chunk: the tag. The length comes on top.
	Overhead = tagSize

	// MaxChunk is the most plaintext that a writer puts into one chunk. Every reader accepts chunks
	// of this size.
	MaxChunk = 16384
	// maxChunks bounds the chunks of a message: no counter comes near its end, and no key near the
	// limits of GCM.
	maxChunks = 1 << 32
)

// labels keep the chunked form of a message apart from the single one.
type labels struct{ request, response string }

var (
	chunked = labels{"message/bhttp chunked request", "message/bhttp chunked response"}
	single  = labels{"message/bhttp request", "message/bhttp response"}
)

// info is the HPKE info of a request (RFC 9458, section 4.3).
func (l labels) info(header []byte) []byte {
	return append(append([]byte(l.request), 0), header...)
}

// aad is the additional data of a chunk.
func aad(final bool) []byte {
	if final {
		return []byte("final")
	}
	return nil
}

// cut turns an error of the stream below into one of the message.
func cut(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrTruncated
	}
	return &streamError{err}
}

// streamError is ErrTruncated with a cause.
type streamError struct{ cause error }

func (e *streamError) Error() string   { return ErrTruncated.Error() + ": " + e.cause.Error() }
func (e *streamError) Unwrap() []error { return []error{ErrTruncated, e.cause} }
