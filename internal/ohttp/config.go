// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"bytes"
	"cmp"
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
	aead    *aead // of requests: the preferred one of those that the configuration offers
	public  hpke.PublicKey
	encoded []byte
}

// ID is the key id.
func (c *Config) ID() uint8 { return c.id }

// KEM is XWing or X25519.
func (c *Config) KEM() uint16 { return c.kem.id }

// AES128 reports whether requests for c are sealed with AES-128-GCM: c does not offer AES-256-GCM.
func (c *Config) AES128() bool { return c.aead == aes128 }

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
// may be empty; Suites names them. The caller bounds the length of list.
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
		c, err := parseConfig(list[:n])
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
func parseConfig(b []byte) (*Config, error) {
	const least = 3 + 1 + 2 + 4 // id and KEM, a key of any length, one pair of algorithms
	if len(b) < least {
		return nil, ErrConfig
	}
	c := &Config{id: b[0], kem: kemByID(binary.BigEndian.Uint16(b[1:])), encoded: bytes.Clone(b)}
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
	for _, a := range aeads {
		for pair := range slices.Chunk(algorithms[2:], 4) {
			if binary.BigEndian.Uint16(pair) == kdfHKDFSHA256 &&
				binary.BigEndian.Uint16(pair[2:]) == a.id {
				c.aead = a
				return c, nil
			}
		}
	}
	return nil, nil
}

// Compare is negative if a client should prefer a to b, and positive if b to a: X-Wing comes before
// X25519, and of the same KEM AES-256-GCM before AES-128-GCM.
func Compare(a, b *Config) int {
	return cmp.Or(slices.Index(kems[:], a.kem)-slices.Index(kems[:], b.kem),
		slices.Index(aeads[:], a.aead)-slices.Index(aeads[:], b.aead))
}

// Choose returns the configuration that a client should use: the first one that Compare prefers.
// The error is ErrNoSuite if there is none.
func Choose(configs []*Config) (*Config, error) {
	if len(configs) == 0 {
		return nil, ErrNoSuite
	}
	return slices.MinFunc(configs, Compare), nil
}
