// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"slices"
)

// Config is a public key configuration (RFC 9458, section 3.1) of a supported suite. It never
// changes after it was made.
type Config struct {
	id      uint8
	kem     *kem
	aead    *aead
	public  hpke.PublicKey
	encoded []byte
}

// ID is the key id.
func (c *Config) ID() uint8 { return c.id }

// KEM is XWing or X25519.
func (c *Config) KEM() uint16 { return c.kem.id }

// Encoded returns the configuration as it stood in its list, without the length before it. The
// caller owns the result.
func (c *Config) Encoded() []byte { return bytes.Clone(c.encoded) }

// Fingerprint returns the SHA-256 of Encoded.
func (c *Config) Fingerprint() [sha256.Size]byte { return sha256.Sum256(c.encoded) }

// Equal reports whether both are the same configuration, byte for byte.
func (c *Config) Equal(other *Config) bool { return bytes.Equal(c.encoded, other.encoded) }

// header returns the first bytes of a request for this configuration (RFC 9458, section 4.3).
func (c *Config) header() []byte {
	h := append(make([]byte, 0, headerLen), c.id)
	h = binary.BigEndian.AppendUint16(h, c.kem.id)
	h = binary.BigEndian.AppendUint16(h, kdfHKDFSHA256)
	return binary.BigEndian.AppendUint16(h, c.aead.id)
}

// AppendConfigs appends the list of the configurations in the form of application/ohttp-keys.
func AppendConfigs(dst []byte, configs ...*Config) []byte {
	for _, c := range configs {
		dst = append(binary.BigEndian.AppendUint16(dst, uint16(len(c.encoded))), c.encoded...)
	}
	return dst
}

// ParseConfigs decodes application/ohttp-keys. It refuses the whole list with ErrConfig if any part
// is malformed (RFC 9458, section 3.2). It leaves out configurations of other suites, so the result
// may be empty. The caller bounds the length of list.
func ParseConfigs(list []byte) ([]*Config, error) {
	var configs []*Config
	if len(list) == 0 {
		return nil, ErrConfig
	}
	for len(list) > 0 {
		if len(list) < 2 {
			return nil, ErrConfig
		}
		n := int(binary.BigEndian.Uint16(list))
		if list = list[2:]; n > len(list) {
			return nil, ErrConfig
		}
		c, err := parseConfig(list[:n], aes256)
		if err != nil {
			return nil, err
		}
		if c != nil {
			configs = append(configs, c)
		}
		list = list[n:]
	}
	return configs, nil
}

// parseConfig decodes one configuration. It returns nil for one of another suite.
func parseConfig(b []byte, want *aead) (*Config, error) {
	const least = 3 + 1 + 2 + 4 // id and KEM, a key of any length, one pair of algorithms
	if len(b) < least {
		return nil, ErrConfig
	}
	c := &Config{id: b[0], kem: kemByID(binary.BigEndian.Uint16(b[1:])), aead: want,
		encoded: bytes.Clone(b)}
	if c.kem == nil {
		return nil, nil // the length of its key is not known, so nothing more can be checked
	}
	key := b[3:]
	if len(key) < c.kem.public+2+4 {
		return nil, ErrConfig
	}
	key, algorithms := key[:c.kem.public], key[c.kem.public:]
	if n := int(binary.BigEndian.Uint16(algorithms)); n != len(algorithms)-2 || n%4 != 0 {
		return nil, ErrConfig
	}
	var err error
	if c.public, err = c.kem.new().NewPublicKey(key); err != nil {
		return nil, ErrConfig
	}
	for pair := range slices.Chunk(algorithms[2:], 4) {
		if binary.BigEndian.Uint16(pair) == kdfHKDFSHA256 &&
			binary.BigEndian.Uint16(pair[2:]) == want.id {
			return c, nil
		}
	}
	return nil, nil
}

// Choose returns the configuration that a client should use: the first one with X-Wing, or else the
// first one. The error is ErrNoSuite if there is none.
func Choose(configs []*Config) (*Config, error) {
	for _, k := range kems {
		for _, c := range configs {
			if c.kem == k {
				return c, nil
			}
		}
	}
	return nil, ErrNoSuite
}
