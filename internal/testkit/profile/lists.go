// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package profile

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"
)

const day = 86400

// listOf is application/ohttp-keys.
func listOf(configs ...[]byte) (list []byte) {
	for _, c := range configs {
		list = join(list, u16(uint16(len(c))), c)
	}
	return list
}

func signedMessage(list []byte, created, expires int64) []byte {
	m := binary.BigEndian.AppendUint64([]byte("sealedchat ohttp keys v1\x00"), uint64(created))
	return join(binary.BigEndian.AppendUint64(m, uint64(expires)), list)
}

// header is the value of Ohttp-Keys-Signature.
func header(key ed25519.PrivateKey, list []byte, created, expires int64) string {
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("key=:%s:, created=%d, expires=%d, sig=:%s:",
		b64(key.Public().(ed25519.PublicKey)), created, expires,
		b64(ed25519.Sign(key, signedMessage(list, created, expires))))
}

func makeLists() Lists {
	seed := derive("the signer", 32)
	key := ed25519.NewKeyFromSeed(seed)
	public := []byte(key.Public().(ed25519.PublicKey))
	sum := sha256.Sum256(public)
	l := Lists{Comment: comment, Seed: seed, Public: public, Signer: sum[:], Created: now,
		Expires: now + day, List: listOf(x25519Key().Config, x25519BothKey().Config)}
	l.Message = signedMessage(l.List, l.Created, l.Expires)
	l.Signature = ed25519.Sign(key, l.Message)
	l.Header = header(key, l.List, l.Created, l.Expires)
	l.signatures(key)
	l.parsed()
	return l
}

func (l *Lists) signatures(key ed25519.PrivateKey) {
	add := func(name string, signed bool, after int64, list []byte, header ...string) {
		l.Signed = append(l.Signed, SignatureCase{name, append([]string{}, header...), list,
			now + after, signed})
	}
	const hour = 3600
	good := l.Header
	add("as it was signed", true, 0, l.List, good)
	add("two hours old", true, 2*hour, l.List, good)
	add("older than two hours", false, 2*hour+1, l.List, good)
	add("of one hour ahead", true, -hour, l.List, good)
	add("of more than an hour ahead", false, -hour-1, l.List, good)
	short := header(key, l.List, now, now+hour)
	add("a second before it expires", true, hour-1, l.List, short)
	add("expired", false, hour, l.List, short)
	add("no header", false, 0, l.List)
	add("two headers", false, 0, l.List, good, good)
	add("an empty header", false, 0, l.List, "")
	add("a bit of the list", false, 0, flip(l.List, 10), good)
	add("a configuration left out", false, 0, listOf(x25519Key().Config), good)
	replace := func(name, old, new string) {
		text := strings.Replace(good, old, new, 1)
		if text == good {
			panic(name)
		}
		add(name, false, 0, l.List, text)
	}
	replace("another created", "created=946684800", "created=946684801")
	replace("another expires", "expires=946771200", "expires=946771201")
	replace("created as text", "created=946684800", `created="946684800"`)
	replace("no created", "created=946684800, ", "")
	replace("no expires", "expires=946771200, ", "")
	replace("created twice", "created=946684800", "created=946684800, created=946684800")
	replace("sig without its colons", "sig=:", "sig=")
	replace("a short key", "key=:", "key=:AAAA:, other=:")
	add("members in another order", true, 0, l.List, reorder(good))
	add("with a member more", true, 0, l.List, good+", other=1")
	other := ed25519.NewKeyFromSeed(derive("another signer", 32))
	mixed := strings.Replace(good, base64.StdEncoding.EncodeToString(l.Public),
		base64.StdEncoding.EncodeToString(other.Public().(ed25519.PublicKey)), 1)
	add("the key of another signer", false, 0, l.List, mixed)
	flipped := base64.StdEncoding.EncodeToString(flip(l.Signature, 0))
	add("a bit of the signature", false, 0, l.List,
		strings.Replace(good, base64.StdEncoding.EncodeToString(l.Signature), flipped, 1))
}

func reorder(header string) string {
	members := strings.Split(header, ", ")
	return strings.Join([]string{members[3], members[1], members[0], members[2]}, ",")
}

func (l *Lists) parsed() {
	a, b := x25519Key(), x25519BothKey()
	xw, xwBoth := xwingKey(), xwingBothKey()
	add := func(name string, list []byte, k Key, aead uint16) {
		l.Parsed = append(l.Parsed, ListCase{Name: name, List: list, Chosen: k.Fingerprint,
			AEAD: aead})
	}
	bad := func(name string, list []byte) {
		l.Parsed = append(l.Parsed, ListCase{Name: name, List: list, Malformed: true})
	}
	only128 := newKey(5, x25519, aes128)
	xw128 := newKey(6, xwing, aes128)
	unknown := []byte{9, 0xab, 0xcd, 1, 0, 4, 0, 1, 0, 2}
	chacha := newKey(7, x25519, 3)
	other := newKey(8, x25519, 3, aes128)
	add("one configuration", listOf(a.Config), a, aes256)
	add("the first of two alike", listOf(a.Config, b.Config), a, aes256)
	add("X-Wing, wherever it stands", listOf(a.Config, xw.Config), xw, aes256)
	add("AES-256-GCM of both", listOf(xwBoth.Config), xwBoth, aes256)
	add("AES-128-GCM, where there is no other", listOf(only128.Config), only128, aes128)
	add("AES-256-GCM, wherever it stands", listOf(only128.Config, a.Config), a, aes256)
	add("X-Wing with AES-128-GCM before X25519 with AES-256-GCM", listOf(a.Config, xw128.Config),
		xw128, aes128)
	add("an unknown KEM is skipped", listOf(unknown, a.Config), a, aes256)
	add("another AEAD is skipped", listOf(chacha.Config, a.Config), a, aes256)
	add("beside another AEAD", listOf(other.Config), other, aes128)
	add("nothing that is known", listOf(unknown, chacha.Config), Key{}, 0)
	bad("empty", []byte{})
	bad("half a length", []byte{0})
	bad("a length beyond the end", listOf(a.Config)[:20])
	bad("a byte after the last one", join(listOf(a.Config), []byte{0}))
	bad("a good one, and one that is cut", join(listOf(a.Config), listOf(b.Config)[:30]))
	n := len(a.Config)
	bad("no algorithms", listOf(join(a.Config[:n-6], []byte{0, 0})))
	bad("half a pair of algorithms", listOf(join(a.Config[:n-6], []byte{0, 2, 0, 1})))
	bad("algorithms beyond the end", listOf(join(a.Config[:n-6], []byte{0, 8, 0, 1, 0, 2})))
	bad("a key of ML-KEM that is none", listOf(join(xw.Config[:3], bytes.Repeat([]byte{0xff}, 1184),
		xw.Config[3+1184:])))
}
