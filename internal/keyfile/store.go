// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"bytes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// MaxStoreSize is the size of the largest keystore file that the package reads or writes, in bytes.
const MaxStoreSize = 16 << 20

const (
	saltSize      = 32
	masterKeySize = 32

	storeFormat  = "sealedchat-keystore"
	storeVersion = 1
	storeKDF     = "PBKDF2-HMAC-SHA256"
	storeCipher  = "AES-256-GCM"
	storeInfo    = "sealedchat keystore v1 body"

	// The body is the last member, so that the text before it can be authenticated as it stands.
	bodyMember = "\n  \"body\": \""
	storeTail  = "\"\n}\n"
	maxHead    = 1 << 10
)

// Header is the part of a keystore file that can be read without the passphrase. The encryption of
// the body authenticates it.
type Header struct {
	Iterations int            // of PBKDF2-HMAC-SHA256
	KDFSalt    [saltSize]byte // for PBKDF2; changes with the passphrase
	BodySalt   [saltSize]byte // for HKDF; changes with each write
}

// File is a keystore file whose body is still sealed.
type File struct {
	Header
	head   []byte // the bytes before the body
	sealed []byte // nonce ‖ ciphertext ‖ tag
}

// jsonHeader is the JSON form of a Header.
type jsonHeader struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	KDF     struct {
		Name       string `json:"name"`
		Iterations int    `json:"iterations"`
		Salt       []byte `json:"salt"`
	} `json:"kdf"`
	Cipher string `json:"cipher"`
	Salt   []byte `json:"salt"`
}

// encode returns the text of a keystore file before the base64 of the body.
func (h *Header) encode() []byte {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `{
  "format": %q,
  "version": %d,
  "kdf": {"name": %q, "iterations": %d, "salt": %q},
  "cipher": %q,
  "salt": %q,%s`, storeFormat, storeVersion, storeKDF, h.Iterations, b64(h.KDFSalt[:]), storeCipher,
		b64(h.BodySalt[:]), bodyMember)
}

// ParseHeader reads a keystore file and keeps a copy of its sealed body. It accepts exactly the
// bytes that Seal writes: no other spacing, order or spelling of the same JSON. The errors are
// ErrDamaged, ErrVersion, ErrKDFCost and ErrTooLarge.
func ParseHeader(file []byte) (*File, error) {
	if len(file) > MaxStoreSize {
		return nil, fmt.Errorf("%w: a keystore file of more than %d bytes", ErrTooLarge,
			MaxStoreSize)
	}
	i := bytes.Index(file[:min(len(file), maxHead)], []byte(bodyMember))
	if i < 0 {
		return nil, fmt.Errorf("%w: no header", ErrDamaged)
	}
	head := file[:i+len(bodyMember)]
	h, err := parseHead(head)
	if err != nil {
		return nil, err
	}
	encoded, ok := bytes.CutSuffix(file[len(head):], []byte(storeTail))
	// The decoder would skip line ends.
	if !ok || bytes.ContainsAny(encoded, "\r\n") {
		return nil, fmt.Errorf("%w: the end is missing", ErrDamaged)
	}
	sealed, err := base64.StdEncoding.Strict().AppendDecode(nil, encoded)
	if err != nil || len(sealed) < gcmOverhead {
		return nil, fmt.Errorf("%w: the body is not base64, or too short", ErrDamaged)
	}
	return &File{*h, bytes.Clone(head), sealed}, nil
}

// parseHead decodes the header leniently, encodes the result again, and refuses a header that
// differs from that.
func parseHead(head []byte) (*Header, error) {
	var j jsonHeader
	document := bytes.TrimSuffix(head, []byte(","+bodyMember))
	document = append(bytes.Clone(document), '}')
	if err := json.Unmarshal(document, &j); err != nil || j.Format != storeFormat {
		return nil, fmt.Errorf("%w: the header does not parse", ErrDamaged)
	}
	if j.Version != storeVersion {
		return nil, fmt.Errorf("%w: version %d, where %d is known", ErrVersion, j.Version,
			storeVersion)
	}
	h := &Header{Iterations: j.KDF.Iterations}
	if len(j.KDF.Salt) != saltSize || len(j.Salt) != saltSize {
		return nil, fmt.Errorf("%w: length of a salt", ErrDamaged)
	}
	copy(h.KDFSalt[:], j.KDF.Salt)
	copy(h.BodySalt[:], j.Salt)
	if !bytes.Equal(h.encode(), head) {
		return nil, fmt.Errorf("%w: the header is not as it was written", ErrDamaged)
	}
	if h.Iterations < 1 || h.Iterations > MaxIterations {
		return nil, ErrKDFCost
	}
	return h, nil
}

// MasterKey is the key that PBKDF2 derives from a passphrase. Every body under that passphrase is
// sealed with keys derived from it. key is nil after Wipe.
type MasterKey struct {
	key        []byte
	salt       [saltSize]byte
	iterations int
	mayWrite   bool          // with enough iterations, or AllowWeak
	policy     locked.Policy // for the bodies that it opens and seals
}

// NewMasterKey derives a key with a fresh salt, for a new keystore or a new passphrase. 0
// iterations mean MinIterations; fewer are ErrWeakKDF unless AllowWeak is given. It takes about 130
// ms. The caller wipes the passphrase and the key.
func NewMasterKey(passphrase []byte, iterations int, options ...Option) (*MasterKey, error) {
	iterations, err := checkIterations(iterations, options)
	if err != nil {
		return nil, err
	}
	var salt [saltSize]byte
	rand.Read(salt[:])
	return deriveMasterKey(passphrase, salt, iterations, options)
}

// Unlock derives the key of a keystore file. Open tells whether the passphrase is right. A key with
// fewer iterations than MinIterations opens, but does not seal, unless AllowWeak is given: to write
// the file again takes a NewMasterKey.
func (f *File) Unlock(passphrase []byte, options ...Option) (*MasterKey, error) {
	return deriveMasterKey(passphrase, f.KDFSalt, f.Iterations, options)
}

func deriveMasterKey(passphrase []byte, salt [saltSize]byte, iterations int,
	options []Option) (*MasterKey, error) {
	if len(passphrase) == 0 {
		return nil, ErrPassphraseNeeded
	}
	var key []byte
	var err error
	erase.Do(func() {
		key, err = pbkdf2.Key(sha256.New, borrowString(passphrase), salt[:], iterations,
			masterKeySize)
	})
	if err != nil {
		return nil, err
	}
	_, err = checkIterations(max(iterations, 1), options)
	return &MasterKey{key, salt, iterations, err == nil, policyOf(options)}, nil
}

// Iterations returns the cost with which the key was derived.
func (k *MasterKey) Iterations() int { return k.iterations }

// Fits reports whether the key was derived with the salt and the iterations of the file. If not,
// somebody has changed the passphrase since, and Open returns ErrPassphrase.
func (k *MasterKey) Fits(f *File) bool {
	return k.salt == f.KDFSalt && k.iterations == f.Iterations
}

// MoveTo moves the secret into 32 bytes of the caller's, such as locked memory, and clears its old
// place. The caller keeps dst alive as long as the key.
func (k *MasterKey) MoveTo(dst []byte) error {
	if len(dst) != len(k.key) {
		return fmt.Errorf("%w: a master key has %d bytes", ErrInvalid, masterKeySize)
	}
	erase.Do(func() { copy(dst, k.key) }) // a copy goes through registers
	clear(k.key)
	k.key = dst
	return nil
}

// Wipe clears the secret. After that the key opens and seals nothing.
func (k *MasterKey) Wipe() {
	clear(k.key)
	k.key = nil
}

// Open decrypts and parses the body. The caller wipes it. ErrPassphrase means that the body does
// not open, and ErrDamaged that it opens and breaks the format.
func Open(f *File, k *MasterKey) (*Body, error) {
	if !k.Fits(f) || len(k.key) != masterKeySize {
		return nil, ErrPassphrase
	}
	memory, err := locked.NewWith(k.policy, len(f.sealed)-gcmOverhead)
	if err != nil {
		return nil, err
	}
	err = withGCM(k.key, f.BodySalt[:], storeInfo, func(aead cipher.AEAD) error {
		if _, err := aead.Open(memory.Bytes()[:0], nil, f.sealed, f.head); err != nil {
			return ErrPassphrase
		}
		return nil
	})
	if err != nil {
		memory.Destroy()
		return nil, err
	}
	return parseBody(memory)
}

// Seal encodes and encrypts a body under a fresh salt and nonce, and returns the whole file. The
// caller wipes the body. ErrInvalid names the fault of a body that must not be written.
func Seal(b *Body, k *MasterKey) ([]byte, error) {
	if !k.mayWrite {
		return nil, ErrWeakKDF
	}
	if len(k.key) != masterKeySize {
		return nil, fmt.Errorf("%w: a wiped master key", ErrInvalid)
	}
	var memory *locked.Buffer
	var err error
	erase.Do(func() { memory, err = b.marshal(k.policy) })
	if err != nil {
		return nil, err
	}
	defer memory.Destroy()
	plaintext := memory.Bytes()
	h := Header{Iterations: k.iterations, KDFSalt: k.salt}
	rand.Read(h.BodySalt[:])
	head := h.encode()
	size := len(head) + base64.StdEncoding.EncodedLen(len(plaintext)+gcmOverhead) + len(storeTail)
	if size > MaxStoreSize {
		return nil, fmt.Errorf("%w: a keystore file of more than %d bytes", ErrTooLarge,
			MaxStoreSize)
	}
	sealed := make([]byte, 0, len(plaintext)+gcmOverhead)
	err = withGCM(k.key, h.BodySalt[:], storeInfo, func(aead cipher.AEAD) error {
		sealed = aead.Seal(sealed, nil, plaintext, head)
		return nil
	})
	if err != nil {
		return nil, err
	}
	file := make([]byte, 0, size)
	file = append(file, head...)
	file = base64.StdEncoding.AppendEncode(file, sealed)
	return append(file, storeTail...), nil
}
