// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package ohttp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// This file names the suites of a list, for an error that says what a gateway offers.

// maxNamed is how many suites an error names. A list comes from the other end, and may hold
// thousands.
const maxNamed = 8

// named is an algorithm of the registries of HPKE. public is the size of a KEM's public key.
type named struct {
	id     uint16
	name   string
	public int
}

var (
	namedKEMs = []named{
		{0x0010, "P-256", 65}, {0x0011, "P-384", 97}, {0x0012, "P-521", 133},
		{X25519, "X25519", 32}, {0x0021, "X448", 56},
		{0x0040, "ML-KEM-512", 800}, {0x0041, "ML-KEM-768", 1184}, {0x0042, "ML-KEM-1024", 1568},
		{0x0050, "MLKEM768-P256", 1249}, {0x0051, "MLKEM1024-P384", 1665}, {XWing, "X-Wing", 1216},
	}
	namedKDFs = []named{
		{kdfHKDFSHA256, "HKDF-SHA256", 0}, {0x0002, "HKDF-SHA384", 0}, {0x0003, "HKDF-SHA512", 0},
		{0x0010, "SHAKE128", 0}, {0x0011, "SHAKE256", 0},
	}
	namedAEADs = []named{
		{0x0001, "AES-128-GCM", 0}, {0x0002, "AES-256-GCM", 0}, {0x0003, "ChaCha20Poly1305", 0},
	}
)

// nameOf is an algorithm as an error names it: "X-Wing (0x647a)", or "0xabcd".
func nameOf(list []named, id uint16) string {
	i := slices.IndexFunc(list, func(n named) bool { return n.id == id })
	if i < 0 {
		return fmt.Sprintf("%#04x", id)
	}
	return fmt.Sprintf("%s (%#04x)", list[i].name, id)
}

// Suites names the suites of a list that ParseConfigs has read: KEM, KDF and AEAD of each pair of
// algorithms, with their numbers. Of a KEM whose key has a length that is not known here, it names
// no more. It names each suite once, and eight at most. The text has nothing of the list except
// numbers.
func Suites(list []byte) string {
	var names []string
	more := false
	add := func(name string) {
		switch {
		case slices.Contains(names, name):
		case len(names) == maxNamed:
			more = true
		default:
			names = append(names, name)
		}
	}
	for len(list) >= 2 && !more {
		n := min(int(binary.BigEndian.Uint16(list)), len(list)-2)
		suitesOf(list[2:2+n], add)
		list = list[2+n:]
	}
	if more {
		names = append(names, "and others")
	}
	return strings.Join(names, ", ")
}

// suitesOf names the suites of one configuration.
func suitesOf(config []byte, add func(string)) {
	if len(config) < 3 {
		return
	}
	id := binary.BigEndian.Uint16(config[1:])
	kem := nameOf(namedKEMs, id)
	i := slices.IndexFunc(namedKEMs, func(n named) bool { return n.id == id })
	if i < 0 || len(config) < 3+namedKEMs[i].public+2 {
		add(kem)
		return
	}
	algorithms := config[3+namedKEMs[i].public+2:]
	for ; len(algorithms) >= 4; algorithms = algorithms[4:] {
		add(kem + " with " + nameOf(namedKDFs, binary.BigEndian.Uint16(algorithms)) + " and " +
			nameOf(namedAEADs, binary.BigEndian.Uint16(algorithms[2:])))
	}
}
